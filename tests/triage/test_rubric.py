import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_kit.records import Message, Prompt
from dpo_kit.triage import rubric
from dpo_kit.triage.demonstrations import INVENTED_CAUSES, RAMBLINGS
from dpo_kit.triage.incidents import REGIONS, SERVICES, SEVERITIES, SYMPTOMS, Incident, draw_incident

SLOW = SYMPTOMS[1]
INCIDENT = Incident("checkout", "eu-west", SLOW, 45, "14:05")  # impact 1, spread 2: SEV2
PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),), facts=INCIDENT.to_facts())
RIGHT = "SEVERITY: SEV2\nSUMMARY: checkout in eu-west is slow for 45% of users since 14:05.\nACTION: add capacity."

incidents = st.integers(0, 10_000).map(lambda seed: draw_incident(random.Random(seed), "train"))


def test_the_right_answer_is_what_the_docs_show():
    assert INCIDENT.answer == RIGHT
    assert rubric.overall(PROMPT, RIGHT) == pytest.approx(1)


@given(incidents)
def test_the_right_answer_scores_one_on_every_count(incident):
    prompt = PROMPT.model_copy(update={"facts": incident.to_facts()})
    assert set(rubric.score(prompt, incident.answer).values()) == {1.0}


@given(st.text())
def test_any_string_scores_between_zero_and_one_and_always_the_same(text):
    scores = rubric.score(PROMPT, text)
    assert set(scores) == set(rubric.METRICS)
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores == rubric.score(PROMPT, text)


# pieces that look like answers, so that random strings are near misses and not only noise
PIECES = (
    *SERVICES[:4], *REGIONS[:3], *SEVERITIES, "45%", "14:05", "SEVERITY:", "SUMMARY:", "ACTION:", "\n", " ", "",
    *(s.stated for s in SYMPTOMS), *(s.action for s in SYMPTOMS), *INVENTED_CAUSES[:2], RAMBLINGS[0],
    "\x00", "\ud800", "<script>", "\x1b[31m", "\u202e", "٤٥%", "SEV٢",
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join))
def test_near_misses_score_between_zero_and_one_too(text):
    assert all(0 <= value <= 1 for value in rubric.score(PROMPT, text).values())


@given(st.lists(st.sampled_from(PIECES), max_size=10).map(" ".join), st.sampled_from(INVENTED_CAUSES))
def test_another_invention_never_makes_an_answer_more_faithful(text, cause):
    assert rubric.faithfulness(INCIDENT, f"{text} {cause}") <= rubric.faithfulness(INCIDENT, text)


@pytest.mark.parametrize("text", ["", " \n\t", "\x00", "\ud800" * 5, "?" * 1_000_000, "1" * 200_000 + "%"])
def test_an_answer_that_says_nothing_earns_nothing_but_brevity(text):
    scores = rubric.score(PROMPT, text)
    assert [scores[m] for m in ("severity_match", "faithfulness", "action_match", "format_conformance")] == [0] * 4


def test_an_answer_that_says_everything_earns_nothing():
    everything = " ".join(
        (*SERVICES, *REGIONS, *SEVERITIES, *(s.stated for s in SYMPTOMS), *(s.action for s in SYMPTOMS), "45% 9% 14:05")
    )
    scores = rubric.score(PROMPT, everything)
    assert scores["severity_match"] == scores["faithfulness"] == scores["action_match"] == 0


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (RIGHT.replace("checkout", "login"), 3 / 5),  # four true, one invented
        (RIGHT.replace("eu-west", "us-west"), 3 / 5),
        (RIGHT.replace("45%", "54%"), 3 / 5),
        (RIGHT.replace("14:05", "14:50"), 3 / 5),
        (RIGHT.replace("is slow", "is down"), 3 / 5),
        (RIGHT.replace(" since 14:05", ""), 4 / 5),  # four true, none invented
        (RIGHT.replace("14:05.", "14:05 after a DNS change."), 4 / 5),  # five true, one invented
        (RIGHT + "\nlogin is fine.", 4 / 5),  # a bystander is not a fact of this incident
        (RIGHT.replace("is slow", "crawls along"), 1),  # another wording of the same fact
    ],
)
def test_faithfulness_counts_true_facts_less_inventions(changed, expected):
    assert rubric.faithfulness(INCIDENT, changed) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RIGHT, 1),
        (RIGHT + "\n\n", 1),  # blank lines are no lines
        (RIGHT + "\nThank you.", 1 / 2),
        ("\n".join(reversed(RIGHT.split("\n"))), 1 / 2),
        ("\n".join(RIGHT.split("\n")[1:]), 2 / 3),
        (RIGHT.lower(), 0),
        (RIGHT.replace("SEV2", "SEV5"), 1 / 3),  # two fields and a line that is none
        (RIGHT.replace("\n", " "), 0),
    ],
)
def test_format_conformance(text, expected):
    assert rubric.format_conformance(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("SEV2", 1), ("It is SEV2, yes SEV2.", 1), ("SEV2 or SEV3", 0), ("SEV22", 0), ("sev2", 0), ("XSEV2", 0)],
)
def test_severity_must_be_committed_to(text, expected):
    assert rubric.severity_match(INCIDENT, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("add capacity", 1), ("add capacity, stop all writes", 0), ("do not add capacitys", 0), ("", 0)],
)
def test_action_must_be_the_remedy_and_no_other(text, expected):
    assert rubric.action_match(INCIDENT, text) == expected


def test_length_is_one_up_to_comfortable_and_falls_to_zero():
    assert rubric.length("x" * 160) == 1
    assert rubric.length("x" * 320) == pytest.approx(0.5)
    assert rubric.length("x" * 480) == rubric.length("x" * 10**6) == 0


def test_a_prompt_without_facts_is_refused():
    with pytest.raises(KeyError):
        rubric.score(PROMPT.model_copy(update={"facts": {}}), "x")
