"""What the project's files say about it is true: README, environment.yml, the layout of the package."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import dpo_kit
from dpo_kit.cli import parser
from dpo_kit.profiles import ROOT
from dpo_kit.views.report import read_report
from tests import conftest
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


@pytest.mark.parametrize(
    ("folders", "extras"), [(["dpo_kit"], []), (["tests", "tools", "benchmarks"], ["dev", "fuzz"])], ids=["tool", "dev"]
)
def test_every_library_that_is_imported_is_declared(folders, extras):
    """A library that only another one brings may go with that one's next release."""
    project = PYPROJECT["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    declared = {_normal(re.match(r"[\w-]+", line)[0]) for lines in lists for line in lines}
    bringers = packages_distributions()  # import name -> distributions
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for name in imported(path):
            top = name.split(".")[0]
            if top not in {*sys.stdlib_module_names, "dpo_kit", "tests", "tools", "benchmarks", "judge_server"}:
                found = {_normal(distribution) for distribution in bringers.get(top, [top])}
                assert found & declared, (
                    f"{path.relative_to(ROOT)} imports {top}, of {found}: declare it in pyproject.toml"
                )


def imported(path, top_level=False):
    """The modules that a file imports: anywhere in it, or only when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_pin_is_what_is_installed():
    from importlib.metadata import PackageNotFoundError, version

    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if "==" in line:
            name, pin = line.split("==")
            try:
                assert version(name).split("+")[0] == pin, name
            except PackageNotFoundError:
                continue  # a pin for another platform


def test_real_data_is_required_only_where_its_folder_is_named(monkeypatch, tmp_path):
    """A fork's CI has none and requires all else."""
    monkeypatch.setenv("DPO_KIT_REQUIRE_ALL", "1")
    monkeypatch.setattr(conftest, "ROOT", tmp_path / "fork")
    monkeypatch.delenv("DPO_KIT_REAL_DATA", raising=False)
    with pytest.raises(pytest.skip.Exception, match="set DPO_KIT_REAL_DATA"):
        conftest.find_real_data()
    monkeypatch.setenv("DPO_KIT_REAL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(pytest.fail.Exception, match="nowhere is absent"):
        conftest.find_real_data()
    monkeypatch.setenv("DPO_KIT_REAL_DATA", str(tmp_path))
    assert conftest.find_real_data() == tmp_path


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_make_target_the_pages_name_exists():
    named = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", README + GUIDE, re.MULTILINE))
    assert {"run", "test", "lab", "test-fast", "soak", "check"} <= {a or b for a, b in named} <= TARGETS


def test_the_workflow_runs_what_a_developer_runs_on_both_systems_and_ends_of_python():
    workflow = yaml.safe_load(WORKFLOW)
    job = workflow["jobs"]["test"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert {"make check", "make test"} <= set(commands)
    assert re.search(r"^test: .*\n\t.*pytest --nbmake .*tests notebooks$", MAKEFILE, re.MULTILINE)
    matrix = job["strategy"]["matrix"]
    assert {re.match(r"[a-z]+", name)[0] for name in matrix["os"]} == {"ubuntu", "macos"}
    assert f">={matrix['python'][0]}" == PYPROJECT["project"]["requires-python"]
    assert job["env"]["DPO_KIT_REQUIRE_ALL"] == "1", "a missing browser fails the run"
    assert {entry["os"] for entry in matrix["include"] if entry["browser"]} == set(matrix["os"])
    assert "DPO_KIT_REAL_DATA" not in job["env"], "a fork has no third-party data"


def test_the_workflow_is_pinned_may_only_read_and_does_not_pile_up():
    workflow = yaml.safe_load(WORKFLOW)
    used = re.findall(r"uses: *(.*)", WORKFLOW)
    assert used
    for line in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), f"{line}: pin it by its full commit hash"
    assert workflow["permissions"] == {"contents": "read"}
    assert not [job for job in workflow["jobs"].values() if "permissions" in job or "timeout-minutes" not in job]
    assert workflow["concurrency"]["cancel-in-progress"] is True
    triggers = workflow[True]  # YAML reads the key `on` as true
    assert len(triggers["schedule"][0]["cron"].split()) == 5
    assert triggers["schedule"][0]["cron"].endswith(" * * 1"), "once a week"
    setup = next(step for step in workflow["jobs"]["test"]["steps"] if "setup-python" in step.get("uses", ""))
    assert setup["with"]["cache"] == "pip"
    assert setup["with"]["cache-dependency-path"].split() == ["pyproject.toml", "constraints.txt"]


@pytest.mark.parametrize(
    ("tool", "good", "spoilt", "said"),
    [
        ("workflow schema", "runs-on:", "run-on:", "runs-on"),
        ("zizmor", "contents: read", "contents: write", "excessive-permissions"),
        ("zizmor", "@3d3c42e5aac5ba805825da76410c181273ba90b1", "@v7", "unpinned-uses"),
        ("citation schema", "cff-version: 1.2.0\n", "", "cff-version"),
    ],
)
def test_make_check_refuses_a_spoilt_workflow_and_a_spoilt_citation(tmp_path, tool, good, spoilt, said):
    schema = ["check-jsonschema", "--builtin-schema"]
    name, command = {
        "workflow schema": (".github/workflows/ci.yml", [*schema, "vendor.github-workflows"]),
        "zizmor": (".github/workflows/ci.yml", ["zizmor", "--offline", "--quiet", "--persona", "pedantic"]),
        "citation schema": ("CITATION.cff", [*schema, "vendor.citation-file-format"]),
    }[tool]
    assert f"$(BIN)/{' '.join(command)} {name.removesuffix('/ci.yml') if tool == 'zizmor' else name}\n" in MAKEFILE
    text = (ROOT / name).read_text(encoding="utf-8")
    assert good in text
    command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    for content, code in ((text, 0), (text.replace(good, spoilt), 1)):
        path = tmp_path / Path(name).name
        path.write_text(content, encoding="utf-8")
        done = subprocess.run([*command, str(path)], capture_output=True, text=True)
        assert bool(done.returncode) == bool(code), done.stdout + done.stderr
    assert said in done.stdout + done.stderr


def test_types_are_checked_strictly_in_the_core_and_what_is_not_checked_is_named():
    """A module that was renamed would fall out of the lists, and so out of the check, without a word."""
    assert "\t$(BIN)/mypy\n" in MAKEFILE
    strict, unchecked, libraries = PYPROJECT["tool"]["mypy"]["overrides"]
    assert strict["disallow_untyped_defs"]
    assert strict["disallow_any_generics"]
    assert unchecked["ignore_errors"]
    assert libraries["follow_imports"] == "skip"
    for listed in (*strict["module"], *unchecked["module"]):
        place = ROOT / Path(*listed.removesuffix(".*").split("."))
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), listed
    assert {"dpo_kit.records", "dpo_kit.jsonl", "dpo_kit.files", "dpo_kit.errors"} <= set(strict["module"])
    assert not set(strict["module"]) & set(unchecked["module"])


def test_one_version_stands_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    heading = f"## [{dpo_kit.__version__}] - {citation['date-released']}"
    assert heading in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == dpo_kit.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]


