"""Hygiene of the stored notebooks: executed, in step with their text, and free of what no reader should meet.

python -m tools.check_notebooks         prints what is wrong and exits with 1
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
MACHINE_PATH = re.compile(r"/(?:root|home|work|tmp|Users)/[\w./-]{3,}")
LARGEST = 2_000_000


def main() -> int:
    """Check every notebook; returns the exit code."""
    faults = [f"{path.relative_to(ROOT)}: {fault}" for path in notebooks() for fault in check(path)]
    print("\n".join(faults) or f"{len(notebooks())} notebooks are clean")
    return bool(faults)


def notebooks() -> list[Path]:
    """Every stored notebook."""
    return [p for p in sorted(NOTEBOOKS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


def check(path: Path) -> Iterator[str]:
    """What is wrong with one notebook, in words."""
    notebook = nbformat.read(path, as_version=4)
    twin = NOTEBOOKS / "py" / path.relative_to(NOTEBOOKS).with_suffix(".py")
    if not twin.is_file():
        yield "has no text twin"
    elif _sources(notebook) != _sources(jupytext.read(twin)):
        yield "differs from its text twin; run `make notebooks`"
    if "widgets" in notebook.metadata:
        yield "stores widget state"
    if path.stat().st_size > LARGEST:
        yield f"has {path.stat().st_size / 1e6:.1f} MB"
    yield from _faults_of_outputs([cell for cell in notebook.cells if cell.cell_type == "code"])


def _faults_of_outputs(cells: list) -> Iterator[str]:
    if any(cell.execution_count is None for cell in cells if cell.source.strip()):
        yield "was not executed to the end"
    outputs = [output for cell in cells for output in cell.outputs]
    if any(output.output_type == "error" for output in outputs):
        yield "holds an error"
    if any(output.output_type == "stream" and output.name == "stderr" for output in outputs):
        yield "holds something printed to stderr"
    if found := MACHINE_PATH.search(json.dumps(outputs)):
        yield f"shows a machine path: {found.group()}"


def _sources(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells if cell.source.strip()]


if __name__ == "__main__":
    sys.exit(main())
