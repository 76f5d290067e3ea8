"""Length control, judges, best of K and ranking, against AlpacaEval, LLMBar and R."""

import json
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from dpo_kit.evaluation.statistics import (
    by_length_quartile,
    length_controlled,
    most_common_share,
    position_bias,
    win_rate_at_k,
)
from dpo_kit.records import Verdict
from dpo_kit.workbook.statistics import agreement, bradley_terry, kappa, preference_rate

OVERLAPPING = ("FuseChat-Llama-3.1-8B-Instruct", "NullModel")
EXTRAPOLATED = ("Mixtral-8x7B-Instruct-v0.1_concise", "alpaca-7b")


@pytest.fixture(scope="module")
def alpaca(real_data):
    folder = real_data / "alpaca_eval"
    published = json.loads((folder / "published.json").read_text())
    tables = {name: np.genfromtxt(folder / f"{name}.csv", delimiter=",", names=True) for name in published}
    return {name: (tables[name], published[name]) for name in published}


def controlled(table):
    return length_controlled(table["preference"] - 1, table["model_chars"], table["baseline_chars"])


@pytest.mark.parametrize("name", OVERLAPPING + EXTRAPOLATED)
def test_alpaca_evals_published_rates(alpaca, name):
    table, published = alpaca[name]
    rate = preference_rate(table["preference"] - 1)
    ours = {key: 100 * getattr(rate, key) for key in ("win_rate", "standard_error", "discrete_win_rate")}
    assert ours == pytest.approx({key: published[key] for key in ours}, abs=1e-6)
    result = controlled(table)
    moved = result.length_controlled.mean - result.win_rate.mean
    assert moved * (published["length_controlled_winrate"] - published["win_rate"]) > 0
    if name in OVERLAPPING:
        assert 100 * result.length_controlled.mean == pytest.approx(published["length_controlled_winrate"], abs=4)
    assert result.extrapolates == (name in EXTRAPOLATED)
    assert any("extrapolated" in warning for warning in result.warnings) == result.extrapolates


def test_the_preference_rate_by_hand():
    # 1, 1, 0, 1/2: mean 5/8; squared deviations 9/64, 9/64, 25/64, 1/64: s = sqrt(44/64/3), and the error s / sqrt(4)
    rate = preference_rate([1, 1, 0, 0.5])
    assert (rate.win_rate, rate.discrete_win_rate) == (5 / 8, 2.5 / 4)
    assert rate.standard_error == pytest.approx((44 / 64 / 3) ** 0.5 / 2)


def test_the_constant_answer_is_seen_by_its_lengths(alpaca):
    shares = {name: most_common_share(table["model_chars"]) for name, (table, _) in alpaca.items()}
    assert shares.pop("NullModel") == 1
    assert max(shares.values()) < 0.05
    assert any("constant answer" in warning for warning in controlled(alpaca["NullModel"][0]).warnings)


def test_length_control_undoes_a_bias_that_was_put_in():
    # log-odds 0.4 for the better answers plus 1.5 for longer ones, which they are: sigmoid(0.4) = 0.5987
    random = np.random.default_rng(0)
    lengths = random.normal([[560], [500]], 100, (2, 20000))
    difference = lengths[0] - lengths[1]
    chance = 1 / (1 + np.exp(-0.4 - 1.5 * np.tanh(difference / difference.std())))
    result = length_controlled(random.random(20000) < chance, *lengths)
    assert result.win_rate.mean > 0.64
    assert result.length_controlled.low < 0.5987 < result.length_controlled.high
    assert result.length_effect == pytest.approx(1.5, abs=0.1)
    assert not result.warnings


def test_where_length_says_nothing_or_everything():
    same = length_controlled([1, 0, 1, 1], [5, 6, 7, 8], [5, 6, 7, 8])
    assert same.length_controlled == same.win_rate
    split = length_controlled([1, 1, 0, 0] * 5, [9, 9, 1, 1] * 5, [5] * 20)
    assert split.length_controlled is None
    assert any("perfectly" in warning for warning in split.warnings)
    with pytest.raises(ValueError, match="no prompt was judged"):
        length_controlled([float("nan")], [1], [2])


