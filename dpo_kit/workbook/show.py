"""How the lessons store a figure in a notebook, and the patterns and marks that repeat what colours say.

A shown figure is stored three times: as an interactive figure for JupyterLab, as an SVG for places that run no
JavaScript, and as a sentence for readers who cannot see it.
"""

import atexit
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from functools import cache
from html import escape

import plotly.graph_objects as go
from IPython.display import display

DASHES = {"base": "dot", "sft": "dash", "dpo": "solid", "chosen": "solid", "rejected": "dash", "reference": "dot"}
# Some readers cannot tell colours apart, so the n-th line, marker or bar of a figure also has the n-th of these.
LINES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
HATCHES = ("", "/", ".", "x", "-", "+", "|", "\\")


def show(figure: go.Figure, description: str) -> None:
    """Display `figure` in a notebook with a static SVG beside it; `description` says in words what it shows.

    It is an SVG, since JupyterLab prefers a stored PNG to the interactive figure. Where no Chromium is installed, only
    the interactive figure and the sentence are stored.
    """
    bundle = {"application/vnd.plotly.v1+json": json.loads(figure.to_json()), "text/plain": description}
    if _renderer_ready():
        svg = _drawn(figure, "svg").decode()
        bundle["image/svg+xml"] = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)
    display(bundle, raw=True)


def hatch(colour: str | Sequence[str], shape: str | Sequence[str]) -> dict:
    """The marker of a bar, or of several, in a colour and with a pattern that is seen without colour too."""
    return {
        "color": colour,
        "pattern": {"shape": shape, "fillmode": "overlay", "fgcolor": "white", "size": 6, "solidity": 0.2},
    }


def to_png(figure: go.Figure, scale: float = 1.5) -> bytes | None:
    """The figure drawn on white, or None where no Chromium is installed."""
    if not _renderer_ready():
        return None
    printed = go.Figure(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white", font_color="#333333")
    return _drawn(printed, "png", scale=scale)


def _drawn(figure: go.Figure, kind: str, **options) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # plotly warns that a running renderer takes no start options
        return figure.to_image(format=kind, **options)


@cache
def _renderer_ready() -> bool:
    """Start kaleido's Chromium once a process: the first picture takes two seconds, the others a seventh of one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    if not os.environ.get("BROWSER_PATH") and not any(map(shutil.which, names)):
        return False
    import kaleido

    kaleido.start_sync_server(silence_warnings=True)
    atexit.register(kaleido.stop_sync_server, silence_warnings=True)
    return True
