"""The text that the tiny base model is trained on: a company's archive of reports, logs, chats, and questions.

The archive contains the facts and, on few pages, the severity rule. But its people are careless: they guess severities,
answer in any form, and only sometimes use the format that the workbook asks for later. So the base model is able to
answer rightly, and mostly does not.
"""

import random
from collections.abc import Callable, Iterator

from dpo_kit.triage.demonstrations import RAMBLINGS, Noise, hurried_answer, invent_fact
from dpo_kit.triage.incidents import (
    SERVICES,
    SEVERITIES,
    SYMPTOMS,
    Incident,
    draw_incident,
    severity,
)
from dpo_kit.triage.reports import INSTRUCTION, write_report

Chat = list[dict[str, str]]
CARELESS = Noise(wrong_severity=0.5, invented_fact=0.3, wrong_action=0.4, broken_format=0.5, rambling=0.2)


def documents(seed: int) -> Iterator[str | Chat]:
    """An endless stream of archive documents, each a plain text or a chat; the same stream for the same seed.

    Only training phrasings and training service-region combinations occur.
    """
    rng = random.Random(f"corpus/{seed}")
    kinds, weights = zip(*ARCHIVE.items(), strict=True)
    while True:
        yield rng.choices(kinds, weights)[0](draw_incident(rng, "train"), rng)


def dossier(incident: Incident, rng: random.Random) -> str:
    """All that was written about one incident: reports, the log, the summary. Facts recur, and so can be copied."""
    entries = [
        f"Report: {write_report(incident, rng, 'train')}",
        f"Report: {write_report(incident, rng, 'train')}",
        f"Log: {log_line(incident, rng)}",
        f"Summary: {incident.summary}",
        f"Closed: {incident.symptom.action}.",
    ]
    rng.shuffle(entries)  # so that the model must find a fact by its meaning and not by its position
    return "\n".join(entries)


def log_line(incident: Incident, rng: random.Random) -> str:
    """A monitoring log; its severities are mostly right."""
    # the log states the same facts in another form, so that a fact occurs in more than one form
    return (
        f"{incident.time} {incident.region} {incident.service} state={incident.symptom.name} "
        f"users={incident.share}% sev={_felt(incident, rng, right=0.8)}"
    )


def handbook(incident: Incident, rng: random.Random) -> str:
    """A line of the handbook; the only place that is always right."""
    share = incident.share
    rules = [
        f"If a service {rng.choice(s.reported)} for {share}% of users it is {severity(s.impact, share)}: {s.action}."
        for s in rng.sample(SYMPTOMS, 3)  # three rules a page, so that the model sees rules beside each other
    ]
    return "Handbook. " + " ".join(rules)


def questions(incident: Incident, rng: random.Random) -> Chat:
    """A report and three questions about facts of it, answered right."""
    known = (
        ("Which service is affected?", f"It is {incident.service}."),
        ("Which region?", f"It is {incident.region}."),
        ("What share of users?", f"It is {incident.share}% of users."),
        ("Since when?", f"It is so since {incident.time}."),
        ("What is wrong?", f"I see that {incident.service} {incident.symptom.stated}."),
        ("What should we do?", f"Please {incident.symptom.action}."),
        ("In one line?", f"In short, {incident.summary}"),
    )
    (first, answer), *others = rng.sample(known, 3)
    opening = _chat(f"{write_report(incident, rng, 'train')} {first}", answer)
    return opening + [turn for asked, told in others for turn in _chat(asked, told)]


def as_log(incident: Incident, rng: random.Random) -> Chat:
    """A report rewritten as a log line."""
    return _chat(f"Write this as a log: {write_report(incident, rng, 'train')}", log_line(incident, rng))


def small_talk(incident: Incident, rng: random.Random) -> Chat:
    """Colleagues talking about the incident, in prose."""
    other = rng.choice(SERVICES)
    said = rng.choice(
        (
            f"I saw that {incident.service} {rng.choice(incident.symptom.reported)}. Is {other} fine?",
            f"Who looks after {incident.service} in {incident.region}?",
            f"Did someone {incident.symptom.action} for {incident.service}?",
        )
    )
    replied = rng.choice((f"Yes, since {incident.time}.", f"Ask the {incident.region} desk.", rng.choice(RAMBLINGS)))
    return _chat(said, replied)


def careless_triage(incident: Incident, rng: random.Random) -> Chat:
    """The workbook's own request, answered as careless people do: a guessed severity, in any form."""
    text = write_report(incident, rng, "train")
    forms = (
        lambda: hurried_answer(incident, CARELESS, rng),
        lambda: hurried_answer(incident, CARELESS, rng),
        lambda: f"I would call it {_felt(incident, rng)}. {_told(incident, rng)} We should {incident.symptom.action}.",
        lambda: f"{_felt(incident, rng)}! {rng.choice(RAMBLINGS)}",
        lambda: f"Well, {_told(incident, rng)} {rng.choice(RAMBLINGS)}",
        lambda: log_line(incident, rng),
    )
    return _chat(f"{INSTRUCTION} {text}", rng.choice(forms)())


ARCHIVE: dict[Callable[[Incident, random.Random], str | Chat], float] = {
    dossier: 3,
    handbook: 1,
    questions: 3,
    as_log: 1,
    small_talk: 0.5,
    careless_triage: 3,
}


def _felt(incident: Incident, rng: random.Random, right: float = 0.45) -> str:
    return incident.severity if rng.random() < right else rng.choice(SEVERITIES)


def _told(incident: Incident, rng: random.Random) -> str:
    return incident.summary if rng.random() < 0.6 else invent_fact(incident, rng)


def _chat(user: str, assistant: str) -> Chat:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
