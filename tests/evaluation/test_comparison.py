import pytest
from statsmodels.stats.multitest import multipletests

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.comparison import compare
from dpo_kit.evaluation.results import Gap
from dpo_kit.preferences.judges import by_score
from dpo_kit.records import PreferencePair, Response, Verdict
from dpo_kit.triage import rubric
from dpo_kit.triage.incidents import Incident

JUDGE = by_score(rubric.overall, "rubric")


def answers(prompts, arm, write):
    made = {"arm": arm, "temperature": 1.0, "seed": 0, "stopped": True}
    return [Response(prompt_id=p.id, text=write(Incident.from_facts(p.facts)), **made) for p in prompts]


def three(prompts, base, sft, dpo):
    writers = {"base": base, "sft": sft, "dpo": dpo}
    return [response for arm, write in writers.items() for response in answers(prompts, arm, write)]


def right(incident):
    return incident.answer


def silent(incident):
    return ""


def truncated(incident):
    return incident.answer[:40]


def _incident(prompt):
    return Incident.from_facts(prompt.facts)


def test_a_right_arm_beats_a_silent_one_on_everything(incidents):
    result = compare(incidents, three(incidents, silent, silent, right), rubric.score, JUDGE)
    assert result.n_prompts == len(incidents)
    for name, metric in result.metrics.items():
        assert [metric.means[arm] for arm in ("base", "sft", "dpo")] == [0, 0, 1], name
        gain = metric.difference.interval
        assert gain.mean == gain.high == 1
        assert 0.95 < gain.low < 1, "300 prompts do not prove that all would gain"
    assert result.pairwise.wins == len(incidents)


def test_identical_arms_are_all_ties(incidents):
    result = compare(incidents, three(incidents, silent, truncated, truncated), rubric.score, JUDGE)
    assert result.pairwise.ties == len(incidents)
    assert all(metric.difference.interval.mean == 0 for metric in result.metrics.values())


def test_truncated_answers_lose(incidents):
    result = compare(incidents, three(incidents, right, right, truncated), rubric.score, JUDGE)
    assert result.pairwise.losses == len(incidents)


def test_the_order_of_answers_does_not_matter(incidents):
    responses = three(incidents, silent, truncated, right)
    assert compare(incidents, responses, rubric.score, JUDGE) == compare(
        incidents, responses[::-1], rubric.score, JUDGE
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: [*r, r[-1]], "answers prompt test-0-00299 2 times with seed 0"),
        (
            lambda r: [*r, r[-1].model_copy(update={"prompt_id": "elsewhere"})],
            "'elsewhere', which is not among the prompts",
        ),
        (lambda r: [x for x in r if x.arm != "dpo"], "arm 'dpo' is not there; the arms are base, sft"),
    ],
)
def test_doubled_foreign_and_absent_answers_are_refused(incidents, spoil, message):
    with pytest.raises(DpoKitError, match=message):
        compare(incidents, spoil(three(incidents, silent, silent, right)), rubric.score, JUDGE)


def test_what_is_missing_is_named_and_everything_rests_on_what_is_there(incidents):
    # DPO answers the first 100 of 300 prompts, SFT all but the first 10: 90 prompts have both
    responses = three(incidents, silent, truncated, right)
    late, early = {p.id for p in incidents[100:]}, {p.id for p in incidents[:10]}
    kept = [
        r
        for r in responses
        if not ((r.arm == "dpo" and r.prompt_id in late) or (r.arm == "sft" and r.prompt_id in early))
    ]
    result = compare(incidents, kept, rubric.score, JUDGE)
    assert result.missing == {
        "sft": Gap(10, tuple(p.id for p in incidents[:5])),
        "dpo": Gap(200, tuple(p.id for p in incidents[100:105])),
    }
    both = [r for r in kept if r.prompt_id not in late | early]
    whole = compare(incidents[10:100], both, rubric.score, JUDGE)
    for name, metric in result.metrics.items():
        assert metric.difference.n == 90
        assert metric.difference == whole.metrics[name].difference
    assert result.pairwise == whole.pairwise
    assert result.pairwise.wins == 90


