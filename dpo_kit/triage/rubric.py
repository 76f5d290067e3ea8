"""The rubric: five scores in [0, 1] for any string at all, computed from the facts of the incident."""

import re
from collections.abc import Iterable
from functools import cache

from dpo_kit.records import Prompt
from dpo_kit.triage.incidents import INVENTED_CAUSES, REGIONS, SERVICES, SYMPTOMS, Incident

WEIGHTS = {
    "severity_match": 0.3,
    "faithfulness": 0.3,
    "action_match": 0.2,
    "format_conformance": 0.15,
    "length": 0.05,
}
METRICS = tuple(WEIGHTS)
FIELDS = ("SEVERITY", "SUMMARY", "ACTION")
COMFORTABLE, TOO_LONG = 160, 480  # characters; a right answer has about 120


def score(prompt: Prompt, text: str) -> dict[str, float]:
    """Score one answer to one prompt on every metric of `METRICS`.

    Raises KeyError where the prompt's facts are not those of an incident.
    """
    incident = Incident.from_facts(prompt.facts)
    return {
        "severity_match": severity_match(incident, text),
        "faithfulness": faithfulness(incident, text),
        "action_match": action_match(incident, text),
        "format_conformance": format_conformance(text),
        "length": length(text),
    }


def applies_to(prompts: Iterable[Prompt]) -> bool:
    """Whether every prompt has the facts of an incident, so that the rubric can score its answers."""
    try:
        return all(Incident.from_facts(prompt.facts) for prompt in prompts)
    except (KeyError, TypeError, ValueError):
        return False


def overall(prompt: Prompt, text: str) -> float:
    """The weighted mean of the scores, in [0, 1]: what the exact judge compares."""
    scores = score(prompt, text)
    return sum(weight * scores[metric] for metric, weight in WEIGHTS.items())


def format_conformance(text: str) -> float:
    """A third for each of the three labelled lines; half of that where lines are added, repeated or out of order."""
    lines = [line for line in text.split("\n") if line.strip()]
    labels = [line.split(":", 1)[0] for line in lines if _FIELD_LINE.fullmatch(line)]
    found = len(set(labels)) / len(FIELDS)
    tidy = len(labels) == len(lines) and labels == [field for field in FIELDS if field in labels]
    return found if tidy else found / 2  # half: the labels are there, but a program could not rely on them


def severity_match(incident: Incident, text: str) -> float:
    """1 if the answer names exactly one severity and it is the true one, else 0."""
    # a set, so that the same severity may be named twice
    return float(set(re.findall(r"\bSEV[0-9]+\b", text)) == {incident.severity})


def action_match(incident: Incident, text: str) -> float:
    """1 if the answer proposes the remedy for the symptom and no other remedy, else 0."""
    return float(_mentioned(tuple(s.action for s in SYMPTOMS), text) == {incident.symptom.action})


def faithfulness(incident: Incident, text: str) -> float:
    """(true facts stated - facts invented) / 5, not below 0.

    The five facts are service, region, symptom, share and time. Every other value of one of these in the answer counts
    as invented, and so does a cause, because reports name no causes. An empty answer scores 0, and so does one that
    lists every possible value.
    """
    true = invented = 0
    for stated, fact in zip(_stated_facts(text), _true_facts(incident), strict=True):
        true += fact in stated
        invented += len(stated - {fact})  # each other value of this kind is one invention
    invented += len(_mentioned(INVENTED_CAUSES, text))
    return max(0, true - invented) / 5


def length(text: str) -> float:
    """1 up to a comfortable length, falling linearly to 0 at three times that; 0 for an empty answer."""
    if not text.strip():
        return 0.0
    return min(1.0, max(0.0, (TOO_LONG - len(text)) / (TOO_LONG - COMFORTABLE)))


_FIELD_LINE = re.compile(r"SEVERITY: SEV[1-4]|(?:SUMMARY|ACTION): \S[^\n]*")


def _true_facts(incident: Incident) -> tuple[str, ...]:
    return incident.service, incident.region, incident.symptom.name, f"{incident.share}%", incident.time


def _stated_facts(text: str) -> tuple[set[str], ...]:
    """The distinct services, regions, symptoms, shares and times that the text mentions."""
    symptoms = {s.name for s in SYMPTOMS if _mentioned(s.reported, text)}
    shares = set(re.findall(r"(?<![\d.])\d+%", text, re.ASCII))
    times = set(re.findall(r"(?<!\d)\d\d:\d\d(?!\d)", text, re.ASCII))
    return _mentioned(SERVICES, text), _mentioned(REGIONS, text), symptoms, shares, times


def _mentioned(phrases: tuple[str, ...], text: str) -> set[str]:
    return set(_any_of(phrases).findall(text))


@cache
def _any_of(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the phrases as whole words."""
    # otherwise "is slow" would match in place of a longer phrase that begins with it
    longest_first = sorted(map(re.escape, phrases), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(longest_first)})(?![\w-])")
