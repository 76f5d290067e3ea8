"""A person as judge, in a notebook cell: two answers side by side, one key a label.

`Annotator` decides which item comes next and which answer is on which side, and stores the labels. It reads the file of
labels each time, so that a restart, a second window or a kill loses no label. `AnnotatorWidget` only shows the items.
Its JavaScript writes every text as text (`textContent`), never as HTML, and says "saved" only after the kernel has
reported that the label was committed.

The widget is an anywidget, because ipywidgets' boxes decide the focus order, key events and ARIA attributes by
themselves.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.display import display

from dpo_kit.errors import DpoKitError
from dpo_kit.machine import someone_is_there
from dpo_kit.preferences.labels import Item, Labels, as_items
from dpo_kit.preferences.person import Annotator
from dpo_kit.records import PreferencePair, Prompt, Response


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
