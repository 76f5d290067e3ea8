"""The metrics log and its reader. Each logged step is one JSON line, on the disk before the next step begins."""

import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState

from dpo_kit.errors import DpoKitError
from dpo_kit.files import write_atomically


class MetricsLog(TrainerCallback):
    """Appends what the trainer logs to the JSONL file `path`, which begins empty. A NaN is written as NaN.

    Each row has `step` beside the trainer's own names (`loss`, `rewards/margins`, `eval_rewards/margins`, ...). Other
    measurements are added to the same file through `write`. Subscribers are called with a row once it is on the disk.
    """

    def __init__(self, path: Path):
        self.path = path
        self._subscribers: list[Callable[[dict[str, Any]], None]] = []
        path.unlink(missing_ok=True)

    def subscribe(self, on_row: Callable[[dict[str, Any]], None]) -> None:
        """Call `on_row(row)` after every row, in the thread that trains. A function that raises is not called again."""
        self._subscribers.append(on_row)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, flush it to the disk, call the subscribers. Raises DpoKitError where it cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DpoKitError(
                f"{self.path}: the log cannot be written ({error.strerror}); make room, then run the same again"
            ) from None
        self._tell(row)

    def restore(self, content: bytes) -> None:
        """Put back the log as it was when a checkpoint was made. Subscribers are called with each of its rows."""
        write_atomically(self.path, content)
        for row in read_log(self.path):
            self._tell(row)

    def _tell(self, row: dict[str, Any]) -> None:
        for on_row in list(self._subscribers):
            try:
                on_row(row)
            except Exception as error:  # a view that fails must not end the training that it shows
                self._subscribers.remove(on_row)
                warnings.warn(f"{on_row} failed and is told nothing more of this run: {error!r}", stacklevel=2)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        # the trainer's last row sums up this process only; after a resume that is not the whole training
        if "train_runtime" not in (logs or {}):
            self.write({"step": state.global_step, **(logs or {})})


class Progress(TrainerCallback):
    """A progress bar with the loss beside it, in place of a printed line for each step."""

    def __init__(self, label: str):
        self.label = label

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc=self.label, unit="step")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.close()


def attach(trainer: Trainer, path: Path, label: str, callbacks: Sequence[Any] = ()) -> MetricsLog:
    """Give `trainer` a metrics log at `path`, one progress bar and `callbacks`; returns the log.

    A callback is a TrainerCallback, or subscribes to the log with a method `on_row(row)`, or both.
    """
    log = MetricsLog(path)
    trainer.remove_callback(PrinterCallback)
    for callback in (log, Progress(label), *callbacks):
        if isinstance(callback, TrainerCallback):
            trainer.add_callback(callback)
        if hasattr(callback, "on_row"):
            log.subscribe(callback.on_row)
    return log


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics log, or of a stock trainer's `trainer_state.json` (the file's path or its folder's).

    A last line that was cut off while it was written is left out.
    Raises DpoKitError where there is no such file, or a `trainer_state.json` holds no log.
    """
    path = path / "trainer_state.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return [
                {"step": row["step"], **row} for row in json.loads(text)["log_history"] if "train_runtime" not in row
            ]
    except FileNotFoundError:
        raise DpoKitError(f"{path}: no such log") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DpoKitError(f"{path}: not the state of a trainer ({error!r}); its `log_history` was expected") from None
    return _complete_rows(text)


def _complete_rows(text: str) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def last_values(log: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The last value of each metric of a log that is a number."""
    return {name: value for row in log for name, value in row.items() if isinstance(value, (int, float))}