def test_equal_length_differences_are_never_split_between_quarters():
    """All of 40 answers are as long as the others', half won: one group with rate 1/2, not one of losses, one of wins.

    Beside 20 that are shorter and 20 that are longer by a character, the equal ones fill the two middle quarters.
    """
    (only,) = by_length_quartile([0, 1] * 20, [9] * 40, [9] * 40)
    assert (only.n, only.win_rate.mean) == (40, 0.5)
    worth, lengths = [0] * 20 + [0, 1] * 20 + [1] * 20, [8] * 20 + [9] * 40 + [10] * 20
    found = [(q.shortest, q.longest, q.n, q.win_rate.mean) for q in by_length_quartile(worth, lengths, [9] * 80)]
    assert found == [(-1, -1, 20, 0), (0, 0, 40, 0.5), (1, 1, 20, 1)]


def test_quartiles_hold_every_judged_prompt_once():
    random = np.random.default_rng(0)
    worth = random.integers(0, 3, 41) / 2
    worth[3] = np.nan
    quarters = by_length_quartile(worth, random.permutation(41), [20] * 41)
    assert [q.n for q in quarters] == [10] * 4
    assert sum(q.n * q.win_rate.mean for q in quarters) == pytest.approx(np.nansum(worth))
    assert all(one.longest < other.shortest for one, other in pairwise(quarters))


def test_llmbars_published_agreement_and_order_consistency(real_data):
    folder = real_data / "llmbar"
    items = json.loads((folder / "natural_gpt4_swap_cot_replies.json").read_text())
    published = json.loads((folder / "natural_gpt4_swap_cot_published.json").read_text())
    labels = [str(item["label"]) for item in items]
    last = [item["results"][-1] for item in items]  # the authors asked again where the orders disagreed
    asked = {swap: [result[f"swap = {swap}"]["winner"] for result in last] for swap in (False, True)}

    def said(hits):
        return f"{hits} / {len(items)} = {hits / len(items):.1%}"

    for swap, winners in asked.items():
        assert said(round(agreement(winners, labels).mean * len(items))) == published[f"correct_{swap}"]
    names = {"1": "a", "2": "b"}
    verdicts = [
        Verdict(winner=names[x] if x == y else "tie", judge="gpt-4", reason="", in_orders=(names[x], names[y]))
        for x, y in zip(asked[False], asked[True], strict=True)
    ]
    bias = position_bias(verdicts)
    assert said(round((1 - bias.inconsistent.mean) * bias.n)) == published["equal"]
    assert kappa(asked[False], asked[True]).mean == published["kappa_agreement"]


def test_kappa_by_hand_and_by_scikit_learn():
    # both yes 20, only a 5, only b 10, both no 15: p_o = .7, p_e = .5 x .6 + .5 x .4 = .5, kappa = .4
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    result = kappa(a, b)
    assert result.mean == pytest.approx(0.4)
    # the asymptotic interval is the bootstrap's spread; 400 resamples give sd to about 4%
    random = np.random.default_rng(0)
    table = np.array([a, b])
    drawn = [cohen_kappa_score(*table[:, random.integers(50, size=50)]) for _ in range(400)]
    assert (result.high - result.low) / 3.92 == pytest.approx(np.std(drawn), rel=0.15)
    labels = random.choice(["a", "b", "tie"], (2, 80))
    assert kappa(*labels).mean == pytest.approx(cohen_kappa_score(*labels))


def test_kappa_of_raters_that_never_differ_or_know_one_label():
    # 10 of 10 alike at p_e = 1/2: Wilson's low end 10 / (10 + 3.8415) = .7225 becomes 2 x .7225 - 1
    assert kappa("ababababab", "ababababab").low == pytest.approx(2 * 10 / 13.841459 - 1, abs=1e-6)
    assert kappa("aaaa", "aaaa") is None


def test_position_bias_counts_changes_and_the_first_answers_share():
    orders = [("a", "a")] * 6 + [("a", "b")] * 3 + [("b", "a")] + [("tie", "a")] * 2 + [("unjudged", "a")]
    verdicts = [Verdict(winner="tie", judge="j", reason="", order="both", in_orders=o) for o in orders]
    result = position_bias([*verdicts, Verdict(winner="a", judge="j", reason="")])
    assert (result.n, result.inconsistent.mean, result.first.mean) == (12, 0.5, 0.75)
    assert position_bias([]).inconsistent is None


