"""The figures of notebooks 03 and 05 draw what their numbers say: shares, medians with ranges, matching steps."""

import pytest

from dpo_kit.views.training import frontier
from dpo_kit.workbook.figures.fast import cells, gain, speeds, step_rates
from dpo_kit.workbook.figures.qlora import LOG_RATIOS, frontiers, memory_bars
from dpo_kit.workbook.figures.sft import fault_rates, margins_at_start, moved, rounding

RATES = [
    {"model": "m", "lengths": "1:1:1", "arm": arm, "round": number, "pairs_per_s": rate}
    for arm, rates in {"stock": (1.0, 3.0, 2.0), "best_stock": (4.0, 4.0, 4.0), "fast": (9.0, 8.0, 10.0)}.items()
    for number, rate in enumerate(rates)
]


def test_speeds_are_the_median_and_the_range_of_one_cell():
    other = {"model": "m", "lengths": "ragged", "arm": "fast", "round": 0, "pairs_per_s": 100.0}
    assert cells([*RATES, other]) == [("m", "1:1:1"), ("m", "ragged")]
    assert speeds([*RATES, other], "m", "1:1:1") == {
        "stock": (2.0, 1.0, 3.0), "best_stock": (4.0, 4.0, 4.0), "fast": (9.0, 8.0, 10.0)
    }  # fmt: skip


def test_a_gain_is_the_median_of_ratios_within_rounds():
    assert gain(RATES, "m", "1:1:1", "stock") == 5.0, "of 9, 8/3 and 5; the ratio of medians would be 4.5"
    assert gain(RATES, "m", "1:1:1", "best_stock") == 2.25
    assert gain(RATES, "m", "1:1:1", "fast_padded") is None


def test_a_bar_reaches_the_median_and_its_whiskers_the_extremes():
    (bar,) = step_rates(RATES, "m", "1:1:1").data
    assert bar.x == (2.0, 4.0, 9.0)
    assert [x + up for x, up in zip(bar.x, bar.error_x.array, strict=True)] == [3.0, 4.0, 10.0]
    assert [x - down for x, down in zip(bar.x, bar.error_x.arrayminus, strict=True)] == [1.0, 4.0, 8.0]


def test_a_point_of_a_frontier_has_both_values_from_the_same_step():
    rows = [
        {"step": 0, "kl/sequence": 0.0}, {"step": 0, "eval_log_ratios/margins": 0.0}, {"step": 1, "loss": 0.6},
        {"step": 2, "kl/sequence": 1.5}, {"step": 4, "kl/sequence": 2.5}, {"step": 4, "eval_log_ratios/margins": 7.0},
    ]  # fmt: skip
    assert frontier(rows, LOG_RATIOS) == [(0, 0.0, 0.0), (4, 2.5, 7.0)]
    (trace,) = frontiers({"run": rows}).data
    assert (trace.x, trace.y) == ((0.0, 2.5), (0.0, 7.0))


def test_memory_is_stacked_in_gigabytes():
    figure = memory_bars({"a": {"weights": 2e9, "rest": 5e8}, "b": {"weights": 4e9, "rest": 0}})
    assert {trace.name: trace.x for trace in figure.data} == {"weights": (2.0, 4.0), "rest": (0.5, 0.0)}


def test_histograms_are_shares_and_keep_the_largest_value():
    figure = rounding([-1.0, 0.0, 0.5, 1.0], [-1.0, 0.0, 1.0], {"coarse": [-0.5, 0.5], "fine": [0.1, 0.1]})
    named = {trace.name: trace for trace in figure.data}
    for name in ("weights", "coarse", "fine"):
        assert sum(named[name].y) == pytest.approx(1)
    assert named["weights"].y[-1] == pytest.approx(1 / 4), "the largest falls into the last bin, not beyond it"
    assert named["coarse"].y[0] == named["coarse"].y[-1] == pytest.approx(1 / 2)


def test_rates_stand_at_their_value_with_their_interval():
    figure = fault_rates({"shown": {"form": (0.2, 0.1, 0.4)}, "said": {"form": (0.3, 0.3, 0.3)}})
    shown, said = figure.data
    assert (shown.x[0], shown.x[0] + shown.error_x.array[0]) == pytest.approx((0.2, 0.4))
    assert shown.x[0] - shown.error_x.arrayminus[0] == pytest.approx(0.1)
    assert shown.y[0] < said.y[0], "sources stand beside each other, not on top"


def test_margins_are_sorted_and_changes_are_shares():
    figure = margins_at_start({"one": [0.0, 0.0], "other": [0.3, -0.2]})
    assert [trace.y for trace in figure.data] == [(0.0, 0.0), (-0.2, 0.3)]
    (heat,) = moved([[0.034, 0.1]], ["layer 0"], ["q", "v"]).data
    assert tuple(heat.text[0]) == ("3.4%", "10.0%")
