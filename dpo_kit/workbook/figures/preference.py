"""The figures of notebook 04 that are not the audit's."""

from collections.abc import Mapping

import plotly.graph_objects as go

from dpo_kit.evaluation.results import Interval
from dpo_kit.views.figures import interval_points
from dpo_kit.views.style import BLUE, ORANGE


def judges_compared(scores: Mapping[str, tuple[Interval, Interval]]) -> go.Figure:
    """For each judge its agreement with the truth and Cohen's kappa, in this order in `scores`."""
    figure = go.Figure()
    kinds = (("agreement with the truth", BLUE, "square"), ("Cohen's kappa", ORANGE, "diamond"))
    for number, (name, ink, symbol) in enumerate(kinds):
        own = [intervals[number] for intervals in scores.values()]
        figure.add_trace(interval_points(list(scores), own, ink, symbol, name=name))
    figure.update_xaxes(title="with 95% interval; 1 is perfect", range=[-0.05, 1.05])
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(template="dpo_kit", height=330, legend_y=-0.3, margin_t=20)
