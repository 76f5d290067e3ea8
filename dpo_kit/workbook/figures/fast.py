"""How much faster the fast path is, drawn from the rows of the step benchmark's log."""

from collections.abc import Sequence
from statistics import median

import plotly.graph_objects as go

from dpo_kit.views.style import BLUE, GREY, ORANGE, SKY, whiskers
from dpo_kit.workbook.show import hatch

NAMES = {
    "stock": "TRL, defaults",
    "best_stock": "TRL, tuned by a sweep",
    "fast": "fast path",
    "fast_cold": "references computed each step",
    "fast_unshared": "each prompt twice",
    "fast_padded": "each prompt twice, padded",
    "fast_trl_head": "head over all positions",
    "fast_peft": "adapters added by PEFT",
    "fast_single": "one pair at a time",
}


def cells(rows: Sequence[dict]) -> list[tuple[str, str]]:
    """The pairs (model, lengths) that a log has rows of, in its order."""
    return list(dict.fromkeys((row["model"], row["lengths"]) for row in rows))


def speeds(rows: Sequence[dict], model: str, lengths: str) -> dict[str, tuple[float, float, float]]:
    """For each arm of one cell its pairs per second: median, least and most over the rounds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row["model"], row["lengths"]) == (model, lengths):
            found.setdefault(row["arm"], []).append(row["pairs_per_s"])
    return {arm: (median(values), min(values), max(values)) for arm, values in found.items()}


def ratios(rows: Sequence[dict], model: str, lengths: str, arm: str, peer: str) -> list[float]:
    """How many times as fast as `peer` an arm is, for each round in which both ran: the least first."""
    rates: dict[str, dict[int, float]] = {arm: {}, peer: {}}
    for row in rows:
        if (row["model"], row["lengths"]) == (model, lengths) and row["arm"] in rates:
            rates[row["arm"]][row["round"]] = row["pairs_per_s"]
    return sorted(rates[arm][number] / rates[peer][number] for number in rates[arm].keys() & rates[peer].keys())


def gain(rows: Sequence[dict], model: str, lengths: str, peer: str) -> float | None:
    """How many times as fast as `peer` the fast path is: the median over rounds of the ratio within a round."""
    found = ratios(rows, model, lengths, "fast", peer)
    return median(found) if found else None


def step_rates(rows: Sequence[dict], model: str, lengths: str) -> go.Figure:
    """Pairs per second of TRL, of the fast path, and of it with one part off: a bar each, with its range."""
    arms = speeds(rows, model, lengths)
    order = [arm for arm in NAMES if arm in arms]
    middle, low, high = zip(*(arms[arm] for arm in order), strict=True)
    ranges = whiskers(middle, low, high) | {"color": GREY}
    looks = {"stock": (GREY, "."), "best_stock": (ORANGE, "/"), "fast": (BLUE, "")}
    inks, shapes = zip(*(looks.get(arm, (SKY, "x")) for arm in order), strict=True)
    figure = go.Figure(
        go.Bar(
            x=middle, y=[NAMES[arm] if arm in looks else f"… {NAMES[arm]}" for arm in order], orientation="h",
            error_x=ranges, text=[f"{value:.3g}" for value in middle], textposition="inside", insidetextanchor="start",
            marker=hatch(inks, shapes),
        )
    )  # fmt: skip
    figure.update_xaxes(title="pairs per second, median and range over the rounds", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(template="dpo_kit", height=150 + 36 * len(order), margin_t=20)