def test_the_container_for_development_is_set_up_with_the_oldest_python_and_a_browser():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    oldest = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert re.fullmatch(rf"mcr\.microsoft\.com/devcontainers/python:\d+-{re.escape(oldest)}-\w+", container["image"])
    assert " chromium " in container["onCreateCommand"]
    assert container["onCreateCommand"].endswith("make setup")


def test_every_command_line_the_pages_show_is_understood():
    shown = re.findall(r"python -m dpo_kit ([^`\n#]+)", (README + GUIDE).replace("\\\n", ""))
    assert shown
    for arguments in shown:
        parser().parse_args(shlex.split(arguments))


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


def test_the_picture_of_the_rooms_shows_every_room_and_no_import_that_is_not_allowed():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    names = dict(re.findall(r'(\w+)\["([\w/]+)', picture))
    arrows = re.findall(r"^ *(\w+)(?:\[.*?\])? --> (\w+)", picture, re.MULTILINE)
    assert {"models", "preferences", "training", "evaluation", "views", "pipeline", "cli", "workbook"} <= names.keys()
    for source, target in arrows:
        if target in ROOMS and source in ROOMS:
            assert target in ROOMS[source], f"{source} may not import {target}"
    assert len(arrows) == picture.count("-->")


def test_the_readme_lists_every_notebook():
    linked = set(re.findall(r"\]\((notebooks/[\w./-]+\.ipynb)\)", README))
    assert linked == {p.relative_to(ROOT).as_posix() for p in notebooks() if p.parent.name == "notebooks"}


