"""The metrics log: one JSON line for each logged step, on the disk before the next step begins."""

import json
import os
from pathlib import Path

from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback


class MetricsLog(TrainerCallback):
    """Appends what the trainer logs to a JSONL file, as it was: a NaN is written as NaN.

    Each row has `step`, and the trainer's own names beside it (`loss`, `rewards/margins`, ...); other measurements
    join the same file through `write`.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, row: dict) -> None:
        """Append one row and flush it to the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.write({"step": state.global_step, **(logs or {})})


class Progress(TrainerCallback):
    """A progress bar with the loss beside it, and nothing printed a line a step."""

    def __init__(self, label: str):
        self.label = label

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, desc=self.label, unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def attach(trainer: Trainer, path: Path, label: str) -> MetricsLog:
    """Give `trainer` a metrics log at `path` and one progress bar; returns the log."""
    log = MetricsLog(path)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(log)
    trainer.add_callback(Progress(label))
    return log


def read_log(path: Path) -> list[dict]:
    """The rows of a metrics log; a last line that was cut off while being written is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
