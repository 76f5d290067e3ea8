"""Rows of a file or a folder: JSON Lines, JSON in several shapes, CSV, Parquet, Arrow; compressed, in any encoding.

A row is a dict of what its columns hold, with its place in the file. What is no row comes as a bad line, in the same
order, so that the caller decides what becomes of it. Files are read as a stream where their format allows it. What is
compressed or not in UTF-8 is first written to a temporary file, of at most `max_bytes`.
"""

import bz2
import codecs
import csv
import gzip
import json
import lzma
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import BadLine, checked_object, decode, parse_object, raw_lines, strict_decoder

MOST_BYTES = 8 * 2**30
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".pq", ".arrow")
PACKED = (".gz", ".zst", ".bz2", ".xz")
OTHERS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # of a saved data set
SPLIT = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev|eval)(?![a-z])", re.I)
BOMS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
LISTED = ("data", "rows", "examples", "instances", "records", "items", "train", "conversations", "pairs")


@dataclass(frozen=True)
class Row:
    """One row: its number (from 1), its columns, its bytes (None in tables), what the number counts, its file."""

    number: int
    columns: dict[str, Any]
    raw: bytes | None
    unit: str = "line"
    file: str = ""

    def refused(self, reason: str) -> BadLine:
        """The same row as a bad line."""
        raw = json.dumps(self.columns, default=str).encode("utf-8") if self.raw is None else self.raw
        return BadLine(self.number, reason, raw, self.unit, self.file)


def rows(
    path: Path, encoding: str | None = None, max_bytes: int = MOST_BYTES, split: str = "train"
) -> Iterator[Row | BadLine]:
    """The rows of a file, of all files of a folder, or of standard input where the path is `-`.

    Where a folder's files are of several splits, those of `split` are read. Raises DpoKitError where it cannot be read.
    """
    if path.is_dir():
        for shard in shards(path, split):
            yield from (replace(row, file=shard.name) for row in rows(shard, encoding, max_bytes))
        return
    with _plain(path, encoding, max_bytes) as plain:
        yield from _plain_rows(plain, path)


def shards(folder: Path, split: str = "train") -> list[Path]:
    """The files of a folder that hold rows, in order. Raises DpoKitError for links, and where there are none."""
    if (folder / "dataset_dict.json").is_file():  # saved by `DatasetDict.save_to_disk`
        if not (folder / split).is_dir() or Path(split).name != split:
            there = sorted(p.name for p in folder.iterdir() if p.is_dir())
            raise DpoKitError(f"{folder}: no split {split!r} there; there are {', '.join(there)}")
        folder = folder / split
    found = sorted(
        p
        for p in folder.rglob("*")
        if _holds_rows(p) and not any(q.startswith(".") for q in p.parts[len(folder.parts) :])
    )
    if link := next((p for p in (*found, *folder.rglob("*")) if p.is_symlink()), None):
        raise DpoKitError(f"{link}: a link; the files of a data set must lie in its own folder, so copy it there")
    by_split: dict[str, list[Path]] = {}
    for path in found:
        mark = SPLIT.search(path.relative_to(folder).as_posix())
        by_split.setdefault(mark[1].lower() if mark else "", []).append(path)
    if not found:
        raise DpoKitError(f"{folder}: no file there whose name ends in {', '.join(SUFFIXES)}")
    if len(by_split) > 1 and split not in by_split:
        names = ", ".join(sorted(filter(None, by_split)))
        raise DpoKitError(f"{folder}: files of several splits ({names}), and none of {split!r}; name one file")
    return by_split[split] if len(by_split) > 1 else found


def _holds_rows(path: Path) -> bool:
    name = path.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return name.endswith(SUFFIXES) and path.name not in OTHERS and path.is_file()


@contextmanager
def _plain(path: Path, encoding: str | None, max_bytes: int) -> Iterator[Path]:
    """The file itself, or a temporary one with its content unpacked and in UTF-8."""
    stdin = str(path) == "-"
    try:
        start = b"" if stdin else _start(path)
        with tempfile.TemporaryDirectory() as folder:
            plain = path
            if stdin:
                plain = _copied(sys.stdin.buffer, Path(folder) / "stdin", max_bytes, "standard input")
                start = _start(plain)
            if unpack := _unpacker(start):
                with unpack(plain) as source:
                    plain = _copied(source, Path(folder) / "unpacked", max_bytes, str(path))
                start = _start(plain)
            if start.startswith((b"PK\x03\x04", b"7z\xbc\xaf")) or start[257:262] == b"ustar":
                raise DpoKitError(f"{path}: an archive of several files; unpack it and name the folder")
            coding = encoding or next((name for bom, name in BOMS if start.startswith(bom)), None)
            if coding is None and b"\0" in start[:4] and not start.startswith(b"PAR1") and b"{" in start[:4]:
                raise DpoKitError(f"{path}: UTF-16 or UTF-32 without a mark; name it, such as --encoding utf-16-le")
            if coding and not start.startswith(b"PAR1"):
                plain = _recoded(plain, Path(folder) / "utf-8", coding, path)
            yield plain
    except FileNotFoundError:
        raise DpoKitError(f"{path}: no such file") from None
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DpoKitError(f"{path}: the compressed file is damaged or was cut ({error}); copy it again") from None
    except OSError as error:
        raise DpoKitError(f"{path}: cannot be read ({error.strerror or error})") from None


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _unpacker(start: bytes) -> Any:
    """What opens a compressed file, from the file's first bytes; None where it is not compressed."""
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow

        return lambda path: pyarrow.input_stream(str(path), compression="zstd")
    openers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    return next((opener for magic, opener in openers.items() if start.startswith(magic)), None)


