"""An interval as a verdict in words, which may be that nothing can be said."""

from dpo_kit.evaluation.statistics.intervals import Interval, Z

POWER_80 = 0.8416  # the normal's 80% point


def verdict_text(
    interval: Interval,
    n: int,
    smallest_interesting: float | None = None,
    null: float = 0.0,
    higher_is_better: bool = True,
) -> str:
    """One of: better | worse | no difference larger than X | inconclusive: needs about N prompts.

    `n` is how many prompts the interval rests on; `smallest_interesting` is X, the smallest effect that would matter,
    stated before looking; `null` is the value of no difference (0 for differences, 0.5 for win rates).

    Better or worse: the interval leaves out `null`. No difference larger than X: it lies within null +- X (two
    one-sided tests, Schuirmann 1987, at 2.5% a side). Otherwise N gives an 80% chance of the nearer of these two ends,
    if the truth is what was observed: n (2.8 se / d)^2, where d is the distance to null or to the edge at X.
    Misleads where "better" is too small to matter (read the interval), after many looks at the data, and where N is
    taken for a promise: it stands on a noisy estimate.
    """
    low, high, mean = interval.low - null, interval.high - null, abs(interval.mean - null)
    if low > 0 or high < 0:
        return "better" if (low > 0) == higher_is_better else "worse"
    edge = smallest_interesting or 0.0
    if max(-low, high) < edge:
        return f"no difference larger than {edge:g}"
    distance = max(mean, edge - mean)
    if distance < 1e-9:
        return "inconclusive"
    error = (high - low) / (2 * Z)
    return f"inconclusive: needs about {_two_digits(n * ((Z + POWER_80) * error / distance) ** 2):,} prompts"


def _two_digits(number: float) -> int:
    return int(float(f"{number:.1e}"))
