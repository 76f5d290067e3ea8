"""Short forms of the long jobs: a finished job is not run again, and a wrong change to the code is found."""

import json
import shutil
import sys

import pytest

from benchmarks import mutants, soak
from dpo_kit.profiles import ROOT


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Two jobs in a folder of their own: one writes a line into a file, one fails for as long as a file is absent."""
    (tmp_path / "writes.py").write_text("print('ran', file=open('ran.txt', 'a')); print('figures')")
    (tmp_path / "fails.py").write_text("open('there.txt')")
    for folder in ("dpo_kit", "benchmarks", "tests", "notebooks"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    monkeypatch.setattr(soak, "LOGS", tmp_path / "runs" / "soak")
    monkeypatch.setattr(soak, "JOBS", {"writes": soak.Job("writes", "", 2), "fails": soak.Job("fails", "")})
    return tmp_path


def run(monkeypatch, *names):
    monkeypatch.setattr(sys, "argv", ["soak", *names])
    return soak.main()


def test_what_passed_is_not_run_again_until_the_code_changes(jobs, monkeypatch, capsys):
    def times():
        return (jobs / "ran.txt").read_text().count("ran")

    assert run(monkeypatch) == 1
    assert times() == 2, "a job is repeated as often as it says"
    assert "fails: FAILED with 1" in capsys.readouterr().out
    assert "figures" in (jobs / "runs" / "soak" / "writes.log").read_text()
    (jobs / "there.txt").touch()
    assert run(monkeypatch) == 0
    assert times() == 2
    (jobs / "dpo_kit" / "loss.py").write_text("changed = True")
    assert run(monkeypatch, "writes") == 0
    assert times() == 4
    assert run(monkeypatch, "writes", "--again") == 0
    assert times() == 6


@pytest.mark.parametrize("job", soak.JOBS.values(), ids=soak.JOBS)
def test_every_job_has_a_command_and_a_short_form(job):
    module = job.command.split()[0]
    assert module == "pytest" or (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
    assert (ROOT / job.short).is_file()


TEXT = """
def least(a: "int | None", b, key=None, log=print):
    log(f"{a + 1}")
    b.sort(key=key)
    if a is None and b < 3:
        return min(a, b)
    return True
"""


def test_each_kind_of_wrong_change_is_made_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "least.py").write_text(TEXT)
    changed = [mutant.applied(tmp_path) for mutant in mutants.mutants(tmp_path / "least.py")]
    lines = [
        next(new for old, new in zip(TEXT.split("\n"), text.split("\n"), strict=True) if old != new) for text in changed
    ]
    assert sorted(line.strip() for line in lines) == sorted([
        "pass",  # a call that only acts, but not a call of `log`
        "(b.sort())",
        "if (not (a is None and b < 3)):",
        "if (a is None or b < 3):",
        "if (a is not None) and b < 3:",
        "if a is None and (b <= 3):",
        "if a is None and b < 4:",
        "return max(a, b)",
        "return False",
    ])  # fmt: skip
    for text in changed:
        compile(text, "least.py", "exec")


@pytest.fixture
def small_tree(tmp_path, monkeypatch):
    """A package of one function with a test that sees one of its two numbers; the mutants of both numbers."""
    (tmp_path / "dpo_kit").mkdir()
    (tmp_path / "dpo_kit" / "workspace.py").write_text("def both():\n    return 1, 2\n")
    (tmp_path / "dpo_kit" / "__init__.py").touch()
    (tmp_path / "tests").mkdir()
    code = "from dpo_kit.workspace import both\ndef test_one():\n    assert both()[0] == 1\n"
    (tmp_path / "tests" / "test_both.py").write_text(code)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "TESTS", {"workspace.py": ["tests/test_both.py"]})
    monkeypatch.setattr(mutants, "copied", lambda folder: shutil.copytree(tmp_path, folder / "tree"))
    return tmp_path, list(mutants.mutants(tmp_path / "dpo_kit" / "workspace.py"))


@pytest.mark.slow
def test_a_mutant_is_killed_by_the_test_that_sees_it_and_survives_otherwise(small_tree, monkeypatch):
    root, both = small_tree
    rows = list(mutants.tried(both, root / "rows.jsonl"))
    assert [row["killed_by"] for row in rows] == ["FAILED tests/test_both.py::test_one", None]
    assert rows[1]["diff"].endswith("-    return 1, 2\n+    return 1, 3")
    assert [json.loads(line) for line in (root / "rows.jsonl").read_text().splitlines()] == rows
    monkeypatch.setattr(mutants, "failure", None)  # whatever is tried again would fail
    assert list(mutants.tried(both, root / "rows.jsonl")) == rows


@pytest.mark.slow
def test_tests_that_fail_anyway_kill_nothing(small_tree):
    root, both = small_tree
    (root / "tests" / "test_both.py").write_text("def test_one():\n    assert False\n")
    with pytest.raises(SystemExit, match="without any mutant"):
        list(mutants.tried(both, root / "rows.jsonl"))


@pytest.mark.slow
def test_a_mutant_that_never_ends_is_killed(small_tree):
    root, both = small_tree
    tests = root / "tests" / "test_both.py"
    tests.write_text(tests.read_text() + "    while both()[1] != 2:\n        pass\n")
    assert [row["killed_by"] for row in mutants.tried(both[1:], root / "rows.jsonl")] == ["it never ended"]
