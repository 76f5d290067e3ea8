"""Scores of answers by functions and by judges, with checks.

A metric that is out of range, not a number, or different when it is computed again would give a wrong table without an
error. So every value is computed twice and checked. An answer that a judge could not score has no score, and is
counted.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from dpo_kit.errors import DpoKitError
from dpo_kit.records import PreferencePair, Prompt, Verdict

Score = Callable[[Prompt, str], float | Mapping[str, float]]  # prompt, answer -> one metric, or several by name
Rate = Callable[[Prompt, str], tuple[float | None, str]]  # prompt, answer -> a score from 1 to 5 or None, and why


@dataclass(frozen=True)
class Rating:
    """A judge's score of one answer from 1 to 5, with its reason; None where the judge gave no usable score."""

    score: float | None
    reason: str


def checked(score: Score, low: float = 0.0, high: float = 1.0) -> Callable[[Prompt, str], dict[str, float]]:
    """`score` as a function that gives its metrics by name, each computed twice and checked.

    A `score` that returns a single number is one metric, named like the function. Raises DpoKitError, which names the
    metric and the prompt, where `score` fails, returns something that is not a finite number in [low, high], or returns
    something else when it is called again.
    """
    name = getattr(score, "__name__", "score")

    def checking(prompt: Prompt, text: str) -> dict[str, float]:
        # a metric that is random would give a different table each time
        first, second = (_call(name, score, prompt, text) for _ in range(2))
        if first.keys() != second.keys():
            raise DpoKitError(f"metric {name} names different metrics when asked again, prompt {prompt.id}")
        return {key: _agreed(key, first[key], second[key], prompt, low, high) for key in first}

    return checking


def rate_all(rate: Rate, prompts: Sequence[Prompt], texts: Sequence[str], workers: int = 1) -> list[Rating]:
    """A judge's scores, 1 to 5 with reasons, in order. A score outside the scale counts as none."""
    with ThreadPoolExecutor(workers) as pool:
        return [_rating(*given) for given in pool.map(rate, prompts, texts)]


def same_judge(given: Iterable[Verdict], training: Iterable[PreferencePair]) -> str | None:
    """A warning where a judge of the evaluation also labelled the training pairs; None where none did.

    A model that was trained on a judge's preferences wins with that judge, even where its answers are not better. Only
    another judge, or the truth, can tell. Judges are compared by the name in their verdicts.
    """
    shared = {v.judge for v in given} & {pair.verdict.judge for pair in training}
    if not shared:
        return None
    return (
        f"the judge of this evaluation ({', '.join(sorted(shared))}) also labelled the training pairs: "
        "a gain can be that judge's taste learned by heart; ask another judge too"
    )


def unjudged_because(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """A judge's reasons for giving no verdict, most frequent first, with how many prompts each left unjudged.

    What a reason quotes and the amounts it names are left out, so that equal causes are counted together. Of a verdict
    in both orders the reason is that of the first order that gave none.
    """
    counted: Counter[str] = Counter()
    for verdict in verdicts:
        if verdict.winner == "unjudged":
            parts = re.split(r"^first shown first: |; second shown first: ", verdict.reason)[-2:]
            second = verdict.in_orders is not None and verdict.in_orders[0] != "unjudged"
            said = re.split(r"['\"]", parts[-1 if second or len(parts) == 1 else 0])[0]
            counted[re.sub(r"\d+\.\d+", "...", said).strip(" :") or "no reason given"] += 1
    return dict(counted.most_common())


def _rating(score: float | None, reason: str) -> Rating:
    if isinstance(score, (int, float)) and not isinstance(score, bool) and 1 <= score <= 5:
        return Rating(float(score), reason)
    return Rating(None, reason if score is None else f"score {score!r} is not on the scale 1 to 5: {reason}")


def _call(name: str, score: Score, prompt: Prompt, text: str) -> Mapping[str, Any]:
    try:
        given = score(prompt, text)
    except DpoKitError:
        raise
    except Exception as error:
        raise DpoKitError(
            f"metric {name} failed on prompt {prompt.id}: {type(error).__name__}: {error}; "
            "it must give a number for any answer, an empty one too"
        ) from error
    return given if isinstance(given, Mapping) else {name: given}


def _agreed(name: str, first: Any, second: Any, prompt: Prompt, low: float, high: float) -> float:
    """`first` as a float where it is a usable number and `second` is the same."""
    for value in (first, second):
        try:
            usable = math.isfinite(value) and low <= value <= high
        except TypeError:
            usable = False
        if not usable:
            raise DpoKitError(
                f"metric {name} gave {value!r} on prompt {prompt.id}; a number in [{low:g}, {high:g}] is needed"
            )
    if first != second:
        raise DpoKitError(
            f"metric {name} gave {first!r} and then {second!r} on prompt {prompt.id}: "
            "it must give the same number for the same answer; seed what is random in it"
        )
    return float(first)
