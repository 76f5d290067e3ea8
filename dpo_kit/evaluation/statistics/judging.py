"""How far to trust a judge: does it give the same verdict in both orders, and does it prefer longer answers?

Position bias compares a judge's verdicts in the two orders. The win rate at equal lengths, and by quartile of the
length difference, show whether answers win because they are longer.
"""

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import rankdata
from statsmodels.stats.proportion import proportion_confint

from dpo_kit.evaluation.results import Interval, LengthControlled, LengthQuartile, PositionBias
from dpo_kit.evaluation.statistics.intervals import mean_interval
from dpo_kit.records import Verdict

FEW = 0.1  # warn where one arm is the longer one on a smaller share of prompts: the rate is then extrapolated
STEEP = 15.0  # log-odds beyond this mean that the fit diverges


def position_bias(verdicts: Sequence[Verdict]) -> PositionBias:
    """How often a judge that was asked in both orders contradicted itself, and which side gained; Wilson's intervals.

    Verdicts without two usable orders are left out: `n` says how many remain. The published "consistency" of a judge is
    1 - `inconsistent`. Misleads as a measure of noise: a judge can be consistent and wrong, and answers that are nearly
    equal make any judge look biased.

    People see a pair once, in an order drawn at random. Their bias is how far from 0.5 the share of decisive verdicts
    for the answer shown first lies, that is, for which `winner == order[0]`.
    """
    orders = [v.in_orders for v in verdicts if v.in_orders and "unjudged" not in v.in_orders]
    changed = [pair for pair in orders if pair[0] != pair[1]]
    flipped = [pair for pair in changed if "tie" not in pair]
    first = sum(pair == ("a", "b") for pair in flipped)
    return PositionBias(len(orders), _share(len(changed), len(orders)), _share(first, len(flipped)))


def _share(hits: int, n: int) -> Interval | None:
    return Interval(hits / n, *map(float, proportion_confint(hits, n, method="wilson"))) if n else None


def length_controlled(
    preferences: Sequence[float], treated_lengths: Sequence[float], control_lengths: Sequence[float]
) -> LengthControlled:
    """The win rate to expect if both arms' answers were equally long, after AlpacaEval 2 (Dubois et al. 2024).

    Fractional logistic regression (Papke & Wooldridge 1996) of preferences in [0, 1], ties 1/2, unjudged NaN:
    logit E[preference] = theta + phi tanh((len_treated - len_control) / sd), read at zero difference: sigmoid(theta),
    with the sandwich (HC1) interval. Reference: arXiv 2404.04475, Eq. 2.
    It differs from the paper in that it has no term for the difficulty of each instruction, which AlpacaEval fits over
    its whole leaderboard and one evaluation cannot; so it does not average over instructions, share phi or regularise.
    Misleads where one arm is nearly always the shorter one, since equal lengths are then extrapolated (it warns: on
    AlpacaEval the concise Mixtral comes out at 37%, where the leaderboard has 23%), and where length is a merit.
    Raises ValueError where the three sequences differ in length or nothing was judged.
    """
    worth, difference = _judged(preferences, treated_lengths, control_lengths)
    longer, shorter = float((difference >= 0).mean()), float((difference <= 0).mean())
    extrapolates = min(longer, shorter) < FEW
    warned = []
    if extrapolates:
        side = "longer" if longer < shorter else "shorter"
        warned.append(
            f"the treated arm's answer is as long or {side} on only {min(longer, shorter):.0%} of prompts: "
            "equal lengths are extrapolated"
        )
    if (share := most_common_share(treated_lengths)) > 0.5:
        warned.append(f"{share:.0%} of the treated arm's answers have the same length: is it one constant answer?")
    raw = mean_interval(worth)
    fitted = _at_equal_lengths(worth, difference)
    if fitted is None:
        warned.append("length separates wins from losses perfectly: the rate at equal lengths cannot be estimated")
    controlled, effect = fitted or (None, None)
    return LengthControlled(raw, controlled, effect, extrapolates, tuple(warned))


def most_common_share(values: Sequence[Hashable]) -> float:
    """The share of answers, or of their lengths, that are the most common one: 1 for a constant answer, 0 for none.

    Misleads for very short answers (labels, numbers), which share lengths although they differ.
    """
    return Counter(values).most_common(1)[0][1] / len(values) if len(values) else 0.0


def by_length_quartile(
    preferences: Sequence[float], treated_lengths: Sequence[float], control_lengths: Sequence[float]
) -> list[LengthQuartile]:
    """The win rate, ties half, in each quarter of the prompts by length difference (treated - control), shortest first.

    Prompts with the same difference stay together, so quarters can differ in size, and an empty one is left out. There
    is no model of length here, so nothing is extrapolated. Misleads where quarters are small: look at the intervals.
    Raises ValueError as `length_controlled`.
    """
    worth, difference = _judged(preferences, treated_lengths, control_lengths)
    ranks = rankdata(difference)  # equal differences share their mean rank, so none is called longer than another
    quarter = (4 * (ranks - 0.5) / len(ranks)).astype(int)
    return [
        LengthQuartile(float(difference[q].min()), float(difference[q].max()), len(q), mean_interval(worth[q]))
        for q in (np.flatnonzero(quarter == i) for i in range(4))
        if len(q)
    ]


def _judged(
    preferences: Sequence[float], treated_lengths: Sequence[float], control_lengths: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Preferences and length differences of the judged prompts."""
    worth = np.asarray(preferences, float)
    if not len(worth) == len(treated_lengths) == len(control_lengths):
        raise ValueError(f"{len(worth)} preferences, {len(treated_lengths)} and {len(control_lengths)} lengths")
    judged = ~np.isnan(worth)
    if not judged.any():
        raise ValueError("no prompt was judged, so there is no win rate")
    return worth[judged], np.subtract(treated_lengths, control_lengths, dtype=float)[judged]


def _at_equal_lengths(worth: np.ndarray, difference: np.ndarray) -> tuple[Interval, float] | None:
    """The interval at zero difference and phi, or None where the likelihood has no finite maximum."""
    if np.ptp(worth) == 0 or not difference.any():
        return mean_interval(worth), 0.0  # there is nothing that length could explain
    x = np.tanh(difference / (difference.std() or 1.0))
    if np.ptp(x) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of perfect separation, which the size of the coefficients shows below
        fit = sm.GLM(worth, np.column_stack([np.ones_like(x), x]), family=sm.families.Binomial()).fit(cov_type="HC1")
    theta, phi = map(float, fit.params)
    low, high = fit.conf_int()[0]
    if not np.isfinite([low, high]).all() or max(abs(theta), abs(phi)) > STEEP:
        return None
    return Interval(float(expit(theta)), float(expit(low)), float(expit(high))), phi
