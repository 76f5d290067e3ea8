"""Controls: questions whose answer is known, asked of the judge before its verdict on the arms is believed.

Neither side may win where both show the same answer, where they show two samples of one arm, or where the arms have
shuffled names: a judge that sees a winner there sees one everywhere. A constant answer, a cut-off one or a padded one
that wins shows what the judge pays for instead of the task. An evaluation that fails one of these has no verdict to
give, whatever its table says.

A control that should end at 50% fails where the exact sign test has p below 0.001, that is, where the 99.9% interval
leaves 50% out. An honest judge fails such a control by chance less than once in a thousand runs. At 95% it would fail
in one run of twenty, and a reader who sees that often learns to ignore it.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.results import Control, Pairwise
from dpo_kit.evaluation.statistics import pairwise
from dpo_kit.preferences.judges import Judge, judge_all
from dpo_kit.records import Prompt

CHANCE = 0.001
NEARLY_ALL = 0.9
PADDING = 3 * " To sum up, this is a thorough, careful and complete answer, and every point has been considered."


def run_controls(
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[str]],
    judge: Judge,
    *,
    resample: Sequence[str] | None = None,
    primary: tuple[str, str] = ("dpo", "sft"),
    seed: int = 0,
    workers: int = 1,
) -> tuple[Control, ...]:
    """Ask `judge` questions whose answer is known, and see whether each arm varies its answers.

    `answers` holds each arm's texts in the order of `prompts`; `resample` are other answers of the second arm of
    `primary`, drawn with another seed, without which that control is left out. `judge` is asked exactly as the
    evaluation asks it: give it wrapped in `both_orders` where the evaluation does.
    Raises DpoKitError where texts and prompts differ in number or there are fewer than two prompts.
    """
    texts = {**answers, **({} if resample is None else {"resample": resample})}
    for arm, given in texts.items():
        if len(given) != len(prompts) or len(prompts) < 2:
            raise DpoKitError(
                f"controls: {arm} has {len(given)} answers to {len(prompts)} prompts; each needs one, of two or more"
            )
    treated, control = (answers[arm] for arm in primary)

    def ask(a: Sequence[str], b: Sequence[str]) -> Pairwise:
        return pairwise(judge_all(judge, prompts, a, b, workers=workers))

    swapped = [random.Random(f"labels/{seed}/{prompt.id}").random() < 0.5 for prompt in prompts]
    first = [c if swap else t for t, c, swap in zip(treated, control, swapped, strict=True)]
    second = [t if swap else c for t, c, swap in zip(treated, control, swapped, strict=True)]
    constant = [sorted(control, key=len)[len(control) // 2]] * len(prompts)
    halves = [text[: len(text) // 2] for text in control]
    padded = [text + PADDING for text in control]
    controls = [_identical(ask(control, control))]
    if resample is not None:
        controls.append(_even("resample", f"two samples of {primary[1]}: neither wins", ask(control, resample)))
    controls += [
        _even("shuffled", "arms under shuffled names: neither name wins", ask(first, second)),
        _loses("constant", "one answer to every prompt: loses", ask(constant, control)),
        _no_win("truncated", "answers cut in half: do not win", ask(halves, control)),
        _no_win("padded", "answers with empty words added: do not win", ask(padded, control)),
    ]
    return (*controls, *(varied(arm, given) for arm, given in answers.items()))


def varied(arm: str, answers: Sequence[str] | Sequence[int]) -> Control:
    """Whether an arm answers the prompts: it must not give one text, nor texts of one length, to nearly all of them.

    `answers` are texts, or lengths where only these are known. A constant answer can win 80% of the verdicts of a
    strong judge (Zheng et al., arXiv 2410.07137). One that changes a word from prompt to prompt still has one length.
    """
    texts = [answer for answer in answers if isinstance(answer, str)]
    same_text = _most_common_share(texts)
    same_length = _most_common_share([len(answer) if isinstance(answer, str) else answer for answer in answers])
    share, what = (same_text, "text") if same_text >= NEARLY_ALL else (same_length, "length")
    return Control(
        name=f"varied answers of {arm}",
        expected="answers differ from prompt to prompt",
        passed=len(answers) < 2 or share < NEARLY_ALL,
        found=f"the most common {what} is that of {share:.0%} of {len(answers)} answers",
    )


def _most_common_share(values: Sequence) -> float:
    return Counter(values).most_common(1)[0][1] / len(values) if values else 0.0


def _identical(result: Pairwise) -> Control:
    passed = not (result.wins or result.losses) and result.ties > 0
    return Control("identical", "the same answer on both sides: all ties", passed, str(result))


def _even(name: str, expected: str, result: Pairwise) -> Control:
    passed = result.p_value >= CHANCE and _judged(result)
    return Control(name, expected, passed, f"{result}; sign test p = {result.p_value:.2g}")


def _loses(name: str, expected: str, result: Pairwise) -> Control:
    return Control(name, expected, result.losses > result.wins, str(result))


def _no_win(name: str, expected: str, result: Pairwise) -> Control:
    won = result.wins > result.losses and result.p_value < CHANCE
    return Control(name, expected, not won and _judged(result), str(result))


def _judged(result: Pairwise) -> bool:
    """Whether any prompt was judged; a control without a verdict has shown nothing and does not pass."""
    return result.wins + result.ties + result.losses > 0
