"""Two arms on the same prompts: how often each wins, what that shows, and how small an effect it could show.

Here are win rates, the sign test and best of K. Several tests of one evaluation are corrected by Holm's method.
`verdict_text` says in words what an interval shows, which may be "inconclusive".
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import comb
from scipy.stats import binom, binomtest
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from dpo_kit.evaluation.results import Interval, Pairwise
from dpo_kit.evaluation.statistics.intervals import Z, mean_interval
from dpo_kit.records import Verdict

POWER_80 = 0.8416  # the normal's 80% point
WORTH = {"a": 1.0, "tie": 0.5, "b": 0.0}


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p-value of `wins` against `losses`: would a fair coin split them as unevenly?

    On prompts that an arm passes or fails this is McNemar's test (1947). Without a win or a loss p is 1.
    """
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def preferences(verdicts: Sequence[Verdict]) -> np.ndarray:
    """1 where side `a` won, 0.5 for a tie, 0 where `b` won, NaN where nothing was judged; shape (prompts,)."""
    return np.array([WORTH.get(v.winner, np.nan) for v in verdicts])


def pairwise(verdicts: Sequence[Verdict], clusters: Sequence[Hashable] | None = None) -> Pairwise:
    """Count verdicts whose side `a` is the treated arm, with 95% intervals and the exact two-sided sign test.

    `win_rate` = (wins + ties / 2) / judged, with Tango's interval (see `intervals`; by cluster where they are given).
    The decisive rate is wins / (wins + losses). Its `low` and `high` are Wilson's (1927), which cover 95% on average;
    Clopper & Pearson's (1934) never cover less than 95%, so they are wider. The sign test is a binomial test against
    1/2. With no decided prompt the rate is None, the interval is [0, 1] and p = 1.
    Misleads where many verdicts are unjudged (the judged prompts may be the easy ones), where a judge's noise pulls all
    rates towards 1/2, and, except for `win_rate`, where prompts share sources.
    """
    wins, losses, ties, unjudged = (sum(v.winner == w for v in verdicts) for w in ("a", "b", "tie", "unjudged"))
    decisive = wins + losses
    win_rate = _win_rate(preferences(verdicts), clusters) if decisive + ties else None
    if not decisive:
        return Pairwise(wins, ties, losses, unjudged, None, 0.0, 1.0, 1.0, None, win_rate)
    low, high = map(float, proportion_confint(wins, decisive, method="wilson"))
    exact = Interval(wins / decisive, *map(float, proportion_confint(wins, decisive, method="beta")))
    p_value = sign_test(wins, losses)
    return Pairwise(wins, ties, losses, unjudged, wins / decisive, low, high, p_value, exact, win_rate)


def _win_rate(worth: np.ndarray, clusters: Sequence[Hashable] | None) -> Interval:
    judged = ~np.isnan(worth)
    of = None if clusters is None else [c for c, keep in zip(clusters, judged, strict=True) if keep]
    return mean_interval(worth[judged], of)


def holm(p_values: Mapping[Hashable, float]) -> dict[Hashable, float]:
    """Holm's (1979) step-down adjusted p-values by name: compare each with 5%, and the chance of any false one is 5%.

    p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)), in ascending order. A contrast that was fixed in advance
    needs no correction for those that were not. Misleads where a test that was looked at is left out.
    """
    # statsmodels' multipletests collects garbage at each call: 70 ms, where a notebook corrects thousands of times
    p = np.array(list(p_values.values()), float)  # (m,)
    order = p.argsort()
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return dict(zip(p_values, adjusted.tolist(), strict=True))


