"""The checks of notebook 06: what pairing saves, the sign test, Holm's correction, how many prompts an effect needs."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from statistics import variance

from dpo_kit.workbook.exercises import CheckResult, verdict_on

BOTH_POINTS = 2.8  # the normal's 97.5% point and its 80% point, added: 5% two-sided, 80% power


def check_pairing(answer: Callable) -> CheckResult:
    """`answer(treated, control)`: two lists of scores on the same prompts in, unpaired over paired variance out."""
    cases = [
        ([1, 1, 0, 1, 0, 1], [1, 0, 0, 1, 0, 0]),
        ([0.9, 0.5, 0.7, 0.2], [0.8, 0.3, 0.7, 0.1]),
        ([1.0, 0.0, 1.0, 0.0, 0.5], [0.0, 1.0, 0.5, 1.0, 0.0]),
    ]
    return verdict_on(answer, _pairing, _PAIRING, cases)


def check_sign_test(answer: Callable) -> CheckResult:
    """`answer(wins, losses)`: two counts in, the exact two-sided p-value out."""
    cases = [(8, 2), (2, 8), (5, 5), (10, 0), (234, 83), (17, 11), (1, 1), (4, 4), (3, 4), (0, 1)]
    return verdict_on(answer, _sign_test, _SIGN_TEST, cases)


def check_holm(answer: Callable) -> CheckResult:
    """`answer(p_values)`: a list in, the adjusted p-values in the same order out."""
    cases = [([0.01, 0.04, 0.03],), ([0.2, 0.001, 0.03, 0.035],), ([0.9, 0.6],), ([0.02],)]
    return verdict_on(answer, _holm, _HOLM, cases)


def check_prompts_needed(answer: Callable) -> CheckResult:
    """`answer(effect, sd)`: the difference to see and the spread of differences in, a number of prompts out."""
    cases = [(0.05, 0.4), (0.1, 0.4), (-0.1, 0.55), (0.3, 0.6)]
    return verdict_on(answer, _prompts_needed, _PROMPTS_NEEDED, cases, tolerance=1e-9)


def _gains(treated: Sequence[float], control: Sequence[float]) -> list[float]:
    return [t - c for t, c in zip(treated, control, strict=True)]


def _pairing(treated: Sequence[float], control: Sequence[float]) -> float:
    return (variance(treated) + variance(control)) / variance(_gains(treated, control))


def _tail(wins: int, losses: int) -> float:
    n = wins + losses
    return sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n


def _sign_test(wins: int, losses: int) -> float:
    return min(1.0, 2 * _tail(wins, losses))


def _holm(p_values: Sequence[float]) -> list[float]:
    return _stepped(p_values, accumulated=True)


def _stepped(p_values: Sequence[float], accumulated: bool, last: int = 1) -> list[float]:
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    stepped = [(len(order) - place - 1 + last) * p_values[i] for place, i in enumerate(order)]
    grown = accumulate(stepped, max) if accumulated else stepped
    adjusted = dict(zip(order, grown, strict=True))  # back from sorted places to the places in `p_values`
    return [min(1.0, adjusted[i]) for i in range(len(p_values))]


def _prompts_needed(effect: float, sd: float) -> int:
    return math.ceil((BOTH_POINTS * sd / effect) ** 2)


_PAIRING = {
    "it is upside down: how many times as many prompts does the unpaired comparison need?": lambda t, c: (
        1 / _pairing(t, c)
    ),
    "these are standard errors; prompts are saved by the ratio of their squares": lambda t, c: math.sqrt(
        _pairing(t, c)
    ),
    "unpaired, the variances of both arms add up; here is only one of them": lambda t, c: (
        variance(t) / variance(_gains(t, c))
    ),
    "the variance of a difference of independent numbers is the sum of theirs, not the difference": lambda t, c: (
        abs(variance(t) - variance(c)) / variance(_gains(t, c))
    ),
}
_SIGN_TEST = {
    "this is one tail: a coin may fall to either side, so double it": _tail,
    "a probability is at most 1: two equal tails share the middle": lambda w, n: 2 * _tail(w, n),
    "this is the chance of exactly this split; add the more extreme ones": lambda w, n: (
        math.comb(w + n, w) / 2 ** (w + n)
    ),
}
_HOLM = {
    "this is Bonferroni's: the smallest is multiplied by m, the next by m - 1, and so on": lambda p: [
        min(1.0, len(p) * value) for value in p
    ],
    "an adjusted p-value may not fall below that of a smaller one: take the greatest so far": lambda p: _stepped(
        p, accumulated=False
    ),
    "give them back in the order in which they came": lambda p: sorted(_holm(p)),
    "the smallest is multiplied by m, not by m - 1": lambda p: _stepped(p, accumulated=True, last=0),
}
_PROMPTS_NEEDED = {
    "the number of prompts grows with the square: half the effect needs four times as many": lambda e, s: math.ceil(
        BOTH_POINTS * s / abs(e)
    ),
    "with 1.96 alone the effect is missed half of the time: 0.84 more makes it 80%": lambda e, s: math.ceil(
        (1.96 * s / e) ** 2
    ),
    "there are no parts of prompts: round up": lambda e, s: (BOTH_POINTS * s / e) ** 2,
    "round up, not to the nearest": lambda e, s: round((BOTH_POINTS * s / e) ** 2),
    "the spread of differences within prompts is in sd already: no factor of 2": lambda e, s: math.ceil(
        2 * (BOTH_POINTS * s / e) ** 2
    ),
}
