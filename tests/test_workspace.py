import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.profiles import ROOT
from dpo_kit.workspace import Workspace, default_workdir, named_run


class Kitchen:
    """A workspace with one stage that counts how often it was built."""

    def __init__(self, root):
        self.said, self.built = [], 0
        self.work = Workspace(root, "tiny", self.said.append)

    def cook(self, **changes):
        def build(folder):
            self.built += 1
            (folder / "dish").mkdir()
            (folder / "dish" / "soup.txt").write_text("hot")

        made_from = {"config": {"seed": 0}, "inputs": {"pot": "abc"}, **changes}
        return self.work.stage("stage", build, **made_from)


@pytest.fixture
def kitchen(tmp_path):
    return Kitchen(tmp_path / "run")


def test_a_finished_stage_is_not_built_again(kitchen):
    folder = kitchen.cook()
    assert (folder / "dish" / "soup.txt").read_text() == "hot"
    kitchen.cook()
    assert kitchen.built == 1
    assert kitchen.said == ["stage: to be built", "stage: done before, verified"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": {"seed": 1}}, "config changed (seed: was 0, now 1)"),
        ({"inputs": {"pot": "abd"}}, "inputs changed (pot: was abc, now abd)"),
    ],
)
def test_a_stage_is_built_again_when_what_it_was_made_from_changes(kitchen, changes, reason):
    kitchen.cook()
    kitchen.cook(**changes)
    assert kitchen.built == 2
    assert reason in kitchen.said[-1]


def test_another_library_version_or_edited_source_is_not_believed(kitchen, monkeypatch):
    kitchen.cook()
    monkeypatch.setattr("dpo_kit.workspace.library_versions", lambda: {"torch": "3"})
    kitchen.cook()
    assert "versions changed" in kitchen.said[-1]
    monkeypatch.setattr("dpo_kit.workspace.code_digest", lambda: "edited")
    kitchen.cook()
    assert "code changed" in kitchen.said[-1]
    assert kitchen.built == 3


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "dish" / "soup.txt").write_text("ho"), "dish/soup.txt was changed"),
        (lambda f: (f / "dish" / "soup.txt").write_text(""), "dish/soup.txt was changed"),
        (lambda f: (f / "dish" / "soup.txt").unlink(), "dish/soup.txt is missing"),
        (lambda f: (f / "manifest.json").unlink(), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_text('{"stage": "st'), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_text("[]"), "no readable manifest"),
    ],
)
def test_a_spoilt_artefact_is_rebuilt_and_not_believed(kitchen, spoil, reason):
    folder = kitchen.cook()
    spoil(folder)
    kitchen.cook()
    assert reason in kitchen.said[-1]
    assert (folder / "dish" / "soup.txt").read_text() == "hot"


def test_every_way_to_truncate_the_manifest_leads_to_a_rebuild(kitchen):
    manifest = kitchen.cook() / "manifest.json"
    whole = manifest.read_bytes()
    for length in range(0, len(whole) - 2, 37):
        manifest.write_bytes(whole[:length])
        kitchen.cook()
        assert "no readable manifest" in kitchen.said[-1]
        assert json.loads(manifest.read_bytes())["outputs"] == json.loads(whole)["outputs"]


def test_a_finished_folder_is_renamed_into_place_and_never_copied(kitchen):
    """A rename is one step: the folder that was filled is the folder that stands there. A copy has another inode, and a
    kill in the middle of it would leave a part."""
    filled = []
    folder = kitchen.work.stage("stage", lambda f: filled.append(f.stat().st_ino), config={}, inputs={})
    assert [folder.stat().st_ino] == filled
    assert [path.name for path in kitchen.work.root.iterdir() if path.is_dir()] == ["stage"]


def test_the_manifest_is_written_last_and_lists_every_file(kitchen):
    folder = kitchen.cook()
    assert list(json.loads((folder / "manifest.json").read_text())["outputs"]) == ["dish/soup.txt"]


def test_results_go_to_the_checkout_or_to_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("DPO_KIT_RUNS", raising=False)
    assert default_workdir("tiny") == ROOT / "runs" / "tiny"
    monkeypatch.setattr("dpo_kit.workspace.IN_CHECKOUT", False)
    assert default_workdir("tiny") == Path("runs/tiny")
    monkeypatch.setenv("DPO_KIT_RUNS", str(tmp_path))
    assert default_workdir("tiny") == tmp_path / "tiny"


def test_a_build_that_fails_leaves_the_earlier_result_in_place(kitchen):
    kitchen.cook()

    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kitchen.work.stage("stage", fail, config={"seed": 1}, inputs={})
    kitchen.cook()
    assert kitchen.said[-1] == "stage: done before, verified"


