import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_kit.evaluation.statistics import paired_difference, pairwise
from dpo_kit.records import Verdict


def verdicts(wins, ties, losses, unjudged=0):
    winners = ["a"] * wins + ["tie"] * ties + ["b"] * losses + ["unjudged"] * unjudged
    return [Verdict(winner=winner, judge="test", reason="") for winner in winners]


def test_wilson_and_sign_test_of_a_published_size():
    # 31 of 50: Wilson's centre (31 + z^2/2) / (50 + z^2) = 0.6114 with z = 1.96, half-width 0.1296
    result = pairwise(verdicts(31, 0, 19))
    assert result.decisive_win_rate == 0.62
    assert (result.low, result.high) == (pytest.approx(0.482, abs=5e-4), pytest.approx(0.741, abs=5e-4))
    # two-sided binomial: 2 * P(X >= 31 | 50, 1/2)
    assert result.p_value == pytest.approx(0.1189, abs=5e-4)


def test_ties_and_unjudged_are_reported_and_decide_nothing():
    few, many = pairwise(verdicts(31, 0, 19)), pairwise(verdicts(31, 400, 19, unjudged=7))
    assert (many.decisive_win_rate, many.low, many.high, many.p_value) == (
        few.decisive_win_rate,
        few.low,
        few.high,
        few.p_value,
    )
    assert (many.ties, many.unjudged) == (400, 7)


def test_identical_answers_show_nothing():
    result = pairwise(verdicts(0, 100, 0))
    assert (result.decisive_win_rate, result.low, result.high, result.p_value) == (None, 0, 1, 1)


@given(st.integers(0, 60), st.integers(0, 60))
def test_swapping_the_arms_mirrors_the_result(wins, losses):
    one, other = pairwise(verdicts(wins, 3, losses)), pairwise(verdicts(losses, 3, wins))
    assert one.p_value == pytest.approx(other.p_value)
    if wins + losses:
        assert one.decisive_win_rate == pytest.approx(1 - other.decisive_win_rate)
        assert one.low == pytest.approx(1 - other.high)


def test_the_difference_is_paired_by_prompt():
    # every prompt gains exactly 0.1: paired, there is no uncertainty, however far apart the prompts are
    control = np.linspace(0, 0.9, 50)
    result = paired_difference(control + 0.1, control)
    assert result.mean == pytest.approx(0.1)
    assert result.high - result.low < 1e-9


def test_the_interval_matches_the_normal_one_where_that_is_right():
    differences = np.random.default_rng(0).normal(0.2, 1, size=2000)
    result = paired_difference(differences, np.zeros(2000))
    half = 1.96 * differences.std(ddof=1) / 2000**0.5
    assert result.low == pytest.approx(differences.mean() - half, abs=0.006)
    assert result.high == pytest.approx(differences.mean() + half, abs=0.006)


@pytest.mark.slow
def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # 300 evaluations of 100 prompts with three-valued scores; 95% of 300 is 285, standard deviation 3.8
    random = np.random.default_rng(1)
    shares, values = (0.2, 0.5, 0.3), (-1.0, 0.0, 1.0)
    truth = float(np.dot(shares, values))
    covered = 0
    for seed in range(300):
        result = paired_difference(random.choice(values, 100, p=shares), np.zeros(100), seed)
        covered += result.low <= truth <= result.high
    assert 270 <= covered <= 297


@pytest.mark.parametrize(("treated", "control"), [([1], [1, 2]), ([], [])])
def test_unpaired_scores_are_refused(treated, control):
    with pytest.raises(ValueError, match="equally many"):
        paired_difference(treated, control)
