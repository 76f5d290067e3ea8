"""Tokens in colour: which of them a mask selects, or a number for each.

Prompts and model output are texts that others wrote, so their hidden characters are shown and everything is escaped
before it becomes HTML. What colour shows is also shown without it: selected tokens are bold and underlined, and the
plain text beside the HTML puts them in brackets.
"""

from collections.abc import Sequence
from html import escape

from IPython.display import display

from dpo_kit.views.style import BLUE, VERMILION
from dpo_kit.visible import reveal

WHITE_SPACE = str.maketrans({"\n": "⏎", "\t": "⇥"})
# One box for every token: the page's own ink on a tint that reads on a light page and on a dark one.
BOX = "display:inline-block;padding:0 2px;margin:1px;border-radius:3px;white-space:pre;"
SELECTED = f"background:{BLUE}44;border-bottom:2px solid {BLUE};"
ROW = '<div style="font-family:monospace;line-height:1.7;max-width:760px">{}</div>'


def show_mask(tokens: Sequence[str], mask: Sequence[int]) -> None:
    """Display `tokens` with those that `mask` selects in colour, bold and underlined; both have T entries."""
    rows = [(token, bool(chosen)) for token, chosen in zip(tokens, mask, strict=True)]
    pieces = [_box(token, SELECTED if chosen else "opacity:0.6;", bold=chosen) for token, chosen in rows]
    plain = "".join(f"[{reveal(token)}]" if chosen else reveal(token) for token, chosen in rows)
    _display(pieces, plain)


def show_values(tokens: Sequence[str], values: Sequence[float], unit: str = "") -> None:
    """Display `tokens` tinted by a number each: blue above zero, red below, the deeper the larger in size.

    The number stands in the token's tooltip; the largest in size is printed bold and named below.
    """
    values = [float(value) for value in values]
    largest = max(map(abs, values), default=0.0)
    pieces = [
        _box(token, _tint(value, largest), bold=abs(value) == largest > 0, title=f"{value:+.3f} {unit}".strip())
        for token, value in zip(tokens, values, strict=True)
    ]
    top = max(range(len(values)), key=lambda i: abs(values[i]), default=None)
    if top is not None:
        summary = f"largest: {values[top]:+.2f} {unit}".strip() + f" at “{_shown(tokens[top])}”"
        pieces.append(f"<br><small>{escape(summary)}</small>")
    plain = " ".join(f"{_shown(token)}({value:+.2f})" for token, value in zip(tokens, values, strict=True))
    _display(pieces, plain)


def _shown(token: str) -> str:
    return reveal(token).translate(WHITE_SPACE)


def _box(token: str, style: str, *, bold: bool, title: str = "") -> str:
    text = escape(_shown(token))
    hint = f' title="{escape(title)}"' if title else ""
    after = "<br>" if "\n" in token else ""
    return f'<span style="{BOX}{style}"{hint}>{f"<b>{text}</b>" if bold else text}</span>{after}'


def _tint(value: float, largest: float) -> str:
    strength = 0.0 if largest == 0 else abs(value) / largest
    return f"background:{BLUE if value >= 0 else VERMILION}{round(200 * strength):02x};"


def _display(pieces: Sequence[str], plain: str) -> None:
    display({"text/html": ROW.format("".join(pieces)), "text/plain": plain}, raw=True)
