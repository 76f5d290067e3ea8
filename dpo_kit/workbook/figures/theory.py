"""Figures of the enumerable worlds, with sliders where a person has the notebook open."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log10

import plotly.graph_objects as go
import torch
from IPython.display import display
from plotly.subplots import make_subplots

from dpo_kit.machine import someone_is_there
from dpo_kit.views.style import BLUE, GREY, PALETTE, SYMBOLS
from dpo_kit.workbook.show import HATCHES, LINES, hatch, show


def lines(
    x, series: Mapping[str, Sequence[float]], *, title: str, x_title: str, y_title: str, log: str = "", markers=False
) -> go.Figure:
    """One line per entry of `series` over a common `x`; `log` names the logarithmic axes: '', 'x', 'y' or 'xy'."""
    figure = go.Figure()
    for (name, y), colour, dash, symbol in zip(series.items(), PALETTE, LINES, SYMBOLS, strict=False):
        style = {"line": {"color": colour, "dash": dash}, "marker": {"symbol": symbol, "size": 8}}
        figure.add_scatter(x=_list(x), y=_list(y), name=name, mode="lines+markers" if markers else "lines", **style)
    _axes(figure, title, x_title, y_title)
    for axis in log:
        figure.update_layout(
            {f"{axis}axis": {"type": "log", "exponentformat": "power", "dtick": _decades(figure, axis)}}
        )
    return figure


def policies(prompts: Sequence[str], answers: Sequence[str], rows: Mapping[str, Sequence], title: str) -> go.Figure:
    """Probabilities of the answers, one panel per prompt, one bar per policy; each entry of `rows` is (X, Y)."""
    figure = make_subplots(1, len(prompts), shared_yaxes=True, subplot_titles=list(prompts), horizontal_spacing=0.03)
    for (name, probs), colour, shape in zip(rows.items(), (GREY, *PALETTE), HATCHES, strict=False):
        for column, row in enumerate(_list(probs), 1):
            bar = {"name": name, "showlegend": column == 1, "marker": hatch(colour, shape)}
            figure.add_bar(x=list(answers), y=row, row=1, col=column, **bar)
    figure.update_layout(template="dpo_kit", title=title, barmode="group", yaxis_range=[0, 1])
    # room for the panels' titles below the figure's own
    figure.update_layout(yaxis_title="probability", margin_t=80)
    return figure.update_annotations(font_size=13)


def frontier(curve: tuple, paths: Mapping[str, tuple]) -> go.Figure:
    """Expected reward over KL from the reference: the exact `curve` and the points of each training method.

    `curve` and each path are `(kl, reward)`, two sequences of equal length.
    """
    figure = go.Figure()
    figure.add_scatter(x=_list(curve[0]), y=_list(curve[1]), name="best possible", line={"color": GREY, "width": 4})
    for (name, (kl, reward)), colour, symbol in zip(paths.items(), PALETTE, SYMBOLS, strict=False):
        style = {"symbol": symbol, "size": 10, "color": colour}
        figure.add_scatter(x=_list(kl), y=_list(reward), name=name, mode="markers", marker=style)
    _axes(figure, "What each nat of KL buys", "KL(π‖π_ref), nats, mean of prompts", "expected true reward")
    return figure.update_layout(height=520)


def loss_well(loss: Callable, marks: Mapping[str, float], title: str, low=-10.0, high=20.0) -> go.Figure:
    """`loss(gap)`, a scalar function of a tensor, over the log-ratio gap, with named gaps marked on it."""
    gaps = torch.linspace(low, high, 151)
    figure = go.Figure()
    figure.add_scatter(x=_list(gaps), y=[loss(gap).item() for gap in gaps], name="expected loss", line={"color": BLUE})
    for (name, gap), colour, symbol in zip(marks.items(), PALETTE[1:], SYMBOLS, strict=False):
        style = {"symbol": symbol, "size": 12, "color": colour}
        value = loss(torch.tensor(gap)).item()
        figure.add_scatter(x=[gap], y=[value], name=name, mode="markers", marker=style)
    _axes(figure, title, "log-ratio gap h(first) − h(second)", "expected DPO loss")
    return figure.update_layout(yaxis_range=[0, 3], xaxis_range=[low, high])


@dataclass(frozen=True)
class Slider:
    """A number to move: from `low` to `high`, beginning at `start`; `log` for one that spans magnitudes."""

    low: float
    start: float
    high: float
    log: bool = False


def explore(draw: Callable[..., go.Figure], description: str, **sliders: Slider) -> None:
    """Show `draw(**values)`: with sliders where a person can move them, else the one figure at their start.

    The figure's traces must keep their number and order whatever the values are.
    """
    start = draw(**{name: slider.start for name, slider in sliders.items()})
    if someone_is_there():
        _show_with_sliders(start, draw, sliders)
    else:
        show(start, description)


def _show_with_sliders(start: go.Figure, draw: Callable[..., go.Figure], sliders: Mapping[str, Slider]) -> None:
    from ipywidgets import VBox

    widget = go.FigureWidget(start)
    controls = {name: _control(name, slider) for name, slider in sliders.items()}

    def redraw(_change) -> None:
        fresh = draw(**{name: control.value for name, control in controls.items()})
        with widget.batch_update():
            for old, new in zip(widget.data, fresh.data, strict=True):
                old.x, old.y = new.x, new.y
            widget.layout.title = fresh.layout.title

    for control in controls.values():
        control.observe(redraw, names="value")
    display(VBox([*controls.values(), widget]))


def _control(name: str, slider: Slider):
    from ipywidgets import FloatLogSlider, FloatSlider

    if slider.log:
        return FloatLogSlider(slider.start, min=log10(slider.low), max=log10(slider.high), step=0.01, description=name)
    step = (slider.high - slider.low) / 100
    return FloatSlider(slider.start, min=slider.low, max=slider.high, step=step, description=name)


def _axes(figure: go.Figure, title: str, x_title: str, y_title: str) -> go.Figure:
    figure.update_layout(template="dpo_kit", title=title, xaxis_title=x_title, yaxis_title=y_title)
    return figure.update_layout(legend_y=-0.3)  # clear of the axis title


def _decades(figure: go.Figure, axis: str) -> int:
    """A label at every power of ten, or at every second or third where there are many."""
    values = [value for trace in figure.data for value in trace[axis] if value > 0]
    return max(1, round(log10(max(values) / min(values)) / 6))


def _list(values) -> list:
    return values.tolist() if hasattr(values, "tolist") else list(values)
