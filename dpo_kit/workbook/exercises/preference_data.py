"""The checks of notebook 04: two orders, a faulty annotator, Cohen's kappa, a split by prompt."""

from collections.abc import Callable, Sequence
from itertools import product

from dpo_kit.workbook.exercises import CheckResult, verdict_on

WINNERS = ("a", "b", "tie", "unjudged")


def check_collapse(answer: Callable) -> CheckResult:
    """`answer(forward, backward)`: a judge's winners in both orders in, one winner out."""
    cases = list(product(WINNERS, repeat=2))
    return verdict_on(answer, _collapse, _COLLAPSE, cases)


def check_error_rate(answer: Callable) -> CheckResult:
    """`answer(accuracy, position_bias, length_bias, longer)`: how often the simulated annotator is wrong."""
    cases = [
        (1.0, 0.0, 0.0, 0.5),
        (0.8, 0.0, 0.0, 0.5),
        (0.9, 0.3, 0.0, 0.5),
        (0.9, 0.1, 0.3, 0.7),
        (0.7, 0.2, 0.2, 0.1),
    ]
    return verdict_on(answer, _error_rate, _ERROR_RATE, cases)


def check_kappa(answer: Callable) -> CheckResult:
    """`answer(x, y)`: two lists of labels in, Cohen's kappa out."""
    cases = [
        (list("aabbt"), list("aabbt")),
        (list("aabbtt"), list("ababtt")),
        (list("aaaaaaab"), list("aaaaaaba")),
        (list("ab") * 6, list("ba") * 6),
        (list("aaaab"), list("abbbb")),  # two raters with different shares of a and b: kappa is not Scott's pi here
        (list("abtt"), list("abat")),
    ]
    return verdict_on(answer, _kappa, _KAPPA, cases)


def check_split(answer: Callable) -> CheckResult:
    """`answer(prompts, every)`: a prompt a pair in, True where the pair is held out."""
    cases = [(list("xyzxyz"), 3), (list("aabbccdd"), 2), (list("pqpqrs"), 4), (list("zxyzxw"), 2)]
    return verdict_on(answer, _split, _SPLIT, cases)


def _collapse(forward: str, backward: str) -> str:
    if "unjudged" in (forward, backward):
        return "unjudged"
    return forward if forward == backward else "tie"


def _error_rate(accuracy: float, position_bias: float, length_bias: float, longer: float) -> float:
    reads = 1 - position_bias - length_bias
    return position_bias * 0.5 + length_bias * (1 - longer) + reads * (1 - accuracy)


def _kappa(x: Sequence[str], y: Sequence[str]) -> float:
    n = len(x)
    observed = sum(a == b for a, b in zip(x, y, strict=True)) / n
    chance = sum(list(x).count(label) * list(y).count(label) for label in set(x)) / n**2
    return (observed - chance) / (1 - chance)


def _split(prompts: Sequence[str], every: int) -> list[bool]:
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return [places[prompt] % every == 0 for prompt in prompts]


def _observed(x: Sequence[str], y: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(x, y, strict=True)) / len(x)


def _scotts_pi(x: Sequence[str], y: Sequence[str]) -> float:
    both = [*x, *y]
    chance = sum((both.count(label) / len(both)) ** 2 for label in set(both))
    return (_observed(x, y) - chance) / (1 - chance)


_COLLAPSE = {
    "an unjudged order makes the pair unjudged: no winner may come from half a question": lambda f, b: (
        "unjudged" if f == b == "unjudged" else b if f == "unjudged" else f if b == "unjudged" or f == b else "tie"
    ),
    "two different winners are a tie; here the first question decides": lambda f, b: f,
    "a winner and a tie are two different verdicts, and make a tie": lambda f, b: (
        "unjudged" if "unjudged" in (f, b) else f if b == "tie" else b if f in (b, "tie") else "tie"
    ),
    "unjudged and tie are not the same: the judge gave no answer": lambda f, b: (
        "tie" if "unjudged" in (f, b) or f != b else f
    ),
}
_ERROR_RATE = {
    "it is wrong half of the time it takes the first: add position_bias / 2": lambda a, p, ell, g: (
        ell * (1 - g) + (1 - p - ell) * (1 - a)
    ),
    "this is how often it is right": lambda *given: 1 - _error_rate(*given),
    "taking the longer is wrong where the better answer is the shorter: 1 - longer": lambda a, p, ell, g: (
        p * 0.5 + ell * g + (1 - p - ell) * (1 - a)
    ),
    "it misreads only when it reads: weight 1 - accuracy with 1 - position_bias - length_bias": lambda a, p, ell, g: (
        p * 0.5 + ell * (1 - g) + (1 - a)
    ),
}
_KAPPA = {
    "this is the observed agreement; chance is still in it": _observed,
    "chance agreement comes from each rater's own shares, not from one over the number of labels": lambda x, y: (
        (_observed(x, y) - 1 / len({*x, *y})) / (1 - 1 / len({*x, *y}))
    ),
    "this is Scott's pi: chance agreement multiplies the shares of x and of y, it does not pool them first": _scotts_pi,
    "divide by what is left above chance, 1 - p_e": lambda x, y: (
        _observed(x, y) - (sum(list(x).count(label) * list(y).count(label) for label in set(x)) / len(x) ** 2)
    ),
}
_SPLIT = {
    "this splits by pair: two pairs of one prompt must stay on one side": lambda prompts, every: [
        place % every == 0 for place in range(len(prompts))
    ],
    "prompts are counted in the order in which they first appear, not in alphabetical order": lambda prompts, every: [
        sorted(set(prompts)).index(prompt) % every == 0 for prompt in prompts
    ],
    "the sides are exchanged: True means held out": lambda prompts, every: [
        not side for side in _split(prompts, every)
    ],
}
