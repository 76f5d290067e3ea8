"""What a run of some size can say: a verdict on an interval, and how many prompts an effect needs.

Ask `prompts_needed` before a run. After it, `verdict_text` says what was found, which may be "inconclusive".
"""

import math

import numpy as np
from scipy.stats import binom, norm
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


def prompts_needed(effect: float, sd: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many prompts a two-sided paired t-test needs to see a mean difference `effect` (statsmodels, noncentral t).

    `sd` is the standard deviation of the differences within prompts, from a pilot or an earlier run.
    Misleads where sd is guessed (the number grows with its square), and where prompts share sources, since it counts
    independent prompts. Raises ValueError unless the effect is not 0 and sd > 0.
    """
    if not effect or sd <= 0:
        raise ValueError(f"an effect other than 0 and a spread above 0 are needed: {effect} and {sd}")
    size = abs(effect) / sd
    return max(2, math.ceil(TTestPower().solve_power(effect_size=size, alpha=alpha, power=power)) if size < 5 else 2)


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


def decisive_prompts_needed(rate: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many decided prompts the exact two-sided sign test needs to tell a true win rate `rate` from one half.

    The power of a test on counts goes up and down with n; from this number on it never falls below `power`. Where a
    share t of prompts are ties, plan for this number divided by 1 - t. A judge that is right with chance c turns a true
    rate r into c r + (1 - c)(1 - r): give that as `rate`.
    Raises ValueError for a rate of 1/2, which no number of prompts can tell from 1/2, and for rates outside [0, 1].
    """
    if not 0 <= rate <= 1 or rate == 0.5:
        raise ValueError(f"a rate in [0, 1] other than one half is needed: {rate}")
    normal = ((norm.isf(alpha / 2) / 2 + norm.ppf(power) * math.sqrt(rate * (1 - rate))) / (rate - 0.5)) ** 2
    n = np.arange(1, 2 * math.ceil(normal) + 50)
    return int(n[sign_test_power(n, rate, alpha) < power][-1]) + 1
