"""The figures of notebook 03: quantisation errors, the size of an adapter's changes, and the mistakes it copied."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dpo_kit.views.style import BLUE, COLOURS, GREY, PALETTE, SYMBOLS, VERMILION, whiskers
from dpo_kit.workbook.show import DASHES

BINS = 80


def rounding(scaled: Sequence[float], levels: Sequence[float], errors: Mapping[str, Sequence[float]]) -> go.Figure:
    """Where the scaled weights lie with the `levels` they are rounded to, and beside it the errors of each grid."""
    titles = ("weights, each block scaled to [-1, 1]", "error of a weight")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12)
    heights, middles = _counts(scaled, 1.0)
    line = {"color": GREY, "shape": "hvh"}
    figure.add_scatter(x=middles, y=heights, name="weights", mode="lines", line=line, fill="tozeroy", row=1, col=1)
    ticks = {"mode": "markers", "marker": {"symbol": "line-ns-open", "size": 18, "color": BLUE, "line_width": 2}}
    figure.add_scatter(x=list(levels), y=[0] * len(levels), name="the 16 levels of NF4", row=1, col=1, **ticks)
    most = max(abs(value) for group in errors.values() for value in group)
    for (name, values), ink, dash in zip(errors.items(), (BLUE, VERMILION), ("solid", "dash"), strict=False):
        heights, middles = _counts(values, most)
        line = {"color": ink, "dash": dash, "shape": "hvh"}
        figure.add_scatter(x=middles, y=heights, name=name, mode="lines", line=line, row=1, col=2)
    figure.update_yaxes(title="share", row=1, col=1).update_yaxes(title="share", row=1, col=2)
    return figure.update_layout(template="dpo_kit", width=900, legend_y=-0.18)


def moved(changes: Sequence[Sequence[float]], layers: Sequence[str], modules: Sequence[str]) -> go.Figure:
    """How far each matrix moved, relative to its own size: one row a layer, one column a kind of matrix."""
    text = [[f"{value:.1%}" for value in row] for row in changes]
    scale = [[0, "#EAF3FA"], [1, "#56B4E9"]]  # opaque and light, so that dark figures read on any page
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in changes], x=list(modules), y=list(layers), text=text, texttemplate="%{text}",
            textfont_color="#202020",
            colorscale=scale, zmin=0, colorbar={"tickformat": ".0%", "title": "|ΔW| / |W|"},
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(template="dpo_kit", height=290, margin_t=20)


def fault_rates(rates: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> go.Figure:
    """For each source (demonstrations, an arm) and each fault its rate with interval, `(rate, low, high)`."""
    figure = go.Figure()
    faults = list(next(iter(rates.values())))
    for number, (source, of_source) in enumerate(rates.items()):
        shift = 0.22 * (number - (len(rates) - 1) / 2)
        middles, lows, highs = zip(*(of_source[fault] for fault in faults), strict=True)
        figure.add_scatter(
            x=middles, y=[place + shift for place in range(len(faults))], name=source, mode="markers", cliponaxis=False,
            marker={"color": PALETTE[number], "symbol": SYMBOLS[number], "size": 11, "line_width": 2},
            error_x=whiskers(middles, lows, highs),
        )  # fmt: skip
    figure.update_xaxes(title="share of answers with the fault, 95% interval", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", tickvals=list(range(len(faults))), ticktext=faults, zeroline=False)
    return figure.update_layout(template="dpo_kit", height=340, legend_y=-0.3, margin_t=20)


def margins_at_start(margins: Mapping[str, Sequence[float]]) -> go.Figure:
    """For each reference the margins of the same pairs before any training, sorted: all of them should be zero."""
    figure = go.Figure()
    for (name, values), kind in zip(margins.items(), ("dpo", "rejected"), strict=True):
        line = {"color": COLOURS[kind], "dash": DASHES[kind], "width": 3}
        figure.add_scatter(x=list(range(1, len(values) + 1)), y=sorted(values), name=name, mode="lines", line=line)
    figure.update_xaxes(title="pairs, sorted by their margin").update_yaxes(title="margin before the first step")
    return figure.update_layout(template="dpo_kit", height=340, legend_y=-0.3, margin_t=20)


def _counts(values: Sequence[float], most: float) -> tuple[list[float], list[float]]:
    """The shares of `values` in equal bins over [-most, most], and the bins' middles: a histogram drawn as a line."""
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value + most) / (2 * most) * BINS))] += 1
    width = 2 * most / BINS
    return [count / len(values) for count in counts], [-most + width * (i + 0.5) for i in range(BINS)]
