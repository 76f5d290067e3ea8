"""Statistics are compared with published figures and independent implementations, and their invariants are tested."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, nct
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from dpo_kit.evaluation.statistics import (
    Interval,
    holm,
    mean_interval,
    paired_difference,
    pairwise,
    sign_test_power,
    smallest_effect,
    verdict_text,
)
from dpo_kit.evaluation.statistics.intervals import tango
from dpo_kit.records import Verdict
from dpo_kit.workbook.statistics import decisive_prompts_needed, mcnemar, prompts_needed

fifths = st.lists(st.tuples(*[st.integers(0, 5).map(lambda i: i / 5)] * 2), min_size=2, max_size=40)
counts = st.integers(0, 40)


def verdicts(wins, ties, losses, unjudged=0):
    winners = ["a"] * wins + ["tie"] * ties + ["b"] * losses + ["unjudged"] * unjudged
    return [Verdict(winner=winner, judge="test", reason="") for winner in winners]


def ends(interval):
    return (interval.low, interval.high)


def mirrored(interval, about=0.0):
    return pytest.approx((2 * about - interval.mean, 2 * about - interval.high, 2 * about - interval.low), abs=1e-9)


def flat(interval):
    return (interval.mean, interval.low, interval.high)


def test_wilson_and_sign_test_of_a_published_size():
    # 31 of 50: Wilson's centre (31 + z^2/2) / (50 + z^2) = 0.6114 with z = 1.96, half-width 0.1296
    result = pairwise(verdicts(31, 0, 19))
    assert result.decisive_win_rate == 0.62
    assert ends(result) == pytest.approx((0.482, 0.741), abs=5e-4)
    # two-sided binomial: 2 * P(X >= 31 | 50, 1/2)
    assert result.p_value == pytest.approx(0.1189, abs=5e-4)
    assert ends(pairwise(verdicts(124, 0, 76))) == pytest.approx((0.551, 0.684), abs=5e-4)


def test_clopper_pearson_leaves_two_and_a_half_percent_on_each_side():
    # its definition: at the low end 31 or more wins of 50 have chance .025, at the high end 31 or fewer
    low, high = ends(pairwise(verdicts(31, 0, 19)).clopper_pearson)
    assert (binom.sf(30, 50, low), binom.cdf(31, 50, high)) == pytest.approx((0.025, 0.025))


@pytest.mark.parametrize(
    ("wins", "losses", "n", "z", "expected", "places"),
    [
        (1, 7, 21, 1.959964, (-0.517, -0.026), 5e-4),  # airway reactivity: Fagerland, Lydersen & Laake (2014), Tango
        (28, 25, 618, 1.644854, (-0.0148, 0.0247), 5e-5),  # R: PropCIs::scoreci.mp(25, 28, 618, conf.level = 0.90)
    ],
)
def test_the_interval_with_ties_equals_published_tango_intervals(wins, losses, n, z, expected, places):
    assert tango(wins, losses, n, z) == pytest.approx(expected, abs=places)


def test_the_win_rate_counts_a_tie_half_and_takes_tangos_interval():
    # 1 win, 13 ties, 7 losses: rate (1 + 6.5) / 21; a difference d of shares is a win rate (1 + d) / 2
    result = pairwise(verdicts(1, 13, 7)).win_rate
    assert flat(result) == pytest.approx((7.5 / 21, (1 - 0.517) / 2, (1 - 0.026) / 2), abs=3e-4)


def test_all_ties_are_one_half_within_what_the_rule_of_three_allows():
    # score interval at 0 wins, 0 losses: n d^2 = z^2 |d| (1 - |d|), so |d| = z^2 / (n + z^2)
    result = pairwise(verdicts(0, 100, 0))
    assert (result.decisive_win_rate, result.low, result.high, result.p_value) == (None, 0, 1, 1)
    half = 3.841459 / (100 + 3.841459) / 2
    assert flat(result.win_rate) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-6)


def test_ties_and_unjudged_are_reported_and_decide_nothing():
    few, many = pairwise(verdicts(31, 0, 19)), pairwise(verdicts(31, 400, 19, unjudged=7))
    assert (*ends(many), many.decisive_win_rate, many.p_value) == (*ends(few), few.decisive_win_rate, few.p_value)
    assert (many.ties, many.unjudged) == (400, 7)
    assert many.win_rate.mean == (31 + 200) / 450
    assert pairwise(verdicts(0, 0, 0, unjudged=3)).win_rate is None


def test_everything_survives_json():
    result = asdict(pairwise(verdicts(3, 2, 1)))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_passes_take_wilsons_interval_and_the_t_interval_is_met_where_it_is_right():
    passed = [1.0] * 31 + [0.0] * 19
    assert ends(mean_interval(passed)) == pytest.approx(proportion_confint(31, 50, method="wilson"))
    # 2,000 scores around the middle of [0, 1]: normal theory holds
    scores = np.random.default_rng(0).uniform(0.2, 0.9, 2000)
    half = student.ppf(0.975, 1999) * scores.std(ddof=1) / 2000**0.5
    assert ends(mean_interval(scores)) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=2e-5)


def test_a_score_interval_solves_its_own_equation():
    # effective-n Wilson: |m - low| = t sqrt(phi low (1 - low) / n) with phi = s^2 / (m (1 - m))
    scores = np.array([0.2, 0.4, 1.0, 1.0, 0.8, 1.0, 1.0, 0.6, 1.0, 1.0])
    result, m, n = mean_interval(scores), scores.mean(), 10
    phi = scores.var(ddof=1) / (m * (1 - m))
    for end in ends(result):
        assert abs(m - end) == pytest.approx(student.ppf(0.975, 9) * (phi * end * (1 - end) / n) ** 0.5, rel=1e-6)
    assert 0 <= result.low < m < result.high <= 1


def test_where_nearly_all_scores_are_equal_the_variance_is_at_least_that_of_one_prompt_at_the_other_bound():
    # 29 ones and one 0.98: the squared residuals sum to 4e-4, less than m (1 - m) = 6.7e-4. The floor sets
    # var(m) = m (1 - m) / n^2, so n_eff = n^2 z^2 / t^2, and Wilson's end solves |m - low| = t sqrt(low (1 - low)) / n
    result, m, n = mean_interval([1.0] * 29 + [0.98]), 1 - 0.02 / 30, 30
    half = student.ppf(0.975, n - 1) * (result.low * (1 - result.low)) ** 0.5 / n
    assert m - result.low == pytest.approx(half, rel=1e-6)


def test_lengths_take_a_bootstrap_that_agrees_with_the_t_interval_on_normal_data():
    differences = np.random.default_rng(0).normal(20, 100, size=2000)
    result = paired_difference(differences + 1000, np.full(2000, 1000.0))
    half = 1.96 * differences.std(ddof=1) / 2000**0.5
    assert ends(result) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.4)


def test_the_same_prompts_give_the_same_interval_again_and_in_any_order():
    random = np.random.default_rng(1)
    lengths, source = random.lognormal(5, 1, 60), random.integers(0, 20, 60)
    order = random.permutation(60)
    for clusters in (None, source):
        shuffled = None if clusters is None else clusters[order]
        once, again = mean_interval(lengths, clusters), mean_interval(lengths[order], shuffled)
        assert flat(once) == pytest.approx(flat(again))
        assert flat(once) == flat(mean_interval(lengths, clusters))


def test_the_difference_is_paired_by_prompt():
    # every prompt gains 0.08 to 0.12, the prompts themselves range over [0, 0.9]: only the gains count
    random = np.random.default_rng(0)
    control = np.linspace(0, 0.88, 400)
    result = paired_difference(control + random.uniform(0.08, 0.12, 400), control)
    assert result.mean == pytest.approx(0.1, abs=0.002)
    assert result.high - result.low < 0.02


def test_copies_of_prompts_add_nothing_when_their_source_is_known():
    # four copies of each of 50 prompts: the mean stays, and so does what is known about it
    random = np.random.default_rng(2)
    treated, control = random.integers(0, 6, (2, 50)) / 5
    once = paired_difference(treated, control, clusters=range(50))
    copied = paired_difference(np.repeat(treated, 4), np.repeat(control, 4), clusters=np.repeat(np.arange(50), 4))
    assert flat(copied) == pytest.approx(flat(once))
    blind = paired_difference(np.repeat(treated, 4), np.repeat(control, 4))
    assert blind.high - blind.low < 0.6 * (once.high - once.low)


def test_copies_of_prompts_add_nothing_to_a_win_rate_when_their_source_is_known():
    once, copied = verdicts(9, 6, 5), [verdict for verdict in verdicts(9, 6, 5) for _ in range(4)]
    alone = pairwise(once, clusters=range(20)).win_rate
    known = pairwise(copied, clusters=np.repeat(np.arange(20), 4)).win_rate
    assert flat(known) == pytest.approx(flat(alone))
    blind = pairwise(copied).win_rate
    assert blind.high - blind.low < 0.6 * (known.high - known.low)


@given(fifths)
def test_swapping_the_arms_negates_the_difference(pairs):
    treated, control = zip(*pairs, strict=True)
    assert flat(paired_difference(treated, control)) == mirrored(paired_difference(control, treated))


@given(fifths, st.randoms(use_true_random=False))
def test_the_order_of_prompts_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    one, other = (paired_difference(*zip(*rows, strict=True)) for rows in (pairs, shuffled))
    assert flat(one) == pytest.approx(flat(other), abs=1e-9)


@given(counts, counts, counts)
def test_swapping_the_arms_mirrors_the_verdicts(wins, ties, losses):
    one, other = pairwise(verdicts(wins, ties, losses)), pairwise(verdicts(losses, ties, wins))
    assert one.p_value == pytest.approx(other.p_value)
    if wins + losses:
        assert ends(one) == pytest.approx((1 - other.high, 1 - other.low))
        assert one.decisive_win_rate == pytest.approx(1 - other.decisive_win_rate)
        assert flat(one.clopper_pearson) == mirrored(other.clopper_pearson, 0.5)
    if wins + ties + losses:
        assert flat(one.win_rate) == mirrored(other.win_rate, 0.5)
        assert 0 <= one.win_rate.low <= one.win_rate.mean <= one.win_rate.high <= 1


@pytest.mark.parametrize(("treated", "control"), [([1], [1, 2]), ([], [])])
def test_unpaired_scores_are_refused(treated, control):
    with pytest.raises(ValueError, match="equally many"):
        paired_difference(treated, control)


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(ValueError, match="1 of 2 not finite; leave unjudged"):
        mean_interval([0.5, float("nan")])
    with pytest.raises(ValueError, match="leave their bounds"):
        mean_interval([1, 6], bounds=(1, 5))
    with pytest.raises(ValueError, match="one cluster for each prompt"):
        mean_interval([0.1, 0.2], clusters=["a"])
    assert flat(mean_interval([0.3])) == (0.3, 0, 1), "one prompt shows nothing about others"


def test_bounds_of_a_one_to_five_score_scale_the_interval():
    ones, units = [1, 4, 5, 2, 3, 3], [0, 0.75, 1, 0.25, 0.5, 0.5]
    assert flat(mean_interval(ones, bounds=(1, 5))) == pytest.approx([1 + 4 * v for v in flat(mean_interval(units))])


def test_mcnemar_is_the_binomial_test_of_the_prompts_that_differ():
    treated, control = [1] * 60 + [1] * 15 + [0] * 5 + [0] * 20, [1] * 60 + [0] * 15 + [1] * 5 + [0] * 20
    result = mcnemar(treated, control)
    assert (result.only_treated, result.only_control) == (15, 5)
    assert result.p_value == pytest.approx(binomtest(15, 20).pvalue)
    assert mcnemar([1, 0], [1, 0]).p_value == 1


def test_holm_by_hand():
    # 5 x .01, 4 x .02, 3 x .03, then never below the one before
    names = dict(zip("edcba", (0.05, 0.04, 0.03, 0.02, 0.01), strict=True))
    assert holm(names) == pytest.approx({"a": 0.05, "b": 0.08, "c": 0.09, "d": 0.09, "e": 0.09})
    assert list(holm(names)) == list("edcba")


def test_holm_is_that_of_statsmodels():
    for p_values in np.random.default_rng(0).random((5, 6)) ** 2:
        assert np.allclose(list(holm(dict(enumerate(p_values))).values()), multipletests(p_values, method="holm")[1])
    assert holm({}) == {}


def test_decisive_prompts_needed_are_the_checked_ones():
    assert decisive_prompts_needed(0.62) == decisive_prompts_needed(0.38) == 145
    assert decisive_prompts_needed(0.62, power=0.9) == 193
    # the saw-tooth: 144 are too few, although 136 would do; from 145 on it never falls below
    assert sign_test_power(144, 0.62) < 0.8 < sign_test_power(136, 0.62)
    assert (sign_test_power(np.arange(145, 2000), 0.62) >= 0.8).all()
    with pytest.raises(ValueError, match="other than one half"):
        decisive_prompts_needed(0.5)


@pytest.mark.parametrize(("n", "rate"), [(10, 0.5), (30, 0.62), (41, 0.9)])
def test_the_power_is_the_chance_of_a_small_p_value(n, rate):
    rejected = [k for k in range(n + 1) if binomtest(k, n).pvalue <= 0.05]
    assert sign_test_power(n, rate) == pytest.approx(binom.pmf(rejected, n, rate).sum())


def test_prompts_needed_have_the_power_and_one_fewer_has_not():
    def power(n, size):  # of the two-sided paired t-test, by scipy's noncentral t
        bound = student.ppf(0.975, n - 1)
        return nct.sf(bound, n - 1, size * n**0.5) + nct.cdf(-bound, n - 1, size * n**0.5)

    n = prompts_needed(0.1, sd=0.5)
    assert power(n, 0.2) >= 0.8 > power(n - 1, 0.2)
    assert power(400, smallest_effect(400, sd=0.5) / 0.5) == pytest.approx(0.8, abs=1e-6)


def test_verdicts_in_words():
    assert verdict_text(Interval(0.1, 0.02, 0.18), 100) == "better"
    assert verdict_text(Interval(0.1, 0.02, 0.18), 100, higher_is_better=False) == "worse"
    assert verdict_text(Interval(0.4, 0.32, 0.48), 100, null=0.5) == "worse"
    assert verdict_text(Interval(0.01, -0.02, 0.04), 100, smallest_interesting=0.05) == "no difference larger than 0.05"
    # half-width 0.1 at n = 100, se 0.051: for 0.05, 100 (2.8 x 0.051 / 0.05)^2 = 817, two digits
    assert verdict_text(Interval(0.05, -0.05, 0.15), 100) == "inconclusive: needs about 820 prompts"
    # where only 0.2 would matter, the same interval decides
    assert verdict_text(Interval(0.05, -0.05, 0.15), 100, smallest_interesting=0.2) == "no difference larger than 0.2"
    assert verdict_text(Interval(0.0, -0.1, 0.1), 100) == "inconclusive"
    # one end within 0.05 and the other beyond it decides nothing, on either side
    for interval in (Interval(0.03, -0.02, 0.08), Interval(-0.03, -0.08, 0.02)):
        assert verdict_text(interval, 100, smallest_interesting=0.05).startswith("inconclusive: needs about")


@given(st.floats(-1, 1), st.floats(0.001, 1), st.integers(10, 1000), st.sampled_from([None, 0.02, 0.1, 0.5]))
def test_an_inconclusive_run_always_needs_more_prompts_than_it_had(mean, half, n, interesting):
    said = verdict_text(Interval(mean, mean - half, mean + half), n, interesting)
    if "about" in said:
        assert int(said.split("about ")[1].split()[0].replace(",", "")) > n
