"""A person as judge: which pair comes next, which answer stands on which side, which label was given.

`Annotator` does that work for any screen; the notebook's widget is one. `ask_person` is another, in a terminal: two
answers under each other, one letter a label. Which arm wrote what is hidden, and each label is kept in a file at once,
so that a stop or a kill loses none and the same command goes on.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.judges import Judge
from dpo_kit.preferences.labels import Choice, Item, Labels, Order, as_items
from dpo_kit.records import Prompt, Response, Verdict
from dpo_kit.visible import reveal

WORDS = {"a": "A is better", "b": "B is better", "tie": "tie", "skip": "skipped"}
KEYS: dict[str, Choice] = {"a": "a", "b": "b", "t": "tie", "s": "skip"}
HELP = "[a] A is better  [b] B is better  [t] tie  [s] skip  [u] undo the last  [q] stop here: "


class Annotator:
    """One person who labels one list of items in order; an item that has a label is not asked again."""

    def __init__(self, items: Sequence[Item], name: str, labels: Labels, seed: int = 0) -> None:
        """Raises DpoKitError where the name is empty or cannot be shown."""
        if not name.strip() or not name.isprintable():
            raise DpoKitError(f"annotator {name!r}: give a name that can be read, such as annotator='me'")
        self.items, self.name, self.labels, self.seed = list(items), name.strip(), labels, seed

    def __repr__(self) -> str:
        return f"Annotator({self.name!r}, {len(self.items)} items, {self.labels.path.name!r})"

    def verdicts(self) -> dict[str, Verdict]:
        """This person's verdicts on these items, by item id, oldest first."""
        mine = {item.id for item in self.items}
        return {name: verdict for name, verdict in self.labels.verdicts(self.name).items() if name in mine}

    def current(self) -> Item | None:
        """The first item without a label, or None when all have one."""
        done = self.verdicts()
        return next((item for item in self.items if item.id not in done), None)

    def order(self, item: Item) -> Order:
        """Which answer is on the left, as side A: random, but always the same for one seed, annotator and item."""
        # Not `hash`, which differs from one process to the next.
        return random.Random(f"sides/{self.seed}/{self.name}/{item.id}").choice(("ab", "ba"))

    def choose(self, item_id: str, side: Choice, note: str = "") -> str:
        """Label the current item by the side on the screen, where a is the left one. Returns a sentence to show.

        The id of any other item does nothing: a second click, or one in a window that fell behind, is no second label.
        """
        item = self.current()
        if item is None or item.id != item_id:
            return "That pair has its label already."
        order = self.order(item)
        mirrored: dict[Choice, Choice] = {"a": "b", "b": "a"}
        choice = side if order == "ab" else mirrored.get(side, side)
        added = self.labels.add(self.name, item, choice, order, note.strip())
        return f"Saved: {WORDS[side]}." if added else "That pair has its label already."

    def undo(self) -> tuple[str, str]:
        """Take back the latest label on these items. Returns a sentence to show, and the note of that label."""
        for name, verdict in reversed(self.verdicts().items()):
            self.labels.undo(self.name, name)
            return "Undone: the label was taken back.", verdict.reason
        return "There is nothing to undo.", ""

    def scene(self, status: str = "", note: str = "") -> dict[str, Any]:
        """All that the widget shows, as plain data. Sides are `left` and `right`: nothing tells which is which."""
        item, verdicts = self.current(), self.verdicts()
        counts = Counter(verdict.winner for verdict in verdicts.values())
        scene = {"done": len(verdicts), "total": len(self.items), "name": self.name, "status": status, "note": note}
        if item is None:
            tally = f"{counts['tie']} ties, {counts['unjudged']} skipped"
            return scene | {"item": None, "summary": f"{counts['a'] + counts['b']} preferences, {tally}."}
        left, right = (item.a.text, item.b.text)[:: 1 if self.order(item) == "ab" else -1]
        turns = [[message.role, reveal(message.text)] for message in item.prompt.messages]
        return scene | {"item": item.id, "turns": turns, "left": reveal(left), "right": reveal(right)}


def ask_person(
    rows: Sequence[tuple[Prompt, Response, Response]],
    name: str,
    database: Path,
    *,
    criteria: str = "",
    seed: int = 0,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
) -> Judge:
    """Ask the person `name` about every row that has no label yet, then return the labels as a judge.

    `read` shows its argument and returns a line, `write` shows a line. A skipped row is unjudged, and a row of two
    equal answers is a tie that nobody is asked about.
    Raises KeyboardInterrupt where the person stops, and DpoKitError where nobody is at the keyboard. All labels that
    were given are kept, and the next call goes on behind them.
    """
    differing = [row for row in rows if row[1].text != row[2].text]
    work = Annotator(as_items(differing) if differing else [], name, Labels(database), seed)
    if criteria:
        write(f"What to prefer: {criteria}\n")
    status = ""
    while (item := work.current()) is not None:
        if status != "again":
            _show(work, item, write)
        try:
            key = read(HELP).strip().lower()
        except EOFError:
            raise DpoKitError(
                f"nobody is at the keyboard: {len(work.verdicts())} of {len(work.items)} pairs are labelled in "
                f"{database}; run the same command in a terminal"
            ) from None
        if key == "q":
            raise KeyboardInterrupt
        status = "again"
        if key == "u":
            write(work.undo()[0])
            status = ""
        elif key in KEYS:
            status = work.choose(item.id, KEYS[key])
            write(status)
        else:
            write(f"{key[:20]!r} is none of a, b, t, s, u and q.")
    verdicts = work.verdicts()

    def judge(prompt: Prompt, a: str, b: str) -> Verdict:
        if a == b:
            return Verdict(winner="tie", judge=f"human:{work.name}", reason="the same text")
        sides = [Response(prompt_id=prompt.id, text=text) for text in (a, b)]
        return verdicts[Item(prompt=prompt, a=sides[0], b=sides[1]).id]

    return judge


def _show(work: Annotator, item: Item, write: Callable[[str], None]) -> None:
    """The item as the annotator draws it: nothing tells which arm stands on which side."""
    scene = work.scene()
    write(f"\n{'=' * 72}\n{scene['done'] + 1} of {scene['total']}")
    turns = [(f"PROMPT ({reveal(role)})", text) for role, text in scene["turns"]]
    for head, text in [*turns, ("ANSWER A", scene["left"]), ("ANSWER B", scene["right"])]:
        write(f"--- {head} " + "-" * max(3, 66 - len(head)) + f"\n{text}\n")
