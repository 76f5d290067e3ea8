from dataclasses import replace

import pytest

from dpo_kit.views.figures import (
    evaluation_figures,
    forest,
    per_prompt_scatter,
    three_arms,
    win_rate_by_length,
    wins_ties_losses,
)
from dpo_kit.workbook.figures.evaluation import differences
from tools.refresh_readme import overview


def test_arms_and_differences_show_the_numbers_they_are_given(comparison):
    metrics = comparison.report.metrics
    arms = {trace.name: list(trace.x) for trace in three_arms(metrics).data}
    assert arms["SFT+DPO"] == [metric.means["dpo"] for metric in metrics.values()]
    (points,) = differences(metrics).data
    lows = [x - d for x, d in zip(points.x, points.error_x.arrayminus, strict=True)]
    assert lows == pytest.approx([metric.difference.interval.low for metric in metrics.values()])


def test_the_overview_shows_the_arms_and_what_training_logged(comparison):
    drawn = {trace.name: trace for trace in overview(comparison.report, comparison.log).data}
    assert set(drawn) == {"Base", "SFT", "SFT+DPO", "margin", "KL"}
    assert list(drawn["margin"].y) == [row["rewards/margins"] for row in comparison.log if "loss" in row]
    assert list(drawn["KL"].y) == [row["kl/sequence"] for row in comparison.log if "kl/sequence" in row]


def test_an_arm_without_scores_leaves_its_places_empty(comparison):
    metric = comparison.report.metrics["faithfulness"]
    silent = replace(metric, means={**metric.means, "dpo": None}, difference=replace(metric.difference, interval=None))
    report = replace(comparison.report, metrics={**comparison.report.metrics, "faithfulness": silent})
    place = list(report.metrics).index("faithfulness")
    assert {trace.name: trace.x[place] for trace in three_arms(report.metrics).data}["SFT+DPO"] is None
    assert len(forest(report)[0].data[0].x) == len(report.metrics) - 1


def test_the_forest_holds_every_contrast_with_its_interval(comparison):
    figure, told = forest(comparison.report)
    traces = {trace.name: trace for trace in figure.data}
    assert set(traces) == {"SFT+DPO minus SFT", "SFT minus Base", "SFT+DPO minus Base"}
    rows = [row for row in comparison.report.contrasts if (row.treated, row.control) == ("dpo", "base")]
    drawn = traces["SFT+DPO minus Base"]
    highs = [x + d for x, d in zip(drawn.x, drawn.error_x.array, strict=True)]
    assert highs == pytest.approx([row.interval.high for row in rows])
    gain = comparison.report.metrics["faithfulness"].difference.interval
    assert f"faithfulness {gain.mean:+.3f}" in told
    places = {round(y, 6) for trace in figure.data for y in trace.y}
    assert len(places) == 3 * len(comparison.report.metrics), "no interval hides another"


def test_wins_ties_and_losses_add_up_to_the_prompts(comparison):
    figure, _ = wins_ties_losses(comparison.report, comparison.report.outcomes)
    bars = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in figure.data}
    for name in bars["wins"]:
        assert sum(bars[kind][name] for kind in bars) == len(comparison.prompts)
    assert bars["losses"]["judge: rubric"] == comparison.report.pairwise.losses
    scores = [row["scores"] for row in comparison.report.outcomes]
    assert bars["wins"]["severity match"] == sum(
        s["dpo"]["severity_match"] > s["sft"]["severity_match"] for s in scores
    )


def test_the_scatter_counts_every_prompt_once(comparison):
    figure, told = per_prompt_scatter(comparison.report, comparison.report.outcomes)
    (points,) = figure.data
    assert sum(points.marker.size) == len(comparison.prompts)
    above = sum(n for x, y, n in zip(points.x, points.y, points.marker.size, strict=True) if y > x)
    assert f"scores higher on {above}" in told


def test_the_win_rate_by_length_shows_quarters_all_and_equal_lengths(comparison):
    figure, told = win_rate_by_length(comparison.report)
    (points,) = figure.data
    quarters = comparison.report.judged.by_length_quartile
    assert list(points.x)[:4] == [quarter.win_rate.mean for quarter in quarters]
    assert "all, at equal lengths" in told
    guessed = replace(comparison.report.judged.length_controlled, length_controlled=None)
    judged = replace(comparison.report.judged, length_controlled=guessed)
    assert "at equal lengths" not in win_rate_by_length(replace(comparison.report, judged=judged))[1]


def test_figures_without_numbers_are_left_out(comparison):
    nothing = replace(comparison.report, metrics={}, contrasts=(), pairwise=None, judged=None)
    assert evaluation_figures(nothing, comparison.report.outcomes) == {}
    assert len(evaluation_figures(comparison.report, comparison.report.outcomes)) == 5
