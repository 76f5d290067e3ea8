"""The folder of a run: one subfolder for each stage, with a manifest that says what the stage was made from.

A stage is built in a folder with a temporary name. When all files are written, its manifest is written, and then the
folder is renamed. So a folder with the stage's own name is always complete, even if a process was killed.

Before a stage is built again, its manifest is compared with what would be made now. If configuration, inputs, code and
library versions are the same, and every file still has the hash that the manifest lists, the stage is skipped.
Otherwise it is built again, and the log says why.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from functools import cache
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dpo_kit.errors import DpoKitError
from dpo_kit.files import hashes, json_object, write_atomically
from dpo_kit.machine import peak_memory_mb
from dpo_kit.profiles import IN_CHECKOUT, ROOT

MANIFEST = "manifest.json"
MADE_FROM = "made_from.json"
RUN = "run.json"
ANSWERS = ".answers"
MAKERS = ("triage", "models", "preferences", "training", "evaluation")
LIBRARIES = ("dpo_kit", "torch", "transformers", "trl", "peft", "bitsandbytes")


def runs_folder() -> Path:
    """The folder of all runs: `DPO_KIT_RUNS`, else the checkout's `runs`, else `runs` in the current folder."""
    return Path(os.environ.get("DPO_KIT_RUNS", ROOT / "runs" if IN_CHECKOUT else Path("runs")))


def default_workdir(profile_name: str) -> Path:
    """The folder of the workbook's run with a profile."""
    return runs_folder() / profile_name


def named_run(identity: dict[str, Any], name: str, *, fresh: bool = False) -> Path:
    """The folder of the run with this identity: an existing one, or else a new one.

    `identity` is plain data that says what is trained on what. The name of a new folder is `name` and the date, with a
    number after it where that name is taken. With `fresh` an old run is left unchanged and a new folder is made. The
    symbolic link `latest` beside it then leads to the run.
    """
    runs, identity = runs_folder(), json.loads(json.dumps(identity))
    found = sorted(runs.glob(f"*/{RUN}"), key=lambda path: path.stat().st_mtime)
    same = [path.parent for path in found if json_object(path) == identity and not path.parent.is_symlink()]
    if same and not fresh:
        folder = same[-1]
    else:
        names = (f"{name}-{date.today()}" + (f"-{number}" if number > 1 else "") for number in count(1))
        folder = next(runs / wanted for wanted in names if not (runs / wanted).exists())
        write_atomically(folder / RUN, json.dumps(identity, indent=1) + "\n")
    _point_to(runs / "latest", folder)
    return folder


def _point_to(link: Path, folder: Path) -> None:
    """Let the symbolic link `link` lead to a folder beside it. A file or folder of that name is left as it is."""
    with suppress(OSError):  # Windows allows links to few users only; the run's folder is printed in any case
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(folder.name)


