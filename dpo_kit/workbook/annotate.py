"""A person as judge, in a notebook cell: two answers side by side, one key a label.

`Annotator` decides which item comes next and which answer is on which side, and stores the labels. It reads the file of
labels each time, so that a restart, a second window or a kill loses no label. `AnnotatorWidget` only shows the items.
Its JavaScript writes every text as text (`textContent`), never as HTML, and says "saved" only after the kernel has
reported that the label was committed.

The widget is an anywidget, because ipywidgets' boxes decide the focus order, key events and ARIA attributes by
themselves.
"""

import random
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.display import display

from dpo_kit.errors import DpoKitError
from dpo_kit.machine import someone_is_there
from dpo_kit.preferences.judges import MIRROR
from dpo_kit.preferences.labels import Choice, Item, Labels, Order, as_items
from dpo_kit.records import PreferencePair, Prompt, Response, Verdict
from dpo_kit.visible import reveal

WORDS = {"a": "A is better", "b": "B is better", "tie": "tie", "skip": "skipped"}


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
        # Python's `hash` is not used, because it differs from one process to the next.
        return random.Random(f"sides/{self.seed}/{self.name}/{item.id}").choice(("ab", "ba"))

    def choose(self, item_id: str, side: Choice, note: str = "") -> str:
        """Label the current item by the side on the screen, where a is the left one. Returns a sentence to show.

        With the id of any other item nothing is stored, so a second click or an outdated window adds no second label.
        """
        item = self.current()
        if item is None or item.id != item_id:
            return "That pair has its label already."
        order = self.order(item)
        choice = side if side in ("tie", "skip") or order == "ab" else MIRROR[side]
        added = self.labels.add(self.name, item, choice, order, note.strip())
        return f"Saved: {WORDS[side]}." if added else "That pair has its label already."

    def undo(self) -> tuple[str, str]:
        """Take back the latest label on these items. Returns a sentence to show, and the note of that label."""
        for name, verdict in reversed(self.verdicts().items()):
            self.labels.undo(self.name, name)
            return "Undone: the label was taken back.", verdict.reason
        return "There is nothing to undo.", ""

    def scene(self, status: str = "", note: str = "") -> dict[str, Any]:
        """All that the widget shows, as plain data. Sides are `left` and `right`, so the data do not show the order."""
        item, verdicts = self.current(), self.verdicts()
        counts = Counter(verdict.winner for verdict in verdicts.values())
        scene = {"done": len(verdicts), "total": len(self.items), "name": self.name, "status": status, "note": note}
        if item is None:
            tally = f"{counts['tie']} ties, {counts['unjudged']} skipped"
            return scene | {"item": None, "summary": f"{counts['a'] + counts['b']} preferences, {tally}."}
        left, right = (item.a.text, item.b.text)[:: 1 if self.order(item) == "ab" else -1]
        turns = [[message.role, reveal(message.text)] for message in item.prompt.messages]
        return scene | {"item": item.id, "turns": turns, "left": reveal(left), "right": reveal(right)}


class AnnotatorWidget(anywidget.AnyWidget):
    """The annotator on the screen. Its JavaScript sends `{do, item, side, note}` and draws each new `scene`."""

    _esm = Path(__file__).with_name("annotate.js")
    _css = Path(__file__).with_name("annotate.css")
    scene = traitlets.Dict().tag(sync=True)

    def __init__(self, annotator: Annotator) -> None:
        super().__init__(scene=annotator.scene() | {"turn": 0})
        self.annotator = annotator
        self.on_msg(self._on_message)

    def _on_message(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        status, note = "", ""
        try:
            if message["do"] == "undo":
                status, note = self.annotator.undo()
            else:
                status = self.annotator.choose(message["item"], message["side"], message["note"])
            scene = self.annotator.scene(status, note)
        except DpoKitError as error:
            scene = self.scene | {"status": "", "error": f"Not saved. {error}"}
        self.scene = scene | {"turn": self.scene["turn"] + 1}  # a scene equal to the last would not be sent


def annotate(
    items: Sequence[Item | PreferencePair | tuple[Prompt, Response, Response]],
    annotator: str = "me",
    database: Path = Path("labels.db"),
    seed: int = 0,
) -> Annotator:
    """Ask a person which answer is better, item by item, and keep each label in `database`; call again to resume.

    Of a tuple, a is the first response; of a pair, the chosen one. Without a person at a notebook page the first item
    is shown as static text and no widget is made, so that a saved notebook holds no widget state.
    Raises DpoKitError for an empty name, no item, an item that is there twice, and a database that cannot be used.
    """
    work = Annotator(as_items(items), annotator, Labels(database), seed)
    if someone_is_there():
        display(AnnotatorWidget(work))
    else:
        display(static_page(work), raw=True)
    return work


def static_page(work: Annotator) -> dict[str, str]:
    """The current item as a MIME bundle of escaped text, for a page that nobody can press a key on."""
    scene = work.scene()
    lines = [("", f"{scene['done']} of {scene['total']} labelled by {work.name}. Run it in JupyterLab to label.")]
    if scene["item"]:
        lines += [*scene["turns"], ("Answer A", scene["left"]), ("Answer B", scene["right"])]
    style = "white-space: pre-wrap; overflow-wrap: anywhere; max-height: 20em; overflow: auto; margin: 0 0 0.8em"
    html = (f"<b>{escape(head)}</b><pre tabindex='0' style='{style}'>{escape(text)}</pre>" for head, text in lines)
    return {"text/plain": "\n\n".join(f"{head}\n{text}".strip() for head, text in lines), "text/html": "\n".join(html)}
