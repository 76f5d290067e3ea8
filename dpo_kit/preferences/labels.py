"""What people said, kept so that nothing they said is lost: one SQLite file, one durable transaction a label.

A label is a row that is never changed but for the time it was undone. A partial unique index allows one standing label
an annotator and item, whatever the number of clicks, processes and kills. How the file is opened, committed and
checked is said in `models.store`.

An item is named by its prompt and by what its texts are, so that a label never moves to answers it was not given to.
The item lies in the file beside its label: the file alone can be turned into verdicts and pairs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal

from dpo_kit.errors import DpoKitError
from dpo_kit.models.store import Database
from dpo_kit.records import PreferencePair, Prompt, Record, Response, Verdict, Winner

Choice = Literal["a", "b", "tie", "skip"]
Order = Literal["ab", "ba"]

TABLES = """
CREATE TABLE IF NOT EXISTS item (id TEXT PRIMARY KEY, json TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS label (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    annotator TEXT NOT NULL,
    item TEXT NOT NULL REFERENCES item (id),
    choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie', 'skip')),
    shown TEXT NOT NULL CHECK (shown IN ('ab', 'ba')),
    note TEXT NOT NULL,
    at TEXT NOT NULL,
    undone_at TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS one_standing_label ON label (annotator, item) WHERE undone_at IS NULL;
"""


class Item(Record):
    """Two answers to one prompt, for a person to compare."""

    prompt: Prompt
    a: Response
    b: Response

    @cached_property
    def id(self) -> str:
        """The prompt's id and a hash of the texts: other texts are another item."""
        texts = json.dumps([self.prompt.chat(), self.a.text, self.b.text])
        return f"{_storable(self.prompt.id)}#{hashlib.sha256(texts.encode()).hexdigest()[:12]}"


class Label(Record):
    """What one person said of one item: `shown` is the order of the sides, `at` and `undone_at` are ISO 8601 times."""

    annotator: str
    item: str
    choice: Choice
    shown: Order
    note: str = ""
    at: str
    undone_at: str | None = None

    def verdict(self) -> Verdict:
        """The label as any judge's verdict; a skipped item is unjudged."""
        winner: Winner = "unjudged" if self.choice == "skip" else self.choice
        return Verdict(winner=winner, judge=f"human:{self.annotator}", reason=self.note, order=self.shown, at=self.at)


class Labels(Database):
    """The labels in one file. Every method raises DpoKitError where the file is locked, damaged or not ours."""

    application, tables, holds = 0x44504F4B, TABLES, "labels"
    rescue = "restore a copy, or try `sqlite3 FILE .recover` on one"
    patience = 5.0  # seconds that a person waits for a file that another program holds

    def add(self, annotator: str, item: Item, choice: Choice, shown: Order, note: str = "") -> bool:
        """Keep one label; on return it is on the disk. False where a label of `annotator` on `item` already stands."""
        label = Label(annotator=annotator, item=item.id, choice=choice, shown=shown, note=_storable(note), at=_now())
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO item VALUES (?, ?)", (item.id, json.dumps(item.model_dump())))
            added = db.execute(
                "INSERT INTO label VALUES (NULL, :annotator, :item, :choice, :shown, :note, :at, :undone_at)"
                " ON CONFLICT (annotator, item) WHERE undone_at IS NULL DO NOTHING",
                label.model_dump(),
            )
            return added.rowcount == 1

    def undo(self, annotator: str, item_id: str) -> bool:
        """Take the standing label back; it stays in the history. False where none stands."""
        with self._transaction() as db:
            standing = "annotator = ? AND item = ? AND undone_at IS NULL"
            undone = db.execute(f"UPDATE label SET undone_at = ? WHERE {standing}", (_now(), annotator, item_id))
            return undone.rowcount == 1

    def annotators(self) -> list[str]:
        """Everyone who has a label here, undone or not, by name."""
        with self._transaction("BEGIN") as db:
            return [name for (name,) in db.execute("SELECT DISTINCT annotator FROM label ORDER BY annotator")]

    def history(self, annotator: str) -> list[Label]:
        """Every label `annotator` ever gave, the undone ones too, oldest first."""
        names = list(Label.model_fields)
        with self._transaction("BEGIN") as db:
            query = f"SELECT {', '.join(names)} FROM label WHERE annotator = ? ORDER BY number"
            return [Label(**dict(zip(names, row, strict=True))) for row in db.execute(query, (annotator,))]

    def standing(self, annotator: str) -> dict[str, Label]:
        """The labels not undone, by item id, oldest first."""
        return {label.item: label for label in self.history(annotator) if label.undone_at is None}

    def verdicts(self, annotator: str) -> dict[str, Verdict]:
        """The standing labels as verdicts, by item id, oldest first."""
        return {item: label.verdict() for item, label in self.standing(annotator).items()}

    def items(self) -> dict[str, Item]:
        """Every item that was ever labelled, by id."""
        with self._transaction("BEGIN") as db:
            return {name: Item(**json.loads(text)) for name, text in db.execute("SELECT id, json FROM item")}

    def pairs(self, annotator: str) -> list[PreferencePair]:
        """A pair for each standing preference, oldest first; ties and skipped items make none."""
        items, pairs = self.items(), []
        for name, verdict in self.verdicts(annotator).items():
            item = items[name]
            sides = {"a": (item.a, item.b), "b": (item.b, item.a)}.get(verdict.winner)
            if sides:
                pairs.append(PreferencePair(prompt=item.prompt, chosen=sides[0], rejected=sides[1], verdict=verdict))
        return pairs


def aligned(x: Mapping[str, Verdict], y: Mapping[str, Verdict]) -> tuple[list[Winner], list[Winner]]:
    """The winners of two judges on the items that both judged, in one order: what Cohen's kappa asks for."""
    both = [item for item in x if item in y and "unjudged" not in (x[item].winner, y[item].winner)]
    return [x[item].winner for item in both], [y[item].winner for item in both]


def as_items(rows: Sequence[Item | PreferencePair | tuple[Prompt, Response, Response]]) -> list[Item]:
    """Rows of any of three kinds as items; of a pair, a is the chosen answer. The screen hides which side is which.

    Raises DpoKitError where there is no row, where a row is of no known kind, and where two are the same item.
    """
    items: dict[str, Item] = {}
    for number, row in enumerate(rows, start=1):
        item = _as_item(row, number)
        if item.id in items:
            raise DpoKitError(f"row {number}: {item.id} is there twice; keep one of the two")
        items[item.id] = item
    if not items:
        raise DpoKitError("there is nothing to label: give at least one item")
    return list(items.values())


def _as_item(row: Item | PreferencePair | tuple[Prompt, Response, Response], number: int) -> Item:
    if isinstance(row, PreferencePair):
        return Item(prompt=row.prompt, a=row.chosen, b=row.rejected)
    if isinstance(row, Item):
        return row
    try:
        prompt, a, b = row
        return Item(prompt=prompt, a=a, b=b)
    except (TypeError, ValueError):
        expected = "an Item, a PreferencePair, or (Prompt, Response, Response)"
        raise DpoKitError(f"row {number}: expected {expected}, found {type(row).__name__}") from None


def _storable(text: str) -> str:
    """A lone surrogate, which SQLite cannot hold, becomes `?`."""
    return text.encode("utf-8", errors="replace").decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
