"""A person as judge, in a terminal: two answers under each other, one letter a label.

It is the notebook's annotator (`annotate`) without a browser. The same class draws the sides, hides which arm wrote
what, and keeps each label in a file at once, so that a stop or a kill loses none and the same command goes on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.annotate import Annotator
from dpo_kit.preferences.judges import Judge
from dpo_kit.preferences.labels import Item, Labels, as_items
from dpo_kit.records import Prompt, Response, Verdict
from dpo_kit.visible import reveal

KEYS = {"a": "a", "b": "b", "t": "tie", "s": "skip"}
HELP = "[a] A is better  [b] B is better  [t] tie  [s] skip  [u] undo the last  [q] stop here: "


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