@pytest.mark.slow
def test_kill_at_random_moments_never_leaves_a_half_stage_for_a_whole_one(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from dpo_kit.workspace import Workspace
        def build(folder):
            for i in range(40):
                (folder / f"{{i}}.txt").write_text(str(i) * 100_000)
        work = Workspace(Path({str(tmp_path / "run")!r}), "tiny", print)
        work.stage("stage", build, {{"seed": int(sys.argv[1])}}, {{}})
    """)

    def start(seed):
        return subprocess.Popen([sys.executable, "-c", script, str(seed)], stdout=subprocess.PIPE, text=True)

    seconds = _time(lambda: start(-1).wait())
    for seed in range(12):
        child = start(seed)
        time.sleep(seconds * (0.3 + 0.06 * seed))  # from before the first file to after the last
        child.send_signal(signal.SIGKILL)
        child.wait()
        said = start(seed).communicate()[0]
        # the third: killed while the stage that is being replaced was half removed
        assert any(words in said for words in ("verified", "changed", "no readable manifest", "to be built"))
        for i in range(40):
            assert (tmp_path / "run" / "stage" / f"{i}.txt").read_text() == str(i) * 100_000
        assert json.loads((tmp_path / "run" / "stage" / "manifest.json").read_text())["config"] == {"seed": seed}


def _time(action):
    started = time.monotonic()
    action()
    return time.monotonic() - started


def test_two_runs_do_not_build_in_one_workdir_at_once(kitchen, tmp_path):
    def build(folder):
        other = Kitchen(tmp_path / "run")
        with pytest.raises(DpoKitError, match="in use by another run"):
            other.cook()

    kitchen.work.stage("outer", build, config={}, inputs={})
    kitchen.cook()
    assert kitchen.built == 1


def test_a_workdir_of_another_profile_is_refused(tmp_path):
    Workspace(tmp_path, "tiny")
    with pytest.raises(DpoKitError, match="made by profile 'tiny', not 'gpu-24gb'"):
        Workspace(tmp_path, "gpu-24gb")


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DpoKitError, match="cannot write here"):
        Workspace(tmp_path / "file" / "run", "tiny")


def test_an_unwritable_workdir_is_refused():
    with pytest.raises(DpoKitError, match="/proc/run: cannot write here"):
        Workspace(Path("/proc/run"), "tiny")  # not even root may


def test_fresh_removes_stages_and_nothing_else(kitchen, tmp_path):
    folder = kitchen.cook()
    (tmp_path / "run" / "notes").mkdir()
    (tmp_path / "run" / "notes" / "mine.txt").write_text("keep")
    Workspace(tmp_path / "run", "tiny", fresh=False)
    assert folder.exists()
    Workspace(tmp_path / "run", "tiny", fresh=True)
    assert not folder.exists()
    assert (tmp_path / "run" / "notes" / "mine.txt").read_text() == "keep"


def test_scratch_survives_a_kill_serves_the_same_build_only_and_goes_with_the_stage(kitchen):
    """What a killed build left is found again, until something that decides its result changes."""
    found = []

    def build(folder, end=None):
        scratch = kitchen.work.scratch("stage")
        found.append((scratch / "half.txt").exists())
        (scratch / "half.txt").write_text("half")
        if end:
            raise end

    def killed(folder):
        build(folder, KeyboardInterrupt)

    for seed in (0, 0, 1):
        with pytest.raises(KeyboardInterrupt):
            kitchen.work.stage("stage", killed, config={"seed": seed}, inputs={})
    assert found == [False, True, False]
    kitchen.work.stage("stage", build, config={"seed": 1}, inputs={})
    assert found[-1]
    assert not kitchen.work.scratch("stage").exists()


def test_fresh_removes_scratch_too(kitchen):
    def killed(folder):
        (kitchen.work.scratch("stage") / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kitchen.work.stage("stage", killed, config={}, inputs={})
    kitchen.work.remove_stages()
    assert not kitchen.work.scratch("stage").exists()


def test_a_kept_stage_is_not_built_again_for_other_settings_but_is_for_newer_code(tmp_path, monkeypatch):
    work = Workspace(tmp_path, "tiny", lambda line: None, keep=True)
    made = []

    def build(folder):
        made.append(folder)
        (folder / "x").write_text("x")

    work.stage("stage", build, config={"seed": 0, "dpo": {"beta": 0.1}}, inputs={"pairs": {"a": "1"}})
    with pytest.raises(DpoKitError, match=r"dpo.beta was 0.1 and is now 0.5; inputs.pairs.a was '1' and is now None"):
        work.stage("stage", build, config={"seed": 0, "dpo": {"beta": 0.5}}, inputs={"pairs": {}})
    assert len(made) == 1
    monkeypatch.setattr("dpo_kit.workspace.code_digest", lambda: "newer")
    work.stage("stage", build, config={"seed": 0, "dpo": {"beta": 0.1}}, inputs={"pairs": {"a": "1"}})
    assert len(made) == 2


def test_latest_leads_to_the_newest_run_and_never_replaces_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_KIT_RUNS", str(tmp_path))
    first = named_run({"seed": 0}, "tiny-own")
    assert (tmp_path / "latest").resolve() == first.resolve()
    second = named_run({"seed": 1}, "tiny-own")
    assert (tmp_path / "latest").resolve() == second.resolve() != first.resolve()
    assert named_run({"seed": 0}, "tiny-own") == first
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    named_run({"seed": 2}, "tiny-own")
    assert not (tmp_path / "latest").is_symlink()


def test_a_setting_that_is_new_and_none_builds_a_stage_again(tmp_path):
    work, made = Workspace(tmp_path, "tiny", lambda line: None), []
    for config in ({}, {"data": None}, {"data": None}):
        work.stage("stage", made.append, config=config, inputs={})
    assert len(made) == 2