def test_an_arm_without_any_answer_leaves_a_report_and_no_number(incidents):
    responses = [r for r in three(incidents, silent, right, right) if r.arm != "dpo"]
    result = compare(incidents, responses, rubric.score, JUDGE, arms=["base", "sft", "dpo"])
    assert result.missing["dpo"].count == len(incidents)
    for metric in result.metrics.values():
        assert metric.means["dpo"] is None
        assert metric.difference.interval is None
        assert metric.difference.verdict == "nothing to compare: 0 prompts have both"
    assert result.pairwise.wins == result.pairwise.losses == 0


def test_unjudged_stays_unjudged_and_counts_for_neither(incidents):
    def half(prompt, a, b):
        refused = int(prompt.id[-1]) % 2
        return Verdict(winner="unjudged", judge="half", reason="refused") if refused else JUDGE(prompt, a, b)

    result = compare(incidents, three(incidents, silent, silent, right), rubric.score, half)
    assert (result.pairwise.wins, result.pairwise.unjudged) == (150, 150)
    assert result.pairwise.ties == result.pairwise.losses == 0


def test_secondary_contrasts_stand_under_holm(incidents):
    # five metrics x two secondary contrasts: SFT over base, and DPO over base, who answer alike
    responses = three(incidents, right, truncated, right)
    rows = compare(incidents, responses, rubric.score, JUDGE).contrasts
    assert [(row.treated, row.control) for row in rows] == [("sft", "base")] * 5 + [("dpo", "base")] * 5
    raw = [row.p_value for row in rows]
    assert [row.p_holm for row in rows] == pytest.approx(multipletests(raw, method="holm")[1])
    assert all(row.p_holm >= row.p_value for row in rows)


def mended(incidents, count):
    """SFT's answers name a wrong severity; DPO's do so too, but for the first `count` prompts. All else is equal."""
    other = {f"SEV{n}": f"SEV{n % 4 + 1}" for n in range(1, 5)}
    texts = [i.answer.replace(i.severity, other[i.severity]) for i in map(_incident, incidents)]
    return [
        Response(
            prompt_id=p.id,
            text=right(_incident(p)) if arm == "dpo" and n < count else texts[n],
            arm=arm,
            temperature=1.0,
            seed=0,
        )
        for arm in ("sft", "dpo")
        for n, p in enumerate(incidents)
    ]


def test_the_metrics_of_the_primary_contrast_stand_under_holm(incidents):
    # 7 mended and none broken: p = 2 / 2^7 = .016 by itself, and .078 as one of five; 9: p = .0039, and .0195
    for count, verdict in ((7, "inconclusive: better by itself, not as one of 5"), (9, "better")):
        metrics = compare(incidents, mended(incidents, count), rubric.score, None).metrics
        severity = metrics["severity_match"].difference
        assert severity.p_value == pytest.approx(2 / 2**count)
        assert severity.p_holm == pytest.approx(5 * 2 / 2**count)
        assert severity.interval.low > 0
        assert severity.verdict == verdict


def test_one_metric_alone_needs_no_correction(incidents):
    def severity(prompt, text):
        return {"severity_match": rubric.score(prompt, text)["severity_match"]}

    gain = compare(incidents, mended(incidents, 7), severity, None).metrics["severity_match"].difference
    assert gain.p_holm == gain.p_value
    assert gain.verdict == "better"


def test_the_sign_test_of_a_pass_fail_metric_is_mcnemars(incidents):
    # severity: DPO passes 9 prompts that SFT fails, and fails 2 that it passes: 2 P(X <= 2 | 11, 1/2) = 2 * 67 / 2048
    def wrong(incident):
        return "SEVERITY: SEV0"

    texts = {
        p.id: (wrong, right) if i < 9 else (right, wrong) if i < 11 else (right, right) for i, p in enumerate(incidents)
    }
    responses = [
        Response(prompt_id=p.id, text=texts[p.id][side](Incident.from_facts(p.facts)), arm=arm, temperature=1.0, seed=0)
        for side, arm in enumerate(("sft", "dpo"))
        for p in incidents
    ]
    difference = compare(incidents, responses, rubric.score, JUDGE).metrics["severity_match"].difference
    assert difference.p_value == pytest.approx(2 * (1 + 11 + 55) / 2048)


