"""Intervals and tests. The unit is the prompt, and differences are paired by prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap
from statsmodels.stats.proportion import proportion_confint

from dpo_kit.records import Verdict


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Pairwise:
    """Verdicts counted from one arm's side. The rate and its interval are over decisive prompts; ties stay out."""

    wins: int
    ties: int
    losses: int
    unjudged: int
    decisive_win_rate: float | None
    low: float
    high: float
    p_value: float


def paired_difference(treated: Sequence[float], control: Sequence[float], seed: int = 0) -> Interval:
    """The mean of treated - control over prompts, with a 95% bootstrap interval (BCa, Efron 1987, 5,000 resamples).

    Misleads where prompts are not independent, such as many phrasings of one question. Where all differences are
    equal there is nothing to resample, and the interval is that one value.
    Raises ValueError where the two sequences differ in length or are empty.
    """
    differences = np.subtract(treated, control, dtype=float) if len(treated) == len(control) else None
    if differences is None or not len(differences):
        raise ValueError(f"paired scores must be equally many and some: {len(treated)} and {len(control)}")
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return Interval(mean, mean, mean)
    resampled = bootstrap((differences,), np.mean, n_resamples=5000, rng=np.random.default_rng(seed), batch=500)
    low, high = map(float, resampled.confidence_interval)
    return Interval(mean, low, high)


def pairwise(verdicts: Sequence[Verdict]) -> Pairwise:
    """Count verdicts whose side `a` is the treated arm: Wilson's 95% interval and the exact two-sided sign test.

    Wilson (1927) for the share of decisive prompts that were won; the sign test asks whether a fair coin would do.
    With no decisive prompt the rate is None, the interval [0, 1] and p = 1: nothing was shown.
    """
    wins, losses, ties, unjudged = (sum(v.winner == w for v in verdicts) for w in ("a", "b", "tie", "unjudged"))
    decisive = wins + losses
    if not decisive:
        return Pairwise(wins, ties, losses, unjudged, None, 0.0, 1.0, 1.0)
    low, high = map(float, proportion_confint(wins, decisive, method="wilson"))
    p_value = float(binomtest(wins, decisive).pvalue)
    return Pairwise(wins, ties, losses, unjudged, wins / decisive, low, high, p_value)
