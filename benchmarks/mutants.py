"""Do the tests find errors? Make small wrong changes, one at a time, and run the tests of the changed file's room.

    python -m benchmarks.mutants [--count 200] [--seed 0] [--rooms ROOM ...] [--out FILE]

A mutant is one changed place in a copy of the tree: a comparison, a constant, a condition, an operator, `max` instead
of `min`, a keyword or a call left out. The mutant is killed if a test fails or the tests take too long. It survives if
all pass. Rows are appended to a file, so that the same command continues where it was stopped. Prints how many were
killed and the diff of each survivor. A person has to read these, because some do not change any result.
"""

import argparse
import ast
import copy
import difflib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dpo_kit.files import hashes

ROOT = Path(__file__).parents[1]
COMMON = ["tests/test_pipeline.py", "tests/cli"]
TESTS = {
    "evaluation": ["tests/evaluation", *COMMON],
    "models": ["tests/models", "tests/training", *COMMON],
    "pipeline.py": ["tests/test_pipeline.py", "tests/cli", "tests/training/test_release.py"],
    "stages.py": ["tests/test_pipeline.py", "tests/cli", "tests/training/test_release.py"],
    "preferences": ["tests/preferences", *COMMON],
    "triage": ["tests/triage", *COMMON],
    "training": ["tests/training", "tests/test_profiles.py", *COMMON],
    "workspace.py": ["tests/test_workspace.py", *COMMON],
}
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
}  # fmt: skip
PEER = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
TOLD = {"log", "print", "warn"}  # what a call of these says is for people; without it no result changes


@dataclass(frozen=True)
class Mutant:
    """One wrong change: bytes `start` to `end` of a file become `new`."""

    path: str
    line: int
    start: int
    end: int
    new: str

    def applied(self, root: Path) -> str:
        """The whole file of a tree, with the change."""
        source = (root / self.path).read_bytes()
        return (source[: self.start] + self.new.encode() + source[self.end :]).decode()

    def diff(self, root: Path) -> str:
        """The change as a unified diff without context."""
        before, after = (root / self.path).read_text().splitlines(), self.applied(root).splitlines()
        return "\n".join(difflib.unified_diff(before, after, self.path, self.path, lineterm="", n=0))


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    source = path.read_bytes()
    starts = [0]  # of each line, in bytes
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in _running(ast.parse(source)):
        for place, wrong in _wrong(node):
            start = starts[place.lineno - 1] + place.col_offset
            end = starts[place.end_lineno - 1] + place.end_col_offset
            yield Mutant(str(path.relative_to(ROOT)), place.lineno, start, end, wrong)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one that run: without annotations, and without what stands inside an f-string."""
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns") and not isinstance(node, ast.JoinedStr):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield child
                    yield from _running(child)


def _wrong(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What can be changed at one node: which place of the text, and what to write there."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in OTHER:
            yield node, _with(node, ops=[OTHER[type(op)]()])
        case ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op) in OTHER:
            yield node, _with(node, op=OTHER[type(op)]())
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield node, repr(value + 1)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield test, f"(not ({ast.unparse(test)}))"
        case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))) if name not in TOLD:
            yield node, "pass"
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in PEER:
            yield node.func, PEER[node.func.id]
        for i in range(len(node.keywords)):
            yield node, _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def _with(node: ast.AST, **changes) -> str:
    """The text of a node with some of its fields changed."""
    changed = copy.copy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return f"({ast.unparse(changed)})"


def sample(count: int, seed: int, rooms: Iterable[str] = TESTS) -> list[Mutant]:
    """A random sample of all mutants of some rooms: folders or files of the package."""
    found = [ROOT / "dpo_kit" / name for name in rooms]
    files = sorted(file for path in found for file in ([path] if path.is_file() else path.rglob("*.py")))
    return random.Random(seed).sample([mutant for file in files for mutant in mutants(file)], count)


def copied(folder: Path) -> Path:
    """The tree as it is, in another folder: what git tracks or would track."""
    listed = ["git", "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def importers(tree: Path, path: str) -> list[str]:
    """The tests of a file's room that import this file."""
    module = re.compile(rf"\b{'[.]'.join(Path(path).with_suffix('').parts).removesuffix('[.]__init__')}\b")
    files = sorted((tree / "tests" / Path(path).parts[1]).rglob("test_*.py"))
    return [str(file.relative_to(tree)) for file in files if module.search(file.read_text(encoding="utf-8"))]


def failure(tree: Path, tests: list[str], seconds: float | None = None) -> str | None:
    """Which test fails first in a tree, or what else ends the run, such as its time; None where all pass."""
    # without bytecode: a file changed within a second and to the same size would be taken for the one before
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "-m", "not slow and not browser"]
    try:
        done = subprocess.run(
            [*command, *tests], cwd=tree, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return "it never ended"
    if done.returncode == 0:
        return None
    lines = done.stdout.splitlines() or done.stderr.splitlines() or [f"exit code {done.returncode}"]
    return next((line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])


def tried(chosen: list[Mutant], out: Path) -> Iterator[dict]:
    """A row for each mutant: its `diff`, what it was `killed_by` (None: it survived), and of which `code` it is.

    Rows of the same package and tests are taken from `out`, and new ones are appended there. A mutant may take four
    times as long as its tests without it. Raises SystemExit where these fail, for then they would kill everything.
    """
    code = {folder: hashes(ROOT / folder, only="*.py") for folder in ("dpo_kit", "tests")}
    code = hashlib.sha256(json.dumps(code).encode()).hexdigest()
    before = map(json.loads, out.read_text().splitlines() if out.exists() else ())
    known = {row["diff"]: row for row in before if row["code"] == code}
    longest: dict[str, float] = {}  # seconds, by room
    with tempfile.TemporaryDirectory() as name, out.open("a") as file:
        tree = copied(Path(name))
        for mutant in chosen:
            room, diff = mutant.path.split("/")[1], mutant.diff(tree)
            if diff not in known:
                if room not in longest:
                    started = time.monotonic()
                    if failing := failure(tree, TESTS[room]):
                        raise SystemExit(f"{failing} without any mutant")
                    longest[room] = 4 * (time.monotonic() - started)
                right, wrong = (tree / mutant.path).read_text(), mutant.applied(tree)
                (tree / mutant.path).write_text(wrong)
                own = importers(tree, mutant.path)  # these tests kill most mutants, in a tenth of the room's time
                killer = (own and failure(tree, own, longest[room])) or failure(tree, TESTS[room], longest[room])
                known[diff] = {"diff": diff, "killed_by": killer, "code": code}
                (tree / mutant.path).write_text(right)
                print(json.dumps(known[diff]), file=file, flush=True)
            yield known[diff]


def main() -> None:
    """Try a sample, print what became of each mutant, and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", choices=TESTS, default=list(TESTS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "soak" / "mutants.jsonl")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    chosen, survivors = sample(arguments.count, arguments.seed, arguments.rooms), []
    for mutant, row in zip(chosen, tried(chosen, arguments.out), strict=True):
        print(f"{mutant.path}:{mutant.line} {row['killed_by'] or 'SURVIVED'}", flush=True)
        survivors += [] if row["killed_by"] else [row["diff"]]
    print(f"\n{len(chosen) - len(survivors)} of {len(chosen)} mutants killed; survivors:\n", *survivors, sep="\n")


if __name__ == "__main__":
    main()
