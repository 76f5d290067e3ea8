"""The simulated annotator has the faults it was given, as often as it was given them.

Rates are measured on N independent pairs. A rate p of N draws has standard deviation sqrt(p (1 - p) / N); four of
them are allowed, which a correct annotator passes by chance in all but 6 of 100,000 measurements. Seeds are fixed.
"""

from itertools import product
from math import sqrt

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.judges import MIRROR, both_orders, by_score
from dpo_kit.records import Message, Prompt, Verdict
from dpo_kit.triage.judges import simulated

N = 4000
PROMPTS = [Prompt(id=str(i), messages=(Message(role="user", content="?"),)) for i in range(N)]
truth = by_score(lambda prompt, text: text.count("good"), "truth")


def share(found, expected):
    """The rate is `expected` within four standard deviations."""
    return abs(sum(found) / N - expected) <= 4 * sqrt(expected * (1 - expected) / N)


def winners(judge, a, b):
    return [judge(prompt, a, b).winner for prompt in PROMPTS]


@pytest.mark.parametrize("accuracy", [0.5, 0.7, 0.95])
def test_accuracy_is_how_often_a_reader_is_right_in_either_order(accuracy):
    judge = simulated(truth, accuracy=accuracy, seed=1)
    assert share([w == "a" for w in winners(judge, "good", "evil")], accuracy)
    assert share([w == "b" for w in winners(judge, "evil", "good")], accuracy)


@pytest.mark.parametrize("fault", [{"accuracy": 0.0}, {"position_bias": 1.0}, {"length_bias": 1.0}])
def test_the_same_text_twice_is_a_tie_in_any_mood(fault):
    assert set(winners(simulated(truth, **fault), "good", "good")) == {"tie"}


def test_position_bias_is_exactly_how_often_it_contradicts_itself_in_the_other_order():
    judge = simulated(truth, accuracy=0.8, position_bias=0.3, seed=2)
    found = [both_orders(judge)(prompt, "good", "evil") for prompt in PROMPTS]
    assert share([v.in_orders == ("a", "b") for v in found], 0.3)
    assert not any(v.in_orders == ("b", "a") for v in found)
    # Whoever is not in that mood is right with probability 0.8 whichever is shown first.
    assert share([v.winner == "a" for v in found], 0.7 * 0.8)
    assert share([v.winner == "b" for v in found], 0.7 * 0.2)


@pytest.mark.parametrize(("a", "b"), [("good", "very long evil"), ("very long evil", "good")])
def test_length_bias_is_how_often_the_longer_one_wins_unread(a, b):
    judge = simulated(truth, accuracy=1.0, length_bias=0.25, seed=3)
    longer = "a" if len(a) > len(b) else "b"
    assert share([w == longer for w in winners(judge, a, b)], 0.25)


@pytest.mark.parametrize(("first", "longer"), product([True, False], repeat=2))
def test_the_formula_of_the_module_gives_the_rate_of_right_verdicts(first, longer):
    # P(right) = q f + l g + (1 - q - l) p, with q = 0.2, l = 0.3, p = 0.9, and f, g each 0 or 1.
    expected = 0.2 * first + 0.3 * longer + 0.5 * 0.9
    good, evil = ("good, at length", "evil") if longer else ("good", "evil, at length")
    judge = simulated(truth, accuracy=0.9, position_bias=0.2, length_bias=0.3, seed=4)
    found = winners(judge, good, evil) if first else [MIRROR[w] for w in winners(judge, evil, good)]
    assert share([w == "a" for w in found], expected)


def test_equally_long_answers_are_a_coin_that_knows_the_texts_and_not_their_order():
    judge = simulated(truth, length_bias=1.0, seed=5)
    forward, backward = winners(judge, "good", "evil"), winners(judge, "evil", "good")
    assert share([w == "a" for w in forward], 0.5)
    assert backward == [MIRROR[w] for w in forward]


def test_without_faults_it_is_the_truth_ties_and_unjudged_included():
    for a, b in (("good", "evil"), ("evil", "good"), ("x", "y")):
        assert set(winners(simulated(truth), a, b)) == {truth(PROMPTS[0], a, b).winner}
    silent = simulated(lambda p, a, b: Verdict(winner="unjudged", judge="t", reason="?"), accuracy=0.0)
    assert silent(PROMPTS[0], "a", "b").winner == "unjudged"


def test_a_verdict_belongs_to_seed_prompt_and_answers():
    judge = simulated(truth, accuracy=0.6, position_bias=0.2, seed=6)
    once = winners(judge, "good", "evil")
    assert winners(simulated(truth, accuracy=0.6, position_bias=0.2, seed=6), "good", "evil") == once
    assert winners(simulated(truth, accuracy=0.6, position_bias=0.2, seed=7), "good", "evil") != once
    assert winners(judge, "good", "evil!") != once
    assert len(set(once)) == 2


@pytest.mark.parametrize(
    "wrong", [{"accuracy": 1.1}, {"position_bias": -0.1}, {"position_bias": 0.6, "length_bias": 0.6}]
)
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(DpoKitError, match="each is a probability"):
        simulated(truth, **wrong)
