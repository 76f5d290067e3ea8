"""Checkpoints that are used only when they are complete and unchanged.

The stock trainer writes a checkpoint file by file under its final name, and resumes from the one with the highest
number without a check. A kill during a save leaves a folder on which every later run fails. It also resumes, without a
warning, from a checkpoint whose optimizer file is missing. Here the files are first written into another folder and
flushed to the disk. Then a manifest lists each with its size and SHA-256, and last the folder is renamed. A checkpoint
that does not match its manifest is not used at all, and the log says why.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_kit.errors import DpoKitError
from dpo_kit.files import flush, json_object, sha256, write_atomically

MANIFEST = "checkpoint.json"
KEEP = 2  # the newest, and the one before it in case the disk damages the newest


class Checkpoints:
    """The checkpoints of one training run in one folder, named `checkpoint-STEP`.

    `made_for` is plain data that identifies the run. A checkpoint of another run is passed over like a damaged one.
    `log` is called with one line of text for each checkpoint that is used or passed over.
    """

    def __init__(self, folder: Path, made_for: dict[str, Any], log: Callable[[str], None] = print):
        self.folder, self.log = folder, log
        self.made_for = json.loads(json.dumps(made_for))  # as it will be read back: tuples become lists

    @property
    def writing(self) -> Path:
        """The folder in which a checkpoint is written before it is sealed."""
        return self.folder / ".writing"

    def newest(self) -> Path | None:
        """The newest checkpoint of this run that verifies, or None."""
        for folder in self._newest_first():
            reason = self.unusable_reason(folder)
            if reason is None:
                self.log(f"{folder.name}: verified, going on from it")
                return folder
            self.log(f"{folder.name}: passed over, {reason}")
        return None

    def unusable_reason(self, folder: Path) -> str | None:
        """Why a checkpoint may not be resumed from, in a few words; None if it may."""
        damage = damage_in(folder)
        if damage:
            return damage
        then = manifest(folder)["made_for"]
        changed = [key for key in sorted(then | self.made_for) if then.get(key) != self.made_for.get(key)]
        return f"it is of another run, which differs in {', '.join(changed)}" if changed else None

    def save(self, step: int, about: dict[str, Any], write: Callable[[], None]) -> Path:
        """Let `write` fill `writing/checkpoint-STEP`, seal it with `about` in its manifest, and move it into place.

        Then the new checkpoint is read back and verified, and all older ones but the last are removed.
        Raises DpoKitError where it cannot be written; earlier checkpoints then stay as they were.
        """
        filled, sealed = self.writing / f"checkpoint-{step}", self.folder / f"checkpoint-{step}"
        try:
            shutil.rmtree(self.writing, ignore_errors=True)
            write()
            seal(filled, {"step": step, **about, "made_for": self.made_for})
            # a checkpoint of this name is unusable: had it verified, the run would have resumed from it
            shutil.rmtree(sealed, ignore_errors=True)
            filled.rename(sealed)
            self.writing.rmdir()
            flush(self.folder)
        except Exception as error:  # the writers raise OSError, RuntimeError or SafetensorError when the disk is full
            free = shutil.disk_usage(self.folder).free / 2**20
            shutil.rmtree(self.writing, ignore_errors=True)
            raise DpoKitError(
                f"{sealed}: the checkpoint cannot be written, {free:.0f} MB are free ({str(error).splitlines()[0]}); "
                "earlier ones are unchanged: make room, then run the same again to go on from the newest"
            ) from error
        self._prune(sealed)
        return sealed

    def _prune(self, newest: Path) -> None:
        if damage := damage_in(newest):
            raise DpoKitError(f"{newest}: it reads back not as it was written, {damage}; use another disk")
        rest = [folder for folder in self._newest_first() if folder != newest]
        before = [folder for folder in rest if _step(folder) < _step(newest)][: KEEP - 1]
        for folder in rest:
            if folder not in before:
                shutil.rmtree(folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        found = (p for p in self.folder.glob("checkpoint-*") if p.is_dir() and p.name[11:].isdigit())
        return sorted(found, key=_step, reverse=True)


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Flush every file to the disk, then write the manifest: `about`, and each file's size and SHA-256.

    So if the power fails, no manifest is on the disk without the files that it lists.
    """
    files = {}
    for path in _files(folder):
        flush(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_atomically(folder / MANIFEST, json.dumps({**about, "files": files}, indent=1) + "\n")
    for path in (*filter(Path.is_dir, folder.rglob("*")), folder):
        flush(path)


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; an empty one where it is missing, cut off or not a manifest."""
    loaded = json_object(folder / MANIFEST)
    return loaded if {"step", "made_for", "files"} <= loaded.keys() else {}


def damage_in(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, in a few words; None if they match its manifest."""
    sealed = manifest(folder)
    if not sealed:
        return "it has no readable manifest, so its writing was cut off"
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder) if path.name != MANIFEST}
    for name, expected in sealed["files"].items():
        if name not in found:
            return f"{name} is missing"
        if found[name].stat().st_size != expected["bytes"] or sha256(found[name]) != expected["sha256"]:
            return f"{name} was changed"
    foreign = sorted(found.keys() - sealed["files"].keys())
    return f"{foreign[0]} was added" if foreign else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))
