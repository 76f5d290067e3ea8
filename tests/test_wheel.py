"""The package outside of its repository: a wheel is installed in a new environment and runs in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from benchmarks.mutants import copied
from dpo_kit.files import hashes
from tests.conftest import SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of an environment that holds the wheel of these sources, and this environment's other packages.

    Only folders of packages are shared. Their `.pth` files, by which a checkout is importable here, are not read there.
    """
    root = tmp_path_factory.mktemp("wheel")
    clone = copied(root / "clone")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root), str(clone)]
    subprocess.run([*pip, *built], check=True, capture_output=True)
    shutil.rmtree(clone)
    venv.create(root / "env", symlinks=True)
    python = root / "env" / "bin" / "python"
    wheel = next(root.glob("*.whl"))
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    packages = Path(run(python, root, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "shared.pth").write_text("\n".join(shared))
    return python, packages / "dpo_kit"


def run(python, folder, *arguments):
    """Python in `folder`, with the small settings, and without this process's own paths and settings."""
    settings = [(table, key, value) for table, keys in SMALL.items() for key, value in keys.items()]
    small = {f"DPO_KIT_{table}__{key}".upper(): json.dumps(value) for table, key, value in settings}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DPO_KIT"))}
    done = subprocess.run([str(python), *arguments], cwd=folder, env=kept | small, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_an_installed_wheel_walks_the_whole_path_in_an_empty_folder(installed, tmp_path):
    python, package = installed
    where = "import importlib.util as u, dpo_kit; print(dpo_kit.__file__, u.find_spec('benchmarks'))"
    assert run(python, tmp_path, "-c", where).stdout.split() == [str(package / "__init__.py"), "None"]
    assert (package / "data" / "runs" / "seeds.json").is_file(), "notebooks draw the committed logs"
    assert (package / "py.typed").is_file(), "type checkers read the annotations of a package only where this file is"
    before = hashes(package, only="[!.]*[!c]")
    report = json.loads(run(python, tmp_path, "-m", "dpo_kit", "run", "--json").stdout)
    assert report["n_prompts"] == SMALL["evaluation"]["prompts"]
    assert report["html"] == "runs/tiny/report.html"
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert hashes(package, only="[!.]*[!c]") == before, "an installed package is never written to"


def test_its_script_plans_a_training_on_own_pairs(installed, tmp_path):
    python, _ = installed
    (tmp_path / "mine.jsonl").write_text('{"prompt": "What?", "chosen": "This.", "rejected": "That."}\n')
    code = "import sys; from dpo_kit.cli import main; sys.exit(main())"
    planned = json.loads(run(python, tmp_path, "-c", code, "train", "--pairs", "mine.jsonl", "--plan", "--json").stdout)
    assert planned["pairs"] == 1
    assert (python.parent / "dpo-kit").is_file()
