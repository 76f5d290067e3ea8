"""Pictures of losses: the pull is minus the slope, and marks say which pairs are in the wrong order."""

import pytest
import torch
import torch.nn.functional as F

from dpo_kit.workbook.figures.loss import before_and_after, loss_and_pull, loss_with_pull, pulls_on_pairs


def test_the_pull_of_dpo_is_sigmoid_of_minus_the_margin():
    margins = torch.linspace(-6, 6, 25)
    losses, pulls = loss_with_pull(lambda m: -F.logsigmoid(m), margins)
    torch.testing.assert_close(losses, F.softplus(-margins))
    torch.testing.assert_close(pulls, torch.sigmoid(-margins))


def test_each_loss_has_a_line_in_both_panels_and_one_legend_entry():
    figure = loss_and_pull({"DPO": lambda m: -F.logsigmoid(m), "square": lambda m: (m - 1) ** 2}, "two", ceiling=8)
    assert [trace.name for trace in figure.data] == ["DPO", "DPO", "square", "square"]
    assert [trace.showlegend for trace in figure.data] == [None, False, None, False]
    assert len({trace.line.dash for trace in figure.data}) == 2, "told apart without colour"
    assert figure.layout.yaxis.range[1] == 8
    assert figure.layout.yaxis.range[0] < 0


def test_the_frame_of_a_loss_that_goes_below_zero_reaches_down_to_it():
    figure = loss_and_pull({"line": lambda m: -m}, "unbounded", low=-2.0, high=2.0, ceiling=3)
    assert figure.layout.yaxis.range[0] == pytest.approx(-2.0)


def test_wrongly_ordered_pairs_have_a_mark_of_their_own():
    figure = pulls_on_pairs(torch.tensor([-1.0, 2.0, 0.0]), torch.tensor([0.7, 0.1, 0.5]), "weights", "weight")
    wrong, right = figure.data
    assert (list(wrong.x), list(right.x)) == ([-1.0], [2.0, 0.0])
    assert wrong.marker.symbol != right.marker.symbol


def test_before_and_after_keep_the_order_of_the_names():
    figure = before_and_after(["1", "0"], torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5]), "t", "y")
    assert list(figure.data[0].x) == ["1", "0"]
    assert list(figure.data[0].y) == [0.25, 0.75]
    assert figure.layout.xaxis.type == "category", "tokens that are digits are names, not numbers"
