"""A noisy annotator whose faults are known: what judge quality does to DPO can then be measured, not guessed.

The annotator meets a pair in one of three moods, drawn with fixed probabilities:

    with probability position_bias   it takes the answer shown first, unread
    with probability length_bias     it takes the longer answer, unread (equally long: a coin)
    otherwise                        it reads, and takes the truly better one with probability accuracy, else the worse

A reader who meets a true tie says tie, and the same text twice is a tie in any mood. So where the truth is decisive,
and the truly better answer is shown first in a share f of the pairs and is the longer in a share g,

    P(right) = position_bias * f + length_bias * g + (1 - position_bias - length_bias) * accuracy.

The draws belong to the seed, the prompt and the two answers as a set. Asked again, or in the other order, the
annotator is in the same mood and takes the same answer, except where it takes the first: asked in both orders, it
contradicts itself on a share position_bias of the pairs, exactly what `both_orders` shows.
"""

import random

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.judges import MIRROR, Judge
from dpo_kit.records import Prompt, Verdict


def simulated(
    truth: Judge, *, accuracy: float = 1.0, position_bias: float = 0.0, length_bias: float = 0.0, seed: int = 0
) -> Judge:
    """An annotator of the given faults on top of a judge that is right.

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
        mood, skill, coin = draw.random(), draw.random(), draw.random()
        if mood < position_bias:
            return verdict("a", "took the first, unread")
        if mood < position_bias + length_bias:
            return verdict("a" if _longer(a, b, coin) else "b", "took the longer, unread")
        seen = truth(prompt, a, b)
        if skill < accuracy:
            return verdict(seen.winner, f"read: {seen.reason}")
        return verdict(MIRROR[seen.winner], f"misread: {seen.reason}")

    def verdict(winner, reason: str) -> Verdict:
        return Verdict(winner=winner, judge="simulated", reason=reason)

    return annotate


def _longer(a: str, b: str, coin: float) -> bool:
    """Whether `a` is taken as the longer one; between equally long ones the coin knows the texts, not their order."""
    if len(a) != len(b):
        return len(a) > len(b)
    return (a < b) == (coin < 0.5)
