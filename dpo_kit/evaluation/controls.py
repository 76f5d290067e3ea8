"""Controls: questions whose answer is known, asked of the judge before its verdict on the arms is believed.

Neither side should win where both sides are the same answer or two samples of one arm, or where the arms' names are
shuffled. A judge that finds a winner there cannot be believed elsewhere. If a constant answer, a cut-off one or a
padded one wins, the judge rewards something other than the task. An evaluation that fails one control gives no verdict,
whatever its table says.

A control that should end at 50% fails where the exact sign test has p below 0.001, that is, where the 99.9% interval
leaves 50% out. An honest judge fails such a control by chance less than once in a thousand runs. With a limit of 5% it
would fail in one run of twenty, and readers would learn to ignore failed controls.
"""

import random
from collections.abc import Mapping, Sequence

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.results import Control, Pairwise
from dpo_kit.evaluation.statistics import most_common_share, pairwise
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
    """Ask `judge` questions whose answer is known, and check that each arm varies its answers.

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

    swapped = [random.Random(f"labels/{seed}/{prompt.id}").random() < 0.5 for prompt in prompts]
    first = [c if swap else t for t, c, swap in zip(treated, control, swapped, strict=True)]
    # the two sides under the other name
    second = [t if swap else c for t, c, swap in zip(treated, control, swapped, strict=True)]
    # the answer of median length: neither its length nor its content was chosen
    constant = [sorted(control, key=len)[len(control) // 2]] * len(prompts)
    halves, padded = [text[: len(text) // 2] for text in control], [text + PADDING for text in control]
    asked = [
        ("identical", "the same answer on both sides: all ties", control, control, _all_ties),
        ("resample", f"two samples of {primary[1]}: neither wins", control, resample, _even),
        ("shuffled", "arms under shuffled names: neither name wins", first, second, _even),
        ("constant", "one answer to every prompt: loses", constant, control, _loses),
        ("truncated", "answers cut in half: do not win", halves, control, _no_win),
        ("padded", "answers with empty words added: do not win", padded, control, _no_win),
    ]
    controls = []
    for name, expected, a, b, passes in asked:
        if b is not None:
            result = pairwise(judge_all(judge, prompts, a, b, workers=workers))
            judged = result.wins + result.ties + result.losses > 0  # a control without any verdict cannot pass
            found = f"{result}; sign test p = {result.p_value:.2g}"
            controls.append(Control(name, expected, judged and passes(result), found))
    return (*controls, *(varied(arm, given) for arm, given in answers.items()))


def _all_ties(result: Pairwise) -> bool:
    return not (result.wins or result.losses)


def _even(result: Pairwise) -> bool:
    return result.p_value >= CHANCE


def _loses(result: Pairwise) -> bool:
    return result.losses > result.wins


def _no_win(result: Pairwise) -> bool:
    return result.wins <= result.losses or result.p_value >= CHANCE


def varied(arm: str, answers: Sequence[str] | Sequence[int]) -> Control:
    """Whether an arm answers the prompts: nearly all answers must not have the same text, nor the same length.

    `answers` are texts, or lengths where only these are known. A constant answer can win 80% of the verdicts of a
    strong judge (Zheng et al., arXiv 2410.07137). Lengths are checked too, because a constant answer may have one word
    changed for each prompt.
    """
    texts = [answer for answer in answers if isinstance(answer, str)]
    same_text = most_common_share(texts)
    same_length = most_common_share([len(answer) if isinstance(answer, str) else answer for answer in answers])
    share, what = (same_text, "text") if same_text >= NEARLY_ALL else (same_length, "length")
    return Control(
        name=f"varied answers of {arm}",
        expected="answers differ from prompt to prompt",
        passed=len(answers) < 2 or share < NEARLY_ALL,
        found=f"the most common {what} is that of {share:.0%} of {len(answers)} answers",
    )
