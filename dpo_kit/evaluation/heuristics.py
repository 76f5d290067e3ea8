"""What can be said of answers without a judge: how long they are, how they end, whether they repeat, refuse or break.

None of these is a merit by itself, so verdicts say higher and lower, and not better and worse. They are there to be
seen before a win rate is believed: a model that never stops, that says the same to everyone, or that became twice as
long, can win by many judges.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from dpo_kit.evaluation.comparison import compare_columns
from dpo_kit.evaluation.results import Metric
from dpo_kit.languages import language
from dpo_kit.records import Prompt, Response

GRAM = 4  # words; the share of repeated 4-grams is seq-rep-4 of Welleck et al. 2019 (arXiv 1908.04319)
LENGTH_MATTERS = 0.1  # of the control's mean length, the smallest difference that would matter
STOPS_DIFFER, STOPS_RARE, LENGTHS_DIFFER = 0.1, 0.1, 1.25

# A character of Chinese, Japanese or Korean counts as a word: these are written without spaces.
EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{EAST_ASIAN}]|[^\W{EAST_ASIAN}]+")
# How English models decline, looked for in the first 200 characters. Refusals in other languages are not counted.
REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:very |so )?sorry,? (?:but )?(?:i|that|this)|i (?:can(?:no|')t|won't|will not|am (?:unable|not"
    r" able|not going)|must decline|have to decline)|i'm (?:unable|not able|not going)|as an ai\b)",
    re.IGNORECASE,
)
WANTS_JSON = re.compile(r"\b(?:answer|give|output|reply|respond|return|write)\b[^.\n]{0,60}\bJSON\b", re.IGNORECASE)
# What a chat template writes around turns; in an answer it is a turn that should not be there.
MARKERS = re.compile(
    r"<\|[a-z_]+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|^(?:### )?(?:Human|User|Assistant):", re.M
)


def compare_heuristics(
    prompts: Sequence[Prompt], responses: Sequence[Response], arms: Sequence[str], primary: tuple[str, str]
) -> tuple[dict[str, Metric], list[str]]:
    """The heuristics of all arms with the primary difference, and warnings about what a reader must not overlook.

    Samples of one prompt are averaged; the unit is the prompt. An answer without a value in a metric, such as one that
    is too short to guess its language, is left out of that metric.
    """
    columns = {arm: _columns(prompts, [r for r in responses if r.arm == arm]) for arm in arms}
    control = columns[primary[1]].get("words", {})
    matters = float(f"{LENGTH_MATTERS * fmean(control.values()):.2g}") if control else 0.0
    metrics = compare_columns(columns, arms, primary, smallest={"words": matters})
    return {name: _neutral(metric) for name, metric in metrics.items()}, _warnings(metrics, primary)


def _columns(prompts: Sequence[Prompt], responses: Sequence[Response]) -> dict[str, dict[str, float]]:
    """One arm's heuristics: metric -> prompt id -> mean over that prompt's samples."""
    asked = {prompt.id: prompt.text for prompt in prompts}
    grams = {id(r): set(_grams(r.text, 2)) for r in responses}
    # by bigram the number of prompts in whose answers it stands: what is said to one, and what is said to many
    prompts_with = Counter(gram for _, gram in {(r.prompt_id, gram) for r in responses for gram in grams[id(r)]})
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for response in responses:
        found = measure(asked[response.prompt_id], response)
        own = grams[id(response)]
        found["distinct_bigrams"] = sum(prompts_with[gram] == 1 for gram in own) / len(own) if own else None
        for metric, value in found.items():
            if value is not None:
                values[metric][response.prompt_id].append(float(value))
    return {metric: {p: fmean(seen) for p, seen in by_prompt.items()} for metric, by_prompt in values.items()}


def measure(asked: str, response: Response) -> dict[str, float | None]:
    """The heuristics of one answer to the prompt `asked`; all but `words` are in [0, 1], None where there is no value.

    `words` counts words. `stopped` is whether the answer ended by itself: 1 minus its mean is the truncation rate.
    `repetition` is the share of 4-grams that repeat an earlier one. `refusal` and `well_formed` are 0 or 1, and so is
    `same_language`, whether the answer is in the prompt's.
    """
    text, grams = response.text, _grams(response.text, GRAM)
    return {
        "words": len(WORD.findall(text)),
        "stopped": response.stopped,
        "repetition": 1 - len(set(grams)) / len(grams) if grams else 0.0,
        "refusal": REFUSAL.search(text[:200].replace("’", "'")) is not None,
        "same_language": _same_language(asked, text),
        "well_formed": well_formed(asked, text),
    }


def well_formed(asked: str, text: str) -> bool:
    """Whether an answer has text, closes its code blocks, holds no turn of a chat, and is JSON where that was asked."""
    plain = text.strip() and text.count("```") % 2 == 0 and not MARKERS.search(text)
    return bool(plain) and (not WANTS_JSON.search(asked) or _is_json(text))


def _is_json(text: str) -> bool:
    fenced = re.search(r"```(?:json)?\n(.*?)\n```", text, re.DOTALL)
    try:
        json.loads(fenced[1] if fenced else text)
        return True
    except (ValueError, RecursionError):
        return False


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _same_language(asked: str, text: str) -> bool | None:
    """None where one of the two is too short, or its language cannot be told with confidence."""
    first = language(asked[:500])
    second = language(text[:500]) if first else None
    return first == second if second else None


def _neutral(metric: Metric) -> Metric:
    """The metric with a verdict that says in which direction, and not whether that is good."""
    words = re.sub(r"\b(?:better|worse)\b", lambda m: {"better": "higher", "worse": "lower"}[m[0]],
                   metric.difference.verdict)  # fmt: skip
    return replace(metric, difference=replace(metric.difference, verdict=words))


def _warnings(metrics: Mapping[str, Metric], primary: tuple[str, str]) -> list[str]:
    """What must be seen before any verdict: answers that do not end, and lengths that differ much."""
    told = []
    stops = metrics["stopped"].means if "stopped" in metrics else {}
    words = metrics["words"].means if "words" in metrics else {}
    for arm, share in stops.items():
        if share is not None and share < STOPS_RARE:
            told.append(f"only {share:.0%} of {arm}'s answers ended by themselves; the others were cut off at the "
                        "length limit (--max-new-tokens)")  # fmt: skip
    treated, control = (stops.get(arm) for arm in primary)
    if treated is not None and control is not None and abs(treated - control) > STOPS_DIFFER:
        told.append(
            f"{treated:.0%} of {primary[0]}'s answers ended by themselves and {control:.0%} of {primary[1]}'s: "
            "what is compared are answers that were cut off against answers that were not"
        )
    treated, control = (words.get(arm) for arm in primary)
    if treated is not None and control is not None and max(treated, control) > LENGTHS_DIFFER * min(treated, control):
        told.append(
            f"answers differ much in length: {primary[0]} has {treated:.0f} words on average, {primary[1]} "
            f"{control:.0f}; many judges prefer the longer answer whatever it says"
        )
    return told