def test_ratings_are_one_more_metric_and_what_is_unscored_is_left_out(incidents):
    def rate(prompt, text):
        return (5 if text.startswith("SEVERITY") else 2, "") if int(prompt.id[-1]) else (None, "refused")

    result = compare(incidents, three(incidents, silent, silent, right), rubric.score, JUDGE, rate=rate)
    rating = result.metrics["judge_score"]
    assert (rating.means["base"], rating.means["dpo"]) == (2, 5)
    assert rating.intervals["dpo"].high == 5, "the scale ends there"
    assert rating.difference.n == 270
    assert rating.difference.interval.mean == 3
    assert result.unscored == {"base": 30, "sft": 30, "dpo": 30}


def test_samples_are_averaged_by_prompt_and_compete_as_best_of_k(incidents):
    # SFT is right once in two samples, DPO always: means 1/2 and 1, and the best of two are equal
    dpo = [r.model_copy(update={"seed": seed}) for seed in (0, 1) for r in answers(incidents, "dpo", right)]
    sft = [
        *answers(incidents, "sft", silent),
        *(r.model_copy(update={"seed": 1}) for r in answers(incidents, "sft", right)),
    ]
    result = compare(incidents, [*dpo, *sft], rubric.score, JUDGE)
    assert result.metrics["severity_match"].means["sft"] == 0.5
    assert result.win_rate_at_k[1].mean == pytest.approx(0.75)
    assert result.win_rate_at_k[2].mean == pytest.approx(0.5)


def test_prompts_of_one_source_count_as_one(incidents):
    # every prompt ten times: with clusters the interval is about that of the originals, without it is far too narrow
    few = incidents[:30]
    copies = [p.model_copy(update={"id": f"{p.id}/{i}"}) for p in few for i in range(10)]
    texts = {p.id: right if n % 3 else truncated for n, p in enumerate(few)}
    responses = three(copies, silent, truncated, right)
    responses = [
        r.model_copy(update={"text": texts[p.id.split("/")[0]](Incident.from_facts(p.facts))}) if r.arm == "dpo" else r
        for r, p in zip(responses, copies * 3, strict=True)
    ]
    naive = compare(copies, responses, rubric.score, JUDGE)
    clustered = compare(copies, responses, rubric.score, JUDGE, clusters=lambda p: p.id.split("/")[0])

    def widths(result):
        found = (result.metrics["severity_match"].difference.interval, result.pairwise.win_rate)
        return [interval.high - interval.low for interval in found]

    for blind, aware in zip(widths(naive), widths(clustered), strict=True):
        assert aware > 2.5 * blind  # sqrt(10) = 3.2, less what boundedness takes


def test_a_judge_of_the_training_pairs_is_warned_of(incidents):
    a, b = answers(incidents, "sft", right)[0], answers(incidents, "sft", silent)[0]
    pair = PreferencePair(prompt=incidents[0], chosen=a, rejected=b, verdict=JUDGE(incidents[0], a.text, b.text))
    responses = three(incidents, silent, silent, right)
    (warning,) = compare(incidents, responses, rubric.score, JUDGE, trained_on=[pair]).warnings
    assert "(rubric) also labelled" in warning
    assert compare(incidents, responses, rubric.score, JUDGE).warnings == ()


def test_any_arms_can_take_part(incidents):
    made = [
        *answers(incidents, "old", truncated),
        *answers(incidents, "new", right),
        *answers(incidents, "sft", silent),
    ]
    result = compare(incidents, made, rubric.score, JUDGE, primary=("new", "old"))
    assert result.arms == ("sft", "old", "new")
    gain = result.metrics["faithfulness"].difference
    assert (gain.treated, gain.control, gain.verdict) == ("new", "old", "better")
    assert {(row.treated, row.control) for row in result.contrasts} == {("old", "sft"), ("new", "sft")}
