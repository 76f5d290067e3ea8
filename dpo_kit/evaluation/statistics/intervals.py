"""Means and paired differences with 95% intervals. The unit is the prompt, or the source that several prompts share.

Scores are bounded, skewed and full of ties, and 30 prompts are few. Under these conditions the textbook intervals cover
the truth too seldom (`benchmarks/coverage.py` shows Student's t and the BCa bootstrap beside ours). A *score* interval
covers it as often as it says: it holds the true means that the data do not contradict, where each true mean is tested
with the variance that it implies.

- scores 0 or 1: Wilson (1927);
- three levels (a verdict with ties, a difference of passes): Tango (1998);
- anything else between known bounds, or in clusters: Wilson with the effective number of prompts
  n_eff = m (1 - m) / var(m), as in surveys (Korn & Graubard 1998; Franco et al. 2019), and Student's t for the normal;
- scores 0 or 1 in clusters: Jeffreys' in place of Wilson's, with the same effective number;
- no known bounds (lengths, tokens): the symmetric studentised bootstrap (Hall 1988), by cluster.

Clusters enter through var(m) = sum_g R_g^2 / (1 - n_g / n) / n^2, where R_g is the sum of a cluster's residuals (the
bias correction of Bell & McCaffrey 2002), with n^2 / sum n_g^2 - 1 degrees of freedom. A prompt that shares its source
with no other is a cluster of one.
"""

from collections.abc import Hashable, Sequence
from statistics import fmean

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm
from scipy.stats import t as student
from statsmodels.stats.proportion import proportion_confint

from dpo_kit.evaluation.results import Interval

Z = float(norm.ppf(0.975))
RESAMPLES = 1999
Scores = Sequence[float] | np.ndarray


