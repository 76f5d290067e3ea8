from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.judges import MIRROR, Unscorable, both_orders, by_score, judge_all
from dpo_kit.preferences.sampling import make_pairs
from dpo_kit.records import Message, Prompt, Response, Verdict
from dpo_kit.triage import rubric
from dpo_kit.triage.incidents import Incident
from dpo_kit.triage.judges import by_coin

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),))
longer_wins = by_score(lambda prompt, text: len(text), "length")
WINNERS = ("a", "b", "tie", "unjudged")


@given(st.text(max_size=5), st.text(max_size=5))
def test_swapping_the_answers_swaps_the_verdict_and_a_tie_is_a_tie_in_both_orders(a, b):
    assert longer_wins(PROMPT, a, b).winner == MIRROR[longer_wins(PROMPT, b, a).winner]


def test_a_judge_by_score_says_who_why_and_how_sure():
    verdict = longer_wins(PROMPT, "four", "sixsix")
    assert (verdict.winner, verdict.judge, verdict.reason) == ("b", "length", "4.000 against 6.000")
    assert by_score(lambda prompt, text: len(text), "coarse", resolution=3)(PROMPT, "four", "sixsix").winner == "tie"


def test_a_score_that_is_no_number_or_cannot_be_had_leaves_the_answers_unjudged():
    for bad in (float("nan"), float("inf"), float("-inf")):
        for a, b in (("good", "bad"), ("bad", "good"), ("bad", "bad")):
            found = by_score(lambda prompt, text, bad=bad: bad if text == "bad" else 1.0, "s")(PROMPT, a, b)
            assert (found.winner, found.reason.endswith("not finite")) == ("unjudged", True)

    def fails(prompt, text):
        raise Unscorable("too long")

    assert by_score(fails, "s")(PROMPT, "x", "y").model_dump(include={"winner", "reason"}) == {
        "winner": "unjudged",
        "reason": "too long",
    }


def test_no_resolution_at_all_still_calls_equal_scores_a_tie():
    assert by_score(lambda prompt, text: 1.0, "s", resolution=0)(PROMPT, "x", "y").winner == "tie"


@pytest.mark.parametrize("forward", WINNERS)
@pytest.mark.parametrize("backward", WINNERS)
def test_both_orders_keeps_both_winners_in_its_own_names_and_lets_disagreement_tie(forward, backward):
    # `backward` is what the judge says when the second answer is shown first, in the names of that showing.
    def judge(prompt, a, b):
        return Verdict(winner=forward if a == "x" else backward, judge="j", reason=f"{a} first")

    found = both_orders(judge)(PROMPT, "x", "y")
    assert (found.order, found.in_orders) == ("both", (forward, MIRROR[backward]))
    expected = {"a": {("a", "b"): "a"}, "b": {("b", "a"): "b"}}.get(forward, {}).get((forward, backward), "tie")
    if "unjudged" in (forward, backward):
        expected = "unjudged"
    assert found.winner == expected
    assert "x first" in found.reason
    assert "y first" in found.reason


def test_a_judge_without_position_bias_says_the_same_in_both_orders_as_in_one():
    for a, b in (("long", "x"), ("x", "long"), ("x", "y")):
        assert both_orders(longer_wins)(PROMPT, a, b).winner == longer_wins(PROMPT, a, b).winner


def test_judging_by_many_threads_keeps_the_order():
    # Every judge but the last waits for the last one: whoever finishes first, each verdict stays with its prompt.
    prompts = [PROMPT.model_copy(update={"id": str(i)}) for i in range(8)]
    last = Event()

    def judge(prompt, a, b):
        last.set() if prompt.id == "7" else last.wait()
        return Verdict(winner="tie", judge="j", reason=prompt.id)

    found = judge_all(judge, prompts, ["x"] * 8, ["y"] * 8, workers=8)
    assert [v.reason for v in found] == [p.id for p in prompts]


def test_what_a_judge_raises_ends_the_judging_and_no_further_question_is_begun():
    asked = []

    def judge(prompt, a, b):
        asked.append(prompt)
        raise DpoKitError("no key")

    with pytest.raises(DpoKitError, match="no key"):
        judge_all(judge, [PROMPT] * 100, ["x"] * 100, ["y"] * 100, workers=3)
    assert len(asked) <= 3, "at most what was in flight"


def test_nothing_to_judge_is_no_verdict():
    assert judge_all(longer_wins, [], [], []) == []


def test_the_exact_judge_prefers_the_right_answer_to_any_faulty_one(incidents):
    judge = by_score(rubric.overall, "rubric")
    for prompt in incidents:
        right = Incident.from_facts(prompt.facts).answer
        assert judge(prompt, right, right.replace("SEVERITY", "Severity")).winner == "a"
        assert judge(prompt, "", right).winner == "b"
        assert judge(prompt, right, right).winner == "tie"


def test_a_coin_decides_where_the_judge_decides_and_nowhere_else():
    prompts = [PROMPT.model_copy(update={"id": str(i)}) for i in range(400)]
    coin = by_coin(longer_wins, seed=0)
    winners = [coin(prompt, "long", "x").winner for prompt in prompts]
    # 400 fair flips: mean 200, standard deviation 10
    assert 160 < winners.count("a") < 240
    assert winners.count("a") + winners.count("b") == 400
    assert winners == [coin(prompt, "long", "x").winner for prompt in prompts]
    assert winners != [by_coin(longer_wins, seed=1)(prompt, "long", "x").winner for prompt in prompts]
    assert coin(PROMPT, "x", "y").winner == "tie"


def test_judging_needs_as_many_answers_as_prompts():
    with pytest.raises(ValueError, match="shorter"):
        judge_all(longer_wins, [PROMPT, PROMPT], ["a"], ["b"])


def test_pairs_put_the_winner_first_and_ties_make_none():
    prompts = [PROMPT.model_copy(update={"id": str(i)}) for i in range(3)]

    def answers(*texts):
        made = {"arm": "sft", "temperature": 1.0, "seed": 0, "stopped": True}
        return [Response(prompt_id=str(i), text=text, **made) for i, text in enumerate(texts)]

    pairs = make_pairs(prompts, answers("long", "x", "y"), answers("s", "longer", "z"), longer_wins)
    assert [(p.prompt.id, p.chosen.text, p.rejected.text) for p in pairs] == [("0", "long", "s"), ("1", "longer", "x")]
    assert all(pair.verdict.judge == "length" for pair in pairs)
