"""The figures of a comparison: mean scores, differences, who wins, whether length decides, and prompt by prompt.

Most return a figure and a sentence with its numbers, for readers who cannot see it: `show(*forest(report))`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import plotly.graph_objects as go

from dpo_kit.evaluation.results import Comparison, Interval, Metric, Outcome, Report
from dpo_kit.views.style import BLUE, COLOURS, GREY, PALETTE, SYMBOLS, TOP_RIGHT, VERMILION, whiskers
from dpo_kit.views.tables import arm_name, arms_of, interval, metric_name, pairwise_sentence

OUTCOMES = {"wins": BLUE, "ties": GREY, "losses": VERMILION, "unjudged": "rgba(127,127,127,0.3)"}


def three_arms(metrics: Mapping[str, Metric]) -> go.Figure:
    """Mean score of each arm on each metric in [0, 1]; a metric on another scale is left to the table."""
    arms, shares = arms_of(metrics), {name: metrics[name].means for name in _shares(metrics)}
    figure = go.Figure([
        go.Scatter(
            x=[means[arm] for means in shares.values()], y=[metric_name(name) for name in shares],
            name=arm_name(arm), mode="markers",
            marker={"color": COLOURS.get(arm, PALETTE[i % len(PALETTE)]), "symbol": SYMBOLS[i % len(SYMBOLS)],
                    "size": 12, "line_width": 2},
        )
        for i, arm in enumerate(arms)
    ])  # fmt: skip
    figure.update_xaxes(title="mean score", range=[0, 1.02])
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(template="dpo_kit", height=330, legend=TOP_RIGHT, margin_t=30)


def interval_points(
    names: Sequence[object], intervals: Iterable[Interval | None], colour: str, symbol: str, **more: object
) -> go.Scatter:
    """Horizontal estimates with their intervals; the row of an estimate that could not be computed is empty."""
    rows = [(name, given) for name, given in zip(names, intervals, strict=True) if given is not None]
    means, lows, highs = ([getattr(given, end) for _, given in rows] for end in ("mean", "low", "high"))
    return go.Scatter(
        x=means, y=[name for name, _ in rows], error_x=whiskers(means, lows, highs), mode="markers",
        marker={"color": colour, "size": 11, "symbol": symbol}, **more,
    )  # fmt: skip


def interval_rows(
    names: Sequence[str],
    series: Mapping[str, Sequence[Interval | None]],
    colours: Sequence[str],
    symbols: Sequence[str],
) -> go.Figure:
    """A row for each name. In it the intervals of the series are drawn one above the other, so that none is hidden."""
    figure = go.Figure()
    for i, (name, intervals) in enumerate(series.items()):
        # the series take 0.7 of a row; the rest is the gap to the next row
        places = [row + 0.7 * ((i + 0.5) / len(series) - 0.5) for row in range(len(names))]
        symbol = symbols[i % len(symbols)]
        figure.add_trace(interval_points(places, intervals, colours[i % len(colours)], symbol, name=name))
    figure.update_yaxes(autorange="reversed", tickvals=list(range(len(names))), ticktext=list(names), zeroline=False)
    height = 150 + (14 * len(series) + 18) * len(names)
    return figure.update_layout(template="dpo_kit", height=height, legend=TOP_RIGHT, margin_t=50)


def stacked_bars(
    rows: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], text: Callable[[float], str]
) -> go.Figure:
    """A bar for each row, stacked from its parts in the order of `colours`; a part that no row has is left out."""
    figure = go.Figure([
        go.Bar(
            y=list(rows), x=[row.get(part, 0) for row in rows.values()], name=part, orientation="h",
            marker_color=colour, text=[text(row.get(part, 0)) for row in rows.values()],
            textposition="inside", insidetextanchor="middle", textfont_color="white", textangle=0,
        )
        for part, colour in colours.items()
        if any(row.get(part) for row in rows.values())
    ])  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    height, legend = 140 + 36 * len(rows), {**TOP_RIGHT, "traceorder": "normal"}
    return figure.update_layout(template="dpo_kit", barmode="stack", height=height, legend=legend, margin_t=50)


def forest(report: Report) -> tuple[go.Figure, str]:
    """Every difference between two arms with its interval, the primary contrast first and filled."""
    series = {_contrast(*report.primary): [metric.difference.interval for metric in report.metrics.values()]}
    for row in report.contrasts:
        series.setdefault(_contrast(row.treated, row.control), []).append(row.interval)
    symbols = ("square", *["circle-open"] * (len(series) - 1))  # only the primary contrast is filled
    figure = interval_rows([metric_name(name) for name in report.metrics], series, PALETTE, symbols)
    figure.add_vline(0, line_dash="dot", line_color=GREY)
    figure.update_xaxes(title="difference, 95% interval")
    gains = {name: metric.difference for name, metric in report.metrics.items()}
    told = [f"{metric_name(m)} {interval(d.interval, '+')}, {report.refusal or d.verdict}" for m, d in gains.items()]
    return figure, f"{_contrast(*report.primary)}, with 95% intervals: {'; '.join(told)}."


def wins_ties_losses(report: Report, outcomes: Sequence[Outcome]) -> tuple[go.Figure, str]:
    """On how many prompts the primary arm wins, ties and loses: by the judge, and by each metric alone."""
    counts = {}
    if report.pairwise and report.judged:
        counts[f"judge: {report.judged.judge}"] = vars(report.pairwise)
    for metric in report.metrics:
        # None where an arm has no score
        scored = [[row["scores"][arm].get(metric) for arm in report.primary] for row in outcomes]
        gains = [treated - control for treated, control in scored if treated is not None and control is not None]
        counts[metric_name(metric)] = {
            "wins": sum(gain > 0 for gain in gains),
            "ties": sum(gain == 0 for gain in gains),
            "losses": sum(gain < 0 for gain in gains),
        }
    figure = stacked_bars(counts, OUTCOMES, lambda count: str(count or ""))
    figure.update_xaxes(title="prompts")
    return figure, pairwise_sentence(report.pairwise, report.primary, report.refusal)


def win_rate_by_length(comparison: Comparison) -> tuple[go.Figure, str]:
    """The win rate in each quarter of the prompts by length difference, and the one at equal lengths."""
    assert comparison.judged, "the figure is drawn of a judged comparison only"
    assert comparison.pairwise, "what was judged has wins, ties and losses"
    quarters, controlled = comparison.judged.by_length_quartile, comparison.judged.length_controlled
    rates = {f"{q.shortest:+,.0f} to {q.longest:+,.0f}": q.win_rate for q in quarters}
    if comparison.pairwise.win_rate:
        rates["all"] = comparison.pairwise.win_rate
    if controlled and controlled.length_controlled:
        rates["all, at equal lengths"] = controlled.length_controlled
    figure = go.Figure(interval_points(list(rates), rates.values(), BLUE, "square"))
    figure.add_vline(0.5, line_dash="dot", line_color=GREY)
    figure.update_xaxes(title="win rate, ties half", range=[0, 1])
    figure.update_yaxes(title="characters longer, by quarter", autorange="reversed")
    told = "; ".join(f"{name} {rate.mean:.0%}" for name, rate in rates.items())
    return figure.update_layout(template="dpo_kit", height=320, margin_t=20), f"Win rate by characters longer: {told}."


def per_prompt_scatter(comparison: Comparison, outcomes: Sequence[Outcome]) -> tuple[go.Figure, str]:
    """Each prompt by its mean score in both arms; above the line the primary arm did better. Area counts prompts."""
    treated, control = comparison.primary
    shares = _shares(comparison.metrics)
    scores = [row["scores"] for row in outcomes if row["scores"][treated] and row["scores"][control]]

    def mean(given: Mapping[str, float]) -> float:
        known = [given[metric] for metric in shares if metric in given]
        # rounded, so that equal prompts fall on one point and are counted
        return round(sum(known) / len(known), 2) if known else 0.0

    counts = Counter((mean(row[control]), mean(row[treated])) for row in scores)
    colours = [BLUE if y > x else VERMILION if y < x else GREY for x, y in counts]  # blue: the primary arm did better
    largest = max(counts.values(), default=1)  # sets the scale of the areas below
    figure = go.Figure(
        go.Scatter(
            x=[x for x, _ in counts], y=[y for _, y in counts], mode="markers",
            text=[f"{n} prompts" for n in counts.values()],
            marker={
                "color": colours, "size": list(counts.values()), "sizemode": "area", "sizeref": 2 * largest / 34**2,
                "sizemin": 3, "opacity": 0.7, "line_width": 0,
            },
        )
    )  # fmt: skip
    figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line={"color": GREY, "dash": "dot"})
    figure.update_xaxes(title=f"mean score of {arm_name(control)}", range=[-0.03, 1.05])
    figure.update_yaxes(title=f"mean score of {arm_name(treated)}", range=[-0.03, 1.05])
    above = sum(n for (x, y), n in counts.items() if y > x)
    below = sum(n for (x, y), n in counts.items() if y < x)
    told = f"Of {len(scores)} prompts {arm_name(treated)} scores higher on {above}, lower on {below}, else the same."
    return figure.update_layout(template="dpo_kit", height=430, margin_t=20), told


def evaluation_figures(report: Report, outcomes: Sequence[Outcome]) -> dict[str, tuple[go.Figure, str]]:
    """The figures that this report has numbers for, by title, each with its description."""
    figures = {}
    if report.metrics:
        figures["Mean scores"] = (three_arms(report.metrics), "Mean score of each arm on each metric.")
        figures["Differences"] = forest(report)
    if report.metrics or report.pairwise:
        figures["Wins, ties, losses"] = wins_ties_losses(report, outcomes)
    if report.judged and report.judged.by_length_quartile:
        figures["Does length decide?"] = win_rate_by_length(report)
    if report.metrics:
        figures["Prompt by prompt"] = per_prompt_scatter(report, outcomes)
    return figures


def _contrast(treated: str, control: str) -> str:
    return f"{arm_name(treated)} minus {arm_name(control)}"


def _shares(metrics: Mapping[str, Metric]) -> list[str]:
    """The metrics that are shares: no arm's mean is above 1, as it is on a judge's scale from 1 to 5."""
    return [name for name, metric in metrics.items() if all((mean or 0) <= 1 for mean in metric.means.values())]