def test_every_relative_link_of_the_pages_leads_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_in_the_readme_is_that_of_the_committed_run():
    report = read_report(KEPT / "report.json")
    assert f"<!-- result -->\n{result_block(report)}<!-- /result -->" in README


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_stored_notebook_is_executed_clean_and_in_step_with_its_text(path):
    assert list(check(path)) == []


def test_every_notebook_but_the_solutions_has_a_solved_one():
    names = {p.name for p in notebooks() if p.parent.name == "notebooks"}
    assert names == {p.name for p in notebooks() if p.parent.name == "solutions"}


# What a reader has to hold in mind, counted. Whoever adds to the tool takes something else out of it.
MOST_LINES = 14_976
LONGEST_CHAIN = 6

BASICS = {"records", "jsonl", "files", "errors", "profiles", "machine", "visible", "languages"}
MODELS = BASICS | {"models"}
ROOMS = {  # what the files of a room may import from the package besides each other
    # the world is an application of the tool, as the workbook is: its stages train, sample, judge and compare
    "triage": MODELS | {"workspace", "stages", "preferences", "training", "evaluation", "views"},
    "models": BASICS,
    "preferences": MODELS,
    "training": MODELS,
    "evaluation": MODELS | {"preferences.judges"},
    "views": BASICS | {"training.metrics_log", "evaluation.results"},
    "errors": set(),
    "visible": set(),
    "languages": set(),
    "files": set(),
    "machine": set(),
    "profiles": {"errors"},
    "records": {"errors"},
    "jsonl": {"errors", "files", "records"},
    "workspace": BASICS,
    "stages": MODELS | {"workspace", "training"},
    "pipeline": MODELS | {"workspace", "stages", "triage", "preferences", "evaluation.results"},
    "cli": MODELS | {"workspace", "pipeline", "triage", "preferences", "training", "evaluation", "views", "cli"},
    "__main__": {"cli"},
}


def modules():
    """Every module of the package and its file, by its name without the package's."""
    files = (path for path in (ROOT / "dpo_kit").rglob("*.py"))
    return {".".join(p.relative_to(ROOT / "dpo_kit").with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def known(path, top_level=False):
    """The modules of the package that a file imports, by their names without the package's."""
    named = {name.removeprefix("dpo_kit.") for name in imported(path, top_level) if name.startswith("dpo_kit.")}
    # `from a.b import c` is a module of that name, or something that `a.b` defines
    return {name if name in modules() else name.rpartition(".")[0] for name in named} - {""}


def test_rooms_know_only_what_the_design_allows_and_the_tool_knows_no_lesson():
    for module, path in modules().items():
        room = module.split(".")[0]
        if room in ("workbook", "__init__"):
            continue
        assert room in ROOMS, f"{path.name}: say in ROOMS what dpo_kit.{room} may import"
        for name in known(path):
            inside = name.split(".")[0] == room
            assert inside or any(f"{name}.".startswith(f"{may}.") for may in ROOMS[room]), f"{module} imports {name}"


def test_no_module_imports_itself_in_a_circle_and_the_longest_chain_is_short():
    knows = {module: known(path, top_level=True) - {module} for module, path in modules().items()}

    def chain(module, above=()):
        assert module not in above, f"a circle: {' imports '.join((*above, module))}"
        return [module, *max((chain(name, (*above, module)) for name in knows[module]), key=len, default=[])]

    longest = max(map(chain, knows), key=len)
    assert len(longest) <= LONGEST_CHAIN, " imports ".join(longest)


def test_the_tool_stays_small():
    tool = [path for module, path in modules().items() if module.split(".")[0] not in ("workbook", "triage")]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in tool)
    assert lines <= MOST_LINES, f"{lines} lines without workbook and triage"


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
