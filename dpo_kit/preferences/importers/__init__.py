"""Preference data and prompts that others made, as our pairs and prompts.

The format of a file is found from its first rows, or named. Then every row ends in exactly one of three places: in a
pair, in a count of what made no pair (ties, nothing annotated), or in the quarantine with what is wrong with it.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import BadLine, reason, refuse_or_keep, write_quarantine
from dpo_kit.preferences.importers.annotation_exports import EXPORTS
from dpo_kit.preferences.importers.columns import NAMES, NoPair, Outcome, Unpaired, plain_name, prompt_of
from dpo_kit.preferences.importers.formats import ROWS, pair_up
from dpo_kit.preferences.importers.row_files import Row, rows
from dpo_kit.profiles import DataSettings, Profile
from dpo_kit.records import PreferencePair, Prompt, split_by_prompt
from dpo_kit.visible import reveal

if TYPE_CHECKING:
    from dpo_kit.preferences.audit import AuditReport

T = TypeVar("T")
LOOKED_AT = 50  # rows from which the format is found
FORMATS = EXPORTS | ROWS
"""By name, the more particular before the more general: a file is in the first one that most of its rows are in."""


@dataclass(frozen=True)
class Imported:
    """The pairs of a file, its format, and what became of the rows that made none.

    `prompts` has one for each pair and for each judgement without a pair, so that a prompt may be there several times.
    """

    pairs: list[PreferencePair]
    prompts: list[Prompt]
    format: str
    rows: int
    quarantined: int
    without_pair: dict[str, int]
    unread_columns: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What became of the file, in sentences."""
        notes = [f"{self.format}: {len(self.pairs)} pairs from {self.rows} rows"]
        notes += [f"no pair from {count}: {why}" for why, count in self.without_pair.items()]
        notes += [f"{self.quarantined} rows put aside"] if self.quarantined else []
        return notes + ([f"columns not read: {reveal(', '.join(self.unread_columns))}"] if self.unread_columns else [])


