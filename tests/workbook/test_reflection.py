"""The reflection starts from the run's own numbers, and a refused run has no verdict in it."""

import copy

from dpo_kit.views.tables import interval, pairwise_sentence
from dpo_kit.workbook.reflection import BLANK, reflection


def test_it_is_a_page_that_begins_with_the_runs_numbers(comparison):
    text = reflection(comparison.data)
    assert 250 <= len(text.split()) <= 350
    assert text.count(BLANK) >= 10
    assert pairwise_sentence(comparison.data["pairwise"]) in text
    for metric, values in comparison.data["metrics"].items():
        assert f"{metric.replace('_', ' ')} {interval(values['dpo_minus_sft'], '+')}" in text


def test_a_metric_without_a_verdict_is_named_among_what_was_not_found(comparison):
    data = copy.deepcopy(comparison.data)
    for values in data["metrics"].values():
        values["dpo_minus_sft"]["verdict"] = "better"
    assert "Every metric has a verdict" in reflection(data)
    data["metrics"]["length"]["dpo_minus_sft"]["verdict"] = "inconclusive: needs about 900 prompts"
    text = reflection(data)
    assert "Length: inconclusive: needs about 900 prompts. With 80% power" in text
    assert "To settle the rest: length needs about 900 prompts" in text


def test_a_refused_run_reports_counts_and_no_verdict(comparison):
    refused = {**comparison.data, "refusal": "refused: control identical failed"}
    text = reflection(refused)
    assert "refused: control identical failed, so these counts show nothing" in text
    assert ", better" not in text
    assert ", worse" not in text
    assert "By metric" not in text
    assert "did not find.** Anything, since a control failed." in text