def _copied(source: IO[bytes], target: Path, max_bytes: int, name: str) -> Path:
    with target.open("wb") as file:
        while chunk := source.read(2**20):
            if file.tell() + len(chunk) > max_bytes:
                raise DpoKitError(f"{name}: more than {max_bytes} bytes when unpacked; allow more with --max-bytes")
            file.write(chunk)
    return target


def _recoded(source: Path, target: Path, encoding: str, path: Path) -> Path:
    try:
        with source.open(encoding=encoding, newline="") as old, target.open("w", encoding="utf-8", newline="") as new:
            while chunk := old.read(2**20):
                new.write(chunk)
    except LookupError:
        raise DpoKitError(
            f"--encoding {encoding}: no such encoding; utf-8, utf-16, latin-1 and cp1252 are some"
        ) from None
    except UnicodeError as error:
        raise DpoKitError(f"{path}: not in the encoding {encoding} ({error}); name another with --encoding") from None
    return target


def _plain_rows(path: Path, named: Path) -> Iterator[Row | BadLine]:
    """The rows of a file that is neither compressed nor in another encoding. `named` is what the user named."""
    endings = [ending.lower() for ending in named.suffixes if ending.lower() not in PACKED]
    kind = endings[-1] if endings else ""
    start = _start(path)
    if kind in (".csv", ".tsv") and not start.startswith(b"PAR1"):
        return _csv_rows(path, named)
    if start.startswith(b"PAR1") or kind in (".parquet", ".pq"):
        return _parquet_rows(path, named)
    if kind == ".arrow":
        return _arrow_rows(path, named)
    first = next(raw_lines(path), (0, b""))[1].strip()
    if first.startswith(b"["):
        return _value_rows(path, path.read_bytes().index(b"[") + 1)
    if first.startswith(b"{") and (first == b"{" or not first.endswith(b"}")) and not _is_object(first):
        whole = next(_value_rows(path, 0), None) if first[-1:] in b"{[,:" else None
        if isinstance(whole, Row):
            return _whole_rows(path, whole)
    elif first.startswith(b"{") and len(first) < 2**28 and _is_only_line(path):
        whole = next(_value_rows(path, 0), None)
        if isinstance(whole, Row) and _rows_inside(whole.columns) is not None:
            return _whole_rows(path, whole)
    return _line_rows(path)


def _is_object(raw: bytes) -> bool:
    try:
        return bool(parse_object(raw) or True)
    except ValueError as error:
        return "not JSON" not in str(error)


def _is_only_line(path: Path) -> bool:
    lines = raw_lines(path)
    return next(lines, None) is not None and next(lines, None) is None


def _whole_rows(path: Path, first: Row) -> Iterator[Row | BadLine]:
    """The rows of objects that go over several lines: those inside of a single one, or each its own row."""
    values = _value_rows(path, 0)
    next(values)
    second = next(values, None)
    inside = _rows_inside(first.columns) if second is None else None
    if inside is None:
        yield from _value_rows(path, 0)
        return
    for number, item in enumerate(inside, start=1):
        if isinstance(item, dict):
            yield Row(number, item, None, "item")
        else:
            raw = json.dumps(item).encode()
            yield BadLine(number, f"an object was expected, found {type(item).__name__}", raw, "item")


def _rows_inside(whole: Mapping[str, Any]) -> list[Any] | None:
    """The rows that one object holds: a list under a usual name, or columns as lists or by index; None for no rows."""
    lists = [name for name in whole if name in LISTED and _is_rows(whole[name])]
    if len(lists) > 1:
        raise DpoKitError(f"the file holds several lists of rows ({', '.join(lists)}); keep the one that is meant")
    if lists:
        found = whole[lists[0]]
        return [item["row"] if set(item) >= {"row", "row_idx"} else item for item in found]
    names, cells = whole.get("columns"), whole.get("data")
    if isinstance(names, list) and isinstance(cells, list) and all(isinstance(row, list) for row in cells):
        return [dict(zip(names, row, strict=True)) for row in cells if len(row) == len(names)]
    values = list(whole.values())
    if len(values) > 1 and all(isinstance(value, list) for value in values):
        same = len({len(value) for value in values}) == 1 and len(values[0]) > 0
        if same and not any(isinstance(value[0], dict) for value in values):
            return [dict(zip(whole, row, strict=True)) for row in zip(*values, strict=True)]
    if values and all(isinstance(value, dict) and value and all(k.isdigit() for k in value) for value in values):
        indices = list(dict.fromkeys(index for value in values for index in value))
        return [{name: value.get(index) for name, value in whole.items()} for index in indices]
    if values and all(key.isdigit() and isinstance(value, dict) for key, value in whole.items()):
        return values
    return None


