"""`pairs`: own prompts, a model's own answers and a judge give audited preference pairs, and a kill costs nothing."""

import json
import re

import pytest

from dpo_kit.cli import main
from dpo_kit.cli.pairs import _as_asked
from dpo_kit.evaluation import arms
from dpo_kit.evaluation.arms import ModelArm
from dpo_kit.jsonl import read_pairs
from dpo_kit.profiles import DATA
from dpo_kit.records import Message, Prompt

SCORES = """
def shorter(prompt, answer):
    return 1 / (1 + len(answer))

def same(prompt, answer):
    return 0.5
"""
ASKED = [
    "The pump of the north station stopped at 02:10 and the tank is full.",
    "Customers in eu-west see errors in 12% of their payments since noon.",
    "Search is slow for everybody after the new release; nothing is lost.",
]


@pytest.fixture
def given(tmp_path, small_profile):
    """Prompts, scores, and the arguments that every call here has."""
    (tmp_path / "scores.py").write_text(SCORES)
    rows = [{"prompt": text} for text in ASKED]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["pairs", "--profile", "tiny", "--set", "pairs.max_new_tokens=96", "--prompts",
                 str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "made.jsonl")]  # fmt: skip
    return tmp_path, arguments


def test_the_shortest_answer_is_chosen_and_the_longest_rejected(given, capsys):
    folder, arguments = given
    code = main([*arguments, "--score", f"{folder / 'scores.py'}:shorter", "--n", "3", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == int(result["blocking"])
    assert (result["prompts"], result["answers"]) == (3, 9)
    made = read_pairs(folder / "made.jsonl")
    assert len(made) == result["pairs"] > 0
    for pair in made:
        assert len(pair.chosen.text) < len(pair.rejected.text)
        assert pair.prompt.text in ASKED
        assert "ranks 1 and 3 of 3" in pair.verdict.reason


def test_answers_that_were_cut_off_make_no_pairs(given, capsys):
    folder, arguments = given
    score = ["--score", f"{folder / 'scores.py'}:shorter"]
    assert main([*arguments, "--set", "pairs.max_new_tokens=4", *score]) == 1
    said = capsys.readouterr().out
    assert "0.0% ended by themselves" in said
    assert "no pair is left after the audit" in said
    assert not (folder / "made.jsonl").exists()


def test_a_killed_call_goes_on_with_the_answers_that_it_had(given, monkeypatch, capsys):
    """The second draw is interrupted; the next call asks the model for the second draw only."""
    folder, arguments = given
    arguments += ["--score", f"{folder / 'scores.py'}:shorter", "--n", "2"]
    answer, calls = ModelArm.answer, []

    def interrupted(self, prompts, sampling, store=None):
        if sampling.seed == 1:
            raise KeyboardInterrupt
        return answer(self, prompts, sampling, store)

    monkeypatch.setattr(ModelArm, "answer", interrupted)
    assert main(arguments) == 130
    assert not (folder / "made.jsonl").exists()
    from dpo_kit.models import generation

    batch = generation._generate_batch
    monkeypatch.setattr(ModelArm, "answer", answer)
    monkeypatch.setattr(generation, "_generate_batch", lambda *a, **k: calls.append(1) or batch(*a, **k))
    assert main(arguments) in (0, 1)
    assert len(calls) == 1, "one batch for the second draw, and none for the first, which was stored"


def test_draws_differ_by_system_prompt_and_examples_which_do_not_enter_the_pairs():
    prompt = Prompt(id="p", messages=(Message(role="system", content="own"), Message(role="user", content="ask")))
    shown = (Message(role="user", content="q"), Message(role="assistant", content="a"))
    texts = [[m.content for m in _as_asked(prompt, shown, ["one", "two"], number).messages] for number in range(3)]
    assert texts == [["one", "q", "a", "ask"], ["two", "q", "a", "ask"], ["one", "q", "a", "ask"]]
    assert [m.content for m in _as_asked(prompt, shown, [], 0).messages] == ["own", "q", "a", "ask"]
    assert _as_asked(prompt, (), [], 0) == prompt
    assert {_as_asked(prompt, shown, ["one"], 0).id} == {"p"}


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--n", "1"], "a pair needs two answers"),
        (["--temperature", "0"], "draws at one prompt differ only above 0"),
        (["--judge", "openai", "--score", "x.py:f"], "belong together"),
        ([], "the judge of profile tiny \\(rubric\\) knows only the workbook's incidents"),
        (["--score", "SCORES:same"], "gave no pair"),
    ],
    ids=["one", "greedy", "both", "rubric", "ties"],
)
def test_what_cannot_give_pairs_is_said_in_one_line(given, capsys, extra, said):
    folder, arguments = given
    extra = [text.replace("SCORES", str(folder / "scores.py")) for text in extra]
    assert main([*arguments, "--n", "2", *extra]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert not (folder / "made.jsonl").exists()


def test_a_file_that_is_there_is_not_overwritten(given, capsys):
    folder, arguments = given
    (folder / "made.jsonl").write_text("mine")
    assert main([*arguments, "--score", f"{folder / 'scores.py'}:shorter"]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (folder / "made.jsonl").read_text() == "mine"


def test_a_model_of_its_own_is_loaded_once_for_all_draws(given, monkeypatch):
    folder, arguments = given
    load_base, loaded = arms.load_base, []
    monkeypatch.setattr(arms, "load_base", lambda *a, **k: loaded.append(1) or load_base(*a, **k))
    score = ["--score", f"{folder / 'scores.py'}:shorter", "--n", "3"]
    assert main([*arguments, "--arm", str(DATA / "tiny-base"), *score]) in (0, 1)
    assert loaded == [1]
