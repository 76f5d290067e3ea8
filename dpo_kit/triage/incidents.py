"""The facts of an incident, and the answer that follows from them.

An incident is five facts: a service, in a region, shows a symptom, for a share of users, since a time. Severity is a
sum of two small numbers, so the right answer to every report can be computed:

    impact  0 stale data, 1 slow, 2 errors, 3 down or losing data
    spread  0 below 10% of users, 1 below 40%, 2 from 40%
    impact + spread:  4 or 5 -> SEV1,  3 -> SEV2,  2 -> SEV3,  0 or 1 -> SEV4
"""

import random
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]

SERVICES = (
    "checkout", "login", "payments", "catalog", "invoices", "uploads", "profiles", "inbox",
    "ledger", "quotes", "shipping", "coupons", "reviews", "exports", "tickets", "search",
)  # fmt: skip
REGIONS = ("eu-west", "eu-north", "us-east", "us-west", "ap-south", "ap-east", "sa-east", "me-central")
SEVERITIES = ("SEV1", "SEV2", "SEV3", "SEV4")
# Nobody reports a cause, so an answer that states one of these has invented it.
INVENTED_CAUSES = (
    "after a DNS change", "because a disk is full", "due to an expired certificate", "after a database migration",
    "because of a network cable", "due to a power cut", "after a failed backup", "because of a bad config",
)  # fmt: skip


@dataclass(frozen=True)
class Symptom:
    """A symptom: its impact, how answers state it, which action is the remedy, and how people report it."""

    name: str
    impact: int
    stated: str
    action: str
    reported: tuple[str, ...]


SYMPTOMS = (
    Symptom("stale", 0, "shows old data", "rebuild the cache",
            ("shows old data", "serves outdated pages", "displays yesterday's values", "does not refresh")),
    Symptom("slow", 1, "is slow", "add capacity",
            ("is slow", "takes ten seconds to answer", "has high latency", "crawls along")),
    Symptom("errors", 2, "returns errors", "roll back the last release",
            ("returns errors", "answers with error 500", "throws exceptions", "fails on most calls")),
    Symptom("down", 3, "is down", "fail over to the standby",
            ("is down", "does not answer at all", "cannot be reached", "is offline")),
    Symptom("loss", 3, "is losing data", "stop all writes",
            ("is losing data", "drops saved records", "discards writes", "has lost stored rows")),
)  # fmt: skip


@dataclass(frozen=True)
class Incident:
    """The five facts. `share` is in percent of users, `time` reads HH:MM."""

    service: str
    region: str
    symptom: Symptom
    share: int
    time: str

    @property
    def severity(self) -> str:
        """The severity that follows from the facts, "SEV1" (worst) to "SEV4"."""
        return severity(self.symptom.impact, self.share)

    @property
    def answer(self) -> str:
        """The right answer, in the required format."""
        return format_answer(self.severity, self.summary, self.symptom.action)

    @property
    def summary(self) -> str:
        """One line with all five facts and nothing else."""
        return f"{self.service} in {self.region} {self.symptom.stated} for {self.share}% of users since {self.time}."

    def to_facts(self) -> dict[str, str | int]:
        """The facts as plain JSON values, for `Prompt.facts`."""
        return {**vars(self), "symptom": self.symptom.name}

    @classmethod
    def from_facts(cls, facts: dict) -> "Incident":
        """Inverse of `to_facts`. Raises KeyError where a fact is missing or the symptom unknown."""
        known = {symptom.name: symptom for symptom in SYMPTOMS}
        return cls(facts["service"], facts["region"], known[facts["symptom"]], facts["share"], facts["time"])


def severity(impact: int, share: int) -> str:
    """The severity rule of this file's docstring: `impact` 0 to 3 and `share` in percent of users."""
    spread = (share >= 10) + (share >= 40)  # 0, 1 or 2
    return {5: "SEV1", 4: "SEV1", 3: "SEV2", 2: "SEV3"}.get(impact + spread, "SEV4")


def format_answer(severity: str, summary: str, action: str) -> str:
    """The required format: three labelled lines."""
    return f"SEVERITY: {severity}\nSUMMARY: {summary}\nACTION: {action}."


def is_heldout(service: str, region: str) -> bool:
    """Whether a service-region combination is kept from all training: 16 of the 128 are."""
    # each service and each region is in training, but not each combination
    return (SERVICES.index(service) + 3 * REGIONS.index(region)) % 8 == 0


def draw_incident(rng: random.Random, split: Split) -> Incident:
    """Draw an incident of one split. Symptoms and the three bands of spread are equally likely."""
    while True:
        service, region = rng.choice(SERVICES), rng.choice(REGIONS)
        if is_heldout(service, region) == (split == "heldout"):
            break
    low, high = rng.choice(((1, 9), (10, 39), (40, 99)))  # the three bands are equally likely
    return Incident(service, region, rng.choice(SYMPTOMS), rng.randint(low, high), draw_time(rng))


def draw_time(rng: random.Random) -> str:
    """A time of day to the minute."""
    return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
