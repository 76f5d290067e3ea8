"""A log of DPO training as figures. All functions are pure: they take the rows of a metrics log.

They draw the log of a running training, of a finished one, or of a stock trainer. The row of a step is the mean of one
batch and so is noisy: it is drawn as a light line, with its running mean on top. Measurements on held-out pairs and
answers are drawn as points with lines between them. A panel is left out if the log does not have its columns.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dpo_kit.views.style import COLOURS, GREY, ORANGE, SKY


def column(rows: Iterable[dict], name: str) -> list[tuple[float, float]]:
    """(step, value) wherever `name` was measured and finite."""
    return [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]


KL, HELD_OUT = "kl/sequence", "eval_rewards/margins"


@dataclass(frozen=True)
class Line:
    """One column of the log in one panel; `measured` says that it has a value now and then, not at every step.

    `error` is the column of its standard error, where it has one.
    """

    key: str
    name: str
    colour: str
    dash: str = "solid"
    measured: bool = False
    error: str = ""


LOSS, SPENT = "loss; ln 2 is that of no preference", "sequence KL to the reference, nats"
MARGIN, REWARDS, ACCURACY = "margin, β × nats", "rewards, β × nats", "accuracy"
FRONTIER, LENGTH, SPEED = "frontier: held-out margin against KL", "answers, tokens", "speed, pairs per second"
LIVE = (MARGIN, REWARDS, ACCURACY, FRONTIER, LENGTH, SPEED)  # what one watches while training runs
PANELS: dict[str, tuple[Line, ...]] = {
    MARGIN: (
        Line("rewards/margins", "trained pairs", COLOURS["margin"]),
        Line(HELD_OUT, "held-out pairs", ORANGE, "dash", True),
    ),
    REWARDS: (
        Line("rewards/chosen", "chosen", COLOURS["chosen"]),
        Line("rewards/rejected", "rejected", COLOURS["rejected"], "dash"),
    ),
    ACCURACY: (
        Line("rewards/accuracies", "trained pairs", COLOURS["margin"]),
        Line("eval_rewards/accuracies", "held-out pairs", ORANGE, "dash", True),
    ),
    FRONTIER: (Line(HELD_OUT, "the run so far", COLOURS["kl"], "dot", True),),
    LENGTH: (Line("answers/length", "length", SKY, "dash", True),),
    SPEED: (Line("pairs_per_s", "speed", GREY),),
    LOSS: (Line("loss", "loss", COLOURS["margin"]),),
    SPENT: (Line(KL, "KL", COLOURS["kl"], "dot", True, "kl/standard_error"),),
}


def training_curves(rows: Sequence[dict]) -> go.Figure:
    """A finished training in five panels: loss, rewards, margin, accuracy, and KL with its 95% interval."""
    return dashboard_figure(rows, (LOSS, REWARDS, MARGIN, ACCURACY, SPENT))


def dashboard_figure(rows: Sequence[dict], panels: Sequence[str] | None = None) -> go.Figure:
    """The `rows` of a metrics log as a figure of the `panels` named, or of the live ones that the log has columns for.

    Traces have a fixed order, so a live figure is updated by giving each of its traces new points.
    """
    names = [name for name in LIVE if _has(rows, name)] if panels is None else list(panels)
    height, listed = max(1, (len(names) + 1) // 2), set()  # two panels a row; `listed`: what the legend names already
    figure = make_subplots(height, 2, subplot_titles=names, horizontal_spacing=0.09, vertical_spacing=0.32 / height)
    for i, name in enumerate(names):
        place = {"row": i // 2 + 1, "col": i % 2 + 1}
        for trace in _traces(rows, name):
            # the legend names each line once, and leaves out the only line of a panel, which the panel's title names
            new = len(PANELS[name]) > 1 and trace.name not in listed
            trace.showlegend = new and trace.showlegend is not False
            listed |= {trace.name} if trace.showlegend else set()
            figure.add_trace(trace, **place)
        x_title = "KL to the reference, nats" if name == FRONTIER else "step"
        figure.update_xaxes(title=x_title, rangemode="tozero", title_standoff=4, **place)
        if name == LOSS:
            # the loss of a policy that prefers neither answer
            figure.add_hline(math.log(2), line_dash="dot", line_color=GREY, **place)
        if name == ACCURACY:
            figure.update_yaxes(range=[-0.03, 1.03], **place)
        elif len(PANELS[name]) == 1 and name != LOSS:
            figure.update_yaxes(rangemode="tozero", **place)
    if not names:
        figure.add_annotation(text="no column of DPO in this log", showarrow=False, xref="paper", yref="paper", x=0.5)
    figure.update_yaxes(exponentformat="none")  # plotly would write 0.001 as 1m
    margins = {"l": 50, "r": 15, "t": 35, "b": 90}
    legend = {"y": -90 / (280 * height), "yanchor": "bottom"}
    return figure.update_layout(template="dpo_kit", width=820, height=280 * height + 60, margin=margins, legend=legend)


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponentially weighted running mean over about ten values, or a twentieth of a long log; a NaN is left out."""
    # pandas weights by distance in steps and skips a NaN
    return pd.Series(values, dtype=float).ewm(span=max(10, len(values) // 20)).mean().tolist()


def frontier(rows: Sequence[dict], gain: str = HELD_OUT) -> list[tuple[float, float, float]]:
    """(step, KL in nats, `gain`) of every step at which both were measured."""
    gains = dict(column(rows, gain))
    return [(step, kl, gains[step]) for step, kl in column(rows, KL) if step in gains]


def frontier_trace(line: Line, rows: Sequence[dict], symbol: str = "diamond") -> go.Scatter:
    """The column of `line` against the KL at the same step, joined in the order of the steps."""
    points = frontier(rows, line.key)
    return _points(line, *(zip(*points, strict=True) if points else ((), (), ()))).update(marker_symbol=symbol)


def _has(rows: Sequence[dict], name: str) -> bool:
    return bool(frontier(rows)) if name == FRONTIER else any(column(rows, line.key) for line in PANELS[name])


def _traces(rows: Sequence[dict], name: str) -> list[go.Scatter]:
    if name == FRONTIER:
        return [frontier_trace(PANELS[name][0], rows)]
    traces = []
    for line in PANELS[name]:
        points = column(rows, line.key)
        steps, values = [step for step, _ in points], [value for _, value in points]
        if line.measured:
            errors = dict(column(rows, line.error))
            # half of the 95% interval
            bars = {"type": "data", "array": [1.96 * errors.get(step, 0.0) for step in steps]} if errors else None
            traces.append(_points(line, steps, steps, values).update(error_y=bars))
            continue
        look = {"x": steps, "mode": "lines", "legendgroup": line.name, "name": line.name}
        shade = {"color": line.colour, "width": 1}
        traces.append(go.Scatter(**look, y=values, line=shade, opacity=0.5, showlegend=False, hoverinfo="skip"))
        traces.append(go.Scatter(**look, y=smoothed(values), line={**shade, "dash": line.dash, "width": 2.5}))
    return traces


def _points(line: Line, steps: Sequence[float], x: Sequence[float], y: Sequence[float]) -> go.Scatter:
    return go.Scatter(
        x=list(x), y=list(y), customdata=list(steps), name=line.name, legendgroup=line.name, mode="lines+markers",
        line={"color": line.colour, "dash": line.dash, "width": 2}, marker={"size": 8, "symbol": "diamond"},
        hovertemplate="step %{customdata}<br>%{x:.3~f}, %{y:.3~f}",
    )  # fmt: skip
