"""What the project says of itself is true: README, environment.yml, the layout."""

import ast
import importlib
import re
import shlex
import subprocess
import tomllib

import pytest
import yaml

from dpo_kit.cli import _parser
from dpo_kit.profiles import ROOT
from dpo_kit.views.report import read_report
from tools.check_notebooks import check, notebooks
from tools.refresh_readme import KEPT, result_block

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_environment_yml_adds_nothing_to_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, through_pip = environment["dependencies"]
    assert pip == "pip"
    assert through_pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    assert python.removeprefix("python=") == PYPROJECT["project"]["requires-python"].removeprefix(">=")


def test_the_named_libraries_reach_the_reader_and_are_pinned():
    project = PYPROJECT["project"]
    wanted = {re.match(r"[\w-]+", d)[0] for d in project["dependencies"] + project["optional-dependencies"]["dev"]}
    named = {"jupyterlab", "ipywidgets", "transformers", "trl", "peft", "bitsandbytes", "plotly", "nbmake"}
    assert named <= wanted
    pinned = {_normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {_normal(name) for name in wanted} <= pinned


def _normal(name):
    return name.lower().replace("_", "-")


def test_every_pin_is_what_is_installed():
    from importlib.metadata import PackageNotFoundError, version

    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if "==" in line:
            name, pin = line.split("==")
            try:
                assert version(name).split("+")[0] == pin, name
            except PackageNotFoundError:
                continue  # a pin for another platform


def test_every_make_target_the_readme_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"run", "test", "lab"} <= named <= targets


def test_every_command_line_the_readme_shows_is_understood():
    shown = re.findall(r"python -m dpo_kit ([^`\n#]+)", README)
    assert shown
    for arguments in shown:
        _parser().parse_args(shlex.split(arguments))


def test_the_python_the_readme_shows_runs(small_run, monkeypatch, capsys):
    work, profile, _ = small_run
    monkeypatch.setattr("dpo_kit.profiles.load_profile", lambda name: profile)
    for block in code_blocks("python"):
        exec(compile(block.replace("runs/tiny", str(work)), "README.md", "exec"), {})
    assert "severity match" in capsys.readouterr().out


def test_the_architecture_page_lists_every_file_of_the_package_and_no_other():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\s*(?:- )?`(dpo_kit/[\w/.-]+)`", page, re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files", "dpo_kit"], cwd=ROOT, capture_output=True, text=True, check=True)
    # an __init__.py is listed where it holds more than its docstring
    files = {
        name
        for name in tracked.stdout.split()
        if not name.endswith("__init__.py") or len(ast.parse((ROOT / name).read_text()).body) > 1
    }
    files.discard("dpo_kit/__init__.py")
    assert listed == files


def test_the_readme_lists_every_notebook():
    linked = set(re.findall(r"\]\((notebooks/[\w./-]+\.ipynb)\)", README))
    assert linked == {p.relative_to(ROOT).as_posix() for p in notebooks() if p.parent.name == "notebooks"}


def test_every_relative_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_table_in_the_readme_is_that_of_the_committed_run():
    report = read_report(KEPT / "report.json")
    assert f"<!-- result -->\n{result_block(report)}<!-- /result -->" in README


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_stored_notebook_is_executed_clean_and_in_step_with_its_text(path):
    assert list(check(path)) == []


def test_every_notebook_but_the_solutions_has_a_solved_one():
    names = {p.name for p in notebooks() if p.parent.name == "notebooks"}
    assert names == {p.name for p in notebooks() if p.parent.name == "solutions"}


def test_rooms_know_only_what_the_design_allows():
    leaves = {"records", "jsonl", "errors", "files", "visible"}
    may_know = {
        "triage": leaves | {"triage"},
        "models": leaves | {"models", "profiles"},
        "preferences": leaves | {"preferences", "models", "profiles", "machine"},
        "training": leaves | {"training", "models", "profiles", "machine"},
        "evaluation": leaves | {"evaluation", "models", "preferences", "profiles"},
        "views": leaves | {"views", "machine", "evaluation.results"},
    }
    for room, known in may_know.items():
        for path in (ROOT / "dpo_kit" / room).rglob("*.py"):
            for name in re.findall(r"^\s*from dpo_kit\.([\w.]+) import", path.read_text(), re.MULTILINE):
                assert name in known or name.split(".")[0] in known, f"{path.name} imports dpo_kit.{name}"


def test_no_source_names_a_place_that_only_one_machine_has():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if name.endswith((".py", ".md", ".toml", ".yml", "Makefile")):
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"/(?:root|home|work)/[\w.-]+", text), name


def test_every_module_imports():
    for path in (ROOT / "dpo_kit").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not module.endswith("__main__"):
            importlib.import_module(module)
