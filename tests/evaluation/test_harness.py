"""One evaluation from answers to a report, as `run` and `evaluate` make it."""

import pytest

from dpo_kit.evaluation.comparison import compare
from dpo_kit.evaluation.harness import evaluate_answers
from dpo_kit.preferences.judges import both_orders, by_score
from dpo_kit.records import Response
from dpo_kit.triage import rubric
from dpo_kit.triage.incidents import Incident

JUDGE = both_orders(by_score(rubric.overall, "rubric"))


@pytest.fixture(scope="module")
def prompts(incidents):
    return incidents[:30]


def answers(prompts, arm, cut=None, temperature=1.0, seed=0):
    made = {"arm": arm, "temperature": temperature, "seed": seed}
    return [Response(prompt_id=p.id, text=Incident.from_facts(p.facts).answer[:cut], **made) for p in prompts]


def found(report, name):
    (control,) = (control for control in report.controls if control.name == name)
    return control.found


def test_sampled_and_greedy_answers_are_compared_apart_and_only_the_sampled_ones_make_the_table(prompts):
    sampled = [*answers(prompts, "sft", 30), *answers(prompts, "dpo")]
    greedy = [*answers(prompts, "sft", None, 0.0), *answers(prompts, "dpo", 30, 0.0)]
    report = evaluate_answers(
        prompts, [*greedy, *sampled], rubric.score, JUDGE, temperature=1.0, seed=4, profile="tiny"
    )
    assert vars(report).items() >= vars(compare(prompts, sampled, rubric.score, JUDGE)).items()
    assert report.greedy == compare(prompts, greedy, rubric.score, JUDGE)
    assert (report.pairwise.wins, report.greedy.pairwise.losses) == (30, 30)
    assert (report.seed, report.profile, report.sampling) == (4, "tiny", "sampled at temperature 1")
    alone = evaluate_answers(prompts, greedy, rubric.score, JUDGE, temperature=0.0)
    assert (alone.greedy, alone.sampling, alone.pairwise.losses) == (None, "decoded greedily", 30)


def test_controls_ask_about_the_first_prompts_that_all_answered_a_second_time_too(prompts):
    responses = [*answers(prompts[1:], "sft", 30), *answers(prompts, "dpo")]
    again = answers(prompts[:8], "sft", 40, seed=9)
    report = evaluate_answers(prompts, responses, rubric.score, JUDGE, temperature=1.0, resample=again, controlled=10)
    # of the first 10 prompts, 8 have a second answer and the first of them has no first one
    assert found(report, "identical") == "0 wins, 7 ties, 0 losses; sign test p = 1"
    assert sum(int(word) for word in found(report, "resample").split(";")[0].split() if word.isdigit()) == 7
    assert report.n_prompts == 30


def test_a_control_that_fails_refuses_every_verdict(prompts):
    responses = [*answers(prompts, "sft", -30), *answers(prompts, "dpo")]
    longest = both_orders(by_score(lambda prompt, text: len(text), "longest"))
    believed, refused = (
        evaluate_answers(prompts, responses, rubric.score, judge, temperature=1.0) for judge in (JUDGE, longest)
    )
    assert believed.refusal is believed.to_data()["refusal"] is None
    assert refused.refusal == refused.to_data()["refusal"] == "refused: control constant, padded failed"


def test_without_two_common_prompts_the_judge_has_no_controls_and_the_report_says_so(prompts):
    responses = [*answers(prompts[:1], "sft", 30), *answers(prompts, "dpo")]
    report = evaluate_answers(
        prompts, responses, rubric.score, JUDGE, temperature=1.0, reasons={"sft": "29 times HTTP 500"}
    )
    assert report.controls == ()
    assert "controls were not run" in report.warnings[-1]
    assert (report.missing["sft"].count, report.missing["sft"].reason) == (29, "29 times HTTP 500")
    unjudged = evaluate_answers(prompts, responses, rubric.score, None, temperature=1.0)
    assert [control.name for control in unjudged.controls] == ["varied answers of sft", "varied answers of dpo"]
    assert unjudged.warnings == ()


def test_an_arm_may_be_called_resample(prompts):
    responses = [*answers(prompts, "resample", 30), *answers(prompts, "dpo")]
    report = evaluate_answers(
        prompts, responses, rubric.score, JUDGE, temperature=1.0, primary=("dpo", "resample"),
        resample=answers(prompts, "resample", 40, seed=9),
    )  # fmt: skip
    assert {"resample", "varied answers of resample", "varied answers of dpo"} <= {c.name for c in report.controls}
