import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_kit.preferences.judging import by_coin, by_score, judge_all
from dpo_kit.preferences.sampling import make_pairs
from dpo_kit.records import Message, Prompt, Response
from dpo_kit.triage import rubric
from dpo_kit.triage.incidents import Incident

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),))
longer_wins = by_score(lambda prompt, text: len(text), "length")
MIRROR = {"a": "b", "b": "a", "tie": "tie", "unjudged": "unjudged"}


@given(st.text(max_size=5), st.text(max_size=5))
def test_swapping_the_answers_swaps_the_verdict_and_a_tie_is_a_tie_in_both_orders(a, b):
    assert longer_wins(PROMPT, a, b).winner == MIRROR[longer_wins(PROMPT, b, a).winner]


def test_a_judge_by_score_says_who_why_and_how_sure():
    verdict = longer_wins(PROMPT, "four", "sixsix")
    assert (verdict.winner, verdict.judge, verdict.reason) == ("b", "length", "4.000 against 6.000")
    assert by_score(lambda prompt, text: len(text), "coarse", resolution=3)(PROMPT, "four", "sixsix").winner == "tie"


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
