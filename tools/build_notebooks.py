"""Execute the notebooks from their text, in clean kernels, and store them with their outputs.

    python -m tools.build_notebooks [NAME ...]

Each notebook is written as text in jupytext's percent format, `notebooks/py/NAME.py`, which becomes
`notebooks/NAME.ipynb`; the same holds for `solutions/`. Widget state, execution times and progress bars are left out,
because a reader does not need them and git would keep every version of them. Without names, all notebooks are built,
and the folder of their runs is emptied first. With names, the runs in `runs/notebooks`, or `DPO_KIT_RUNS`, are used
again.

Where pyproject.toml names the repository's address on GitHub, as `Repository` in `[project.urls]`, each notebook also
gets a badge that opens it in Colab, and a first cell that installs the package there.
"""

import os
import shutil
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
RUNS = Path(os.environ.get("DPO_KIT_RUNS", ROOT / "runs" / "notebooks"))
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({})"
INSTALL = """\
# Only on Colab, which has no copy of the package, this installs it.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "dpo_kit @ git+{}\""""


def main(names: list[str]) -> None:
    """Build the notebooks of these names, or all. Stops at the first cell that raises an exception."""
    os.environ |= {"DPO_KIT_PROFILE": "tiny", "DPO_KIT_RUNS": str(RUNS), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    if not names:
        shutil.rmtree(RUNS, ignore_errors=True)
    for text in sorted((NOTEBOOKS / "py").rglob("*.py")):
        if not names or text.stem in names:
            target = NOTEBOOKS / text.relative_to(NOTEBOOKS / "py").with_suffix(".ipynb")
            print(f"executing {target.relative_to(ROOT)}")
            nbformat.write(execute(from_text(text, repository()), target.parent), target)


def repository() -> str:
    """The repository's address on GitHub, from pyproject.toml, or an empty text where it names none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "").rstrip("/").removesuffix(".git")


def from_text(text: Path, address: str) -> nbformat.NotebookNode:
    """The notebook of a text below `notebooks/py`, not executed yet.

    An `address` such as `https://github.com/OWNER/NAME` adds Colab's badge to the first cell, and the cell that
    installs the package. Raises ValueError for an address elsewhere, because Colab opens notebooks from GitHub only.
    """
    notebook = jupytext.read(text)
    if address:
        owner_and_name = address.removeprefix("https://github.com/")
        if owner_and_name == address:
            raise ValueError(f"[project.urls] Repository is {address!r}: Colab needs one at https://github.com/")
        place = text.relative_to(NOTEBOOKS / "py").with_suffix(".ipynb").as_posix()
        opens = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/{place}"
        title, blank, rest = notebook.cells[0].source.partition("\n")
        notebook.cells[0].source = f"{title}\n\n{BADGE.format(opens)}{blank}{rest}"
        notebook.cells.insert(1, nbformat.v4.new_code_cell(INSTALL.format(address)))
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"  # the same text gives the same file
    return notebook


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook after a fresh kernel has run it in `folder`, without metadata that change with each run."""
    NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(folder)}}, store_widget_state=False
    ).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


if __name__ == "__main__":
    main(sys.argv[1:])
