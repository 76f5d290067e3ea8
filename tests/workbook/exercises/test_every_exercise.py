"""What holds for the exercises of every notebook: a stub waits, its solution passes, code that raises is reported."""

import ast
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from dpo_kit.profiles import ROOT
from dpo_kit.workbook import exercises
from dpo_kit.workbook.exercises import CheckResult

TWINS = sorted((ROOT / "notebooks" / "py").glob("*.py"))
CHECKS = {
    name: check
    for module in iter_modules(exercises.__path__, f"{exercises.__name__}.")
    for name, check in vars(import_module(module.name)).items()
    if name.startswith("check_")
}


def verdicts(twin: Path) -> dict[str, CheckResult]:
    """What a reader is told, by the check's name. Of the twin only imports, functions `my_...` and checks are run."""
    body = ast.parse(twin.read_text()).body
    needed = [
        node
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.FunctionDef) and node.name.startswith("my_"))
    ]
    namespace: dict = {}
    exec(compile(ast.Module(needed, []), twin, "exec"), namespace)
    calls = [node.value for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    named = {ast.unparse(call.func).rpartition(".")[2]: call for call in calls}
    return {
        name: eval(compile(ast.Expression(call), twin, "eval"), namespace)
        for name, call in named.items()
        if name in CHECKS
    }


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.stem)
def test_each_stub_waits_and_each_solution_passes(twin):
    waiting, solved = verdicts(twin), verdicts(twin.parent / "solutions" / twin.name)
    assert waiting
    assert list(waiting) == list(solved)
    assert all(repr(verdict).startswith("not yet:") and not verdict.passed for verdict in waiting.values()), waiting
    assert all(repr(verdict).startswith("right:") and verdict.passed for verdict in solved.values()), solved


def test_every_check_is_asked_in_one_notebook():
    asked = [name for twin in TWINS for name in verdicts(twin)]
    assert sorted(asked) == sorted(CHECKS)


def unwritten(*_):
    raise NotImplementedError


def empty(*_): ...


def broken(*_):
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_code_that_raises_is_reported_and_not_raised(check):
    assert check(unwritten).message.startswith("not yet:")
    assert check(empty).message.startswith("not yet:")
    assert "ZeroDivisionError: division by zero" in check(broken).message