def import_pairs(path: Path, format: str | None = None, quarantine: Path | None = None) -> Imported:
    """Pairs from a JSON Lines, JSON, CSV or Parquet file in any of `FORMATS`.

    A broken row raises DpoKitError that names it, or goes to `quarantine`. A file whose format is not known raises
    DpoKitError with what each format misses in it.
    """
    path, source = Path(path), rows(Path(path))
    head = _head(source)
    if format is not None and format not in FORMATS:
        raise DpoKitError(f"no format {format!r}; there are {', '.join(FORMATS)}")
    name = format or _format(path, head)
    if name is None:
        first = next(row.columns for row in head if isinstance(row, Row))
        missing = "\n".join(f"  {name}: {form.missing(first) or 'most of the rows'}" for name, form in FORMATS.items())
        raise DpoKitError(f"{path}: the rows are in no known format; the first one misses, for\n{missing}")
    outcomes: list[Outcome] = []
    bad: list[BadLine] = []
    seen: dict[str, None] = {}
    good = 0
    for row in chain(head, source):
        found = _parsed(row, lambda columns: _outcomes(columns, name))
        if isinstance(found, BadLine):
            refuse_or_keep(path, found, quarantine)
            bad.append(found)
        else:
            good += 1
            outcomes += found
            seen |= dict.fromkeys(row.columns)
    if quarantine is not None:
        write_quarantine(quarantine, path, bad)
    outcomes += pair_up(outcome for outcome in outcomes if isinstance(outcome, Unpaired))
    return Imported(
        pairs=[outcome for outcome in outcomes if isinstance(outcome, PreferencePair)],
        prompts=[outcome.prompt for outcome in outcomes],
        format=name,
        rows=good + len(bad),
        quarantined=len(bad),
        without_pair=dict(Counter(outcome.reason for outcome in outcomes if isinstance(outcome, NoPair))),
        unread_columns=tuple(column for column in seen if not _is_read(column, name)),
    )


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts in a file of prompts, or in a file of pairs in any of `FORMATS`, each once, in the file's order.

    A row of a file of prompts has chat messages in `messages`, or a text or messages in `prompt` or another usual name
    of that column, and may have `id` (or `prompt_id`) and `facts`. A row without an id is named by its place, from 1.
    Raises DpoKitError that names the file and line of what it cannot use, and for two prompts with one id.
    """
    path, source = Path(path), rows(Path(path))
    head = _head(source)
    if _format(path, head):
        return _distinct(path, import_pairs(path).prompts)
    prompts = []
    for place, row in enumerate(chain(head, source), start=1):
        found = _parsed(row, lambda columns, place=place: _prompt(columns, place))
        if isinstance(found, BadLine):
            refuse_or_keep(path, found, None)
        prompts.append(found)
    return _distinct(path, prompts)


def load_external_pairs(
    profile: Profile, quarantine: Path, seed: int, log: Callable[[str], None] = print
) -> tuple[list[PreferencePair], list[PreferencePair], "AuditReport"]:
    """(pairs to train on, pairs of held-out prompts, the audit), of what `profile.data` names.

    Rows that cannot be read go to `quarantine`. Raises DpoKitError where the audit finds a blocking fault and
    `data.on_blocking` is "stop", and where nothing is left to train on.
    """
    from dpo_kit.models.tokens import Scoring, load_tokenizer
    from dpo_kit.preferences.audit import audit_pairs

    data = profile.data
    imported = import_external(data, quarantine)
    for note in imported.notes:
        log(f"pairs: {note}")
    pairs = imported.pairs[: data.limit]
    # Audited before the split, so that a duplicate cannot stand on both sides of it.
    tokenizer, scoring = load_tokenizer(profile.model_path, profile.model), Scoring.of(profile.model)
    report = audit_pairs(pairs, tokenizer, max_length=profile.model.max_length, scoring=scoring, keep=data.keep)
    if whole := [found for found in report.blocking if not found.drops]:  # no row is to blame, and none can be dropped
        said = "; ".join(f"{found.name}, in {found.count} of {len(pairs)} rows: {found.advice}" for found in whole)
        raise DpoKitError(f"{data.pairs} with {profile.model.path}: {said}")
    faults = "; ".join(f"{found.name} {found.count}" for found in report.findings if found.drops)
    if report.blocking and data.on_blocking == "stop":
        raise DpoKitError(
            f"{data.pairs}: the audit found faults that training would not show ({faults}); look with "
            f"`python -m dpo_kit audit`, and put them right or train on the {len(report.kept)} other pairs with "
            "--set data.on_blocking=drop"
        )
    log(f"pairs: {len(report.kept)} of {len(pairs)} kept{f', dropped for {faults}' if faults else ''}")
    trained, held_out = split_by_prompt(report.kept, data.heldout, seed)
    if not trained:
        raise DpoKitError(f"{data.pairs}: no pair is left to train on ({faults or 'all prompts are held out'})")
    return trained, held_out, report


def import_external(data: DataSettings, quarantine: Path) -> Imported:
    """The pairs of a file in any known format, or of a folder or Hub id that `datasets.load_dataset` reads.

    Raises DpoKitError where there is neither.
    """
    if Path(data.pairs).is_file():
        return import_pairs(Path(data.pairs), quarantine=quarantine)
    if Path(data.pairs).suffix in (".jsonl", ".json", ".csv", ".parquet"):
        raise DpoKitError(f"{data.pairs}: no such file")
    from datasets import load_dataset

    part = data.split if data.limit is None else f"{data.split}[:{data.limit}]"
    try:
        dataset = load_dataset(data.pairs, split=part)
    except (OSError, ValueError) as error:
        raise DpoKitError(
            f"{data.pairs}: no data set there with a split {data.split!r} ({str(error).splitlines()[0]}); "
            "data.pairs is a file, or a folder or Hub id with data.split"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        # By way of a file, so that a data set passes the same checks and the same quarantine as a file.
        path = Path(folder) / "pairs.parquet"
        dataset.to_parquet(path)
        return import_pairs(path, quarantine=quarantine)


def _head(source: Iterator[Row | BadLine]) -> list[Row | BadLine]:
    """The start of a file, up to `LOOKED_AT` good rows."""
    head, good = [], 0
    while good < LOOKED_AT and (row := next(source, None)):
        head.append(row)
        good += isinstance(row, Row)
    return head


def _format(path: Path, head: list[Row | BadLine]) -> str | None:
    """The first format that at least half of the first rows are in, if any. Raises DpoKitError without a good row."""
    # Not the format of most rows: every transcript is a text too, so the more general format would win.
    good = [row.columns for row in head if isinstance(row, Row)]
    if not good:
        why = f"; line 1: {head[0].reason}" if head else ": it is empty"
        raise DpoKitError(f"{path}: no row can be read{why}")
    fitting = (n for n, form in FORMATS.items() if 2 * sum(form.missing(row) is None for row in good) >= len(good))
    return next(fitting, None)


def _parsed(row: Row | BadLine, parse: Callable[[dict[str, Any]], T]) -> T | BadLine:
    if isinstance(row, BadLine):
        return row
    try:
        return parse(row.columns)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return row.refused(reason(error))


def _outcomes(columns: dict[str, Any], name: str) -> Iterable[Outcome]:
    if missing := FORMATS[name].missing(columns):
        raise ValueError(f"not in the format {name}: {missing}")
    return FORMATS[name].read(columns)


def _prompt(columns: dict[str, Any], place: int) -> Prompt:
    prompt = prompt_of(columns, columns.get("messages"))
    name = next((columns[key] for key in ("id", "prompt_id") if columns.get(key) not in (None, "")), place)
    return Prompt(id=str(name), messages=prompt.messages, facts=columns.get("facts") or {})


def _distinct(path: Path, prompts: Iterable[Prompt]) -> list[Prompt]:
    """Each prompt once. Raises DpoKitError where two have one id: samples and statistics are by it."""
    by_id: dict[str, Prompt] = {}
    for prompt in prompts:
        if by_id.setdefault(prompt.id, prompt) != prompt:
            raise DpoKitError(f"{path}: two prompts have the id {prompt.id!r}; give each prompt an id of its own")
    return list(by_id.values())


def _is_read(column: str, name: str) -> bool:
    usual = plain_name(column) in {name for names in NAMES.values() for name in names} | {"input", "context"}
    return usual or column in FORMATS[name].columns or (name == "argilla" and ".responses" in column)