class Workspace:
    """The folder of one run, which belongs to one profile.

    Creates the folder; with `fresh` removes the stages that are there. With `keep` a finished stage of other settings
    or inputs is never replaced; without it, as in the notebooks, such a stage is built again. Raises DpoKitError where
    the folder cannot be written or belongs to another profile. A second process may have the same folder open, but not
    build in it at the same time.
    """

    def __init__(
        self,
        root: Path,
        profile_name: str,
        log: Callable[[str], None] = print,
        *,
        fresh: bool = False,
        keep: bool = False,
    ):
        self.root, self.log, self.keep = root, log, keep
        owner = root / "profile.json"  # if two profiles shared a folder, each would rebuild the other's stages
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not owner.exists():
                write_atomically(owner, json.dumps({"profile": profile_name}) + "\n")
        except OSError as error:
            raise DpoKitError(f"{root}: cannot write here ({error.strerror}); choose another --workdir") from None
        found = json_object(owner).get("profile")
        if found != profile_name:
            raise DpoKitError(
                f"{root}: this workdir was made by profile {found!r}, not {profile_name!r}; "
                "choose another --workdir, or remove this one"
            )
        if fresh:
            self.remove_stages()

    @contextmanager
    def _building(self) -> Iterator[None]:
        lock = FileLock(self.root / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise DpoKitError(f"{self.root}: in use by another run; wait for it or choose another --workdir") from None
        except OSError as error:
            raise DpoKitError(f"{self.root}: cannot write here ({error.strerror}); choose another --workdir") from None
        with lock:
            yield

    def stage(self, name: str, build: Callable[[Path], None], config: dict[str, Any], inputs: dict[str, Any]) -> Path:
        """Make sure that `root/name` holds what `build` makes of `config` and `inputs`; returns that folder.

        `build` gets an empty folder and fills it. `config` holds the settings that the result depends on, and `inputs`
        the hashes of the files that it reads, mostly those of earlier stages (see `outputs_of`); both are plain data.
        """
        folder, partial = self.root / name, self.root / f".{name}.partial"
        made_from = {"config": config, "inputs": inputs, "versions": library_versions(), "code": code_digest()}
        made_from = json.loads(json.dumps(made_from))  # as it will be read back: tuples become lists
        stale = stale_reason(folder, made_from)
        if self.keep and (changed := changed_inputs(folder, made_from)):
            raise DpoKitError(
                f"{folder}: finished before, and made from something else: {'; '.join(changed)}. Choose another "
                "--workdir, or build it again with --fresh, which removes what is there"
            )
        self.log(f"{name}: {stale or 'done before, verified'}")
        if stale:
            with self._building():
                started = time.perf_counter()
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                self._prepare_scratch(name, made_from)  # checkpoints of an interrupted same build stay
                build(partial)
                cost = {"seconds": round(time.perf_counter() - started, 2), "peak_memory_mb": peak_memory_mb()}
                manifest = {"stage": name, **made_from, "outputs": hashes(partial), "cost": cost}
                write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)  # a rename is one step, so a kill cannot leave a part; copying is many steps
                shutil.rmtree(self.scratch(name), ignore_errors=True)
        for left in (self.root / ANSWERS).glob(f"{name}.*"):  # also what a kill after the rename left behind
            left.unlink(missing_ok=True)
        return folder

    def scratch(self, stage: str) -> Path:
        """A folder for what a stage needs while it is built, such as checkpoints. It is still there after a kill.

        Before a build starts, the folder is emptied if it comes from another configuration, other inputs, code or
        library versions. When the stage is done, the folder is removed.
        """
        return self.root / f".{stage}.scratch"

    def _prepare_scratch(self, stage: str, made_from: dict[str, Any]) -> None:
        scratch = self.scratch(stage)
        if json_object(scratch / MADE_FROM) != made_from:
            shutil.rmtree(scratch, ignore_errors=True)
            write_atomically(scratch / MADE_FROM, json.dumps(made_from))

    def answers(self, stage: str) -> Path:
        """The file that keeps a stage's sampled answers until the stage is done.

        It lies outside the stage's temporary folder, because that folder is emptied when a killed build starts again.
        """
        return self.root / ANSWERS / f"{stage}.sqlite"

    def remove_stages(self) -> None:
        """Remove every stage's folder, stored answers and scratch folder. Files that no stage made stay."""
        # answers and checkpoints of the removed stages must not be used by later builds
        for kept in (self.root / ANSWERS, *self.root.glob(".*.scratch")):
            shutil.rmtree(kept, ignore_errors=True)
        for manifest in self.root.glob(f"*/{MANIFEST}"):
            shutil.rmtree(manifest.parent)

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of a finished stage."""
        return json_object(self.root / name / MANIFEST)

    def outputs_of(self, *names: str) -> dict[str, dict[str, str]]:
        """The hashes of all files of finished stages, by stage: the inputs of a stage that reads them.

        Raises DpoKitError where one of them is not finished.
        """
        manifests = {name: self.manifest(name) for name in names}
        if missing := [name for name, manifest in manifests.items() if not manifest]:
            raise DpoKitError(f"{self.root}: the stage {missing[0]!r} is not finished; build it first")
        return {name: manifest["outputs"] for name, manifest in manifests.items()}


def stale_reason(folder: Path, made_from: dict[str, Any]) -> str | None:
    """Why a stage has to be built (again), in a few words; None where its folder is what `made_from` would give."""
    manifest = json_object(folder / MANIFEST)
    if not manifest:
        return "to be built" if not folder.exists() else "no readable manifest, building again"
    for part, now in made_from.items():
        if manifest.get(part) != now:
            # a key with the value None and no key at all are not the same, but have no values to show
            place, old, new = next(_differences(manifest.get(part), now), ("", manifest.get(part), now))
            where = f"{place}: " if place else ""
            return f"{part} changed ({where}was {_short(old)}, now {_short(new)}), building again"
    found = {name: digest for name, digest in hashes(folder).items() if name != MANIFEST}
    for name, digest in manifest["outputs"].items():
        if found.get(name) != digest:
            return f"{name} {'was changed' if name in found else 'is missing'}, building again"
    return None


def changed_inputs(folder: Path, made_from: dict[str, Any]) -> list[str]:
    """Which settings and inputs of a finished stage differ from those of `made_from`, each with both values."""
    manifest = json_object(folder / MANIFEST)
    before, now = ({part: given.get(part) for part in ("config", "inputs")} for given in (manifest, made_from))
    changes = _differences(before, now) if manifest else ()
    return [f"{place.removeprefix('config.')} was {old!r} and is now {new!r}" for place, old, new in changes]


def _differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two nested dicts differ, as a path of keys such as `config.dpo.beta`, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    elif before != now:
        yield place, before, now


def library_versions() -> dict[str, str]:
    """The versions of the libraries whose change may change a result."""
    return {library: version(library) for library in LIBRARIES}


@cache
def code_digest() -> str:
    """One hash over the source files that decide what a stage makes, so that edited code builds its stages again."""
    package = Path(__file__).parent
    sources = {folder: hashes(package / folder, only="*.py") for folder in MAKERS}
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."  # a hash of 64 digits says no more than its first twelve
