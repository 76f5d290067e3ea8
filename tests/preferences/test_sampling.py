"""From prompts to n answers, from n answers to pairs."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_kit.models.generation import Answer
from dpo_kit.models.loading import load_arms
from dpo_kit.models.store import Store
from dpo_kit.preferences.judges import Unscorable, by_score
from dpo_kit.preferences.ranking import (
    all_pairs,
    best_against_worst,
    margin_filtered,
    rank_by_judge,
    rank_by_score,
)
from dpo_kit.preferences.sampling import make_pairs, sample, sample_twice
from dpo_kit.records import Message, Prompt, Response, Verdict

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),))


@pytest.fixture(scope="module")
def arms(small_run):
    work, profile, _ = small_run
    return load_arms(profile, {"sft": work / "sft" / "adapter"})


def test_n_answers_a_prompt_from_any_arm_at_several_temperatures(arms, small_profile, incidents, tmp_path):
    prompts, settings = incidents[:6], small_profile.pairs
    temperatures = [1.0, 1.0, 0.3, 0.0]
    rows = sample(
        arms, "base", prompts, temperatures, settings, seed=2, store=Store(tmp_path / "answers.sqlite", Answer)
    )
    assert [[r.prompt_id for r in row] for row in rows] == [[p.id] * 4 for p in prompts]
    assert [(r.arm, r.temperature, r.seed) for r in rows[0]] == [("base", t, 8 + i) for i, t in enumerate(temperatures)]
    assert any(row[0].text != row[1].text for row in rows), "two draws at one temperature are two draws"
    assert sample(arms, "base", prompts[2:3], temperatures, settings, seed=2) == rows[2:3], "in any batch the same"


def test_two_temperatures_are_the_pairs_of_the_pipeline(arms, small_profile, incidents):
    # the finished stage asked for the same: its answers are the first and the second of each row
    rows = sample(arms, "sft", incidents[:5], small_profile.pairs.temperatures, small_profile.pairs, seed=3)
    first, second = sample_twice(arms, "sft", incidents[:5], small_profile.pairs, seed=3)
    assert [list(row) for row in zip(first, second, strict=True)] == rows
    assert {r.seed for r in first} == {6}
    assert {r.seed for r in second} == {7}


def answers(*texts):
    return [Response(prompt_id="p", text=text, seed=i) for i, text in enumerate(texts)]


def length(prompt, text):
    return float(len(text))


def texts(pairs):
    return [(pair.chosen.text, pair.rejected.text) for pair in pairs]


def test_three_ways_to_pair_worked_by_hand():
    # points 1, 4, 2, 2: best xxxx, worst a; the two of length 2 are a tie
    ranked = [rank_by_score(PROMPT, answers("a", "xxxx", "bb", "cc"), length, "length")]
    assert ranked[0].points == (4, 2, 2, 1)
    assert texts(best_against_worst(ranked)) == [("xxxx", "a")]
    assert texts(all_pairs(ranked)) == [("xxxx", "bb"), ("xxxx", "cc"), ("xxxx", "a"), ("bb", "a"), ("cc", "a")]
    assert texts(margin_filtered(ranked, 2)) == [("xxxx", "bb"), ("xxxx", "cc"), ("xxxx", "a")]
    assert texts(margin_filtered(ranked, 3.5)) == []
    verdict = best_against_worst(ranked)[0].verdict
    assert (verdict.winner, verdict.judge, verdict.reason) == (
        "a",
        "length",
        "4.000 against 1.000, ranks 1 and 4 of 4",
    )


def test_a_gap_is_not_lost_to_rounding():
    ranked = [rank_by_score(PROMPT, answers("x", "y"), lambda prompt, text: {"x": 0.3, "y": 0.1}[text], "s")]
    assert 0.3 - 0.1 < 0.2, "in floating point"
    assert texts(margin_filtered(ranked, 0.2)) == [("x", "y")]


@given(st.lists(st.sampled_from(["", "a", "b", "cc", "dd", "eee"]), max_size=6), st.floats(-1, 3))
def test_whatever_the_answers_pairs_are_honest(drawn, gap):
    ranked = [rank_by_score(PROMPT, answers(*drawn), length, "length")]
    for pair in (pairs := margin_filtered(ranked, gap)):
        assert len(pair.chosen.text) - len(pair.rejected.text) >= max(gap, 1)
    assert len(all_pairs(ranked)) == sum(len(a) != len(b) for a, b in combinations(drawn, 2))
    assert len(best_against_worst(ranked)) == (len(set(map(len, drawn))) > 1)
    assert set(texts(pairs)) <= set(texts(all_pairs(ranked)))
    # a judge of the same taste wins and loses as often as the score ranks: same order, same pairs
    judged = [rank_by_judge(PROMPT, answers(*drawn), by_score(length, "length"))]
    assert sorted(texts(all_pairs(judged))) == sorted(texts(all_pairs(ranked)))


def test_a_round_robin_counts_wins_and_half_ties():
    # a beats b and c, b and c tie: 2/2, 0.5/2, 0.5/2
    ranked = rank_by_judge(PROMPT, answers("b", "aa", "c"), by_score(length, "length"))
    assert [r.text for r in ranked.responses] == ["aa", "b", "c"]
    assert ranked.points == (1.0, 0.25, 0.25)
    assert ranked.judge == "length"


def test_a_judge_that_goes_in_a_circle_makes_no_pair():
    def circle(prompt, a, b):
        beats = {("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")}
        return Verdict(winner="a" if (a, b) in beats else "b", judge="circle", reason="")

    ranked = [rank_by_judge(PROMPT, answers("rock", "paper", "scissors"), circle)]
    assert ranked[0].points == (0.5, 0.5, 0.5)
    assert all_pairs(ranked) == best_against_worst(ranked) == []


def test_unjudged_is_no_loss_and_identical_texts_cost_no_question():
    asked = []

    def judge(prompt, a, b):
        asked.append((a, b))
        mute = "mute" in (a, b)
        return Verdict(winner="unjudged" if mute else by_score(length, "")(prompt, a, b).winner, judge="j", reason="")

    ranked = rank_by_judge(PROMPT, answers("mute", "x", "yy", "x"), judge)
    assert [r.text for r in ranked.responses] == ["yy", "x", "x"], "nobody knows the place of the mute one"
    # yy beats both x; each x loses once and ties with its twin: 2/2, 0.5/2, 0.5/2
    assert ranked.points == (1.0, 0.25, 0.25)
    assert ("x", "x") not in asked
    assert best_against_worst([rank_by_judge(PROMPT, answers("mute", "x"), judge)]) == []


def test_answers_without_a_finite_score_have_no_place():
    def score(prompt, text):
        if text == "long":
            raise Unscorable("too long")
        return {"nan": float("nan"), "inf": float("inf")}.get(text, length(prompt, text))

    ranked = rank_by_score(PROMPT, answers("nan", "x", "inf", "long", "yy"), score, "s")
    assert [r.text for r in ranked.responses] == ["yy", "x"]


def test_two_answers_and_a_judge_give_the_same_pairs_by_both_doors(incidents):
    judge, prompts = by_score(length, "length"), incidents[:4]
    a = [Response(prompt_id=p.id, text=t) for p, t in zip(prompts, ("long", "x", "y", "same"), strict=True)]
    b = [Response(prompt_id=p.id, text=t) for p, t in zip(prompts, ("s", "longer", "z", "same"), strict=True)]
    rankings = [rank_by_judge(p, two, judge) for p, *two in zip(prompts, a, b, strict=True)]
    assert texts(all_pairs(rankings)) == texts(make_pairs(prompts, a, b, judge)) == [("long", "s"), ("longer", "x")]


def test_the_same_text_twice_makes_no_pair_whatever_a_judge_would_say():
    asked = []

    def first(prompt, a, b):
        asked.append((a, b))
        return Verdict(winner="a", judge="first", reason="")

    a, b = ([Response(prompt_id="p", text=text) for text in texts] for texts in (("same", "x"), ("same", "y")))
    (pair,) = make_pairs([PROMPT, PROMPT], a, b, first)
    assert (pair.chosen.text, pair.rejected.text) == ("x", "y")
    assert asked == [("x", "y")]
