"""The figures of notebook 06 draw the given numbers and repeat them in words."""

import pytest

from dpo_kit.evaluation.results import Interval
from dpo_kit.workbook.figures.evaluation import rate_by_k, rates_compared, spread_by_size, verdict_shares


def rate(mean, half=0.1):
    return Interval(mean, mean - half, mean + half)


def test_a_ridge_for_each_number_of_prompts():
    figure, told = spread_by_size({30: [-0.1, 0.2, 0.5], 400: [0.18, 0.2, 0.22]}, observed=0.2)
    assert {trace.name: list(trace.x) for trace in figure.data} == {
        "30 prompts": [-0.1, 0.2, 0.5],
        "400 prompts": [0.18, 0.2, 0.22],
    }
    assert "with 30 prompts from -0.10 to +0.50" in told


def test_the_shares_of_a_row_fill_the_bar():
    shares = {"30": {"inconclusive": 0.7, "better": 0.3}, "400": {"better": 0.99, "worse": 0.01}}
    figure, told = verdict_shares(shares)
    assert [trace.name for trace in figure.data] == ["better", "inconclusive", "worse"]
    assert [sum(column) for column in zip(*(trace.x for trace in figure.data), strict=True)] == pytest.approx([1, 1])
    assert figure.data[-1].text == ("", ""), "a share too small for its number is left to the description"
    assert "30: inconclusive 70%, better 30%" in told


def test_each_way_has_its_marker_in_each_row_and_none_lies_on_another():
    rates = {"truth": {"once": rate(0.7), "twice": rate(0.6)}, "biased": {"once": rate(0.9), "twice": rate(0.55)}}
    figure, told = rates_compared(rates, "win rate")
    assert {trace.name: list(trace.x) for trace in figure.data} == {"once": [0.7, 0.9], "twice": [0.6, 0.55]}
    assert len({y for trace in figure.data for y in trace.y}) == 4
    assert list(figure.data[0].error_x.array) == pytest.approx([0.1, 0.1])
    assert "biased: once 90%, twice 55%" in told


def test_the_rate_over_k():
    figure, told = rate_by_k({1: rate(0.7), 8: rate(0.55)})
    assert (list(figure.data[0].x), list(figure.data[0].y)) == ([1, 8], [0.7, 0.55])
    assert "K = 8: 55%" in told
