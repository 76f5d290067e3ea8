"""The checks of notebook 06 against the package's statistics and scipy: right solutions pass, wrong ones are named."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.power import NormalIndPower

from dpo_kit.evaluation.statistics import holm
from dpo_kit.workbook.exercises.three_way_eval import check_holm, check_pairing, check_prompts_needed, check_sign_test


def test_pairing_by_numpy_is_right():
    def pairing(treated, control):
        covariance = np.cov(treated, control)
        unpaired = np.trace(covariance)
        return unpaired / (unpaired - 2 * covariance[0, 1])  # var(t - c) = var t + var c - 2 cov

    assert check_pairing(pairing).passed


def test_scipys_sign_test_is_right():
    assert check_sign_test(lambda wins, losses: binomtest(wins, wins + losses).pvalue).passed


def test_the_packages_holm_is_right():
    def through_the_package(p_values):
        adjusted = holm({str(i): p for i, p in enumerate(p_values)})
        return [adjusted[str(i)] for i in range(len(p_values))]

    assert check_holm(through_the_package).passed


def test_statsmodels_number_of_prompts_is_right():
    """`NormalIndPower` with no second sample is the one-sample z-test, here on differences; 2.8 rounds 2.8016."""

    def needed(effect, sd):
        size = abs(effect) / sd
        exact = NormalIndPower(ddof=0).solve_power(size, alpha=0.05, power=0.8, ratio=0)
        return math.ceil(float(exact) * (2.8 / 2.8016) ** 2)

    assert check_prompts_needed(needed).passed


def bonferroni(p_values):
    return [min(1, len(p_values) * p) for p in p_values]


def falling(p_values):
    """Holm without the running maximum."""
    rank = {p: place for place, p in enumerate(sorted(p_values))}
    return [min(1, (len(p_values) - rank[p]) * p) for p in p_values]


@pytest.mark.parametrize(
    ("check", "answer", "hint"),
    [
        (check_pairing, lambda t, c: np.var(np.subtract(t, c)) / (np.var(t) + np.var(c)), "upside down"),
        (
            check_pairing,
            lambda t, c: math.sqrt((np.var(t) + np.var(c)) / np.var(np.subtract(t, c))),
            "these are standard errors",
        ),
        (check_sign_test, lambda w, n: binomtest(min(w, n), w + n, alternative="less").pvalue, "one tail"),
        (check_sign_test, lambda w, n: math.comb(w + n, n) / 2 ** (w + n), "exactly this split"),
        (check_holm, bonferroni, "Bonferroni"),
        (check_holm, falling, "the greatest so far"),
        (check_prompts_needed, lambda effect, sd: math.ceil((1.96 * sd / effect) ** 2), "80%"),
        (check_prompts_needed, lambda effect, sd: (2.8 * sd / effect) ** 2, "round up"),
        (check_prompts_needed, lambda effect, sd: math.ceil(2.8 * sd / abs(effect)), "square"),
    ],
)
def test_plausible_mistakes_get_their_own_hint(check, answer, hint):
    verdict = check(answer)
    assert not verdict.passed
    assert hint in verdict.message


def test_an_unnamed_mistake_is_still_wrong():
    assert not check_holm(lambda p_values: p_values).passed
    assert not check_sign_test(lambda wins, losses: wins / (wins + losses)).passed


def test_the_sign_test_is_asked_at_more_points_than_an_even_split():
    """A p-value of 1 is right at 5 wins and 5 losses, and at no split that shows anything."""
    assert not check_sign_test(lambda wins, losses: 1.0).passed
    assert not check_sign_test(lambda wins, losses: 1.0 if wins == losses else 0.05).passed
    assert not check_sign_test(lambda w, n: binomtest(w, w + n).pvalue if w != n or w == 5 else 1.2).passed
