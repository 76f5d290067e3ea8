"""The metrics log is durable and calls its subscribers, and logs of stock trainers can be read too."""

import json
import os
from pathlib import Path

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.training.metrics_log import MetricsLog, read_log
from dpo_kit.workbook.cells import without_timings


def test_subscribers_hear_a_row_once_it_is_on_the_disk(tmp_path):
    log, heard = MetricsLog(tmp_path / "log.jsonl"), []
    log.subscribe(lambda row: heard.append((row, read_log(tmp_path / "log.jsonl"))))
    log.write({"step": 1, "loss": 0.5})
    assert heard == [({"step": 1, "loss": 0.5}, [{"step": 1, "loss": 0.5}])]


def test_a_row_is_flushed_to_the_disk_before_anybody_hears_of_it(tmp_path, monkeypatch):
    """What the process hands to the system is lost with the power; `fsync` is what puts it on the disk."""
    log, events = MetricsLog(tmp_path / "log.jsonl"), []

    def fsync(descriptor):
        state = os.fstat(descriptor)
        assert state.st_ino == log.path.stat().st_ino
        events.append(f"{state.st_size} bytes on the disk")

    monkeypatch.setattr(os, "fsync", fsync)
    log.subscribe(lambda row: events.append(f"heard of {row}"))
    log.write({"step": 1})
    log.write({"step": 2})
    size = len('{"step": 1}\n')
    expected = [f"{size} bytes on the disk", "heard of {'step': 1}", f"{2 * size} bytes on the disk"]
    assert events == [*expected, "heard of {'step': 2}"]


def test_a_subscriber_that_fails_is_left_out_and_the_log_goes_on(tmp_path):
    log, heard = MetricsLog(tmp_path / "log.jsonl"), []
    log.subscribe(lambda row: 1 / 0)
    log.subscribe(heard.append)
    with pytest.warns(UserWarning, match="told nothing more of this run: ZeroDivisionError"):
        log.write({"step": 1})
    log.write({"step": 2})
    assert heard == read_log(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_restored_log_is_what_the_checkpoint_held_and_is_heard_again(tmp_path):
    log, heard = MetricsLog(tmp_path / "log.jsonl"), []
    for step in (1, 2, 3):
        log.write({"step": step})
    log.subscribe(heard.append)
    log.restore(b'{"step": 1}\n{"step": 2}\n')
    log.write({"step": 3, "loss": 0.1})
    assert heard == read_log(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.1}]


def test_a_new_log_does_not_go_on_with_an_old_one(tmp_path):
    MetricsLog(tmp_path / "log.jsonl").write({"step": 1})
    MetricsLog(tmp_path / "log.jsonl").write({"step": 0})
    assert read_log(tmp_path / "log.jsonl") == [{"step": 0}]


def test_a_full_disk_is_said():
    log = MetricsLog.__new__(MetricsLog)
    log.path, log._subscribers = Path("/dev/full"), []
    with pytest.raises(DpoKitError, match="the log cannot be written \\(No space left on device\\)"):
        log.write({"step": 1})


def test_a_stock_trainers_state_is_read_as_rows(tmp_path):
    history = [
        {"epoch": 0.5, "loss": 0.69, "rewards/margins": 0.0, "step": 1},
        {"epoch": 1.0, "eval_loss": 0.6, "step": 2},
        {"train_runtime": 3.0, "train_loss": 0.6, "step": 2},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": 2}))
    for path in (tmp_path, tmp_path / "trainer_state.json"):
        assert read_log(path) == history[:2], "all but the summary of the process"
        assert next(iter(read_log(path)[0])) == "step"


@pytest.mark.parametrize("content", ["{", "[]", '{"global_step": 2}', '{"log_history": [{"loss": 1}]}'])
def test_what_is_no_trainers_state_is_said(tmp_path, content):
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(DpoKitError, match="not the state of a trainer"):
        read_log(tmp_path)


def test_a_missing_log_is_said(tmp_path):
    with pytest.raises(DpoKitError, match="no such log"):
        read_log(tmp_path / "log.jsonl")


def test_what_a_clock_decides_is_left_out_of_a_comparison():
    rows = [
        {
            "step": 1,
            "loss": 0.5,
            "pairs_per_s": 3.0,
            "memory_mb": 900,
            "eval_runtime": 1.0,
            "eval_steps_per_second": 2.0,
        }
    ]
    assert without_timings(rows) == [{"step": 1, "loss": 0.5}]
