"""How people report an incident: many phrasings, with other services and old incidents as distractors."""

import random

from dpo_kit.records import Message, Prompt
from dpo_kit.triage.incidents import REGIONS, SERVICES, Incident, Split, draw_incident, draw_time

TRAIN_PHRASINGS = (
    "{service} in {region} {symptom}. It affects {share}% of users and began at {time}.",
    "Since {time}, {service} {symptom} in {region}. {share}% of users are affected.",
    "We see that {service} {symptom}. Region {region}, {share}% of users, start {time}.",
    "At {time} alerts fired: {service} {symptom} for {share}% of users in {region}.",
    "Users in {region} report that {service} {symptom}. Share affected: {share}%. First seen: {time}.",
    "{region}: {service} {symptom} since {time}, hitting {share}% of users.",
    "Support says {service} {symptom}. About {share}% of users in {region} notice it. It started at {time}.",
    "Monitoring at {time}: {service} {symptom} ({region}, {share}% of users).",
    "Heads up, {service} {symptom} in {region} for {share}% of users as of {time}.",
    "{share}% of users in {region} find that {service} {symptom}. This began at {time}.",
    "From {time} on, {share}% of users in {region} tell us {service} {symptom}.",
    "The on-call phone rang at {time}. In {region}, {service} {symptom} for {share}% of users.",
    "Customer calls since {time}: {service} {symptom}. Region is {region}, reach is {share}%.",
    "Dashboard for {region} shows {share}% of users hit since {time}: {service} {symptom}.",
    "{service} {symptom}. Where: {region}. Who: {share}% of users. When: {time}.",
    "When: {time}. Where: {region}. What: {service} {symptom}. Reach: {share}% of users.",
    "Please look at {service}, it {symptom}. {share}% of users in {region}, since {time}.",
    "Something is wrong with {service} in {region}: it {symptom}. {share}% of users, from {time}.",
    "We were told at {time} that {service} {symptom} for {share}% of users in {region}.",
    "In {region} {share}% of users complain. {service} {symptom} since {time}.",
    "Ticket opened {time}. {service} {symptom}. Affected: {share}% of users in {region}.",
    "Alert {time}: {region}, {service}, {share}% of users. It {symptom}.",
    "Since {time} {share}% of users cannot work well because {service} {symptom} in {region}.",
    "Our team in {region} noticed at {time} that {service} {symptom}. {share}% of users are hit.",
    "{service}: {symptom}. {region}. {share}% of users. {time}.",
    "Hello, {service} {symptom} here in {region}. It has been so since {time} for {share}% of users.",
    "Page from {time}. Service {service} {symptom}, {region}, {share}% of users impacted.",
    "A customer wrote at {time} that {service} {symptom}. We count {share}% of users in {region}.",
    "Status check {region}: {service} {symptom}. Impact {share}% of users. Onset {time}.",
    "Onset {time}, impact {share}% of users: in {region}, {service} {symptom}.",
    "It seems {service} {symptom} since {time}. Only {region} is hit, {share}% of users there.",
    "Night shift notes: {time}, {service} {symptom}, region {region}, {share}% of users.",
    "Could someone check? {service} {symptom} in {region}. We measured {share}% of users at {time}.",
    "{time} {region} {service} {symptom}, {share}% of users affected.",
    "We have a problem: {service} {symptom}. It reaches {share}% of users in {region} and dates from {time}.",
    "For {share}% of users, {service} {symptom} in {region}. Clock says {time} for the start.",
    "Report: in {region} since {time}, {service} {symptom}. {share}% of users see it.",
    "After {time} things changed in {region}: {service} {symptom} for {share}% of users.",
    "The {region} desk reports at {time}: {service} {symptom}, with {share}% of users affected.",
    "Seen by {share}% of users in {region}: {service} {symptom}. Earliest sign at {time}.",
)
HELDOUT_PHRASINGS = (
    "Urgent from {region}! {service} {symptom}. We think {share}% of users suffer. It goes back to {time}.",
    "Chat with {region} at {time}: they say {service} {symptom}. {share}% of users there have it.",
    "Morning summary. {service} {symptom}. Place {region}. Part of users {share}%. Began {time}.",
    "As of {time} the {service} service {symptom}. {region} only. That is {share}% of users.",
    "A probe in {region} failed at {time}. {service} {symptom}, which touches {share}% of users.",
    "{share}% of users, {region}, {time}: {service} {symptom}.",
    "It is {time} and in {region} {service} {symptom}. Count of users hit: {share}%.",
    "Forwarded: {service} {symptom} in {region}, {share}% of users, noticed {time}. Please take it.",
)
HEALTHY_ASIDES = (
    "{other} works normally.", "{other} in {region} is healthy.", "No problem with {other}.",
    "{other} was checked and is fine.",
)  # fmt: skip
RESOLVED_ASIDES = (
    "Yesterday {other} had an incident at {time} in {region}, {share}% of users; it is resolved.",
    "An earlier incident on {other} ({region}, {share}%) was closed at {time}.",
    "Unrelated: {other} recovered at {time} after hitting {share}% of users in {region}.",
)
INSTRUCTION = "Triage this incident:"


def write_report(incident: Incident, rng: random.Random, split: Split) -> str:
    """Phrase the incident as a person would; about six in ten reports also mention something that does not matter."""
    phrasing = rng.choice(TRAIN_PHRASINGS if split == "train" else HELDOUT_PHRASINGS)
    report = _fill(phrasing, incident, rng)  # every phrasing contains all five facts
    if rng.random() < 0.4:
        return report
    sentences = [report, _aside(incident, rng)]
    if rng.random() < 0.4:
        sentences.reverse()
    return " ".join(sentences)


def draw_prompts(count: int, split: Split, stream: str, seed: int) -> list[Prompt]:
    """Draw `count` different prompts of one split; byte for byte the same for the same `stream` and `seed`.

    Held-out prompts use phrasings and service-region combinations that no training text uses.
    """
    rng = random.Random(f"triage/{stream}/{split}/{seed}")  # independent of all other draws
    prompts: dict[str, Prompt] = {}
    while len(prompts) < count:
        incident = draw_incident(rng, split)
        content = f"{INSTRUCTION} {write_report(incident, rng, split)}"
        name = f"{stream}-{seed}-{len(prompts):05d}"
        message = Message(role="user", content=content)
        # a text that was drawn before is drawn again instead
        prompts.setdefault(content, Prompt(id=name, messages=(message,), facts=incident.to_facts()))
    return list(prompts.values())


def _fill(phrasing: str, incident: Incident, rng: random.Random) -> str:
    facts = {**incident.to_facts(), "symptom": rng.choice(incident.symptom.reported)}
    return phrasing.format_map(facts)


def _aside(incident: Incident, rng: random.Random) -> str:
    """A sentence about another service, which is healthy or whose incident is over."""
    other = rng.choice([service for service in SERVICES if service != incident.service])
    aside = rng.choice(HEALTHY_ASIDES if rng.random() < 0.5 else RESOLVED_ASIDES)
    return aside.format(other=other, region=rng.choice(REGIONS), share=rng.randint(1, 99), time=draw_time(rng))
