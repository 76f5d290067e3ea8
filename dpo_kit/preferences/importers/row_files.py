"""Rows of a file, which may be JSON Lines, a JSON list, CSV or Parquet.

A row is a dict of what its columns hold, with its place in the file. What is no row comes as a bad line, in the same
order, so that the caller decides what becomes of it. Files are read as a stream where their format allows it.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import BadLine, checked_object, decode, parse_object, raw_lines, strict_decoder


@dataclass(frozen=True)
class Row:
    """One row: its number (from 1), its columns, its bytes (None in Parquet), and what the number counts."""

    number: int
    columns: dict[str, Any]
    raw: bytes | None
    unit: str = "line"

    def refused(self, reason: str) -> BadLine:
        """The same row as a bad line."""
        raw = json.dumps(self.columns, default=str).encode("utf-8") if self.raw is None else self.raw
        return BadLine(self.number, reason, raw, self.unit)


def rows(path: Path) -> Iterator[Row | BadLine]:
    """The rows of a file. Raises DpoKitError where it cannot be read at all."""
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return _csv_rows(path)
    if kind in (".parquet", ".pq"):
        return _parquet_rows(path)
    first = next(raw_lines(path), (0, b""))[1]
    if first.startswith(b"PAR1"):
        return _parquet_rows(path)
    return _list_rows(path) if first.lstrip().startswith(b"[") else _line_rows(path)


def _line_rows(path: Path) -> Iterator[Row | BadLine]:
    for number, raw in raw_lines(path):
        try:
            yield Row(number, parse_object(raw), raw)
        except ValueError as error:
            yield BadLine(number, str(error), raw)


def _list_rows(path: Path) -> Iterator[Row | BadLine]:
    """The items of one JSON list. A list that was cut gives the items before the cut, and one bad item."""
    # Bytes that are not UTF-8 stay as lone surrogates, so that only the item that holds them is bad.
    text = path.read_bytes().decode("utf-8", errors="surrogateescape")
    number, at, following = 0, text.index("[") + 1, re.compile(r"\s*(,?)\s*")
    while (at := following.match(text, at).end()) < len(text) and text[at] != "]":
        number, flaws = number + 1, []
        try:
            value, end = strict_decoder(flaws).raw_decode(text, at)
        except (ValueError, RecursionError):
            yield BadLine(number, "not JSON from here to the end of the file", _bytes(text[at:]), "item")
            return
        raw, at = _bytes(text[at:end]), end
        try:
            decode(raw)
            yield Row(number, checked_object(value, flaws), raw, "item")
        except ValueError as error:
            yield BadLine(number, str(error), raw, "item")
    if text[at:].strip() != "]":
        fault = "the list does not end here" if text[at:] else "the list has no end"
        yield BadLine(number + 1, fault, _bytes(text[at:]), "item")


def _csv_rows(path: Path) -> Iterator[Row | BadLine]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KB is less than one long answer
    try:
        header = decode(next(raw_lines(path), (0, b""))[1])
    except ValueError as error:  # without its column names no row means anything
        raise DpoKitError(f"{path}, line 1: {error}; save the file as UTF-8") from None
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
                    raise DpoKitError(f"{path}, line 1: column names must be there and differ, found {cells}")
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
        return Row(number, {name: _unpacked(cell) for name, cell in zip(names, cells, strict=True)}, raw)
    except ValueError as error:
        return BadLine(number, str(error), raw)


def _unpacked(cell: str) -> Any:
    """A cell that holds chat messages as JSON text becomes the messages; every other cell stays the text it is."""
    if cell.lstrip().startswith("[") and '"role"' in cell:  # an answer may begin with a bracket too
        try:
            return parse_object(b'{"messages": %s}' % cell.encode("utf-8"))["messages"]
        except ValueError:
            return cell
    return cell


def _parquet_rows(path: Path) -> Iterator[Row | BadLine]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(number, columns, None, "row")
    except FileNotFoundError:
        raise DpoKitError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DpoKitError(f"{path}: cannot be read as Parquet after row {number} ({error})") from None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")
