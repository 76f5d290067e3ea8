"""`evaluate` on a real adapter and a reader's own prompts: without a judge, with a score, with a person."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_kit.cli import main, parser
from dpo_kit.jsonl import read_jsonl, read_pairs
from dpo_kit.models.identity import write_record
from dpo_kit.profiles import ROOT
from dpo_kit.training.release import settings_of
from dpo_kit.views.report import read_report
from tests.cli.test_evaluate import QUESTIONS, ready, write_rows

FEW = ["--max-new-tokens", "12"]


@pytest.fixture
def adapter(small_run, tmp_path, monkeypatch):
    """A trained adapter as `train` releases it: its folder, with a record of base, quantisation and beta."""
    monkeypatch.delenv("DPO_KIT_PROFILE", raising=False)
    work, profile, _ = small_run
    folder = shutil.copytree(work / "dpo" / "adapter", tmp_path / "release" / "adapter")
    dpo = profile.dpo.model_copy(update={"beta": 0.25})
    write_record(Path(folder), settings_of(profile.model_copy(update={"dpo": dpo})))
    return Path(folder)


def evaluate(tmp_path, *arguments):
    code = main(["evaluate", "--out", str(tmp_path / "out"), *map(str, arguments)])
    path = tmp_path / "out" / "report.json"
    return code, read_report(path) if path.exists() else None


def test_an_adapter_is_compared_with_its_base_on_own_prompts_without_any_option(adapter, tmp_path, capsys):
    prompts = write_rows(tmp_path / "questions.jsonl", QUESTIONS[:6])
    code, report = evaluate(tmp_path, "--arms", "base=base", f"dpo={adapter}", "--prompts", prompts, *FEW)
    assert code == (1 if report.refusal else 0)
    assert (report.profile, report.primary) == ("tiny", ("dpo", "base"))
    assert report.pairwise is None
    assert {"words", "repetition", "refusal", "stopped", "well_formed"} <= report.heuristics.keys()
    assert report.heuristics["words"].difference.n == 6
    assert report.greedy.heuristics["words"].difference.n == 6, "greedy answers stand beside the sampled ones"
    out = " ".join(capsys.readouterr().out.split())
    assert "no judge was asked: that of profile tiny (rubric) knows only the workbook's incidents" in out
    assert "distinct bigrams" in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("distinct bigrams") < page.index("Greedy answers"), "the table stands there without a judge too"


def test_held_out_pairs_and_forgetting_are_measured_and_greedy_alone_is_enough(
    adapter, small_run, tmp_path, monkeypatch, capsys
):
    work, _, _ = small_run
    monkeypatch.setattr("dpo_kit.evaluation.regression.read_jsonl", lambda path: read_jsonl(path)[::12])
    held_out = work / "pairs" / "heldout.jsonl"
    more = ("--heldout-pairs", held_out, "--regression", "--temperature", "0", "--pairs", held_out)
    code, report = evaluate(tmp_path, "--arms", "base=base", f"dpo={adapter}", *more, *FEW)
    assert code == (1 if report.refusal else 0)
    pairs = read_pairs(held_out)
    assert report.n_prompts == len({pair.prompt.id for pair in pairs}), "without --prompts: those of the pairs"
    assert report.sampling == "decoded greedily"
    assert report.greedy is None
    (rewards,) = report.held_out
    assert (rewards.policy, rewards.reference, rewards.beta, rewards.n) == ("dpo", "base", 0.25, len(pairs))
    assert report.regression.log_loss.difference.n == 2
    assert report.regression.tasks["all_tasks"].difference.n == 10
    out = " ".join(capsys.readouterr().out.split())
    assert f"implicit rewards of SFT+DPO against Base on {len(pairs)} held-out pairs, beta 0.25" in out
    for row in ("reward accuracy", "reward margin", "log-loss, bits/byte", "tasks passed"):
        assert row in out
    assert f"{len(pairs)} of {len(pairs)} held-out pairs have a prompt that is among the training pairs" in out


def test_the_rewards_of_an_adapter_against_itself_are_zero(adapter, small_run, tmp_path):
    work, _, _ = small_run
    arms = ("--arms", f"one={adapter}", f"two={adapter}")
    _, report = evaluate(tmp_path, *arms, "--heldout-pairs", work / "pairs" / "heldout.jsonl", *FEW)
    assert report.held_out[0].margin.mean == 0


def test_another_base_in_the_record_is_named_and_a_typed_one_is_used(adapter, small_run, tmp_path, capsys):
    _, profile, _ = small_run
    record = json.loads((adapter / "dpo_kit.json").read_text())
    record["model"]["path"] = "someone/else"
    (adapter / "dpo_kit.json").write_text(json.dumps(record))
    (adapter / "base.json").write_text("{}")  # which would show that the profile's base is the one
    prompts = write_rows(tmp_path / "questions.jsonl", QUESTIONS[:3])
    arms = ("--arms", "base=base", f"dpo={adapter}", "--prompts", prompts, "--temperature", "0", *FEW)
    assert evaluate(tmp_path, *arms) == (2, None)
    error = capsys.readouterr().err
    assert "trained on 'someone/else'" in error
    assert error.count("\n") == 1
    (adapter / "base.json").unlink()
    with pytest.warns(UserWarning, match="was not checked"):
        assert evaluate(tmp_path, *arms, "--model", profile.model_path)[1].n_prompts == 3


def answers_of_two(tmp_path, samples=1):
    """Two arms of ready answers to twelve questions, `long` with more words; and the file of the questions."""
    prompts = write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    short = {str(n + 1): f"It is {2 * n}." for n in range(12)}
    long = {str(n + 1): f"The sum of {n} and {n}, if I am right, is {2 * n}." for n in range(12)}
    arms = [ready(tmp_path / "short.jsonl", "short", short), ready(tmp_path / "long.jsonl", "long", long)]
    return ["--arms", *arms, "--prompts", prompts]


def test_an_own_score_is_a_row_and_a_judge(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def wordy(prompt, answer):\n    return min(1, len(answer.split()) / 20)\n")
    more = ("--score", f"{tmp_path / 'mine.py'}:wordy", "--judge", "score", "--controls", "0")
    _, report = evaluate(tmp_path, *answers_of_two(tmp_path), *more)
    assert report.metrics["wordy"].means == {"short": pytest.approx(3 / 20), "long": pytest.approx(12 / 20)}
    assert report.pairwise.wins == 12
    out = capsys.readouterr().out
    assert "preferred, pairwise" in out
    assert "the judge's controls were not run (--controls 0)" in " ".join(out.split())
    assert "better" in next(line for line in out.splitlines() if line.startswith("wordy"))


def test_a_score_that_changes_its_mind_is_refused(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("import random\ndef moody(prompt, answer):\n    return random.random()\n")
    more = ("--score", f"{tmp_path / 'mine.py'}:moody", "--judge", "none")
    assert evaluate(tmp_path, *answers_of_two(tmp_path), *more) == (2, None)
    assert "must give the same number for the same answer" in capsys.readouterr().err


def test_the_best_of_k_needs_scores_and_has_them_from_an_own_function(adapter, tmp_path, capsys):
    prompts = write_rows(tmp_path / "questions.jsonl", QUESTIONS[:4])
    (tmp_path / "mine.py").write_text("def wordy(prompt, answer):\n    return min(1, len(answer) / 99)\n")
    arms = ("--arms", "base=base", f"dpo={adapter}", "--prompts", prompts, "--samples", "2", *FEW)
    assert evaluate(tmp_path, *arms)[1].win_rate_at_k == {}
    assert "the best of several samples cannot be told without scores" in " ".join(capsys.readouterr().out.split())
    _, report = evaluate(tmp_path, *arms, "--score", f"{tmp_path / 'mine.py'}:wordy")
    assert set(report.win_rate_at_k) == {1, 2}


class Reader:
    """Stands for a person at the keyboard who prefers the longer answer, and stops after so many pairs."""

    def __init__(self, capsys, most=99):
        self.capsys, self.most, self.asked = capsys, most, 0

    def __call__(self, shown):
        screen = self.capsys.readouterr().out
        if self.asked == self.most:
            return "q"
        self.asked += 1
        left, _, right = screen[screen.rindex("--- ANSWER A") :].partition("--- ANSWER B")
        return "a" if len(left) > len(right) else "b"


def test_a_person_judges_stops_and_goes_on(tmp_path, monkeypatch, capsys):
    arguments = [*answers_of_two(tmp_path), "--judge", "person", "--criteria", "helpful"]
    monkeypatch.setattr("builtins.input", Reader(capsys, most=5))
    assert evaluate(tmp_path, *arguments) == (130, None)
    again = Reader(capsys)
    monkeypatch.setattr("builtins.input", again)
    code, report = evaluate(tmp_path, *arguments)
    assert (code, again.asked) == (0, 7), "the five labels that were given are not asked for again"
    assert (report.pairwise.wins, report.judged.judge) == (12, "human:me")
    assert report.controls == (), "people are asked no trick questions, and short answers may be equally long"
    out = " ".join(capsys.readouterr().out.split())
    assert "a person judged, so the controls of automatic judges were not run" in out


def test_a_label_outlives_a_kill(tmp_path, monkeypatch, capsys):
    arguments = ["evaluate", "--out", str(tmp_path / "out"), *answers_of_two(tmp_path), "--judge", "person"]
    command = [sys.executable, "-m", "dpo_kit", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write("t\nt\nt\n")
        process.stdin.flush()
        seen = ""
        while seen.count("Saved: tie.") < 3:
            seen += process.stdout.readline()
        process.kill()
    reader = Reader(capsys)
    monkeypatch.setattr("builtins.input", reader)
    assert main(arguments) == 0
    assert reader.asked == 9
    assert read_report(tmp_path / "out" / "report.json").pairwise.ties == 3


def test_without_a_keyboard_a_person_cannot_judge(tmp_path, monkeypatch, capsys):
    def closed(shown):
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    assert evaluate(tmp_path, *answers_of_two(tmp_path), "--judge", "person") == (2, None)
    assert "nobody is at the keyboard: 0 of 12 pairs are labelled" in capsys.readouterr().err


def test_the_page_on_evaluation_names_only_options_that_exist():
    page = (ROOT / "docs" / "evaluation.md").read_text().replace("lm_eval", "\n    lm_eval")
    named = {
        option
        for paragraph in page.split("\n\n")
        if "lm_eval" not in paragraph
        for option in re.findall(r"(?<!\w)--[a-z][a-z-]+", paragraph)
    }
    known = set(re.findall(r"--[a-z-]+", parser_help())) | {"--help"}
    assert {"--judge", "--regression", "--heldout-pairs"} <= named <= known


def test_the_python_of_the_page_on_evaluation_runs(tmp_path, monkeypatch, capsys):
    write_rows(tmp_path / "prompts.jsonl", QUESTIONS)
    ready(tmp_path / "old.jsonl", "old", {str(n + 1): f"It is {n}." for n in range(12)})
    ready(tmp_path / "new.jsonl", "new", {str(n + 1): f"I think that it is {n}." for n in range(12)})
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)
    exec(compile(block, "evaluation.md", "exec"), {})
    out = capsys.readouterr().out
    assert "words {'old': 3.0, 'new': 6.0}" in out
    assert "answers differ much in length: new has 6 words on average, old 3" in out


def parser_help():
    commands = next(action for action in parser()._actions if action.dest == "command")
    return commands.choices["evaluate"].format_help()


def test_no_prompts_and_a_refused_verdict_say_so(tmp_path, capsys):
    arguments = answers_of_two(tmp_path)
    assert evaluate(tmp_path, *arguments[: arguments.index("--prompts")]) == (2, None)
    assert "give --prompts FILE, or --heldout-pairs FILE" in capsys.readouterr().err
    same = ready(tmp_path / "same.jsonl", "same", {str(n + 1): "Always this." for n in range(12)})
    assert main(["evaluate", "--out", str(tmp_path / "out"), *arguments[:3], same, *arguments[3:], "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["blocking"] is True
    assert "varied answers of same" in result["refusal"]