def win_rate_at_k(
    treated: Sequence[Sequence[float]],
    control: Sequence[Sequence[float]],
    ks: Iterable[int] = range(1, 9),
    clusters: Sequence[Hashable] | None = None,
) -> dict[int, Interval]:
    """WinRate@K: how often the best of K samples of one arm beats the best of K of the other, ties half, by K.

    Scores have shape (prompts, samples). Each prompt's rate is averaged over all K-subsets of both arms' samples: the
    i-th smallest of n is the best of C(i-1, K-1) of the C(n, K) subsets. That is unbiased for fresh samples (as pass@k,
    Chen et al. 2021, arXiv 2107.03374), unlike the best of the first K. Ks beyond the number of samples are left out.
    Misleads as K nears the number of samples (few effective subsets, though still unbiased), and where the same score
    both picks the best and compares them, which is the rate with a perfect selector.
    Raises ValueError unless both are tables of as many prompts.
    """
    ours, theirs = np.asarray(treated, float), np.asarray(control, float)
    if ours.ndim != 2 or theirs.ndim != 2 or len(ours) != len(theirs):
        raise ValueError(f"scores of shape (prompts, samples) are needed: {ours.shape} and {theirs.shape}")
    most = min(ours.shape[1], theirs.shape[1])
    return {k: mean_interval(_best_of(ours, theirs, k), clusters) for k in ks if k <= most}


def _best_of(treated: np.ndarray, control: np.ndarray, k: int) -> np.ndarray:
    treated, control = np.sort(treated, axis=1), np.sort(control, axis=1)
    ours, theirs = _is_best(treated.shape[1], k), _is_best(control.shape[1], k)
    beats = 0.5 + 0.5 * np.sign(treated[:, :, None] - control[:, None, :])  # (prompts, our samples, their samples)
    return np.clip(np.einsum("i,pij,j->p", ours, beats, theirs), 0, 1)  # rounding can leave [0, 1]


def _is_best(samples: int, k: int) -> np.ndarray:
    """The chance that the i-th smallest of the samples is the best of K drawn without replacement."""
    return comb(np.arange(samples), k - 1) / comb(samples, k)


def verdict_text(
    interval: Interval,
    n: int,
    smallest_interesting: float | None = None,
    null: float = 0.0,
    higher_is_better: bool = True,
) -> str:
    """An interval in words: better | worse | no difference larger than X | inconclusive: needs about N prompts.

    `n` is the number of prompts behind the interval; `smallest_interesting` is X, the smallest effect that would
    matter, stated before looking; `null` is the value of no difference (0 for differences, 0.5 for win rates).

    Better or worse: the interval leaves out `null`. No difference larger than X: the whole interval lies within
    null +- X (two one-sided tests, Schuirmann 1987, at 2.5% a side). Otherwise N prompts would reach the nearer of
    these two verdicts with a chance of 80%, if the truth is what was observed: n (2.8 se / d)^2, where d is the
    distance of the estimate to null or to the edge at X.
    Misleads where "better" is too small to matter (read the interval), after many looks at the data, and where N is
    taken for a promise, since it rests on a noisy estimate.
    """
    low, high, mean = interval.low - null, interval.high - null, abs(interval.mean - null)
    if low > 0 or high < 0:
        return "better" if (low > 0) == higher_is_better else "worse"
    edge = smallest_interesting or 0.0
    if max(-low, high) < edge:  # both ends must lie within X, so compare the one that is further from null
        return f"no difference larger than {edge:g}"
    distance = max(mean, edge - mean)
    if distance < 1e-9:
        return "inconclusive"
    error = (high - low) / (2 * Z)
    return f"inconclusive: needs about {_two_digits(n * ((Z + POWER_80) * error / distance) ** 2):,} prompts"


def _two_digits(number: float) -> int:
    return int(float(f"{number:.1e}"))


def smallest_effect(n: int, sd: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean difference that a paired t-test on `n` prompts detects with this power.

    Misleads when read as "the effect is smaller than this": the interval says how large it can be.
    """
    # for some n, such as 120, statsmodels returns an array of one number
    return float(np.squeeze(TTestPower().solve_power(nobs=n, alpha=alpha, power=power))) * sd


def sign_test_power(n: Any, rate: float, alpha: float = 0.05) -> Any:
    """The chance that the exact two-sided sign test on `n` decisive prompts (a number or an array) finds p <= alpha."""
    most = binom.ppf(alpha / 2, n, 0.5)
    fewest = np.where(binom.cdf(most, n, 0.5) <= alpha / 2, most, most - 1)
    return binom.cdf(fewest, n, rate) + binom.sf(n - fewest - 1, n, rate)
