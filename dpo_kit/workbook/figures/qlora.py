"""The figures of notebook 05 beside the dashboard: what a card must hold, and what a margin costs in KL."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dpo_kit.views.style import PALETTE
from dpo_kit.views.training_warnings import column

SYMBOLS = ("circle", "square", "diamond", "cross", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
TEXTURE = {"fillmode": "overlay", "fgcolor": "white", "size": 6, "solidity": 0.2}
PATTERNS = ("", "/", ".", "x", "-", "+", "|", "\\", "")


def memory_bars(parts: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """One bar a profile, stacked from the bytes of its parts, in GB."""
    figure = go.Figure()
    names = list(next(iter(parts.values())))
    for number, name in enumerate(names):
        figure.add_bar(
            y=list(parts), x=[of_profile[name] / 1e9 for of_profile in parts.values()], name=name, orientation="h",
            marker={
                "color": PALETTE[number % len(PALETTE)],
                "pattern": {"shape": PATTERNS[number], **TEXTURE},
            },
        )  # fmt: skip
    figure.update_xaxes(title="GB at the peak of a DPO step").update_yaxes(autorange="reversed")
    height = 190 + 44 * len(parts)
    return figure.update_layout(template="dpo_kit", barmode="stack", height=height, legend_y=-0.35, margin_t=20)


def frontiers(logs: Mapping[str, Sequence[dict]], gain: str = "eval_log_ratios/margins") -> go.Figure:
    """Each run's way: `gain` on held-out pairs over the KL of its own answers, wherever both were measured."""
    figure = go.Figure()
    for number, (name, rows) in enumerate(logs.items()):
        points = paid(rows, gain)
        figure.add_scatter(
            x=[kl for _, kl, _ in points], y=[won for *_, won in points], name=name, mode="lines+markers",
            customdata=[step for step, *_ in points], hovertemplate="step %{customdata}<br>%{x:.3~f}, %{y:.3~f}",
            line={"color": PALETTE[number], "dash": DASHES[number]}, marker={"symbol": SYMBOLS[number], "size": 9},
        )  # fmt: skip
    figure.update_xaxes(title="sequence KL to the reference, nats", rangemode="tozero")
    figure.update_yaxes(title="log-ratio gap on held-out pairs, nats")
    return figure.update_layout(template="dpo_kit", legend_y=-0.25, margin_t=20)


def paid(rows: Sequence[dict], gain: str = "eval_log_ratios/margins") -> list[tuple[float, float, float]]:
    """(step, KL, gain) at every step where both were measured."""
    gains = dict(column(rows, gain))
    return [(step, kl, gains[step]) for step, kl in column(rows, "kl/sequence") if step in gains]
