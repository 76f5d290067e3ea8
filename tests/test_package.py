"""The names that `import dpo_kit` provides."""

import re
import subprocess
import sys

import pytest

import dpo_kit
from dpo_kit.profiles import ROOT


def test_importing_the_package_loads_nothing_that_takes_time():
    code = "import dpo_kit, sys; print(*sorted({'torch', 'pydantic', 'transformers', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", dpo_kit.__all__)
def test_what_the_top_level_exports_is_there_documented_and_listed(name):
    assert getattr(dpo_kit, name).__doc__
    assert re.search(rf"`{name}\b", dpo_kit.__doc__), "the package's docstring names it"
    assert name in dir(dpo_kit)


def test_no_export_hides_a_module_of_the_same_name():
    modules = {path.stem for path in (ROOT / "dpo_kit").iterdir()}
    assert not modules & set(dpo_kit.__all__)


def test_another_name_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="module 'dpo_kit' has no attribute 'tarin'"):
        _ = dpo_kit.tarin