def mean_interval(
    values: Scores,
    clusters: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Interval:
    """The mean of one score a prompt, with a 95% interval; the docstring of this file says which interval and why.

    `clusters` names the source of each prompt, where prompts share sources. `bounds` are the least and the greatest
    possible score; without them, scores that all lie in [0, 1] are taken to be bounded by 0 and 1.
    Misleads where nine of ten prompts or more have a score at a bound and the others deviate a little: 30 prompts do
    not show the tail, and the interval covers about 90%. With fewer than about ten clusters it is rough.
    Raises ValueError where there is no value, a NaN (leave unjudged prompts out), a value out of bounds, or a single
    value without bounds.
    """
    scores = _checked(values, clusters)
    return _interval(scores, clusters, _bounds(scores, bounds), seed)


def paired_difference(
    treated: Scores,
    control: Scores,
    clusters: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Interval:
    """The mean of treated - control over prompts, with a 95% interval; `bounds` are those of a score, as above.

    Only differences within a prompt count, so easy and hard prompts do not add noise to the comparison.
    Misleads where prompts share sources and no `clusters` are given, and where fewer than about ten prompts differ.
    Raises ValueError as `mean_interval` does, and where the two sequences differ in length.
    """
    if len(treated) != len(control) or not len(treated):
        raise ValueError(f"paired scores must be equally many, and at least one: {len(treated)} and {len(control)}")
    both = _bounds(_checked([*treated, *control], None), bounds)
    differences = _checked(np.subtract(treated, control, dtype=float), clusters)
    return _interval(differences, clusters, both and (both[0] - both[1], both[1] - both[0]), seed)


def _checked(values: Scores, clusters: Sequence[Hashable] | None) -> np.ndarray:
    scores = np.asarray(values, float)
    if not len(scores) or not np.isfinite(scores).all():
        wrong = int((~np.isfinite(scores)).sum())
        raise ValueError(f"scores must be finite: {wrong} of {len(scores)} not finite; leave unjudged prompts out")
    if clusters is not None and len(clusters) != len(scores):
        raise ValueError(f"one cluster for each prompt is needed: {len(clusters)} for {len(scores)}")
    return scores


def _bounds(values: np.ndarray, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    low, high = values.min(), values.max()
    if bounds is None:
        return (0.0, 1.0) if low >= 0 and high <= 1 else None
    if low < bounds[0] or high > bounds[1]:
        raise ValueError(f"scores from {low:g} to {high:g} leave their bounds {bounds}")
    return bounds


def _interval(
    values: np.ndarray, clusters: Sequence[Hashable] | None, bounds: tuple[float, float] | None, seed: int
) -> Interval:
    mean = fmean(values)  # rounded once, so that the order of the prompts cannot change its last digit
    sums, sizes = _by_cluster(values - mean, clusters)
    if bounds is None:
        return Interval(mean, *_studentised_bootstrap(sums, sizes, mean, seed))
    lowest, width = bounds[0], bounds[1] - bounds[0]
    unit = (values - lowest) / width
    levels = set(np.unique(unit))
    if len(levels) == 1:
        unit, clusters = unit[: len(sums)], None  # where all scores are equal, each cluster counts as one prompt
    if clusters is not None:
        low, high = _effective_wilson(float(unit.mean()), sums / width, sizes, levels <= {0.0, 1.0})
    elif levels <= {0.0, 1.0}:
        low, high = proportion_confint(unit.sum(), len(unit), method="wilson")
    elif levels <= {0.0, 0.5, 1.0}:
        low, high = ((side + 1) / 2 for side in tango((unit == 1).sum(), (unit == 0).sum(), len(unit)))
    else:
        low, high = _effective_wilson(float(unit.mean()), sums / width, sizes, levels <= {0.0, 1.0})
    # rounding must not put an end of the interval on the wrong side of the estimate
    return Interval(mean, min(mean, lowest + width * float(low)), max(mean, lowest + width * float(high)))


def _by_cluster(residuals: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums of residuals and numbers of prompts, both of shape (clusters,)."""
    if clusters is None:
        return np.sort(residuals), np.ones(len(residuals))
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = np.array([number[name] for name in clusters])
    sums, sizes = np.bincount(index, residuals), np.bincount(index).astype(float)
    order = np.lexsort((sizes, sums))  # so that the order of the prompts cannot change what is resampled
    return sums[order], sizes[order]


def _effective_wilson(mean: float, sums: np.ndarray, sizes: np.ndarray, passes: bool) -> tuple[float, float]:
    if len(sums) == 1:
        return 0.0, 1.0  # a single source shows nothing about other sources
    n = sizes.sum()
    spread = mean * (1 - mean)
    # At least the variance of one prompt of n at the other bound. Where nearly all scores are equal, the sample shows
    # too little of the tail, and its own variance is too small.
    variance = max(float((sums**2 / (1 - sizes / n)).sum()), spread) / n**2
    freedom = n**2 / (sizes**2).sum() - 1
    effective = spread / variance * (Z / student.ppf(0.975, freedom)) ** 2
    # for high rates in few clusters Wilson's covers too often; Jeffreys' (Brown, Cai & DasGupta 2001) does not
    return proportion_confint(mean * effective, effective, method="jeffreys" if passes else "wilson")


def tango(wins: int, losses: int, n: int, z: float = Z) -> tuple[float, float]:
    """Tango's (1998) score interval for the difference (wins - losses) / n of paired proportions, in [-1, 1].

    All d with |wins - losses - n d| <= z sqrt(n (2 q + d (1 - d))), where q, the likeliest share of losses if d is
    true, is the greater root of 2n q^2 + ((2n - wins + losses) d - wins - losses) q - losses d (1 - d) = 0.
    Misleads where prompts share sources: give their clusters to `mean_interval` instead.
    """
    estimate = (wins - losses) / n

    def excess(d: float) -> float:
        b = (2 * n - wins + losses) * d - wins - losses
        share_lost = (np.sqrt(max(b**2 + 8 * n * losses * d * (1 - d), 0)) - b) / (4 * n)
        return abs(wins - losses - n * d) - z * np.sqrt(max(n * (2 * share_lost + d * (1 - d)), 0))

    # start a small step away from the estimate: there the variance can be 0, and with it the excess, which is no root
    low = brentq(excess, -1, estimate - 1e-9, xtol=1e-12) if losses < n else -1.0
    high = brentq(excess, estimate + 1e-9, 1, xtol=1e-12) if wins < n else 1.0
    return low, high


def _studentised_bootstrap(sums: np.ndarray, sizes: np.ndarray, mean: float, seed: int) -> tuple[float, float]:
    """mean +- q s, where q is the 95% point of |resampled mean - mean| / its standard error.

    This is the symmetric kind (Hall 1988): differences of lengths have heavy tails on both sides, where intervals with
    equal tails cover too seldom.
    """
    count = len(sums)
    if count < 2:
        raise ValueError("scores without known bounds need at least two prompts of different sources")
    if np.abs(sums).max() < 1e-12:
        return mean, mean
    random, batch, studentised = np.random.default_rng(seed), max(1, 2_000_000 // count), []  # batches bound memory
    for start in range(0, RESAMPLES, batch):
        drawn = random.integers(count, size=(min(batch, RESAMPLES - start), count))  # (resamples, clusters)
        resampled, n = sums[drawn], sizes[drawn].sum(1)
        off = resampled.sum(1) / n
        squares = ((resampled - off[:, None] * sizes[drawn]) ** 2).sum(1)
        usable = squares > 1e-12 * (sums**2).sum()  # a resample of equal values has no standard error
        studentised.append(np.abs(off[usable]) * n[usable] / np.sqrt(squares[usable]))
    error = np.sqrt((sums**2).sum()) / sizes.sum()
    half = float(np.quantile(np.concatenate(studentised), 0.95) * error)
    return mean - half, mean + half
