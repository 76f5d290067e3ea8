"""Answers that survive a kill: an append-only file, keyed by everything that an answer depends on.

What is stored together is one line, written and flushed to the disk in one go: a kill leaves whole lines and perhaps
one that was cut off, which the next writer removes. So a batch is in the store as a whole or not at all, and a run that
goes on forms the same batches, and rounds the same way, as one that was never interrupted.

A line that cannot be read is passed over: its answers are missing, and are made again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from dpo_kit.errors import DpoKitError
from dpo_kit.files import flush
from dpo_kit.records import Prompt


class Answer(NamedTuple):
    """The text of an answer, and whether it ended by itself; None where nobody knows."""

    text: str
    stopped: bool | None


class Missing(NamedTuple):
    """An answer that was asked for and did not come, and why."""

    prompt_id: str
    reason: str


def answer_key(prompt: Prompt, **depends_on: Any) -> str:
    """A hash of the prompt (its id, which seeds the draw, and its messages) and of what else the answer depends on."""
    content = json.dumps([prompt.id, prompt.chat(), depends_on], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerStore:
    """The answers in one JSONL file, which is made with the first of them. Two processes may share it.

    Raises DpoKitError where the file cannot be read or written.
    """

    def __init__(self, path: Path):
        self.path = path
        self._known: dict[str, Answer] = {}
        self._read_to = 0
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        if path.exists():
            self._catch_up()

    def find(self, keys: Sequence[str]) -> list[Answer | None]:
        """The stored answer to each key, or None."""
        return [self._known.get(key) for key in keys]

    def add(self, keys: Sequence[str], answers: Sequence[Answer]) -> list[Answer]:
        """Store answers as one line, durably; returns what is now stored: the first answer to a key is the one kept."""
        row = dict(zip(keys, answers, strict=True))
        line = json.dumps(row).encode() + b"\n"  # ASCII only: JSON escapes keep what UTF-8 cannot hold
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._catch_up()
                self._append(line)
        except OSError as error:
            raise DpoKitError(f"{self.path}: cannot write here ({error.strerror}); choose another place") from None
        self._learn(row)
        return [self._known[key] for key in keys]

    def _append(self, line: bytes) -> None:
        """Write after the last whole line; what a kill cut off behind it goes."""
        new = not self.path.exists()
        with self.path.open("ab") as file:
            file.truncate(self._read_to)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._read_to += len(line)
        if new:
            flush(self.path.parent)  # a new file's name lies in its folder

    def _catch_up(self) -> None:
        """Read the whole lines that were appended since the last look."""
        for line in self._new_lines():
            try:
                row = json.loads(line)
                self._learn({key: Answer(*values) for key, values in row.items()})
            except (ValueError, TypeError, AttributeError):
                continue

    def _new_lines(self) -> Iterator[bytes]:
        if not self.path.exists() or self.path.stat().st_size < self._read_to:
            self._read_to = 0  # someone removed it: begin again
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read_to += len(line)
                yield line

    def _learn(self, row: dict[str, Answer]) -> None:
        for key, answer in row.items():
            self._known.setdefault(key, answer)
