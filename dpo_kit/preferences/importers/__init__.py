"""Preference data that others made, as our pairs.

The format is found from the first rows, or named; then every row ends in exactly one of three places: in a pair, in a
count of what made no pair (ties, nothing annotated), or in the quarantine with what is wrong with it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import BadLine, reason, refuse_or_keep, write_quarantine
from dpo_kit.preferences.importers.formats import FORMATS, Outcome, Unpaired, is_read, pair_up
from dpo_kit.preferences.importers.row_files import Row, rows
from dpo_kit.records import PreferencePair

LOOKED_AT = 50  # rows from which the format is found


@dataclass(frozen=True)
class Imported:
    """Pairs from a file: its format, how many rows were put aside, and why how many judgements made no pair."""

    pairs: list[PreferencePair]
    format: str
    rows: int
    quarantined: int
    without_pair: dict[str, int]
    unread_columns: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What became of the file, in sentences."""
        said = [f"{self.format}: {len(self.pairs)} pairs from {self.rows} rows"]
        said += [f"no pair from {count}: {why}" for why, count in self.without_pair.items()]
        said += [f"{self.quarantined} rows put aside"] if self.quarantined else []
        return said + ([f"columns not read: {', '.join(self.unread_columns)}"] if self.unread_columns else [])


def import_pairs(path: Path, format: str | None = None, quarantine: Path | None = None) -> Imported:
    """Pairs from a JSON Lines, JSON, CSV or Parquet file in any of `formats.FORMATS`.

    A broken row raises DpoKitError that names it, or goes to `quarantine`. A file whose format is not known raises
    DpoKitError with what each format misses in it.
    """
    path, source = Path(path), rows(Path(path))
    head = list(_head(source))
    name = _found(path, head) if format is None else _named(format)
    outcomes: list[Outcome] = []
    bad: list[BadLine] = []
    seen: dict[str, None] = {}
    good = 0
    for row in chain(head, source):
        judged = _judged(row, name)
        if isinstance(judged, BadLine):
            refuse_or_keep(path, judged, quarantine)
            bad.append(judged)
        else:
            good += 1
            outcomes += judged
            seen |= dict.fromkeys(row.columns)
    if quarantine is not None:
        write_quarantine(quarantine, path, bad)
    outcomes += pair_up(outcome for outcome in outcomes if isinstance(outcome, Unpaired))
    return Imported(
        pairs=[outcome for outcome in outcomes if isinstance(outcome, PreferencePair)],
        format=name,
        rows=good + len(bad),
        quarantined=len(bad),
        without_pair=dict(Counter(outcome for outcome in outcomes if isinstance(outcome, str))),
        unread_columns=tuple(column for column in seen if not is_read(column, name)),
    )


def _head(source: Iterator[Row | BadLine]) -> Iterator[Row | BadLine]:
    """The start of the file, up to `LOOKED_AT` good rows."""
    good = 0
    for row in source:
        yield row
        good += isinstance(row, Row)
        if good == LOOKED_AT:
            return


def _judged(row: Row | BadLine, name: str) -> Sequence[Outcome] | BadLine:
    if isinstance(row, BadLine):
        return row
    try:
        if lacks := FORMATS[name].lacks(row.columns):
            raise ValueError(f"not in the format {name}: {lacks}")
        return FORMATS[name].judged(row.columns)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return row.refused(reason(error))


def _named(format: str) -> str:
    if format not in FORMATS:
        raise DpoKitError(f"no format {format!r}; there are {', '.join(FORMATS)}")
    return format


def _found(path: Path, head: list[Row | BadLine]) -> str:
    """The most particular format that at least half of the first rows are in."""
    good = [row.columns for row in head if isinstance(row, Row)]
    if not good:
        why = f"; line 1: {head[0].reason}" if head else ": it is empty"
        raise DpoKitError(f"{path}: no row can be read{why}")
    for name, format in FORMATS.items():
        if 2 * sum(format.lacks(columns) is None for columns in good) >= len(good):
            return name
    reasons = "\n".join(f"  {name}: {format.lacks(good[0]) or 'most of the rows'}" for name, format in FORMATS.items())
    raise DpoKitError(f"{path}: the rows are in no known format; the first one misses, for\n{reasons}")
