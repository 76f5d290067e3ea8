"""The judges of the workbook's world: the exact rubric, an annotator with faults of known rates, and a coin."""

import random
from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.judges import MIRROR, Judge, both_orders, by_score
from dpo_kit.profiles import JudgeSettings
from dpo_kit.records import Prompt, Verdict, Winner
from dpo_kit.triage import rubric


def rubric_judge() -> Judge:
    """The exact rubric as a judge of two answers."""
    return by_score(rubric.overall, "rubric")


def judge_in_world(settings: JudgeSettings, truth: Judge, cache: Path, seed: int = 0) -> Judge:
    """The judge that a profile names, in a world where the exact judge `truth` exists.

    Kinds of judge that need no truth are made by `preferences.judges.llm.make_judge`, whose errors it raises.
    """
    if settings.kind == "rubric":
        return truth
    if settings.kind != "simulated":
        from dpo_kit.preferences.judges.llm import make_judge

        return make_judge(settings, cache)
    biases = {"position_bias": settings.position_bias, "length_bias": settings.length_bias}
    judge = simulated(truth, accuracy=settings.accuracy, **biases, seed=seed)
    return both_orders(judge) if settings.both_orders else judge


def simulated(
    truth: Judge, *, accuracy: float = 1.0, position_bias: float = 0.0, length_bias: float = 0.0, seed: int = 0
) -> Judge:
    """An annotator with known faults, so that what the quality of a judge does to DPO can be measured.

    For each pair the annotator does one of three things, drawn with fixed probabilities:

        with probability position_bias   it takes the answer shown first, unread
        with probability length_bias     it takes the longer answer, unread (equally long: a coin)
        otherwise                        it reads, and takes the better one by `truth` with probability accuracy,
                                         else the worse one

    Where it reads a true tie it says tie, and the same text twice is always a tie. So where the truth is decisive, and
    the better answer is shown first in a share f of the pairs and is the longer one in a share g,

        P(right) = position_bias * f + length_bias * g + (1 - position_bias - length_bias) * accuracy.

    The draws depend on the seed, the prompt and the two answers as a set. So the annotator, asked again or in the other
    order, does the same and takes the same answer, except where it takes the first: asked in both orders, it
    contradicts itself on a share position_bias of the pairs, and `both_orders` shows exactly these.
    Raises DpoKitError where a probability is outside [0, 1] or the two biases add up to more than 1.
    """
    if not all(0 <= p <= 1 for p in (accuracy, position_bias, length_bias, position_bias + length_bias)):
        raise DpoKitError(
            f"accuracy {accuracy}, position_bias {position_bias}, length_bias {length_bias}: "
            "each is a probability, and the two biases together are one too"
        )

    def annotate(prompt: Prompt, a: str, b: str) -> Verdict:
        if a == b:
            return verdict("tie", "the same text")
        draw = random.Random(f"annotator/{seed}/{prompt.id}/{sorted((a, b))!r}")
        # always draw all of them, so that the rate of one fault does not change the draws of another
        habit, skill, coin = draw.random(), draw.random(), draw.random()
        if habit < position_bias:
            return verdict("a", "took the first, unread")
        if habit < position_bias + length_bias:
            # Between equally long answers the coin depends on the texts and not on their order.
            longer = len(a) > len(b) if len(a) != len(b) else (a < b) == (coin < 0.5)
            return verdict("a" if longer else "b", "took the longer, unread")
        seen = truth(prompt, a, b)
        if skill < accuracy:
            return verdict(seen.winner, f"read: {seen.reason}")
        return verdict(MIRROR[seen.winner], f"misread: {seen.reason}")

    def verdict(winner: Winner, reason: str) -> Verdict:
        return Verdict(winner=winner, judge="simulated", reason=reason)

    return annotate


def by_coin(judge: Judge, seed: int) -> Judge:
    """The control: where `judge` sees a difference, a coin decides the winner. Nothing can be learnt from these."""

    def shuffled(prompt: Prompt, a: str, b: str) -> Verdict:
        verdict = judge(prompt, a, b)
        if verdict.winner not in ("a", "b"):
            return verdict
        winner = random.Random(f"coin/{seed}/{prompt.id}").choice(("a", "b"))
        return Verdict(winner=winner, judge=f"coin over {verdict.judge}", reason="shuffled label")

    return shuffled
