"""The figures of notebooks 00 and 06 that are not in the report: the gain alone, and chance effects on few prompts.

Most come with a sentence for readers who cannot see it: `show(*spread_by_size(draws, 0.2))`.
"""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dpo_kit.evaluation.results import Interval, Metric
from dpo_kit.views.figures import interval_points, interval_rows, stacked_bars
from dpo_kit.views.style import BLUE, COLOURS, GREY, PALETTE, SKY, SYMBOLS, VERMILION, whiskers
from dpo_kit.views.tables import metric_name

VERDICTS = {"better": BLUE, "no difference": SKY, "inconclusive": GREY, "worse": VERMILION}


def differences(metrics: Mapping[str, Metric]) -> go.Figure:
    """The primary difference on each metric with its 95% interval; an interval that crosses zero shows nothing."""
    gains = [metric.difference.interval for metric in metrics.values()]
    figure = go.Figure(interval_points([metric_name(name) for name in metrics], gains, COLOURS["dpo"], "square"))
    figure.add_vline(0, line_dash="dot", line_color=GREY)
    figure.update_xaxes(title="difference, 95% interval")
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(template="dpo_kit", height=300, margin_t=20)


def spread_by_size(draws: Mapping[int, Sequence[float]], observed: float) -> tuple[go.Figure, str]:
    """How far a difference falls from `observed` by chance: one ridge for each number of prompts drawn."""
    figure = go.Figure()
    for (n, values), colour in zip(draws.items(), PALETTE, strict=False):
        figure.add_violin(
            x=[round(value, 4) for value in values], name=f"{n} prompts", orientation="h", side="positive", width=1.7,
            points=False, line_color=colour, showlegend=False, spanmode="hard",
        )  # fmt: skip
    figure.add_vline(0, line_dash="dot", line_color=GREY)
    figure.add_vline(observed, line_color=GREY, annotation_text="this run", annotation_position="top")
    figure.update_xaxes(title="difference found")
    told = "; ".join(f"with {n} prompts from {min(values):+.2f} to {max(values):+.2f}" for n, values in draws.items())
    figure.update_layout(template="dpo_kit", height=340, margin_t=40)
    return figure, f"The difference found, drawn again and again; this run found {observed:+.3f}: {told}."


def verdict_shares(shares: Mapping[str, Mapping[str, float]]) -> tuple[go.Figure, str]:
    """For each row, how often each verdict was reached; the shares of a row add up to 1."""
    figure = stacked_bars(shares, VERDICTS, lambda share: f"{share:.0%}" if share >= 0.04 else "")
    figure.update_xaxes(title="share of the draws", range=[0, 1], tickformat=".0%")
    told = "; ".join(
        f"{name}: " + ", ".join(f"{verdict} {share:.0%}" for verdict, share in row.items())
        for name, row in shares.items()
    )
    return figure, f"How often each verdict is reached. {told}."


def rates_compared(rates: Mapping[str, Mapping[str, Interval]], x_title: str) -> tuple[go.Figure, str]:
    """Rates with their intervals: a row for each entry of `rates`, in it a marker for each way it was measured.

    The dotted line is at one half.
    """
    ways = list(dict.fromkeys(way for row in rates.values() for way in row))
    series = {way: [row[way] for row in rates.values()] for way in ways}
    figure = interval_rows(list(rates), series, PALETTE, SYMBOLS)
    figure.add_vline(0.5, line_dash="dot", line_color=GREY)
    figure.update_xaxes(title=x_title)
    told = "; ".join(
        f"{name}: " + ", ".join(f"{way} {rate.mean:.0%}" for way, rate in row.items()) for name, row in rates.items()
    )
    return figure, f"{x_title}, with 95% intervals. {told}."


def rate_by_k(rates: Mapping[int, Interval]) -> tuple[go.Figure, str]:
    """The win rate of the best of K samples over K, with its interval."""
    means, lows, highs = ([getattr(rate, end) for rate in rates.values()] for end in ("mean", "low", "high"))
    figure = go.Figure(
        go.Scatter(
            x=list(rates), y=means, error_y=whiskers(means, lows, highs), mode="lines+markers",
            line_color=BLUE, marker={"size": 9, "symbol": "square"},
        )
    )  # fmt: skip
    figure.add_hline(0.5, line_dash="dot", line_color=GREY)
    figure.update_xaxes(title="K: the best of so many samples", dtick=1)
    figure.update_yaxes(title="win rate, ties half")
    told = ", ".join(f"K = {k}: {rate.mean:.0%}" for k, rate in rates.items())
    return figure.update_layout(template="dpo_kit", height=330, margin_t=20), f"Win rate of the best of K. {told}."
