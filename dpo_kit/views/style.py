"""One look for every figure: colours, marks, the legend's place, and a template that suits light and dark pages."""

from collections.abc import Sequence

import plotly.graph_objects as go
import plotly.io as pio

# Okabe and Ito's palette, which colour-blind readers can tell apart. A colour means the same in every figure.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#7F7F7F"
COLOURS = {
    "base": GREY, "sft": ORANGE, "dpo": BLUE,
    "chosen": GREEN, "rejected": VERMILION, "margin": BLUE, "kl": PURPLE, "reference": GREY,
}  # fmt: skip
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)
SYMBOLS = ("circle-open", "diamond", "square", "cross", "star", "triangle-up", "x")
TOP_RIGHT = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}  # a legend's place

# Transparent paper and mid-grey ink can be read on a light page and on a dark one.
INK = "#808080"
pio.templates["dpo_kit"] = go.layout.Template(
    layout={
        "colorway": list(PALETTE),
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "xaxis": {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.5)", "automargin": True},
        "yaxis": {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.5)", "automargin": True},
        "legend": {"orientation": "h", "y": -0.2},
        "width": 760,
        "height": 400,
    }
)


def whiskers(middles: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> dict:
    """Error bars from each low to its high; plotly takes their lengths, measured from the middle."""
    up = [high - middle for middle, high in zip(middles, highs, strict=True)]
    down = [middle - low for middle, low in zip(middles, lows, strict=True)]
    return {"type": "data", "symmetric": False, "thickness": 2, "array": up, "arrayminus": down}
