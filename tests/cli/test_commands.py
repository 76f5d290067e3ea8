"""What all commands share: the result as JSON, exit codes, and help."""

import json
import re
import shlex

import pytest

from dpo_kit.cli import COMMANDS, main, parser
from dpo_kit.files import hashes
from dpo_kit.jsonl import write_pairs, write_records
from dpo_kit.profiles import ROOT
from dpo_kit.records import PreferencePair, Prompt, Response, Verdict
from dpo_kit.triage import base_model


@pytest.fixture
def result(capfd):
    """Runs a command with `--json`; its exit code, the one object on standard output, and standard error."""

    def run(*arguments):
        capfd.readouterr()
        code, told = main([*map(str, arguments), "--json"]), capfd.readouterr()
        assert told.out.count("\n") == 1
        return code, json.loads(told.out), told.err

    return run


def pair(chosen="It is four.", rejected="No idea."):
    prompt = Prompt.from_text("What is two and two?")
    sides = {"chosen": chosen, "rejected": rejected}
    answers = {side: Response(prompt_id=prompt.id, text=text) for side, text in sides.items()}
    return PreferencePair(prompt=prompt, **answers, verdict=Verdict(winner="a", judge="test", reason=""))


def test_run(result, comparison, monkeypatch, tmp_path):
    def instead(profile, workdir, seed, fresh):
        print("sft: to be built")
        return comparison.report

    monkeypatch.setattr("dpo_kit.pipeline.run", instead)
    code, data, said = result("run", "--workdir", tmp_path)
    assert code == 0
    assert data == {"html": str(tmp_path / "report.html"), **json.loads(comparison.report.to_json())}
    assert said == "sft: to be built\n", "progress is no part of the result"


def test_audit(result, tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", [pair(), pair(chosen="")])
    code, data, _ = result("audit", tmp_path / "pairs.jsonl")
    assert code == 1
    assert data["blocking"] is True
    assert (data["rows"], data["kept"]) == (2, 1)
    assert next(f for f in data["findings"] if f["name"] == "empty or blank")["rows"] == [1]
    assert data["notes"] == ["dpo-kit: 2 pairs from 2 rows"]
    write_pairs(tmp_path / "pairs.jsonl", [pair()])
    code, data, _ = result("audit", tmp_path / "pairs.jsonl")
    assert (code, data["blocking"]) == (0, False)


def test_evaluate(result, tmp_path):
    prompts = [Prompt.from_text(f"What is {n} and {n}?") for n in range(12)]
    write_records(tmp_path / "prompts.jsonl", prompts)
    for arm in "ab":
        rows = [Response(prompt_id=p.id, text=f"{arm} says {n}", arm=arm) for n, p in enumerate(prompts)]
        write_records(tmp_path / f"{arm}.jsonl", rows)
    arms = [f"{arm}={tmp_path / arm}.jsonl" for arm in "ab"]
    more = ["--prompts", tmp_path / "prompts.jsonl", "--judge", "none", "--out", tmp_path / "out"]
    code, data, _ = result("evaluate", "--arms", *arms, *more)
    assert code == 0
    assert data["html"] == str(tmp_path / "out" / "report.html")
    assert data["primary"] == ["b", "a"]


def test_pretrain(result, tmp_path, monkeypatch):
    tiny = base_model.Recipe(steps=2, hidden=32, heads=2, layers=1, intermediate=64, warmup_steps=0)
    build = base_model.build
    monkeypatch.setattr(base_model, "build", lambda folder: build(folder, tiny))
    code, data, _ = result("pretrain", "--out", tmp_path)
    assert code == 0
    assert data["out"] == str(tmp_path)
    assert data["files"] == hashes(tmp_path, skip=("manifest.json", "README.md"))


@pytest.mark.parametrize(
    "command", [["run", "--profile", "tinny"], ["train", "--set", "x"], ["audit", "nowhere.jsonl"]]
)
def test_what_the_reader_can_put_right_is_an_object_too(result, command):
    code, data, said = result(*command)
    assert code == 2
    assert said == f"error: {data['error']}\n"


def test_ctrl_c_is_an_object_too(result, monkeypatch, tmp_path):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("dpo_kit.pipeline.run", stopped)
    code, data, _ = result("run", "--workdir", tmp_path)
    assert code == 130
    assert "run the same command again to go on" in data["error"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_in_its_help_what_it_is_for_and_has_json(command, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--json" in told
    about = COMMANDS[command].__doc__.split("\n")[0].partition(": ")[2]
    assert about
    assert about in told


def test_the_examples_of_the_page_on_automation_run(result, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "automation.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"`(\w+\.jsonl)`:\n\n```json\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shown = [
        line
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        for line in block.replace("\\\n", "").splitlines()
    ]
    commands = [shlex.split(line.removeprefix("python -m dpo_kit ")) for line in shown]
    assert [command[0] for command in commands] == ["audit", "train", "train", "evaluate"]
    for command in commands:
        assert "--json" in command
        parser().parse_args(command)
    audited, planned, _, evaluated = commands  # training itself has its own tests
    code, data, _ = result(*audited[:-1])
    assert (code, data["blocking"], data["rows"], data["kept"]) == (1, True, 3, 2)
    assert {"clean.jsonl", "clean.quarantine.jsonl"} <= {path.name for path in tmp_path.iterdir()}
    code, data, _ = result(*planned[:-1])
    assert code == 0
    assert {"memory", "hours", "fitting_profiles"} <= data.keys()
    code, data, _ = result(*evaluated[:-1])
    assert code == 0
    assert data["arms"] == ["before", "after"]
    assert data["refusal"] is None
    assert {"report.json", "report.html", "outcomes.jsonl"} <= {path.name for path in (tmp_path / "report").iterdir()}


def test_the_python_of_the_page_on_automation_prints_the_findings(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "automation.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_pairs(tmp_path / "pairs.jsonl", [pair(), pair(chosen="")])
    exec(compile(block, "automation.md", "exec"), {})
    assert "empty or blank 1 " in capsys.readouterr().out
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"pairs\.jsonl"):
        exec(compile(block, "automation.md", "exec"), {})
