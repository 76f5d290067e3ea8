"""A checkpoint is used only if every byte is as it was written."""

import json
import os
import shutil
from pathlib import Path

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.files import hashes
from dpo_kit.training.checkpoints import MANIFEST, Checkpoints, damage_in, manifest

FILES = {"adapter_model.safetensors": b"weights" * 900, "ref/adapter_model.safetensors": b"reference", "rng.pth": b"x"}


class Saver:
    """Saves checkpoints of three files each, and keeps what was said."""

    def __init__(self, folder, **made_for):
        self.said = []
        self.made_for = {"seed": 0, "dpo": {"beta": 0.1, "temperatures": (1.0, 1.1)}, **made_for}
        self.checkpoints = Checkpoints(folder, self.made_for, self.said.append)

    def save(self, step, fail_after=None):
        def write():
            for n, (name, content) in enumerate(FILES.items()):
                if n == fail_after:
                    raise OSError(28, "No space left on device")
                path = self.checkpoints.writing / f"checkpoint-{step}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content + str(step).encode())

        return self.checkpoints.save(step, {"steps": 9}, write)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saver(tmp_path):
    return Saver(tmp_path / "checkpoints")


def test_the_manifest_names_every_file_its_size_and_what_the_checkpoint_is_for(saver):
    folder = saver.save(3)
    sealed = manifest(folder)
    assert set(sealed["files"]) == set(FILES)
    assert {name: f["sha256"] for name, f in sealed["files"].items()} == hashes(folder, skip=(MANIFEST,))
    assert sealed["files"]["rng.pth"]["bytes"] == len(b"x3")
    assert (sealed["step"], sealed["steps"]) == (3, 9)
    assert sealed["made_for"] == json.loads(json.dumps(saver.made_for))
    assert damage_in(folder) is None


def test_files_reach_the_disk_before_their_manifest_and_that_before_the_name(saver, monkeypatch):
    """Else a loss of power could leave a manifest, or a finished name, without what it promises."""
    events, own = [], {"rename": Path.rename, "replace": Path.replace}

    def moved(kind):
        def move(source, target):
            events.append((kind, Path(target).name))
            return own[kind](source, target)

        return move

    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(("fsync", os.fstat(descriptor).st_ino)))
    for kind in own:
        monkeypatch.setattr(Path, kind, moved(kind))
    folder = saver.save(3)

    def flushed(path):
        return [i for i, event in enumerate(events) if event == ("fsync", path.stat().st_ino)]

    sealed, named = events.index(("replace", MANIFEST)), events.index(("rename", folder.name))
    assert sealed < named
    for name in FILES:
        assert flushed(folder / name)[0] < sealed, name
    assert flushed(folder / MANIFEST)[0] < sealed, "the manifest has its content before it has its name"
    for inside in (folder / "ref", folder):
        assert sealed < flushed(inside)[-1] < named, "the lists of names, too"
    assert flushed(folder.parent)[-1] > named


def test_the_newest_by_number_is_taken_not_by_name(saver):
    saver.save(9)
    saver.save(10)
    assert saver.checkpoints.newest().name == "checkpoint-10"
    assert saver.said == ["checkpoint-10: verified, going on from it"]


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("how", ["deleted", "halved", "one bit", "emptied"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_that_is_said(saver, name, how):
    before, newest = saver.save(1), saver.save(2)
    path = newest / name
    whole = path.read_bytes()
    path.unlink()
    if how != "deleted":
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        path.write_bytes({"halved": whole[: len(whole) // 2], "one bit": flipped, "emptied": b""}[how])
    if (name, how) == (MANIFEST, "one bit"):
        path.write_bytes(b"\x7f" + whole[1:])  # its last byte is a newline, which says nothing
    assert saver.checkpoints.newest() == before
    reason = "no readable manifest" if name == MANIFEST else "is missing" if how == "deleted" else "was changed"
    assert saver.said[0].startswith("checkpoint-2: passed over, ")
    assert reason in saver.said[0]
    assert name == MANIFEST or name in saver.said[0]


def test_a_file_that_somebody_added_is_not_loaded(saver):
    """The stock trainer loads what it finds: a pickle laid into a checkpoint would run."""
    (saver.save(1) / "adapter_model.bin").write_bytes(b"a pickle")
    assert saver.checkpoints.newest() is None
    assert "adapter_model.bin was added" in saver.said[0]


def test_every_way_to_cut_a_manifest_is_seen(saver):
    path = saver.save(1) / MANIFEST
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        assert saver.checkpoints.newest() is None


def test_a_checkpoint_of_another_run_is_passed_over(saver, tmp_path):
    saver.save(1)
    other = Saver(tmp_path / "checkpoints", seed=1, data_sha256="abc")
    assert other.checkpoints.newest() is None
    assert other.said == ["checkpoint-1: passed over, it is of another run, which differs in data_sha256, seed"]


def test_what_was_being_written_at_a_kill_is_never_taken(saver):
    whole = saver.save(1)
    shutil.copytree(whole, saver.checkpoints.writing / "checkpoint-2")
    assert saver.checkpoints.newest() == whole
    saver.save(2)
    assert not (saver.checkpoints.writing / "checkpoint-2").exists()


@pytest.mark.parametrize("fail_after", range(len(FILES)))
def test_a_save_that_fails_says_so_and_leaves_the_earlier_ones(saver, fail_after):
    whole = saver.save(1)
    with pytest.raises(DpoKitError, match=r"checkpoint-2: the checkpoint cannot be written.*No space left on device"):
        saver.save(2, fail_after)
    assert saver.checkpoints.newest() == whole
    assert names(whole.parent) == ["checkpoint-1"], "what was half written takes no more room"


def test_only_the_last_two_stay_and_nothing_that_follows_them(saver):
    """A later one that was passed over would be met again at every resume."""
    for step in (1, 2, 7, 3, 4):
        saver.save(step)
    assert names(saver.checkpoints.folder) == ["checkpoint-3", "checkpoint-4"]


def test_nothing_is_removed_when_the_new_one_does_not_read_back_as_written(saver, monkeypatch):
    """A disk that returns something else than was written must not cost the checkpoints that are good."""
    kept = [saver.save(1), saver.save(2)]
    monkeypatch.setattr("dpo_kit.training.checkpoints.damage_in", lambda folder: "rng.pth was changed")
    with pytest.raises(DpoKitError, match="not as it was written"):
        saver.save(3)
    monkeypatch.undo()
    assert all(damage_in(folder) is None for folder in kept)
