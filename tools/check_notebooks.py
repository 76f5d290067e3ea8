"""Check the stored notebooks: they are executed, agree with their text, and show nothing that a reader should not meet.

python -m tools.check_notebooks         prints what is wrong and exits with 1
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat

from tools import build_notebooks

ROOT = Path(__file__).parents[1]
MACHINE_PATH = re.compile(r"/(?:root|home|work|tmp|Users)/[\w./-]{3,}")
LARGEST = 2_000_000  # bytes; GitHub stops showing larger notebooks


def main() -> int:
    """Check every notebook, print the faults, and return the exit code."""
    faults = [f"{path.relative_to(ROOT)}: {fault}" for path in notebooks() for fault in check(path)]
    print("\n".join(faults) or f"{len(notebooks())} notebooks are clean")
    return bool(faults)


def notebooks() -> list[Path]:
    """The paths of all stored notebooks."""
    found = sorted(build_notebooks.NOTEBOOKS.rglob("*.ipynb"))
    return [path for path in found if ".ipynb_checkpoints" not in path.parts]


def check(path: Path) -> Iterator[str]:
    """The faults of one notebook, each as a phrase that follows its name."""
    notebook = nbformat.read(path, as_version=4)
    folder = build_notebooks.NOTEBOOKS
    text = folder / "py" / path.relative_to(folder).with_suffix(".py")
    if not text.is_file():
        yield "has no text in notebooks/py"
    elif _sources(notebook) != _sources(build_notebooks.from_text(text, build_notebooks.repository())):
        yield "differs from its text; run `make notebooks`"
    if "widgets" in notebook.metadata:
        yield "stores widget state"
    if path.stat().st_size > LARGEST:
        yield f"has {path.stat().st_size / 1e6:.1f} MB"
    yield from _faults_of_outputs([cell for cell in notebook.cells if cell.cell_type == "code"])


def _faults_of_outputs(cells: list[nbformat.NotebookNode]) -> Iterator[str]:
    if any(cell.execution_count is None for cell in cells if cell.source.strip()):
        yield "was not executed to the end"
    outputs = [output for cell in cells for output in cell.outputs]
    if any(output.output_type == "error" for output in outputs):
        yield "holds an error"
    if any(output.output_type == "stream" and output.name == "stderr" for output in outputs):
        yield "holds text that was printed to stderr"
    if found := MACHINE_PATH.search(json.dumps(outputs)):
        yield f"shows a path of the machine that executed it: {found.group()}"


def _sources(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells if cell.source.strip()]


if __name__ == "__main__":
    sys.exit(main())
