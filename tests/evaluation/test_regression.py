"""The suite of what a model should not forget: its tasks, its checks, its log-loss, and its verdict."""

import math

import pytest
import torch

from dpo_kit.evaluation.arms import Base
from dpo_kit.evaluation.regression import TASKS, TEXT, bits_per_byte, passed, regression_suite
from dpo_kit.jsonl import read_jsonl
from dpo_kit.models.generation import Missing
from dpo_kit.models.loading import load_arms
from dpo_kit.profiles import load_profile
from dpo_kit.records import Response
from tools.make_regression_tasks import make_tasks


class Scripted:
    """An arm without weights: `says` gives its answer to a prompt's text, or None for a missing one."""

    def __init__(self, name, says):
        self.name, self.says = name, says

    def answer(self, prompts, sampling, store=None):
        assert sampling.temperature == 0
        made = ((prompt, self.says(prompt.text)) for prompt in prompts)
        return [
            Missing(prompt.id, "down") if text is None else Response(prompt_id=prompt.id, text=text, arm=self.name)
            for prompt, text in made
        ]

    def release(self):
        pass


def solve(prompt):
    """The right answer to each task but those of the kind instruction, by the shipped file."""
    task = next(task for task in read_jsonl(TASKS) if task["prompt"] == prompt)
    if task["check"] == "json":
        return str(task["expected"]).replace("'", '"')
    return str(task["expected"]) if task["check"] != "pattern" else "It is a thing."


def test_the_shipped_tasks_follow_from_the_seed():
    assert make_tasks() == read_jsonl(TASKS)
    assert len({task["prompt"] for task in make_tasks()}) == len(make_tasks()) == 120


@pytest.mark.parametrize(
    ("check", "expected", "answer", "right"),
    [
        ("equals", "a b", ' "a b". ', True),
        ("equals", "a b", "a  b", False),
        ("equals", "no", "No", False),
        ("number", 12, "3 times 4 is 12.", True),
        ("number", 1200, "1,200", True),
        ("number", 12, "12 or 13", False),
        ("number", 12, "twelve", False),
        ("equals", "a b", "<think>a c?</think>\n\na b", True),
        ("json", {"a": 1}, '```json\n{"a": 1}\n```', True),
        ("json", {"a": 1}, 'It is {"a": 1}', False),
        ("pattern", r"\s*\S+(?:\s+\S+){0,9}\s*", "one two", True),
        ("pattern", r"\s*\S+(?:\s+\S+){0,9}\s*", "x " * 11, False),
    ],
)
def test_an_answer_is_checked_by_program(check, expected, answer, right):
    assert passed(check, expected, answer) is right


def test_no_pattern_takes_long_on_a_long_answer():
    """A pattern that can match in many ways would never come back from these."""
    for task in read_jsonl(TASKS):
        for text in ("x" * 5000, "x " * 3000 + ",", "-\n" * 3000):
            passed(task["check"], task["expected"], text)


def test_each_pattern_accepts_an_answer_that_does_what_was_asked():
    good = ("Nobody thinks of the {word} there.", "It is quiet near it. END", "- trees\n- people", "It is heavy.")
    for task in read_jsonl(TASKS):
        if task["check"] == "pattern":
            word = task["prompt"].rsplit(" ", 1)[-1].strip(".")
            assert any(passed("pattern", task["expected"], text.format(word=word)) for text in good), task["prompt"]
            assert not passed("pattern", task["expected"], ", " * 30), task["prompt"]


def test_an_arm_that_lost_one_skill_is_worse_in_it_and_in_nothing_else():
    def forgetful(prompt):
        return "seven" if prompt.startswith("What is") else solve(prompt)

    found = regression_suite(Scripted("old", solve), Scripted("new", forgetful))
    assert found.log_loss is None, "no weights, no log-loss"
    assert found.tasks["arithmetic"].means == {"old": 1, "new": 6 / 24}, "a quarter of the sums are told as a story"
    # under Holm the sum of all tasks is worse too: 18 of 120 were lost and none was won
    assert set(found.lost) == {"arithmetic", "all_tasks"}
    assert found.tasks["copying"].difference.interval.mean == 0
    assert regression_suite(Scripted("old", solve), Scripted("new", solve)).lost == ()


def test_tasks_that_were_not_answered_are_left_out():
    found = regression_suite(Scripted("a", solve), Scripted("b", lambda p: None if "JSON" in p else solve(p)))
    assert found.tasks["format"].difference.n == 18


def test_bits_per_byte_are_minus_log2_of_the_whole_text():
    """By hand, one token after another, from the probabilities that the model gives each time."""
    arms = load_arms(load_profile("tiny", model={"quantize": "none"}), {})
    text = "The river is low."
    ids = [arms.tokenizer.bos_token_id or arms.tokenizer.eos_token_id]
    bits = 0.0
    with torch.no_grad():
        for token in arms.tokenizer(text, add_special_tokens=False)["input_ids"]:
            probabilities = arms.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
            bits -= math.log2(probabilities[token])
            ids.append(token)
    assert bits_per_byte(arms, "base", [text]) == pytest.approx([bits / len(text)], rel=1e-4)


def test_a_model_against_itself_lost_nothing_and_its_text_is_measured(monkeypatch):
    monkeypatch.setattr(
        "dpo_kit.evaluation.regression.read_jsonl", lambda path: read_jsonl(path)[:: 12 if path == TASKS else 8]
    )
    base = Base(load_profile("tiny"))
    found = regression_suite(base.arm("one"), base.arm("two"), max_new_tokens=4)
    loss = found.log_loss
    assert loss.difference.n == len(read_jsonl(TEXT)[::8]) == 3
    assert loss.difference.interval.mean == 0
    assert 1 < loss.means["one"] < 12, "bits a byte of a model that saw no such prose"
    assert loss.difference.verdict == "no difference larger than 0.02"
    assert found.lost == ()


def test_a_higher_log_loss_is_worse(monkeypatch):
    losses = {"one": [1.0 + i / 100 for i in range(24)], "two": [1.2 + i / 90 for i in range(24)]}
    monkeypatch.setattr("dpo_kit.evaluation.regression.bits_per_byte", lambda arms, arm, texts: losses[arms])
    base = Base(load_profile("tiny"))
    arms = [base.arm(name) for name in losses]
    for arm in arms:
        monkeypatch.setattr(arm, "weights", lambda name=arm.name: (name, "base"))
        monkeypatch.setattr(arm, "answer", lambda prompts, *_: [Missing(p.id, "not asked") for p in prompts])
    assert regression_suite(*arms).lost == ("log_loss",)
    assert regression_suite(*reversed(arms)).log_loss.difference.verdict == "better"
