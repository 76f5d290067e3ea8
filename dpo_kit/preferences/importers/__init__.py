"""Preference data and prompts that others made, as our pairs and prompts.

The format of a file is found from its first rows, or named. Then every row ends in exactly one of three places: in a
pair, in a count of what made no pair (ties, nothing annotated), or in the quarantine with what is wrong with it.
Columns that hold something and were not read are reported; where they hold turns, tools or media, the row is refused.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import BadLine, read_records, reason, refuse_or_keep, write_quarantine
from dpo_kit.preferences.importers.annotation_exports import EXPORTS
from dpo_kit.preferences.importers.columns import (
    CHATS,
    NAMES,
    Fields,
    Mapped,
    NoPair,
    Outcome,
    Unpaired,
    empty,
)
from dpo_kit.preferences.importers.formats import ROWS, ambiguous, pair_up
from dpo_kit.preferences.importers.prompts import answer_of, demonstrations, evaluation_prompt
from dpo_kit.preferences.importers.row_files import MOST_BYTES, Row, rows, without_none
from dpo_kit.profiles import DataSettings, Profile
from dpo_kit.records import PreferencePair, Prompt, Response, split_by_prompt
from dpo_kit.visible import reveal

if TYPE_CHECKING:
    from dpo_kit.preferences.audit import AuditReport

T = TypeVar("T")
LOOKED_AT = 50  # rows from which the format is found
FORMATS = EXPORTS | ROWS
"""By name, the more particular before the more general: a file is in the first one that most of its rows are in."""
TURNS_TOO = {*CHATS, *NAMES["history"], *NAMES["tools"], *NAMES["context"]}
# `owner/name` or `name`, and not what the name of a file ends in
HUB_ID = re.compile(r"(?!.*\.(jsonl?|ndjson|[ct]sv|parquet|pq|arrow|gz|zst)$)[\w-]+(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Imported:
    """The pairs of a file, its format, and what became of the rows that made none.

    `prompts` has one for each pair and for each judgement without a pair, so that a prompt may be there several times.
    `unpaired` are rated answers without a counterpart, as KTO takes them. `remarks` are sentences on how rows were
    read, with the number of rows and the place of the first one; `unread_columns` likewise, by column.
    """

    pairs: list[PreferencePair]
    prompts: list[Prompt]
    format: str
    rows: int
    quarantined: int
    without_pair: dict[str, int]
    unread: dict[str, tuple[int, str]]
    remarks: dict[str, tuple[int, str]] = field(default_factory=dict)
    unpaired: list[Unpaired] = field(default_factory=list)
    bad: tuple[BadLine, ...] = ()

    @property
    def unread_columns(self) -> tuple[str, ...]:
        """The columns that hold something and were not read."""
        return tuple(self.unread)

    @property
    def notes(self) -> list[str]:
        """What became of the file, in sentences."""
        notes = [f"{self.format}: {len(self.pairs)} pairs from {self.rows} rows"]
        notes += [f"no pair from {count}: {why}" for why, count in self.without_pair.items()]
        notes += [f"{self.quarantined} rows put aside"] if self.quarantined else []
        notes += [f"{said} ({count} rows, first {place})" for said, (count, place) in self.remarks.items()]
        columns = ", ".join(f"{name} ({count} rows, first {place})" for name, (count, place) in self.unread.items())
        return notes + ([f"columns not read: {reveal(columns)}"] if columns else [])


def import_pairs(
    path: Path,
    format: str | None = None,
    quarantine: Path | None = None,
    *,
    mapped: Sequence[str] = (),
    encoding: str | None = None,
    max_bytes: int = MOST_BYTES,
    split: str = "train",
) -> Imported:
    """Pairs from a file in any of `FORMATS`, a folder of such files, or standard input (`-`).

    `mapped` has texts such as `prompt=question` (a role and the column that has it) and `preference.0=first` (what a
    value means: first, second or tie; good or bad). What is unpacked or written in another encoding may have at most
    `max_bytes`. A broken row raises DpoKitError that names it, or goes to `quarantine`. A file whose format is not
    known raises DpoKitError with what each format misses in it.
    """
    path = Path(path)
    return _imported(path, rows(path, encoding, max_bytes, split), format, quarantine, Mapped.of(mapped))


def import_rows(
    table: Iterable[dict[str, Any]],
    format: str | None = None,
    *,
    mapped: Sequence[str] = (),
    quarantine: Path | None = None,
) -> Imported:
    """Pairs from rows in memory: dicts, a `datasets.Dataset`, or a pandas DataFrame. As `import_pairs` otherwise."""
    table = table.to_dict("records") if hasattr(table, "to_dict") and hasattr(table, "columns") else table
    found = (Row(number, _plain(row), None, "row") for number, row in enumerate(table, start=1))
    return _imported(Path("rows in memory"), found, format, quarantine, Mapped.of(mapped))


def _plain(value: Any) -> Any:
    """A value of a table in memory as JSON would hold it: no arrays, no numbers of NumPy, no marks for missing ones."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_none(_plain(item)) for item in value]
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _imported(
    path: Path, source: Iterator[Row | BadLine], format: str | None, quarantine: Path | None, mapped: Mapped
) -> Imported:
    head = _head(source)
    if format is not None and format not in FORMATS:
        raise DpoKitError(f"no format {format!r}; there are {', '.join(FORMATS)}")
    name = format or _format(path, head, mapped)
    if name is None:
        first = next(_fields(row, mapped) for row in head if isinstance(row, Row))
        missing = "\n".join(f"  {name}: {form.missing(first) or 'most of the rows'}" for name, form in FORMATS.items())
        columns = reveal(", ".join(first.written.values()))
        raise DpoKitError(
            f"{path}: the rows are in no known format; say what the columns {columns} are, such as --map prompt=COLUMN "
            f"chosen=COLUMN rejected=COLUMN. The first row misses, for\n{missing}"
        )
    outcomes: list[Outcome] = []
    bad: list[BadLine] = []
    unread: dict[str, tuple[int, str]] = {}
    remarks: dict[str, tuple[int, str]] = {}
    labels: set[tuple[str, tuple[str, ...], float]] = set()
    good, alpaca_eval = 0, False
    for row in chain(head, source):
        fields: list[Fields] = []
        found = _parsed(row, lambda row, fields=fields: _outcomes(row, name, mapped, fields))
        labels.update(fields[0].labels if fields else ())  # also of a bad row: its label may tell how others count
        if isinstance(found, BadLine):
            refuse_or_keep(path, found, quarantine)
            bad.append(found)
            continue
        good += 1
        outcomes += found
        read = fields[0]
        place = f"{row.file + ', ' if row.file else ''}{row.unit} {row.number}"
        for names, counts in ((read.unread(), unread), (read.remarks, remarks)):
            for said in dict.fromkeys(names):
                count, first_place = counts.get(said, (0, place))
                counts[said] = (count + 1, first_place)
        alpaca_eval |= bool(read.keys() & {"generator_1", "annotator"})
    if fault := ambiguous(labels, alpaca_eval):
        raise DpoKitError(f"{path}: {fault}")
    if quarantine is not None:
        write_quarantine(quarantine, path, bad)
    if bad and not good:
        raise DpoKitError(f"{path}: no row can be read; {bad[0].unit} {bad[0].number}: {bad[0].reason}")
    rated = [outcome for outcome in outcomes if isinstance(outcome, Unpaired)]
    outcomes += pair_up(rated)
    paired = {
        id(side)
        for outcome in outcomes
        if isinstance(outcome, PreferencePair)
        for side in (outcome.chosen, outcome.rejected)
    }
    return Imported(
        pairs=[outcome for outcome in outcomes if isinstance(outcome, PreferencePair)],
        prompts=[outcome.prompt for outcome in outcomes],
        format=name,
        rows=good + len(bad),
        quarantined=len(bad),
        without_pair=dict(Counter(outcome.reason for outcome in outcomes if isinstance(outcome, NoPair))),
        unread=unread,
        remarks=remarks,
        unpaired=[answer for answer in rated if id(answer.answer) not in paired],
        bad=tuple(bad),
    )