def test_the_position_bias_of_people_is_the_share_for_what_was_shown_first():
    # shown first and chosen: a in "ab" 30 times, b in "ba" 30 times; shown second and chosen: 20 and 20
    seen = [("a", "ab")] * 30 + [("b", "ba")] * 30 + [("b", "ab")] * 20 + [("a", "ba")] * 20
    verdicts = [Verdict(winner=winner, judge="human:ann", reason="", order=order) for winner, order in seen]
    assert position_bias(verdicts).n == 0, "nobody was asked twice"
    first = agreement([v.winner for v in verdicts], [v.order[0] for v in verdicts])
    assert first.mean == 0.6


scores = st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=5)


@given(scores, st.integers(1, 3))
def test_best_of_k_is_the_average_over_all_subsets(treated, k):
    control = [[*row[2::-1], 1] for row in treated]
    rates = [
        np.mean([(max(x) > max(y)) + 0.5 * (max(x) == max(y)) for x in combinations(t, k) for y in combinations(c, k)])
        for t, c in zip(treated, control, strict=True)
    ]
    result = win_rate_at_k(treated, control)
    assert result[k].mean == pytest.approx(np.mean(rates))
    assert result[k].mean == pytest.approx(1 - win_rate_at_k(control, treated)[k].mean)


def test_best_of_all_samples_compares_the_maxima_and_more_are_left_out():
    result = win_rate_at_k([[1, 5], [2, 2]], [[4, 0], [2, 3]])
    assert list(result) == [1, 2]
    assert result[2].mean == 0.5  # 5 > 4, 2 < 3
    with pytest.raises(ValueError, match="shape"):
        win_rate_at_k([1, 2], [3, 4])


def games(results):
    rows = [(a, b, w) for (a, b), (won, lost) in results.items() for w in [1.0] * won + [0.0] * lost]
    return tuple(zip(*rows, strict=True))


def test_the_ranking_equals_rs_bradley_terry2():
    # Turner & Firth (2012), section 2.1, citations between journals (Agresti 2002, p. 448): abilities relative to
    # Biometrika: Comm Statist -2.94907, JASA -0.47957, JRSS-B 0.26895
    cited = {
        ("Biometrika", "Comm Statist"): (730, 33),
        ("Biometrika", "JASA"): (498, 320),
        ("Biometrika", "JRSS-B"): (221, 284),
        ("Comm Statist", "JASA"): (68, 813),
        ("Comm Statist", "JRSS-B"): (17, 276),
        ("JASA", "JRSS-B"): (142, 325),
    }
    result = bradley_terry(*games(cited))
    assert list(result) == ["JRSS-B", "Biometrika", "JASA", "Comm Statist"]
    to_nats = np.log(10) / 400
    ability = {arm: (s.mean - result["Biometrika"].mean) * to_nats for arm, s in result.items()}
    expected = {"JRSS-B": 0.26895, "Biometrika": 0, "JASA": -0.47957, "Comm Statist": -2.94907}
    assert ability == pytest.approx(expected, abs=1e-5)
    assert sum(s.mean for s in result.values()) == pytest.approx(0, abs=1e-6)


def test_two_arms_are_the_logit_of_their_win_rate_and_copies_of_a_prompt_add_nothing():
    # 3 wins to 1: 400 log10(3) = 190.8 Elo apart
    rows = games({("x", "y"): (30, 10)})
    result = bradley_terry(*rows)
    assert result["x"].mean - result["y"].mean == pytest.approx(400 * np.log10(3))
    tripled = bradley_terry(*(np.repeat(column, 3) for column in rows), clusters=np.repeat(np.arange(40), 3))
    assert tripled["x"].low == pytest.approx(result["x"].low, abs=1e-3)


def test_an_arm_that_only_wins_has_no_finite_strength():
    rows = games({("x", "y"): (5, 5), ("x", "z"): (5, 0), ("y", "z"): (5, 0)})
    with pytest.raises(ValueError, match="virtual_ties"):
        bradley_terry(*rows)
    assert list(bradley_terry(*rows, virtual_ties=1))[-1] == "z"
