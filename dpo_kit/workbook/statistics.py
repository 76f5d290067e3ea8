"""Statistics that the lessons explain and no command of the tool reports.

Agreement and Cohen's kappa compare two raters of the same items. Bradley-Terry strengths place more than two arms on
one scale. Two functions are for planning: how many prompts an effect of some size needs. The last one shows what a
smaller evaluation would have found.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import statsmodels.api as sm
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from dpo_kit.evaluation.results import Interval
from dpo_kit.evaluation.statistics import holm, paired_difference, sign_test, sign_test_power, verdict_text
from dpo_kit.evaluation.statistics.intervals import Z
from dpo_kit.views.tables import short

ELO_PER_NAT = 400 / np.log(10)


def agreement(a: Sequence[Hashable], b: Sequence[Hashable]) -> Interval | None:
    """The share of items that two raters label alike, with Wilson's interval; None without items.

    Misleads where one label is common: two raters that always give it agree on everything. See `kappa`.
    """
    same = sum(x == y for x, y in zip(a, b, strict=True))
    return Interval(same / len(a), *map(float, proportion_confint(same, len(a), method="wilson"))) if len(a) else None


def kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> Interval | None:
    """Cohen's kappa (1960) of two raters of the same items: (p_o - p_e) / (1 - p_e), p_e the agreement by chance.

    The interval is the asymptotic one of Fleiss, Cohen & Everitt (1969), from statsmodels. Where the raters never
    differ it has no width, so Wilson's bound on p_o is used. None where kappa is undefined: no items, or one label.
    Misleads where one label is rare (kappa is then low in spite of high agreement), and counts all disagreements alike.
    Raises ValueError where the raters labelled different numbers of items.
    """
    labels = {label: i for i, label in enumerate(dict.fromkeys([*a, *b]))}
    if len(labels) < 2:
        return None
    table = np.zeros((len(labels), len(labels)))
    for x, y in zip(a, b, strict=True):
        table[labels[x], labels[y]] += 1
    result = cohens_kappa(table)
    if np.trace(table) == table.sum():
        chance = (table.sum(0) @ table.sum(1)) / table.sum() ** 2
        return Interval(1.0, (agreement(a, b).low - chance) / (1 - chance), 1.0)
    return Interval(float(result.kappa), max(-1.0, float(result.kappa_low)), min(1.0, float(result.kappa_upp)))


@dataclass(frozen=True)
class PreferenceRate:
    """Judge preferences in [0, 1] as AlpacaEval reports them, as shares (not percent)."""

    win_rate: float
    standard_error: float
    discrete_win_rate: float


def preference_rate(preferences: Sequence[float]) -> PreferenceRate:
    """Weighted preferences in [0, 1], 1 = the treated arm's answer wins, summed up as AlpacaEval 2 does.

    They are the mean, its standard error s / sqrt(n), and the discrete rate, where a preference above 1/2 is a win and
    1/2 is half a win. AlpacaEval's files hold preferences in [1, 2]: subtract 1. Its tables are in percent.
    Raises ValueError for fewer than two preferences or one outside [0, 1].
    """
    worth = np.asarray(preferences, float)
    if len(worth) < 2 or not ((worth >= 0) & (worth <= 1)).all():
        raise ValueError("at least two preferences are needed, all in [0, 1]; leave unjudged prompts out")
    discrete = np.mean((worth > 0.5) + 0.5 * (worth == 0.5))
    return PreferenceRate(float(worth.mean()), float(worth.std(ddof=1) / len(worth) ** 0.5), float(discrete))


@dataclass(frozen=True)
class McNemar:
    """Prompts that only one of the two arms passed, and the exact two-sided p-value."""

    only_treated: int
    only_control: int
    p_value: float


def mcnemar(treated_pass: Sequence[bool], control_pass: Sequence[bool]) -> McNemar:
    """Exact McNemar test (1947): would a fair coin split the prompts that just one arm passed as unevenly?

    Misleads where the size of the difference is wanted (see `paired_difference`), or where prompts share sources.
    Raises ValueError where the two sequences differ in length.
    """
    treated, control = np.asarray(treated_pass, bool), np.asarray(control_pass, bool)
    if treated.shape != control.shape:
        raise ValueError(f"passes must be paired by prompt: {treated.size} and {control.size}")
    only_treated, only_control = int((treated & ~control).sum()), int((~treated & control).sum())
    table = [[0, only_treated], [only_control, 0]]
    return McNemar(only_treated, only_control, min(1.0, float(statsmodels_mcnemar(table, exact=True).pvalue)))


def bradley_terry(
    a: Sequence[str],
    b: Sequence[str],
    preferences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    virtual_ties: float = 0.0,
) -> dict[str, Interval]:
    """The strength of each arm in Elo points (mean 0, best first) with a 95% interval.

    One comparison a row: arm `a[i]`, arm `b[i]`, and the preference for the former in [0, 1] (1, tie 0.5, 0; unjudged
    NaN). `clusters` names the prompt of each row: comparisons on the same prompt are not independent.
    P(a beats b) = 1 / (1 + 10^((s_b - s_a) / 400)) (Bradley & Terry 1952), by maximum likelihood (binomial GLM) with a
    sandwich covariance. Unlike Elo's running update it does not depend on the order of the games.
    Misleads where arms beat each other in a circle, which one number for each arm cannot show, and where the interval
    of one arm is read as that of a difference: compare two arms pairwise instead.
    Raises ValueError where an arm won or lost everything (its strength is infinite): `virtual_ties` adds that many ties
    between each two arms, which keeps strengths finite and pulls them together.
    """
    worth = np.asarray(preferences, float)
    if not len(a) == len(b) == len(worth):
        raise ValueError(f"comparisons need two arms and a preference each: {len(a)}, {len(b)} and {len(worth)}")
    kept = np.flatnonzero(~np.isnan(worth))
    arms = sorted({*a, *b})
    ties = list(combinations(range(len(arms)), 2)) if virtual_ties else []
    first = [arms.index(a[i]) for i in kept] + [i for i, _ in ties]
    second = [arms.index(b[i]) for i in kept] + [j for _, j in ties]
    worth = np.append(worth[kept], np.full(len(ties), 0.5))
    weights = np.append(np.ones(len(kept)), np.full(len(ties), virtual_ties))
    _refuse_infinite(arms, first, second, worth)
    groups = [("row", i) for i in kept] if clusters is None else [clusters[i] for i in kept]
    groups += [("tie", i, j) for i, j in ties]
    strength, error = _fit(len(arms), first, second, worth, weights, groups)
    rows = zip(arms, strength, Z * error, strict=True)
    table = {arm: Interval(float(s), float(s - half), float(s + half)) for arm, s, half in rows}
    return dict(sorted(table.items(), key=lambda item: (-item[1].mean, item[0])))


def _refuse_infinite(arms, first, second, worth) -> None:
    """Strengths are finite when every arm reaches every other along a chain of wins and ties (Ford 1957)."""
    beaten = np.eye(len(arms), dtype=bool)  # (arms, arms): does a chain lead from the row's arm to the column's?
    np.logical_or.at(beaten, (first, second), worth > 0)
    np.logical_or.at(beaten, (second, first), worth < 1)
    for middle in range(len(arms)):
        beaten |= beaten[:, [middle]] & beaten[[middle], :]
    if not beaten.all():
        i, j = np.argwhere(~beaten)[0]
        why = "no chain of wins leads from it to the other, so the distance is infinite; set virtual_ties=1"
        raise ValueError(f"arms {arms[i]} and {arms[j]} cannot be placed on one scale: {why}")


def _fit(count, first, second, worth, weights, groups) -> tuple[np.ndarray, np.ndarray]:
    """Strengths that sum to zero, and their standard errors, in Elo points."""
    design = np.zeros((len(worth), count))
    rows = np.arange(len(worth))
    np.add.at(design, (rows, first), 1)
    np.add.at(design, (rows, second), -1)
    # only differences of strengths are identified: fit in a basis whose strengths sum to zero
    basis = np.linalg.qr(np.eye(count)[:, 1:] - 1 / count)[0]  # (arms, arms - 1)
    number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    model = sm.GLM(worth, design @ basis, family=sm.families.Binomial(), var_weights=weights)
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": np.array([number[name] for name in groups])})
    error = np.sqrt(np.diag(basis @ fit.cov_params() @ basis.T))
    return ELO_PER_NAT * basis @ fit.params, ELO_PER_NAT * error


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


def redrawn(
    treated: Mapping[str, np.ndarray],
    control: Mapping[str, np.ndarray],
    shown: Sequence[str],
    n: int,
    smallest_interesting: float,
    draws: int = 300,
) -> dict[str, list[tuple[float, str]]]:
    """What `n` prompts would have found, had they been drawn from these with replacement, again and again.

    `treated` and `control` map every metric to one score a prompt, `(prompts,)` each. Returns for each metric of
    `shown`, for each draw, the mean difference and the verdict in one word. The rule is that of the table: a "better"
    or "worse" also needs a p-value below 0.05 after Holm's correction among all metrics of `treated`.
    """
    random, prompts = np.random.default_rng(0), len(next(iter(treated.values())))
    found = {metric: [] for metric in shown}
    for _ in range(draws):
        rows = random.integers(prompts, size=n)
        gains = {metric: scores[rows] - control[metric][rows] for metric, scores in treated.items()}
        p_values = {metric: sign_test(int((g > 0).sum()), int((g < 0).sum())) for metric, g in gains.items()}
        adjusted = holm(p_values)
        for metric in shown:
            difference = paired_difference(treated[metric][rows], control[metric][rows])
            verdict = short(verdict_text(difference, n, smallest_interesting))
            lost = verdict in ("better", "worse") and adjusted[metric] >= 0.05
            found[metric].append((difference.mean, "inconclusive" if lost else verdict))
    return found
