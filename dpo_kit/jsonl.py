"""JSON, read strictly and without loss; JSON Lines, read and written as plain objects or as records.

A line is good or bad. A bad line is neither repaired nor skipped in silence. It raises an error, or, where the caller
names a quarantine file, it is copied there unchanged with its number and the fault, and the good lines are returned.
Python's own parser accepts too much: two equal keys (it uses the last), NaN, half a surrogate pair, and a thousand
levels of nesting. Each of these would cause an error later and elsewhere, or a wrong result without an error.
"""

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dpo_kit.errors import DpoKitError
from dpo_kit.files import write_atomically
from dpo_kit.records import PreferencePair, Record

T = TypeVar("T")
R = TypeVar("R", bound=Record)
BOM = b"\xef\xbb\xbf"
MAX_DEPTH = 100  # pydantic writes no value nested deeper than 255
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be used: its number (from 1), what is wrong, its bytes, and the unit that the number counts.

    `file` is the file's name where it lies in a folder that is read as a whole.
    """

    number: int
    reason: str
    raw: bytes
    unit: str = "line"
    file: str = ""


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, all or nothing: there is never half a file."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomically(path, "".join(lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON objects, one a line. Raises DpoKitError that names the file and line of the first bad one."""
    return read_lines(path, lambda row: row)


def read_lines(
    path: Path,
    parse: Callable[[dict[str, Any]], T],
    quarantine: Path | None = None,
    log: Callable[[str], None] = print,
) -> list[T]:
    """`parse` of every line's object. `parse` may raise ValueError, KeyError or TypeError to call a line bad.

    Without `quarantine` the first bad line raises DpoKitError, which names file and line. With it, the bad lines are
    written there, `log` is called with their number, and the good ones are returned. Blank lines are ignored.
    """
    good: list[T] = []
    bad: list[BadLine] = []
    for number, raw in raw_lines(path):
        try:
            good.append(parse(parse_object(raw)))
        except (ValueError, KeyError, TypeError) as error:
            bad.append(BadLine(number, reason(error), raw))
            refuse_or_keep(path, bad[-1], quarantine)
    if quarantine is not None:
        write_quarantine(quarantine, path, bad)
        if bad:
            log(f"{path}: {len(bad)} of {len(good) + len(bad)} lines put aside in {quarantine}")
    return good


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSONL, all or nothing."""
    write_jsonl(path, (record.model_dump() for record in records))


def read_records(
    path: Path, kind: type[R], quarantine: Path | None = None, log: Callable[[str], None] = print
) -> list[R]:
    """Read records of one kind. Bad lines raise, or go to `quarantine`, as in `read_lines`."""
    return read_lines(path, kind.model_validate, quarantine, log)


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    """Write pairs in TRL's format, with what is known of them in further columns, all or nothing."""
    write_jsonl(path, (pair.to_json() for pair in pairs))


def read_pairs(path: Path, quarantine: Path | None = None, log: Callable[[str], None] = print) -> list[PreferencePair]:
    """Read what `write_pairs` wrote. Bad lines raise, or go to `quarantine`, as in `read_lines`.

    Other people's files are read by `preferences.importers.import_pairs`.
    """
    return read_lines(path, PreferencePair.from_json, quarantine, log)


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line that is not blank, without line end or byte order mark."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                raw = raw.removeprefix(BOM) if number == 1 else raw  # some editors on Windows write a byte order mark
                if raw.strip():
                    yield number, raw.removesuffix(b"\n").removesuffix(b"\r")
    except FileNotFoundError:
        raise DpoKitError(f"{path}: no such file") from None
    except OSError as error:
        raise DpoKitError(f"{path}: cannot be read ({error.strerror})") from None


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of one line. Raises ValueError that says what is wrong."""
    flaws: list[str] = []
    try:
        # Decode here, because `json.loads` of bytes may take them for UTF-16, and accepts lone surrogates.
        value = strict_decoder(flaws).decode(decode(raw))
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    return checked_object(value, flaws)


def decode(raw: bytes) -> str:
    """Text from UTF-8. Raises ValueError that names the byte, and a lone surrogate for what it is."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        surrogate = re.match(rb"\xed[\xa0-\xbf][\x80-\xbf]", raw[error.start : error.start + 3])
        what = "a lone surrogate" if surrogate else "not UTF-8"
        raise ValueError(f"{what} at byte {error.start}") from None


def strict_decoder(flaws: list[str]) -> json.JSONDecoder:
    """A decoder that adds to `flaws` what Python accepts and we do not. It continues, to find the end of the value."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            keys = [key for key, _ in items]
            flaws.append(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
        return found

    def number(text: str) -> int | float | None:
        value = float(text) if len(text) < 4000 else math.inf  # Python refuses integers of more than 4,300 digits
        if not math.isfinite(value):
            flaws.append(f"{text[:20]} is not a finite number")
            return None
        return int(text) if re.fullmatch(r"-?\d+", text) else value

    return json.JSONDecoder(object_pairs_hook=unique, parse_constant=number, parse_float=number, parse_int=number)


def checked_object(value: Any, flaws: Sequence[str] = ()) -> dict[str, Any]:
    """`value`, an object with nothing wrong in it. Raises ValueError with the first flaw."""
    flaw = next(iter(flaws), None) or _flaw(value)
    if flaw:
        raise ValueError(flaw)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was expected, found {type(value).__name__}")
    return value


def _flaw(value: Any, depth: int = 0) -> str | None:
    if depth > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, str):
        return "a lone surrogate in a text" if LONE_SURROGATE.search(value) else None
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        return next(filter(None, (_flaw(item, depth + 1) for item in value)), None)
    return None


def reason(error: Exception) -> str:
    """One line that says what an error found wrong."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"missing field {error.args[0]!r}"
    return str(error)


def refuse_or_keep(path: Path, bad: BadLine, quarantine: Path | None) -> None:
    """Raise DpoKitError for a bad line, unless there is a quarantine file for it."""
    if quarantine is None:
        raise DpoKitError(f"{path / bad.file}, {bad.unit} {bad.number}: {bad.reason}; repair or remove it")


def write_quarantine(quarantine: Path, source: Path, bad: Sequence[BadLine]) -> None:
    """Write the bad lines of `source`, or an empty file. Bytes that are not UTF-8 are written as base64."""
    if quarantine.resolve() == source.resolve():
        raise DpoKitError(f"{quarantine}: the quarantine must not be the file that is read; name another")
    write_jsonl(quarantine, (_quarantined(source, line) for line in bad))


def _quarantined(source: Path, line: BadLine) -> dict[str, Any]:
    try:
        kept = {"raw": line.raw.decode("utf-8")}
    except UnicodeDecodeError:
        kept = {"raw_base64": base64.b64encode(line.raw).decode("ascii")}
    # A reason may quote half a surrogate pair, which UTF-8 cannot hold.
    why = line.reason.encode("utf-8", errors="backslashreplace").decode("utf-8")
    return {"file": line.file or source.name, line.unit: line.number, "reason": why, **kept}