def read_prompts(
    path: Path, *, mapped: Sequence[str] = (), log: Callable[[str], None] = print, **how: Any
) -> list[Prompt]:
    """The prompts in a file of prompts, or in a file of pairs in any of `FORMATS`, each once, in the file's order.

    A row of a file of prompts has chat messages in `messages`, or a text or messages in `prompt` or another usual name
    of that column, or MT-Bench's `turns`, and may have `id` (or `prompt_id`, `question_id`) and `facts`. A row without
    an id is named by its place, from 1. `log` is told what was left out, such as answers that stand behind a prompt.
    `how` goes to `row_files.rows`. Raises DpoKitError that names the file and line of what it cannot use, and for two
    prompts with one id.
    """
    path = Path(path)
    source, mapping = rows(path, **how), Mapped.of(mapped)
    head = _head(source)
    if _format(path, head, mapping):
        return _distinct(path, import_pairs(path, mapped=mapped, **how).prompts)
    counter = itertools.count(1)
    read = _read_all(path, chain(head, source), mapping, lambda row: [evaluation_prompt(row, next(counter))], log)
    return _distinct(path, read)


def read_answers(
    path: Path, prompts: Sequence[Prompt], *, mapped: Sequence[str] = (), log: Callable[[str], None] = print, **how: Any
) -> list[Response]:
    """Ready answers to `prompts`: `Response` records, or rows with a prompt and an answer, matched by the prompt.

    A row's prompt is found by its messages, else by its last user turn, else by its id. Raises DpoKitError where a row
    cannot be used, or where two prompts ask the same and a row cannot tell which it answers.
    """
    path = Path(path)
    source = rows(path, **how)
    head = _head(source)
    if any(isinstance(row, Row) and {"prompt_id", "text"} <= row.columns.keys() for row in head):
        return read_records(path, Response)
    read = _read_all(path, chain(head, source), Mapped.of(mapped), lambda row: [answer_of(row)], log)
    by_hash, by_text = ({_id(p): p for p in prompts}, {p.text.strip(): p for p in prompts})
    if len(by_hash) < len(prompts):
        raise DpoKitError(f"{path}: two prompts ask the same, so their answers cannot be matched; keep one of them")
    ids, found = {prompt.id: prompt for prompt in prompts}, []
    for name, asked, answer in read:
        prompt = by_hash.get(_id(asked)) or by_text.get(asked.text.strip()) or ids.get(name)
        found += [answer.model_copy(update={"prompt_id": prompt.id})] if prompt else []
    if not found:
        raise DpoKitError(f"{path}: none of its {len(read)} prompts is one of those that are evaluated")
    if len(found) < len(read):
        log(f"{path}: {len(read) - len(found)} answers belong to no prompt that is evaluated")
    return found


