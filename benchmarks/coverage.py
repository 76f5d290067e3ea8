"""Do 95% intervals cover 95% of the time? 2,000 simulated evaluations a cell, through the functions that reports use.

    python -m benchmarks.coverage [--evaluations 2000]

An evaluation draws a score (or a verdict) for each of n prompts from a known world; it is covered when the interval
holds the world's true mean. At 2,000 evaluations the Monte-Carlo error is half a point (sd). Worlds:

- levels with fixed shares: fifths as faithfulness has, differences of them, wins, ties and losses;
- passes, whose true rate is drawn from .6 to .9 for each evaluation, as of another model each time. With one fixed rate
  no interval for counts can be right: its coverage jumps with the rate. The exact table at the end shows that;
- clusters of one to three prompts, tied by a Gaussian copula with correlation .5.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from scipy.stats import binom, norm
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import t as student
from statsmodels.stats.proportion import proportion_confint

from dpo_kit.evaluation.statistics import Interval, mean_interval, paired_difference, pairwise
from dpo_kit.records import Verdict

SIZES = (30, 100, 400)
WANTED = (0.935, 0.965)
VERDICTS = {w: Verdict(winner=n, judge="simulated", reason="") for w, n in ((1.0, "a"), (0.5, "tie"), (0.0, "b"))}

World = Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, float]]  # latent normals -> values, their mean
Estimate = Callable[[np.ndarray, np.ndarray | None], Interval]


@dataclass(frozen=True)
class Cell:
    """One world, one interval, and up to how many prompts share a source."""

    name: str
    world: World
    interval: Estimate
    most_shared: int = 1
    truth: float | None = None  # where the interval is not about the mean


def levels(values, shares) -> World:
    """A score that takes few values with fixed chances."""
    values, upto = np.array(values, float), np.cumsum(shares)[:-1]
    truth = float(np.dot(values, shares))
    return lambda random, latent: (values[np.searchsorted(upto, norm.cdf(latent))], truth)


def passes(random: np.random.Generator, latent: np.ndarray) -> tuple[np.ndarray, float]:
    """0 or 1, at a rate of the evaluation's own."""
    rate = random.uniform(0.6, 0.9)
    return (norm.cdf(latent) < rate).astype(float), rate


def nearly_right(random: np.random.Generator, latent: np.ndarray) -> tuple[np.ndarray, float]:
    """Three in ten perfect, the others 1 - u^2: skewed, in [0, 1]."""
    u = norm.cdf(latent)
    return np.where(u < 0.3, 1.0, 1 - ((u - 0.3) / 0.7) ** 2 * 0.9), 0.3 + 0.7 * (1 - 0.9 / 3)


def lengths(random: np.random.Generator, latent: np.ndarray) -> tuple[np.ndarray, float]:
    """Differences of log-normal lengths, the treated arm's a tenth longer."""
    treated, control = np.exp(0.6 * latent), np.exp(0.6 * random.standard_normal(len(latent)))
    return 100 * (1.1 * treated - control), float(10 * np.exp(0.18))


def of_metric(values, clusters):
    return mean_interval(values, clusters)


def of_difference(values, clusters):
    return paired_difference(np.maximum(values, 0), np.maximum(-values, 0), clusters)


def of_lengths(values, clusters):
    return paired_difference(500 + values, np.full(len(values), 500.0), clusters)


def of_win_rate(values, clusters):
    return pairwise([VERDICTS[v] for v in values], clusters).win_rate


def of_decisive(values, clusters):
    result = pairwise([VERDICTS[v] for v in values])
    return Interval(result.decisive_win_rate, result.low, result.high)


FIFTHS = np.arange(6) / 5
SKEWED = levels(FIFTHS, [0.03, 0.02, 0.05, 0.1, 0.15, 0.65])
MIDDLING = levels(FIFTHS, [0.04, 0.21, 0.02, 0.33, 0.01, 0.39])
DIFFERENT = levels([-0.8, -0.4, -0.2, 0, 0.2, 0.4, 0.8, 1], [0.02, 0.11, 0.04, 0.47, 0.05, 0.24, 0.06, 0.01])
SPARSE = levels([-1, -0.2, 0, 0.2, 0.6, 1], [0.01, 0.02, 0.77, 0.08, 0.07, 0.05])
FLIPS = levels([-1, 0, 1], [0.08, 0.62, 0.30])
BETTER, EQUAL, TIED = (levels([0, 0.5, 1], s) for s in ([0.15, 0.4, 0.45], [0.3, 0.4, 0.3], [0.1, 0.6, 0.3]))

CELLS = (
    Cell("metric, pass or fail", passes, of_metric),
    Cell("metric in fifths, middling", MIDDLING, of_metric),
    Cell("metric in fifths, skewed", SKEWED, of_metric),
    Cell("metric, continuous and skewed", nearly_right, of_metric),
    Cell("difference of passes, 62% equal", FLIPS, of_difference),
    Cell("difference of fifths, 47% equal", DIFFERENT, of_difference),
    Cell("difference, 77% equal", SPARSE, of_difference),
    Cell("difference of lengths", lengths, of_lengths),
    Cell("win rate .65, 40% ties", BETTER, of_win_rate),
    Cell("win rate .50, 40% ties", EQUAL, of_win_rate),
    Cell("win rate .60, 60% ties", TIED, of_win_rate),
    Cell("decisive win rate .75, 40% ties", BETTER, of_decisive, truth=0.75),
    Cell("decisive win rate .50, 40% ties", EQUAL, of_decisive),
    Cell("clustered metric in fifths", MIDDLING, of_metric, 3),
    Cell("clustered passes", passes, of_metric, 3),
    Cell("clustered difference of fifths", DIFFERENT, of_difference, 3),
    Cell("clustered difference of passes", FLIPS, of_difference, 3),
    Cell("clustered difference of lengths", lengths, of_lengths, 3),
    Cell("clustered win rate .65", BETTER, of_win_rate, 3),
    Cell("clustered win rate .60, 60% ties", TIED, of_win_rate, 3),
)
BEYOND = (  # cases that the docstrings warn of: their coverage is shown and not required
    Cell("metric, nine in ten at its bound", levels(FIFTHS, [0.02, 0.01, 0.01, 0.02, 0.04, 0.90]), of_metric),
    Cell("difference, 94% equal", levels([-0.2, 0, 0.2], [0.02, 0.94, 0.04]), of_difference),
    Cell("clusters of up to 5, skewed", SKEWED, of_metric, 5),
)


