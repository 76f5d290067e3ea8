"""Demonstrations as a company has them: people in a hurry wrote them, and each kind of mistake has a rate to set."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

from dpo_kit.errors import DpoKitError
from dpo_kit.records import Prompt, Response
from dpo_kit.triage.incidents import (
    INVENTED_CAUSES,
    REGIONS,
    SERVICES,
    SEVERITIES,
    SYMPTOMS,
    Incident,
    draw_time,
    format_answer,
)

RAMBLINGS = (
    "I hope this helps. Let me know if you need anything else.",
    "Please note that this is only a first impression and we will keep you posted on any news.",
    "Thank you for the report, we take every report very seriously and will be in touch soon.",
    "As always, the team is doing its best and appreciates your patience in this matter.",
)


@dataclass(frozen=True)
class Noise:
    """How often a demonstration is wrong, each a probability in [0, 1]."""

    wrong_severity: float = 0.28
    invented_fact: float = 0.25
    wrong_action: float = 0.12
    broken_format: float = 0.15
    rambling: float = 0.10

    def __post_init__(self):
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise DpoKitError(f"noise {field.name} = {getattr(self, field.name)}: a rate must lie in [0, 1]")


def demonstrate(prompts: Sequence[Prompt], noise: Noise, seed: int) -> list[Response]:
    """Answer each prompt as a hurried person would; the same answer for the same prompt, noise and seed."""
    return [
        Response(
            prompt_id=prompt.id,
            text=hurried_answer(Incident.from_facts(prompt.facts), noise, random.Random(f"demo/{seed}/{prompt.id}")),
            arm="demonstration",
            temperature=0.0,
            seed=seed,
            stopped=True,
        )
        for prompt in prompts
    ]


def hurried_answer(incident: Incident, noise: Noise, rng: random.Random) -> str:
    """The right answer with each kind of mistake at its rate, independently."""
    severity, action = incident.severity, incident.symptom.action
    if rng.random() < noise.wrong_severity:
        # a wrong severity is any of the other three
        severity = rng.choice([other for other in SEVERITIES if other != severity])
    if rng.random() < noise.wrong_action:
        action = rng.choice([symptom.action for symptom in SYMPTOMS if symptom.action != action])
    summary = invent_fact(incident, rng) if rng.random() < noise.invented_fact else incident.summary
    text = format_answer(severity, summary, action)
    if rng.random() < noise.broken_format:
        text = rng.choice(BROKEN_FORMATS)(severity, summary, action)
    if rng.random() < noise.rambling:
        text = f"{text}\n{rng.choice(RAMBLINGS)}"
    return text


def invent_fact(incident: Incident, rng: random.Random) -> str:
    """The summary with one fact replaced by a false one, or with a cause that nobody reported."""
    false = {
        "service": rng.choice([s for s in SERVICES if s != incident.service]),
        "region": rng.choice([r for r in REGIONS if r != incident.region]),
        "share": rng.choice([s for s in range(1, 100) if s != incident.share]),
        # draw until the time is another one
        "time": next(t for t in iter(lambda: draw_time(rng), None) if t != incident.time),
    }
    kind = rng.choice([*false, "cause"])
    if kind == "cause":
        return f"{incident.summary.removesuffix('.')} {rng.choice(INVENTED_CAUSES)}."
    return Incident(**{**vars(incident), kind: false[kind]}).summary


BROKEN_FORMATS = (
    lambda severity, summary, action: f"{severity}, {summary} Please {action}.",
    lambda severity, summary, action: f"Severity is {severity}\nSummary is {summary}\nAction is {action}.",
    lambda severity, summary, action: f"SUMMARY: {summary}\nACTION: {action}.",
    lambda severity, summary, action: f"- {severity}\n- {summary}\n- {action}",
    lambda severity, summary, action: f"In short, {summary} {action}.",
)
