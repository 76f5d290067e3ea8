"""Warnings about a DPO training, from the rows of its metrics log; each links to the lesson that explains it.

A warning compares one part of the log with another. The noise of one row is not enough for it: either a mean over the
last quarter of the steps must lie beyond two standard errors, or two measurements in a row must agree. The thresholds
are rules of thumb, chosen so that the shipped run of the tiny profile has no warning. A warning is a reason to look at
the run and does not prove a fault. A rule is skipped if the log does not have its columns.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev

from scipy.stats import linregress

from dpo_kit.views.training import column

PAPER, GRADIENT, DATA = "01_paper_math.ipynb", "02_loss_and_gradient.ipynb", "04_preference_data.ipynb"
FEWEST = 8  # with fewer steps nothing is said about a trend


@dataclass(frozen=True)
class TrainingWarning:
    """What was seen (`text`), what usually causes it (`cause`), and the section that explains it (`link`)."""

    kind: str
    text: str
    cause: str
    link: str


def warnings_in(rows: Iterable[dict], batch_size: int | None = None) -> list[TrainingWarning]:
    """All warnings about the rows of a metrics log, or of a stock trainer's log.

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
    # at least five values, because a standard error of fewer means little
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
    if not falls or -mean(chosen) < mean(margin) / 4:  # a small fall beside a large margin is usual
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
    # both later measurements must be a tenth below the peak, so that the noise of one of them is not enough
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
    # a growing KL is no fault while the held-out margin grows with it
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
    # a mean over several pairs would also take values between 0 and 1
    certain = set(seen) <= {0.0, 1.0} and (batch_size == 1 or (batch_size is None and len(set(seen[1:])) == 2))
    return TrainingWarning(
        "batch of one", "The accuracy is always 0 or 1: each row has the accuracy of a single pair.",
        "One pair a step makes every line as noisy as one pair. Read the smoothed lines and the held-out pairs, log "
        "over several steps, or accumulate gradients.",
        f"{GRADIENT}#6.-The-training-loop",
    ) if certain and len(seen) >= FEWEST else None  # fmt: skip
