"""Figures of losses: the loss over the margin, and beside it minus its derivative, which pushes the margin up."""

from collections.abc import Callable, Mapping

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from dpo_kit.views.style import COLOURS, PALETTE
from dpo_kit.workbook.show import LINES, hatch


def loss_and_pull(
    losses: Mapping[str, Callable[[Tensor], Tensor]],
    title: str,
    *,
    low: float = -5.0,
    high: float = 5.0,
    ceiling: float | None = None,
    strongest: float | None = None,
    x_title: str = "margin m",
) -> go.Figure:
    """`loss(margin)` and `-d loss / d margin` of every entry over `low` to `high`; the first is the yardstick, in grey.

    Each function maps margins (N,) to losses (N,). A positive pull widens the margin. `ceiling` cuts
    the left panel, `strongest` the right one on both sides of zero.
    """
    margins = torch.linspace(low, high, 201)
    figure = make_subplots(1, 2, subplot_titles=("loss", "pull on the margin"), horizontal_spacing=0.1)
    colours = (COLOURS["reference"], *PALETTE)
    for (name, loss), colour, dash in zip(losses.items(), colours, LINES, strict=False):
        values, pulls = loss_with_pull(loss, margins)
        line = {"color": colour, "dash": dash, "width": 2}
        figure.add_scatter(x=margins.tolist(), y=values.tolist(), name=name, line=line, row=1, col=1)
        figure.add_scatter(x=margins.tolist(), y=pulls.tolist(), name=name, line=line, showlegend=False, row=1, col=2)
    figure.update_xaxes(title=x_title)
    if ceiling is not None:
        figure.update_yaxes(range=[min(-0.1, _lowest(figure)), ceiling], row=1, col=1)
    if strongest is not None:
        figure.update_yaxes(range=[-strongest, strongest], row=1, col=2)
    # room for the panels' titles below the figure's own
    return figure.update_layout(template="dpo_kit", title=title, legend_y=-0.3, height=400, margin_t=80)


def loss_with_pull(loss: Callable[[Tensor], Tensor], margins: Tensor) -> tuple[Tensor, Tensor]:
    """`loss(margins)` and minus its derivative by autograd, both (N,)."""
    leaf = margins.clone().requires_grad_()
    values = loss(leaf)
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), -slope


def pulls_on_pairs(margins: Tensor, pulls: Tensor, title: str, y_title: str) -> go.Figure:
    """One mark per pair, (B,) each: wrongly ordered pairs, those left of zero, as crosses."""
    figure = go.Figure()
    groups = {"wrong order": (margins < 0, "rejected", "x"), "right order": (margins >= 0, "chosen", "circle")}
    for name, (rows, kind, symbol) in groups.items():
        marker = {"color": COLOURS[kind], "symbol": symbol, "size": 8}
        x, y = margins[rows].tolist(), pulls[rows].tolist()
        figure.add_scatter(x=x, y=y, name=name, mode="markers", marker=marker)
    return figure.update_layout(
        template="dpo_kit", title=title, xaxis_title="margin m of the pair", yaxis_title=y_title, legend_y=-0.3
    )


def before_and_after(names: list[str], before: Tensor, after: Tensor, title: str, y_title: str) -> go.Figure:
    """Two bars for each name, plain before and hatched after."""
    figure = go.Figure()
    for label, values, kind, shape in (("before", before, "base", ""), ("after", after, "dpo", "/")):
        figure.add_bar(x=names, y=values.tolist(), name=label, marker=hatch(COLOURS[kind], shape))
    return figure.update_layout(
        template="dpo_kit", title=title, yaxis_title=y_title, xaxis_type="category", barmode="group", legend_y=-0.3
    )


def _lowest(figure: go.Figure) -> float:
    return min(min(trace.y) for trace in figure.data if trace.xaxis == "x")
