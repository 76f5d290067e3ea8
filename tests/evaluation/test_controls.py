"""Each control is tested twice: an honest judge passes it, and a judge with the fault that it looks for fails it."""

import csv
import random

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.controls import run_controls, varied
from dpo_kit.evaluation.results import refusal_of
from dpo_kit.preferences.judges import both_orders, by_score
from dpo_kit.records import Verdict
from dpo_kit.triage import rubric
from dpo_kit.triage.demonstrations import Noise, demonstrate
from dpo_kit.triage.judges import simulated

RUBRIC = by_score(rubric.overall, "rubric")
LONGEST = by_score(lambda prompt, text: len(text), "longest")
SHORTEST = by_score(lambda prompt, text: -len(text), "shortest")
WORDS = by_score(lambda prompt, text: text.startswith("SEVERITY: SEV"), "opening")
BY_CHANCE = ("identical", "resample", "shuffled")


def first(prompt, a, b):
    return Verdict(winner="a", judge="first", reason="took the first")


def silent(prompt, a, b):
    return Verdict(winner="unjudged", judge="silent", reason="refused")


@pytest.fixture(scope="module")
def answers(incidents):
    """Answers of people in a hurry, who are wrong at known rates: three draws, the third of a more careful hand."""
    noise = Noise(wrong_severity=0.4, invented_fact=0.3, wrong_action=0.2, broken_format=0.1, rambling=0.1)
    careful = Noise(wrong_severity=0.1, invented_fact=0.1, wrong_action=0.05, broken_format=0.05, rambling=0.1)
    made = [demonstrate(incidents, how, seed) for how, seed in ((noise, 1), (noise, 2), (careful, 3))]
    return [[response.text for response in responses] for responses in made]


def control(incidents, answers, judge, **more):
    sft, again, dpo = answers
    return run_controls(incidents, {"sft": sft, "dpo": dpo}, judge, resample=again, **more)


def failed(controls):
    return {c.name for c in controls if not c.passed}


@pytest.mark.parametrize(
    "judge",
    [
        RUBRIC,
        both_orders(RUBRIC),
        both_orders(simulated(RUBRIC, accuracy=0.85)),
        both_orders(simulated(RUBRIC, position_bias=0.3)),
    ],
    ids=["exact", "both orders", "sometimes wrong", "position bias undone by asking twice"],
)
def test_an_honest_judge_passes_every_control(incidents, answers, judge):
    controls = control(incidents, answers, judge)
    assert failed(controls) == set()
    assert refusal_of(controls) is None
    assert {c.name for c in controls} >= {*BY_CHANCE, "constant", "truncated", "padded"}


@pytest.mark.parametrize(
    ("judge", "fails"),
    [
        (LONGEST, {"padded"}),
        (both_orders(simulated(RUBRIC, length_bias=0.6)), {"padded"}),
        (SHORTEST, {"truncated"}),
        (first, {"identical", "resample", "shuffled"}),
        (simulated(RUBRIC, position_bias=0.5), {"resample", "shuffled"}),  # it notices the same text twice
        (silent, {"identical", "resample", "shuffled", "constant", "truncated", "padded"}),
        (WORDS, {"constant"}),
    ],
    ids=[
        "longest wins",
        "half length",
        "shortest wins",
        "first wins",
        "half position",
        "says nothing",
        "looks at the opening",
    ],
)
def test_a_faulty_judge_fails_the_control_made_for_it(incidents, answers, judge, fails):
    controls = control(incidents, answers, judge)
    assert fails <= failed(controls)
    assert refusal_of(controls).startswith("refused: control ")
    assert all(name in refusal_of(controls) for name in fails)


def test_a_judge_that_tosses_a_coin_over_identical_answers_fails_although_neither_side_wins(incidents, answers):
    # on each four prompts one for either side and two ties: as many wins as losses, and a sign test of p = 1
    winners = {prompt.id: ("a", "tie", "b", "tie")[i % 4] for i, prompt in enumerate(incidents)}

    def coin(prompt, a, b):
        return Verdict(winner=winners[prompt.id], judge="coin", reason="") if a == b else RUBRIC(prompt, a, b)

    assert failed(control(incidents, answers, coin)) == {"identical"}


def test_asking_in_both_orders_turns_a_judge_of_position_into_ties(incidents, answers):
    result = {c.name: c for c in control(incidents, answers, both_orders(first))}
    assert all(result[name].passed for name in BY_CHANCE)
    assert "300 ties" in result["identical"].found
    assert not result["constant"].passed, "who sees no difference anywhere cannot be believed either"


def test_an_honest_judge_is_refused_by_chance_less_than_once_in_a_thousand(incidents):
    # Neither name wins: wins ~ Binomial(60, 1/2). P(p < 0.001) < 0.001 a run; in 200 runs at most 3 but for 1 in
    # 10^4 (Poisson, mean 0.2). At 95%, the expected number would be 10.
    few, refused = incidents[:60], 0
    for seed in range(200):
        coin = random.Random(seed)
        texts = [f"{coin.random():.6f}" + "x" * coin.randrange(40) for _ in few]
        other = [f"{coin.random():.6f}" + "x" * coin.randrange(40) for _ in few]
        judge = by_score(lambda prompt, text: float(text[:8]) if text[:8] else 0.0, "number")
        controls = run_controls(few, {"sft": texts, "dpo": other}, judge, resample=other, seed=seed)
        refused += bool({"resample", "shuffled"} & failed(controls))
    assert refused <= 3


def test_the_constant_model_that_beat_a_strong_judge_is_flagged(real_data):
    def lengths(model):
        with (real_data / "alpaca_eval" / f"{model}.csv").open() as file:
            return [int(row["model_chars"]) for row in csv.DictReader(file)]

    null = varied("NullModel", lengths("NullModel"))
    assert not null.passed
    assert "100% of 805" in null.found
    for model in ("alpaca-7b", "FuseChat-Llama-3.1-8B-Instruct", "Mixtral-8x7B-Instruct-v0.1_concise"):
        assert varied(model, lengths(model)).passed, model


def test_constant_answers_are_flagged_by_text_and_by_length(incidents, answers):
    sft, again, dpo = answers
    for constant in (
        ["the same"] * 300,
        ["the same", "not the sam", *["the same"] * 298],
        [f"{i:04}" for i in range(300)],
    ):
        controls = run_controls(incidents, {"sft": sft, "dpo": constant}, RUBRIC, resample=again)
        assert "varied answers of dpo" in failed(controls)
    assert varied("dpo", dpo).passed


def test_texts_and_prompts_must_be_equally_many(incidents, answers):
    with pytest.raises(DpoKitError, match="dpo has 299 answers to 300 prompts"):
        control(incidents, [answers[0], answers[1], answers[2][1:]], RUBRIC)
    with pytest.raises(DpoKitError, match="two or more"):
        control(incidents[:1], [texts[:1] for texts in answers], RUBRIC)
