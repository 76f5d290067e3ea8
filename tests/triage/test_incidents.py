import random

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.triage.demonstrations import INVENTED_CAUSES, Noise, demonstrate
from dpo_kit.triage.incidents import REGIONS, SERVICES, SYMPTOMS, Incident, draw_incident, is_heldout, severity
from dpo_kit.triage.reports import (
    HEALTHY_ASIDES,
    HELDOUT_PHRASINGS,
    RESOLVED_ASIDES,
    TRAIN_PHRASINGS,
    draw_prompts,
)
from dpo_kit.triage.rubric import score


def test_severity_reads_as_the_sticker_says():
    # impact + spread: 4 or 5 -> SEV1, 3 -> SEV2, 2 -> SEV3, 0 or 1 -> SEV4; spread steps at 10% and 40%
    shares = (9, 10, 39, 40)
    assert [severity(3, share) for share in shares] == ["SEV2", "SEV1", "SEV1", "SEV1"]
    assert [severity(2, share) for share in shares] == ["SEV3", "SEV2", "SEV2", "SEV1"]
    assert [severity(1, share) for share in shares] == ["SEV4", "SEV3", "SEV3", "SEV2"]
    assert [severity(0, share) for share in shares] == ["SEV4", "SEV4", "SEV4", "SEV3"]


def test_an_eighth_of_the_combinations_is_held_out_and_every_service_and_region_is_seen():
    held = {(s, r) for s in SERVICES for r in REGIONS if is_heldout(s, r)}
    assert len(held) == len(SERVICES) * len(REGIONS) / 8
    assert {s for s, _ in held} == set(SERVICES)
    assert {r for _, r in held} == set(REGIONS)


def test_there_are_many_phrasings_and_each_carries_all_five_facts():
    phrasings = TRAIN_PHRASINGS + HELDOUT_PHRASINGS
    assert len(set(phrasings)) == len(phrasings) >= 40
    for phrasing in phrasings:
        for fact in ("{service}", "{region}", "{symptom}", "{share}", "{time}"):
            assert phrasing.count(fact) == 1, phrasing


def test_prompts_are_the_same_byte_for_byte_and_differ_by_stream_and_seed():
    drawn = [p.model_dump_json() for p in draw_prompts(50, "train", "a", 1)]
    assert drawn == [p.model_dump_json() for p in draw_prompts(50, "train", "a", 1)]
    assert not set(drawn) & {p.model_dump_json() for p in draw_prompts(50, "train", "b", 1)}
    assert not set(drawn) & {p.model_dump_json() for p in draw_prompts(50, "train", "a", 2)}


def test_a_longer_draw_begins_with_the_shorter_one():
    assert draw_prompts(40, "heldout", "a", 0)[:10] == draw_prompts(10, "heldout", "a", 0)


def test_heldout_prompts_share_nothing_with_training():
    train, heldout = (draw_prompts(600, split, "x", 0) for split in ("train", "heldout"))
    combinations = [{(p.facts["service"], p.facts["region"]) for p in prompts} for prompts in (train, heldout)]
    assert not combinations[0] & combinations[1]
    assert not {p.text for p in train} & {p.text for p in heldout}
    for prompt in heldout:
        assert any(_could_be(phrasing, prompt) for phrasing in HELDOUT_PHRASINGS)
        assert not any(_could_be(phrasing, prompt) for phrasing in TRAIN_PHRASINGS)


def _could_be(phrasing: str, prompt) -> bool:
    incident = Incident.from_facts(prompt.facts)
    said = (phrasing.format_map({**incident.to_facts(), "symptom": s}) for s in incident.symptom.reported)
    return any(report in prompt.text for report in said)


def test_no_report_names_a_cause_or_a_severity():
    texts = " ".join((*TRAIN_PHRASINGS, *HELDOUT_PHRASINGS, *HEALTHY_ASIDES, *RESOLVED_ASIDES))
    assert not any(cause in texts for cause in INVENTED_CAUSES)
    assert "SEV" not in texts


def test_facts_survive_json():
    incident = draw_incident(random.Random(0), "train")
    assert Incident.from_facts(incident.to_facts()) == incident


def test_phrases_of_different_symptoms_never_contain_each_other():
    for symptom in SYMPTOMS:
        assert symptom.stated in symptom.reported
        for other in SYMPTOMS:
            if other is not symptom:
                assert not any(a in b for a in symptom.reported for b in other.reported)
                assert symptom.action not in other.action


def test_without_noise_every_demonstration_is_right(incidents):
    silent = Noise(0, 0, 0, 0, 0)
    for prompt, demonstration in zip(incidents, demonstrate(incidents, silent, 0), strict=True):
        assert set(score(prompt, demonstration.text).values()) == {1.0}


@pytest.mark.parametrize(
    ("noise", "metric"),
    [
        (Noise(1, 0, 0, 0, 0), "severity_match"),
        (Noise(0, 1, 0, 0, 0), "faithfulness"),
        (Noise(0, 0, 1, 0, 0), "action_match"),
        (Noise(0, 0, 0, 1, 0), "format_conformance"),
        (Noise(0, 0, 0, 0, 1), "format_conformance"),
    ],
)
def test_each_kind_of_noise_spoils_its_own_metric_every_time(incidents, noise, metric):
    for prompt, demonstration in zip(incidents, demonstrate(incidents, noise, 0), strict=True):
        assert score(prompt, demonstration.text)[metric] < 1


def test_noise_comes_at_the_rate_that_was_set(incidents):
    noise = Noise(wrong_severity=0.3, invented_fact=0, wrong_action=0, broken_format=0, rambling=0)
    wrong = [
        score(prompt, demonstration.text)["severity_match"] == 0
        for prompt, demonstration in zip(incidents, demonstrate(incidents, noise, 0), strict=True)
    ]
    # 300 draws at 0.3: mean 90, standard deviation 7.9; four of those on either side
    assert 58 < sum(wrong) < 122


def test_a_rate_outside_the_unit_interval_is_refused():
    with pytest.raises(DpoKitError, match=r"noise rambling = 1\.2"):
        Noise(rambling=1.2)