def _is_rows(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) for item in value)
        and not any({"role", "from"} & item.keys() for item in value[:3])
    )


def _line_rows(path: Path) -> Iterator[Row | BadLine]:
    for number, raw in raw_lines(path):
        try:
            yield Row(number, parse_object(raw), raw)
        except ValueError as error:
            yield BadLine(number, str(error), raw)


def _value_rows(path: Path, at: int) -> Iterator[Row | BadLine]:
    """JSON values from a place on: the items of a list, or objects one after the other that go over several lines.

    A list that was cut gives the items before the cut, and one bad item. A broken object ends where a line opens the
    next one.
    """
    # Bytes that are not UTF-8 stay as lone surrogates, so that only the item that holds them is bad.
    text = path.read_bytes().decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    listed = at > 0
    at = text.index("[") + 1 if listed else 0
    number, following = 0, re.compile(r"\s*(,?)\s*")
    while (at := following.match(text, at).end()) < len(text) and not (listed and text[at] == "]"):
        number, flaws = number + 1, []
        try:
            value, end = strict_decoder(flaws).raw_decode(text, at)
        except (ValueError, RecursionError):
            end = -1 if listed else text.find("\n{", at)
            broken = text[at:] if end < 0 else text[at:end]
            yield BadLine(
                number,
                f"not JSON from here to the {'end of the file' if end < 0 else 'next object'}",
                _bytes(broken),
                "item",
            )
            if end < 0:
                return
            at = end
            continue
        raw, at = _bytes(text[at:end]), end
        try:
            decode(raw)
            yield Row(number, checked_object(value, flaws), raw, "item")
        except ValueError as error:
            yield BadLine(number, str(error), raw, "item")
    if listed and text[at:].strip() != "]":
        fault = "the list does not end here" if text[at:] else "the list has no end"
        yield BadLine(number + 1, fault, _bytes(text[at:]), "item")


def _csv_rows(path: Path, named: Path) -> Iterator[Row | BadLine]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KB is less than one long answer
    try:
        header = decode(next(raw_lines(path), (0, b""))[1])
    except ValueError as error:  # without its column names no row means anything
        raise DpoKitError(f"{named}, line 1: {error}; save the file as UTF-8, or name its --encoding") from None
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        seen: list[str] = []
        lines = (seen.append(line) or line for line in file)  # `seen` keeps the lines of a row as they are in the file
        reader = csv.reader(lines, delimiter=max(",;\t", key=header.count), strict=True)
        names: list[str] | None = None
        while True:
            number = reader.line_num + 1
            seen.clear()
            try:
                cells, fault = next(reader), None
            except StopIteration:
                return
            except csv.Error as error:
                cells, fault = [], f"not CSV ({error})"
            raw = _bytes("".join(seen).rstrip("\r\n"))
            if not raw.strip():
                continue
            if names is None:
                if len(set(cells)) < len(cells) or not cells:
                    raise DpoKitError(f"{named}, line 1: column names must be there and differ, found {cells}")
                names = cells
                continue
            yield _csv_row(names, number, cells, fault, raw)


def _csv_row(names: list[str], number: int, cells: list[str], fault: str | None, raw: bytes) -> Row | BadLine:
    try:
        if b"\0" in raw:
            raise ValueError("a NUL byte")
        decode(raw)
        if fault or len(cells) != len(names):
            raise ValueError(fault or f"{len(cells)} cells under {len(names)} column names")
        return Row(number, dict(zip(names, cells, strict=True)), raw)
    except ValueError as error:
        return BadLine(number, str(error), raw)


def _parquet_rows(path: Path, named: Path) -> Iterator[Row | BadLine]:
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1000)

    return _table_rows(batches(), named, "Parquet")


def _arrow_rows(path: Path, named: Path) -> Iterator[Row | BadLine]:
    import pyarrow

    def batches() -> Iterator[Any]:
        with pyarrow.memory_map(str(path)) as file:
            try:
                yield from pyarrow.ipc.open_stream(file)
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(file)
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))

    return _table_rows(batches(), named, "Arrow")


def _table_rows(batches: Iterator[Any], named: Path, kind: str) -> Iterator[Row | BadLine]:
    import pyarrow

    number = 0
    try:
        for batch in batches:
            for columns in batch.to_pylist():
                number += 1
                yield Row(number, {name: without_none(value) for name, value in columns.items()}, None, "row")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DpoKitError(f"{named}: cannot be read as {kind} after row {number} ({error})") from None


def without_none(value: Any) -> Any:
    """A value of a table without the keys that Arrow adds: it gives every object every key that any object has."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")
