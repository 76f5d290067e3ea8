"""The tools that build and check notebooks: each fault is found in a notebook made for it, and Colab is served."""

import sys
from types import ModuleType

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

from tools import build_notebooks, check_notebooks

TEXT = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · A title
#
# A question.

# %%
print(1 + 1)
"""
ADDRESS = "https://github.com/someone/dpo_kit"
OPENS = "https://colab.research.google.com/github/someone/dpo_kit/blob/main/notebooks/solutions/00_tiny.ipynb"


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text below a folder of notebooks of its own."""
    monkeypatch.setattr(build_notebooks, "NOTEBOOKS", tmp_path)
    path = tmp_path / "py" / "solutions" / "00_tiny.py"
    path.parent.mkdir(parents=True)
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def stored(text, tmp_path):
    """The notebook of that text, as if it had been executed, and its path."""
    notebook = build_notebooks.from_text(text, "")
    notebook.cells[1].execution_count = 1
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="2\n")]
    path = tmp_path / "solutions" / "00_tiny.ipynb"
    path.parent.mkdir()
    return notebook, path


def output(kind, **parts):
    return lambda notebook: notebook.cells[1].outputs.append(nbformat.v4.new_output(kind, **parts))


DIRTY = {
    "stores widget state": lambda notebook: notebook.metadata.update(widgets={}),
    "differs from its text": lambda notebook: notebook.cells[1].update(source="print(2)"),
    "was not executed to the end": lambda notebook: notebook.cells[1].update(execution_count=None),
    "holds an error": output("error", ename="ValueError", evalue="no", traceback=[]),
    "printed to stderr": output("stream", name="stderr", text="a warning"),
    "a path of the machine that executed it: /Users/ann/runs": output("stream", name="stdout", text="/Users/ann/runs"),
    " MB": output("stream", name="stdout", text="x" * check_notebooks.LARGEST),
}


@pytest.mark.parametrize("fault", DIRTY)
def test_each_fault_of_a_notebook_is_found_and_no_other(stored, fault):
    notebook, path = stored
    nbformat.write(notebook, path)
    assert list(check_notebooks.check(path)) == []
    DIRTY[fault](notebook)
    nbformat.write(notebook, path)
    (found,) = check_notebooks.check(path)
    assert fault in found


def test_a_notebook_without_its_text_is_found_and_the_command_fails(stored, text, capsys, monkeypatch):
    notebook, path = stored
    nbformat.write(notebook, path)
    monkeypatch.setattr(check_notebooks, "ROOT", build_notebooks.NOTEBOOKS)
    assert check_notebooks.main() == 0
    text.unlink()
    assert check_notebooks.main() == 1
    assert "00_tiny.ipynb: has no text in notebooks/py" in capsys.readouterr().out


def test_without_an_address_a_notebook_has_neither_badge_nor_a_cell_for_colab(text):
    notebook = build_notebooks.from_text(text, "")
    assert [cell.source for cell in notebook.cells] == ["# 00 · A title\n\nA question.", "print(1 + 1)"]


def test_with_an_address_a_badge_opens_this_notebook_and_the_first_code_cell_installs_the_package(text):
    first, install, rest = build_notebooks.from_text(text, ADDRESS).cells
    assert first.source.startswith("# 00 · A title\n\n[![Open in Colab](")
    assert first.source.endswith(f"]({OPENS})\n\nA question.")
    assert install.cell_type == "code"
    assert f'"dpo_kit @ git+{ADDRESS}"' in install.source
    assert rest.source == "print(1 + 1)"


def test_an_address_that_colab_cannot_open_is_refused(text):
    with pytest.raises(ValueError, match=r"https://example.org/x.* Colab needs one at https://github.com/"):
        build_notebooks.from_text(text, "https://example.org/x")


@pytest.mark.parametrize("on_colab", [False, True])
def test_the_cell_for_colab_installs_there_and_nowhere_else(text, monkeypatch, on_colab):
    install = build_notebooks.from_text(text, ADDRESS).cells[1]
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    shell, asked = InteractiveShell(), []
    shell.register_magic_function(asked.append, magic_name="pip")
    assert shell.run_cell(install.source).success
    assert asked == ([f'install --quiet "dpo_kit @ git+{ADDRESS}"'] if on_colab else [])


@pytest.mark.parametrize(
    ("written", "address"),
    [("", ""), (f'[project.urls]\nRepository = "{ADDRESS}.git"\n', ADDRESS), ('[project.urls]\nRepository = ""\n', "")],
    ids=["no entry", "an address", "an empty entry"],
)
def test_the_address_comes_from_pyproject(tmp_path, monkeypatch, written, address):
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\n{written}')
    monkeypatch.setattr(build_notebooks, "ROOT", tmp_path)
    assert build_notebooks.repository() == address