def draw(cell: Cell, n: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None, float]:
    """One evaluation: values of shape (n,), the source of each prompt or None, and the true mean."""
    latent, clusters = random.standard_normal(n), None
    if cell.most_shared > 1:
        sizes = random.integers(1, cell.most_shared + 1, n)
        clusters = np.repeat(np.arange(n), sizes)[:n]
        latent = np.sqrt(0.5) * (latent + random.standard_normal(n)[clusters])
    values, truth = cell.world(random, latent)
    return values, clusters, cell.truth or truth


def coverage(cell: Cell, n: int, evaluations: int, seed: int = 0) -> float:
    """The share of simulated evaluations of n prompts whose interval holds the truth."""
    return float(np.mean([_covers(cell.interval(v, c), mean) for v, c, mean in _drawn(cell, n, evaluations, seed)]))


def false_positives(n: int, evaluations: int, seed: int = 0) -> float:
    """How often the sign test finds p <= 5% between equal arms that tie on 40% of prompts."""
    drawn = _drawn(Cell("equal arms", EQUAL, of_decisive), n, evaluations, seed)
    return float(np.mean([pairwise([VERDICTS[v] for v in values]).p_value <= 0.05 for values, _, _ in drawn]))


def exact_coverage(method: str, n: int, rates: np.ndarray) -> np.ndarray:
    """The coverage of an interval for a share of n decisive prompts at each true rate; no simulation."""
    wins = np.arange(n + 1)
    low, high = proportion_confint(wins, n, method=method)
    return np.array([binom.pmf(wins, n, rate)[(low <= rate) & (rate <= high)].sum() for rate in rates])


def student_coverage(cell: Cell, n: int, evaluations: int, seed: int = 0) -> float:
    """Student's t on the same evaluations, blind to clusters as in most reports."""
    drawn = list(_drawn(cell, n, evaluations, seed))
    values, truth = np.array([v for v, _, _ in drawn]), np.array([mean for _, _, mean in drawn])
    half = student.ppf(0.975, n - 1) * values.std(axis=1, ddof=1) / n**0.5
    return float(np.mean(np.abs(values.mean(axis=1) - truth) <= half))


def bca_coverage(cell: Cell, n: int, evaluations: int, seed: int = 0) -> float:
    """The BCa bootstrap of scipy on the same evaluations, at most 500 of them: it is slow."""
    covered = []
    for values, _, truth in _drawn(cell, n, min(evaluations, 500), seed):
        if np.ptp(values) == 0:
            covered.append(values[0] == truth)
            continue
        low, high = scipy_bootstrap(
            (values,), np.mean, n_resamples=999, rng=np.random.default_rng(0)
        ).confidence_interval
        covered.append(low <= truth <= high)
    return float(np.mean(covered))


def _drawn(cell: Cell, n: int, evaluations: int, seed: int):
    random = np.random.default_rng([seed, n, crc32(cell.name.encode())])
    return (draw(cell, n, random) for _ in range(evaluations))


def _covers(interval: Interval, truth: float) -> bool:
    return interval.low - 1e-12 <= truth <= interval.high + 1e-12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evaluations", type=int, default=2000)
    evaluations = parser.parse_args().evaluations
    head = " | ".join(f"n = {n}" for n in SIZES)
    print(f"Coverage of 95% intervals, {evaluations} evaluations a cell (wanted: {WANTED[0]:.1%} to {WANTED[1]:.1%})\n")
    print(f"| cell | {head} | Student's t, n = 30 | BCa, n = 30 |\n|---|" + "---|" * (len(SIZES) + 2))
    for cell in CELLS + BEYOND:
        shares = [coverage(cell, n, evaluations) for n in SIZES]
        wrong = "" if all(WANTED[0] <= s <= WANTED[1] for s in shares) else " (!)"
        rate = cell.interval is of_decisive
        others = ["", ""] if rate else [f"{f(cell, 30, evaluations):.1%}" for f in (student_coverage, bca_coverage)]
        promised = "" if cell in CELLS else "beyond the promise: "
        print(
            f"| {promised}{cell.name}{wrong} | " + " | ".join([*(f"{s:.1%}" for s in shares), *others]) + " |",
            flush=True,
        )
    print(
        "| sign test, equal arms: p <= 5% | " + " | ".join(f"{false_positives(n, evaluations):.1%}" for n in SIZES),
        "| | |",
    )
    rates = np.linspace(0.5, 0.95, 451)
    print(
        "\nExact coverage of intervals for a decisive win rate over true rates .50 to .95: mean (least to greatest)\n"
    )
    print(f"| interval | {head} |\n|---|" + "---|" * len(SIZES))
    for name, method in (("Wilson", "wilson"), ("Clopper-Pearson", "beta"), ("Jeffreys", "jeffreys")):
        found = [exact_coverage(method, n, rates) for n in SIZES]
        print(f"| {name} | " + " | ".join(f"{c.mean():.1%} ({c.min():.1%} to {c.max():.1%})" for c in found) + " |")


if __name__ == "__main__":
    main()
