"""Results that must not be lost, in one SQLite file: answers, a judge's replies, reference log-probs, people's labels.

Each call opens the file, commits and closes it, so several processes, notebooks and threads can share one. A kill at
any moment loses at most the transaction under way, as a whole. SQLite's rollback journal is kept, because a write-ahead
log does not work on a network disk, and switching to it fails where two processes create the file at the same time.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from dpo_kit.errors import DpoKitError
from dpo_kit.files import json_object

Value = TypeVar("Value", bound=tuple)


class Database:
    """One SQLite file with the tables of a subclass, opened for each transaction.

    Every method raises DpoKitError where the file cannot be written, is locked for longer than `patience` seconds,
    damaged, or not one of ours.
    """

    application: int  # SQLite's `application_id`, which marks the file as ours
    version = 1
    tables: str
    holds: str  # what messages call the content
    rescue: str  # what to do about a damaged file
    patience = 60.0

    def __init__(self, path: Path):
        """Open the file and check it for damage, or create it."""
        self.path = Path(path).absolute()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DpoKitError(f"{self.path}: no folder for {self.holds} here: {error.strerror}") from None
        with self._connected("rwc") as db:
            self._prepare(db)

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make our tables in an empty file; refuse a file of another kind or version, or a damaged one."""
        db.execute("BEGIN")  # all three are read in one state, even if another process creates the file now
        application, version, tables = (
            db.execute(query).fetchone()[0]
            for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        db.execute("COMMIT")
        if (application, version, tables) == (0, 0, 0):
            mark = f"PRAGMA application_id = {self.application}; PRAGMA user_version = {self.version};"
            db.executescript(f"BEGIN IMMEDIATE; {self.tables} {mark} COMMIT;")
        elif application != self.application:
            raise DpoKitError(f"{self.path}: an SQLite file of another program; name another file for {self.holds}")
        elif version != self.version:
            raise DpoKitError(
                f"{self.path}: {self.holds} of version {version}, this dpo_kit reads version {self.version}; use the "
                "dpo_kit that wrote them, or name another file"
            )
        found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """Commit everything inside the block, or nothing. After an exception all is rolled back as the file closes."""
        with self._connected("rw") as db:
            db.execute(begin)
            yield db
            db.execute("COMMIT")

    @contextmanager
    def _connected(self, mode: str) -> Iterator[sqlite3.Connection]:
        db = None
        try:
            address = f"{self.path.as_uri()}?mode={mode}"
            db = sqlite3.connect(address, uri=True, timeout=self.patience, isolation_level=None)
            db.execute("PRAGMA synchronous = EXTRA")  # a commit is on the disk, and its journal is removed
            yield db
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            advice = "another program holds it: close that" if busy else "may it be written, and has the disk room?"
            raise DpoKitError(f"{self.path}: nothing was saved: {error}; {advice}") from None
        except (sqlite3.DatabaseError, ValueError) as error:  # ValueError: a row that differs from what was written
            found = str(error).splitlines()[0]
            raise DpoKitError(f"{self.path}: the file of {self.holds} is damaged ({found}); {self.rescue}") from None
        finally:
            if db is not None:
                db.close()


class Store(Database, Generic[Value]):
    """Named tuples under keys, such as `Store(path, Answer)`. The first value that is stored under a key stays.

    A new file takes over the values that earlier versions of the package kept in other files beside it.
    """

    application, tables = 0x44504F53, "CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, json TEXT NOT NULL);"
    holds, rescue = "stored results", "remove it, and its content is computed again"

    def __init__(self, path: Path, make: Callable[..., Value]):
        self.make = make
        super().__init__(path)
        with self._transaction("BEGIN") as db:
            empty = db.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        if empty and (old := dict(_kept_before(self.path, make))):
            self.add(list(old), list(old.values()))

    def find(self, keys: Sequence[str]) -> list[Value | None]:
        """What is stored under each key, or None."""
        with self._transaction("BEGIN") as db:
            return [self._read(db, key) for key in keys]

    def add(self, keys: Sequence[str], values: Sequence[Value]) -> list[Value]:
        """Store all values or none, durably; returns what is now stored under the keys."""
        # ASCII only, because JSON's escapes can hold half a surrogate pair and UTF-8 cannot
        rows = [(key, json.dumps(value)) for key, value in zip(keys, values, strict=True)]
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", rows)
            return [value for key in keys if (value := self._read(db, key)) is not None]  # all keys are stored now

    def _read(self, db: sqlite3.Connection, key: str) -> Value | None:
        row = db.execute("SELECT json FROM kept WHERE key = ?", (key,)).fetchone()
        return row and self.make(*json.loads(row[0]))


def _kept_before(path: Path, make: Callable[..., Value]) -> Iterator[tuple[str, Value]]:
    """Keys and values of a file of answers in JSON Lines, and of a folder with a judge's replies, beside `path`."""
    lines = path.with_suffix(".jsonl")
    for line in lines.read_bytes().splitlines() if lines.is_file() else ():
        try:
            yield from [(key, make(*value)) for key, value in json.loads(line).items()]
        except (ValueError, TypeError, AttributeError):  # cut off by a kill: the answers are made again
            continue
    for file in path.with_suffix("").glob("??/*.json"):
        saved = json_object(file)
        if isinstance(saved.get("text"), str):
            yield file.stem, make(saved["text"], saved.get("at", ""))