def import_demonstrations(
    path: Path, *, mapped: Sequence[str] = (), log: Callable[[str], None] = print, **how: Any
) -> tuple[list[Prompt], list[Response]]:
    """What SFT trains on: messages, ShareGPT, Alpaca or OpenAssistant trees, as (prompts, answers to them).

    Raises DpoKitError that names the file and line of a row without a demonstration.
    """
    path = Path(path)
    found = _read_all(path, rows(path, **how), Mapped.of(mapped), demonstrations, log)
    if not found:
        raise DpoKitError(f"{path}: it is empty")
    return [prompt for prompt, _ in found], [answer for _, answer in found]


def _read_all(
    path: Path,
    source: Iterable[Row | BadLine],
    mapped: Mapped,
    read: Callable[[Fields], list[T]],
    log: Callable[[str], None],
) -> list[T]:
    """What `read` makes of every row. Raises DpoKitError at the first bad one; `log` is told what was not read."""
    found: list[T] = []
    said: Counter[str] = Counter()

    def parse(row: Row) -> list[T]:
        fields = Fields(row.columns, mapped)
        made = read(fields)
        said.update({*fields.remarks, *(f"column not read: {reveal(name)}" for name in fields.unread())})
        return made

    for row in source:
        made = _parsed(row, parse)
        if isinstance(made, BadLine):
            refuse_or_keep(path, made, None)
        else:
            found += made
    for text, count in said.items():
        log(f"{path}: {text} ({count} rows)")
    return found


def _id(prompt: Prompt) -> str:
    return Prompt.of(prompt.messages, tools=prompt.tools).id


def _distinct(path: Path, prompts: Iterable[Prompt]) -> list[Prompt]:
    """Each prompt once. Raises DpoKitError where two have one id: samples and statistics are by it."""
    by_id: dict[str, Prompt] = {}
    for prompt in prompts:
        if by_id.setdefault(prompt.id, prompt) != prompt:
            raise DpoKitError(f"{path}: two prompts have the id {prompt.id!r}; give each prompt an id of its own")
    return list(by_id.values())


