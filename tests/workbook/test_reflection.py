"""The reflection starts from the run's own numbers, and a refused run has no verdict in it."""

from dataclasses import replace

from dpo_kit.evaluation.results import Control
from dpo_kit.views.tables import interval, pairwise_sentence
from dpo_kit.workbook.reflection import BLANK, reflection


def test_it_is_a_page_that_begins_with_the_runs_numbers(comparison):
    text = reflection(comparison.report)
    assert 250 <= len(text.split()) <= 350
    assert text.count(BLANK) >= 10
    assert pairwise_sentence(comparison.report.pairwise) in text
    for name, metric in comparison.report.metrics.items():
        assert f"{name.replace('_', ' ')} {interval(metric.difference.interval, '+')}" in text


def test_a_metric_without_a_verdict_is_named_among_what_was_not_found(comparison):
    def with_verdict(metric, verdict):
        return replace(metric, difference=replace(metric.difference, verdict=verdict))

    metrics = {name: with_verdict(metric, "better") for name, metric in comparison.report.metrics.items()}
    assert "Every metric has a verdict" in reflection(replace(comparison.report, metrics=metrics))
    metrics["length"] = with_verdict(metrics["length"], "inconclusive: needs about 900 prompts")
    text = reflection(replace(comparison.report, metrics=metrics))
    assert "Length: inconclusive: needs about 900 prompts. With 80% power" in text
    assert "To settle the rest: length needs about 900 prompts" in text


def test_a_refused_run_reports_counts_and_no_verdict(comparison):
    refused = replace(comparison.report, controls=(Control("identical", "all ties", False, "9 wins"),))
    text = reflection(refused)
    assert "refused: control identical failed, so these counts show nothing" in text
    assert ", better" not in text
    assert ", worse" not in text
    assert "By metric" not in text
    assert "did not find.** Anything, since a control failed." in text
