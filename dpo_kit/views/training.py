"""A log of DPO training as figures and as warnings. All functions are pure: they take the rows of a metrics log.

The figures draw a running, a finished or a stock trainer's log alike. The row of a step is the mean of one batch and
noisy: it is drawn lightly, with its running mean on top. What was measured on held-out pairs and answers is drawn as
points that are joined. A panel whose columns a log does not have is left out.

A warning compares one stretch of the log with another, and asks for more than the noise of one row: a mean over the
last quarter of the steps that lies beyond two standard errors, or two measurements in a row. Thresholds are rules of
thumb, set so that the shipped run of the tiny profile is quiet, and a warning is a reason to look, not a verdict. A
rule whose columns a log does not have says nothing.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import linregress

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

    Traces come in a fixed order, so a live figure is brought up to date by giving each of its traces new points.
    """
    names = [name for name in LIVE if _has(rows, name)] if panels is None else list(panels)
    height, listed = max(1, (len(names) + 1) // 2), set()
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
            figure.add_hline(math.log(2), line_dash="dot", line_color=GREY, **place)
        if name == ACCURACY:
            figure.update_yaxes(range=[-0.03, 1.03], **place)
        elif len(PANELS[name]) == 1 and name != LOSS:
            figure.update_yaxes(rangemode="tozero", **place)
    if not names:
        figure.add_annotation(text="no column of DPO in this log", showarrow=False, xref="paper", yref="paper", x=0.5)
    figure.update_yaxes(exponentformat="none")
    margins = {"l": 50, "r": 15, "t": 35, "b": 90}
    legend = {"y": -90 / (280 * height), "yanchor": "bottom"}
    return figure.update_layout(template="dpo_kit", width=820, height=280 * height + 60, margin=margins, legend=legend)


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponentially weighted running mean over about ten values, or a twentieth of a long log; a NaN is left out."""
    keep = 1 - 2 / (max(10, len(values) // 20) + 1)
    total, weight, means = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total, keep * weight
        if math.isfinite(value):
            total, weight = total + value, weight + 1
        means.append(total / weight if weight else math.nan)
    return means


def frontier(rows: Sequence[dict], gain: str = HELD_OUT) -> list[tuple[float, float, float]]:
    """(step, KL in nats, `gain`) of every step at which both were measured."""
    gains = dict(column(rows, gain))
    return [(step, kl, gains[step]) for step, kl in column(rows, KL) if step in gains]


def frontier_trace(line: Line, rows: Sequence[dict], symbol: str = "diamond") -> go.Scatter:
    """The column of `line` over the KL that was paid for it, joined in the order of the steps."""
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


PAPER, GRADIENT, DATA = "01_paper_math.ipynb", "02_loss_and_gradient.ipynb", "04_preference_data.ipynb"
FEWEST = 8  # with fewer steps there is no word on a trend


@dataclass(frozen=True)
class TrainingWarning:
    """What was seen (`text`), what usually causes it (`cause`), and the section that explains it (`link`)."""

    kind: str
    text: str
    cause: str
    link: str


def warnings_in(rows: Iterable[dict], batch_size: int | None = None) -> list[TrainingWarning]:
    """Every warning that the rows of a metrics log, or of a stock trainer's, give reason for.

    `batch_size` is the number of pairs behind one row; where it is not known, it is guessed from the accuracies.
    """
    rows = list(rows)
    rules = (
        _not_finite, _chosen_falling, _held_out_turning, _kl_running_away, _saturated, _length_growing,
        _stop_rate_falling, partial(_batch_of_one, batch_size=batch_size),
    )  # fmt: skip
    return [warning for rule in rules if (warning := rule(rows))]


def _last_quarter(rows: Sequence[dict], name: str) -> list[float]:
    values = [value for _, value in column(rows, name)]
    return values[-max(5, len(values) // 4) :] if len(values) >= FEWEST else []


def _surely_positive(values: Sequence[float]) -> bool:
    """Whether the mean is more than two standard errors above zero."""
    return bool(values) and mean(values) > 2 * stdev(values) / math.sqrt(len(values))


def _not_finite(rows: Sequence[dict]) -> TrainingWarning | None:
    names = ("loss", "rewards/margins", "grad_norm")
    bad = [row["step"] for row in rows if any(not math.isfinite(row.get(name, 0)) for name in names)]
    return (bad and TrainingWarning(
        "not finite", f"At step {bad[0]:g} the loss, the margin or the gradient was not a finite number.",
        "The weights can be lost, though a stock trainer logs such a loss as 0. Go on from a checkpoint before that "
        "step with a lower learning rate or in float32.",
        f"{GRADIENT}#6.-The-training-loop",
    )) or None  # fmt: skip


def _chosen_falling(rows: Sequence[dict]) -> TrainingWarning | None:
    chosen, margin = _last_quarter(rows, "rewards/chosen"), _last_quarter(rows, "rewards/margins")
    falls = _surely_positive([-reward for reward in chosen]) and _surely_positive(margin)
    if not falls or -mean(chosen) < mean(margin) / 4:
        return None
    nats = _last_quarter(rows, "log_ratios/chosen")
    by = f" by {-mean(nats):.1f} nats" if nats else f", a reward of {mean(chosen):.2f}"
    return TrainingWarning(
        "chosen falling", f"The chosen answers have become less likely than under the reference{by}, while the margin "
        f"stands at {mean(margin):.2f}: the rejected answers only fell further.",
        "Chosen and rejected answers share most of their tokens, or the learning rate is high. It is not always harm: "
        "see where the probability went before you add a likelihood term (RPO) or raise beta.",
        f"{GRADIENT}#11.-What-the-loss-does-not-see:-likelihood-displacement",
    )  # fmt: skip


def _held_out_turning(rows: Sequence[dict]) -> TrainingWarning | None:
    held_out = column(rows, "eval_rewards/margins")
    peak_step, peak = max(held_out, key=lambda point: point[1], default=(0, 0.0))
    since = column([row for row in rows if row["step"] >= peak_step], "rewards/margins")
    after = [value for step, value in held_out if step > peak_step][-2:]
    if len(after) < 2 or max(after) > 0.9 * peak or len(since) < FEWEST:
        return None
    trend = linregress(*zip(*since, strict=True))
    return TrainingWarning(
        "held-out turning", f"The margin on held-out pairs has come down from {peak:.2f} at step {peak_step:g} to "
        f"{after[-1]:.2f}, while the margin on trained pairs still grows.",
        "The policy learns these pairs by heart. Stop and go back to a checkpoint near the peak, use fewer epochs or a "
        "lower learning rate, or collect more pairs.",
        f"{PAPER}#How-many-are-enough?",
    ) if trend.slope > 2 * trend.stderr else None  # fmt: skip


def _kl_running_away(rows: Sequence[dict]) -> TrainingWarning | None:
    kl = column(rows, "kl/sequence")
    if len(kl) < 4:
        return None
    (middle, before), (_, now) = kl[len(kl) // 2], kl[-1]
    noise = 3 * max((row.get("kl/standard_error", 0.0) for row in rows if "kl/sequence" in row), default=0.0)
    margins = [value for step, value in column(rows, "eval_rewards/margins") if step >= middle]
    paid_for = len(margins) > 1 and margins[-1] > 1.25 * margins[0] > 0
    if paid_for or now < 2 * before or now - before < max(1.0, noise):
        return None
    return TrainingWarning(
        "KL running away", f"Since step {middle:g} the sequence KL to the reference has grown from {before:.1f} to "
        f"{now:.1f} nats, and the held-out margin has not grown with it.",
        "The policy moves away from the reference without learning what transfers to other prompts. Raise beta, lower "
        "the learning rate, or stop earlier.",
        f"{PAPER}#13.-The-frontier",
    )  # fmt: skip


def _saturated(rows: Sequence[dict]) -> TrainingWarning | None:
    loss, accuracy = _last_quarter(rows, "loss"), _last_quarter(rows, "rewards/accuracies")
    return TrainingWarning(
        "saturated", f"Nearly all pairs are in the right order (accuracy {mean(accuracy):.2f}, loss {mean(loss):.3f}): "
        "the gradient is almost zero, and the margin still grows because the loss sets it no limit.",
        "The pairs are too easy, a surface feature gives the label away, or there were too many epochs. Audit the "
        "pairs, or use a loss with a finite goal, such as IPO.",
        f"{PAPER}#Preferences-that-are-always-the-same",
    ) if loss and accuracy and mean(accuracy) >= 0.98 and mean(loss) <= 0.05 else None  # fmt: skip


def _length_growing(rows: Sequence[dict]) -> TrainingWarning | None:
    first, last = _ends(rows, "answers/length")
    return TrainingWarning(
        "length growing", f"The answers have grown from {first:.0f} to {last[-1]:.0f} tokens.",
        "The chosen answers are often the longer ones, and length is easily learnt. Look at the lengths in the audit, "
        "and compare answers at equal length.",
        f"{DATA}#Audit",
    ) if min(last) > 1.3 * first + 2 else None  # fmt: skip


def _stop_rate_falling(rows: Sequence[dict]) -> TrainingWarning | None:
    first, last = _ends(rows, "answers/stop_rate")
    return TrainingWarning(
        "stop rate falling", f"Only {last[-1]:.0%} of the answers still end by themselves; at first {first:.0%} did.",
        "Completions that were cut off are trained without their end, or the policy writes longer and longer answers. "
        "Check that every chosen answer ends in an end-of-sequence token.",
        f"{GRADIENT}#2.-From-text-to-tokens",
    ) if max(last) < first - 0.1 else None  # fmt: skip


def _ends(rows: Sequence[dict], name: str) -> tuple[float, list[float]]:
    """The first measurement and the last two; the same number for all where there are fewer than three."""
    values = [value for _, value in column(rows, name)]
    return (values[0], values[-2:]) if len(values) > 2 else (0.0, [0.0])


def _batch_of_one(rows: Sequence[dict], batch_size: int | None) -> TrainingWarning | None:
    seen = [value for _, value in column(rows, "rewards/accuracies")]
    certain = set(seen) <= {0.0, 1.0} and (batch_size == 1 or (batch_size is None and len(set(seen[1:])) == 2))
    return TrainingWarning(
        "batch of one", "The accuracy is always 0 or 1: each row has the accuracy of a single pair.",
        "One pair a step makes every line as noisy as one pair. Read the smoothed lines and the held-out pairs, log "
        "over several steps, or accumulate gradients.",
        f"{GRADIENT}#6.-The-training-loop",
    ) if certain and len(seen) >= FEWEST else None  # fmt: skip
