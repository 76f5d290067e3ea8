"""What a run of some size can say: a verdict on an interval, and the smallest effect that it could have shown."""

import numpy as np
from scipy.stats import binom
from statsmodels.stats.power import TTestPower

from dpo_kit.evaluation.results import Interval
from dpo_kit.evaluation.statistics.intervals import Z

POWER_80 = 0.8416  # the normal's 80% point


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
    if max(-low, high) < edge:  # both ends, so the one that is further away decides
        return f"no difference larger than {edge:g}"
    distance = max(mean, edge - mean)
    if distance < 1e-9:
        return "inconclusive"
    error = (high - low) / (2 * Z)
    return f"inconclusive: needs about {_two_digits(n * ((Z + POWER_80) * error / distance) ** 2):,} prompts"


def _two_digits(number: float) -> int:
    return int(float(f"{number:.1e}"))


def smallest_effect(n: int, sd: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean difference that a paired t-test on `n` prompts sees with this power.

    Misleads when read as "the effect is smaller than this": the interval says how large it can be.
    """
    # for some n, such as 120, statsmodels returns an array of one number
    return float(np.squeeze(TTestPower().solve_power(nobs=n, alpha=alpha, power=power))) * sd


def sign_test_power(n, rate: float, alpha: float = 0.05):
    """The chance that the exact two-sided sign test on `n` decisive prompts (a number or an array) finds p <= alpha."""
    most = binom.ppf(alpha / 2, n, 0.5)
    fewest = np.where(binom.cdf(most, n, 0.5) <= alpha / 2, most, most - 1)
    return binom.cdf(fewest, n, rate) + binom.sf(n - fewest - 1, n, rate)
