"""The figures of notebook 04 that are not the audit's."""

from collections.abc import Mapping

import plotly.graph_objects as go

from dpo_kit.views.style import BLUE, ORANGE, whiskers


def judges_compared(scores: Mapping[str, tuple]) -> go.Figure:
    """For each judge its agreement with the truth and Cohen's kappa.

    `scores` maps a name to two intervals, each with `mean`, `low` and `high`.
    """
    figure = go.Figure()
    kinds = (("agreement with the truth", BLUE, "square"), ("Cohen's kappa", ORANGE, "diamond"))
    for number, (name, ink, symbol) in enumerate(kinds):
        own = [intervals[number] for intervals in scores.values()]
        means, lows, highs = ([getattr(i, key) for i in own] for key in ("mean", "low", "high"))
        figure.add_scatter(
            x=means, y=list(scores), error_x=whiskers(means, lows, highs), name=name, mode="markers",
            marker={"color": ink, "symbol": symbol, "size": 11},
        )  # fmt: skip
    figure.update_xaxes(title="with 95% interval; 1 is perfect", range=[-0.05, 1.05])
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(template="dpo_kit", height=330, legend_y=-0.3, margin_t=20)
