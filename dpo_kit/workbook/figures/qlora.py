"""The figures of notebook 05 beside the dashboard: the memory that a GPU needs, and the margin against the KL."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dpo_kit.views.style import PALETTE, SYMBOLS
from dpo_kit.views.training import Line, frontier_trace
from dpo_kit.workbook.show import HATCHES, LINES, hatch

LOG_RATIOS = "eval_log_ratios/margins"  # in nats and not scaled by beta, so runs with different betas can be compared


def memory_bars(parts: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """One bar a profile, stacked from the bytes of its parts, in GB."""
    figure = go.Figure()
    names = list(next(iter(parts.values())))
    for number, name in enumerate(names):
        figure.add_bar(
            y=list(parts), x=[of_profile[name] / 1e9 for of_profile in parts.values()], name=name, orientation="h",
            marker=hatch(PALETTE[number % len(PALETTE)], HATCHES[number % len(HATCHES)]),
        )  # fmt: skip
    figure.update_xaxes(title="GB at the peak of a DPO step").update_yaxes(autorange="reversed")
    height = 190 + 44 * len(parts)
    return figure.update_layout(template="dpo_kit", barmode="stack", height=height, legend_y=-0.35, margin_t=20)


def frontiers(logs: Mapping[str, Sequence[dict]]) -> go.Figure:
    """For each run the gap between chosen and rejected held-out answers, over the KL to the reference."""
    figure = go.Figure()
    for number, (name, rows) in enumerate(logs.items()):
        colour, dash, symbol = (looks[number % len(looks)] for looks in (PALETTE, LINES, SYMBOLS))
        figure.add_trace(frontier_trace(Line(LOG_RATIOS, name, colour, dash), rows, symbol))
    figure.update_xaxes(title="sequence KL to the reference, nats", rangemode="tozero")
    figure.update_yaxes(title="log-ratio gap on held-out pairs, nats")
    return figure.update_layout(template="dpo_kit", legend_y=-0.25, margin_t=20)