def import_external(data: DataSettings, quarantine: Path | None = None) -> Imported:
    """The pairs that `profile.data` names. Raises DpoKitError where there are none."""
    return import_any(data.pairs, quarantine, data.limit, mapped=data.map, split=data.split)


def import_any(
    source: str, quarantine: Path | None = None, limit: int | None = None, *, split: str = "train", **how: Any
) -> Imported:
    """The pairs of a file or folder, of standard input (`-`), or of a data set on the Hub, of which `limit` are read.

    `how` goes to `import_pairs`. Raises DpoKitError where there is none of them.
    """
    if Path(source).exists() or source == "-" or not HUB_ID.fullmatch(source):
        return import_pairs(Path(source), quarantine=quarantine, split=split, **how)
    from datasets import load_dataset

    try:
        dataset = load_dataset(source, split=split if limit is None else f"{split}[:{limit}]")
    except (OSError, ValueError) as error:
        raise DpoKitError(
            f"{source}: no file or folder, and no data set on the Hub with a split {split!r} "
            f"({str(error).splitlines()[0]}); check the path, or choose another split"
        ) from None
    return import_rows(dataset, mapped=how.get("mapped", ()), quarantine=quarantine)


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


def _head(source: Iterator[Row | BadLine]) -> list[Row | BadLine]:
    """The start of a file, up to `LOOKED_AT` good rows."""
    head, good = [], 0
    while good < LOOKED_AT and (row := next(source, None)):
        head.append(row)
        good += isinstance(row, Row)
    return head


def _fields(row: Row, mapped: Mapped) -> Fields:
    """A row's columns; messages as text that cannot be read stay texts here, and the row is refused when it is read."""
    return Fields(row.columns, mapped, lenient=True)


def _format(path: Path, head: list[Row | BadLine], mapped: Mapped) -> str | None:
    """The first format that at least half of the first rows are in, if any. Raises DpoKitError without a good row."""
    # Not the format of most rows: every transcript is a text too, so the more general format would win.
    good = [_fields(row, mapped) for row in head if isinstance(row, Row)]
    if not good:
        why = f"; line 1: {head[0].reason}" if head else ": it is empty"
        raise DpoKitError(f"{path}: no row can be read{why}")
    fitting = (n for n, form in FORMATS.items() if 2 * sum(form.missing(row) is None for row in good) >= len(good))
    return next(fitting, None)


def _parsed(row: Row | BadLine, parse: Callable[[Row], T]) -> T | BadLine:
    if isinstance(row, BadLine):
        return row
    try:
        return parse(row)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        return row.refused(reason(error))


def _outcomes(row: Row, name: str, mapped: Mapped, kept: list[Fields]) -> Iterable[Outcome]:
    fields = Fields(row.columns, mapped)
    kept.append(fields)
    if missing := FORMATS[name].missing(fields):
        raise ValueError(f"not in the format {name}: {missing}")
    fields.used.clear()
    fields.remarks.clear()
    outcomes = FORMATS[name].read(fields)
    _refuse_lost_turns(fields, outcomes)
    return outcomes


def _refuse_lost_turns(row: Fields, outcomes: Iterable[Outcome]) -> None:
    """Raise ValueError where a column that was not read holds turns, context or tools that are not in the outcome."""
    unread = [name for name in row if name in TURNS_TOO and name not in row.used and not empty(dict.get(row, name))]
    used = [outcome for outcome in outcomes if not isinstance(outcome, NoPair)]
    if not unread or not used:
        return
    sides = [s for o in used for s in ((o.answer,) if isinstance(o, Unpaired) else (o.chosen, o.rejected))]
    said = {message.text.strip() for outcome in used for message in outcome.prompt.messages}
    said |= {message.text.strip() for side in sides for message in side.messages}
    for name in unread:
        value = dict.get(row, name)
        turns = value if isinstance(value, list) else [value]
        texts = [t.get("content", t.get("value")) if isinstance(t, dict) else t for t in turns]
        if not all(isinstance(text, str) and text.strip() in said for text in texts):
            raise ValueError(
                f"column {row.written[name]} holds context that would be lost; remove it, or --map it to a role"
            )
