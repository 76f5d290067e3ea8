import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from dpo_kit.files import hashes, json_object, sha256, write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    target = tmp_path / "report.json"
    write_atomically(target, "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_killed_writer_never_leaves_a_part(tmp_path):
    target = tmp_path / "big.json"
    script = textwrap.dedent(f"""
        from pathlib import Path
        from dpo_kit.files import write_atomically
        n = 0
        while True:
            n += 1
            write_atomically(Path({str(target)!r}), str(n % 10) * 2_000_000)
    """)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", script])
        while not target.exists():
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = target.read_text()
        assert len(content) == 2_000_000
        assert len(set(content)) == 1
        target.unlink()


def test_a_lone_surrogate_does_not_stop_the_write(tmp_path):
    write_atomically(tmp_path / "x", "a\ud800b")
    assert (tmp_path / "x").read_text() == "a?b"


def test_hashes_are_sha256_by_relative_path(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"b")
    (tmp_path / "a").write_bytes(b"a")
    assert list(hashes(tmp_path)) == ["a", "sub/b"]
    assert sha256(tmp_path / "a") == hashlib.sha256(b"a").hexdigest()
    assert list(hashes(tmp_path, skip=("a",))) == ["sub/b"]


@pytest.mark.parametrize("content", [None, b"", b'{"step": 1', b"[1]", b"\xff\xfe"], ids=repr)
def test_what_is_no_json_object_reads_as_an_empty_one(tmp_path, content):
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_bytes(content)
    assert json_object(path) == {}
    path.write_text('{"step": 1}')
    assert json_object(path) == {"step": 1}
