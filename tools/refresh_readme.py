"""Put the numbers and the picture of a finished run into README.md.

    python -m tools.refresh_readme [WORKDIR]        default runs/tiny

Copies the run's report and training log to `data/runs/tiny/`, draws the picture from them, and writes the table
between the markers in README.md. A test compares README.md with the committed report.
"""

import re
import shutil
import sys
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dpo_kit.evaluation.results import Report
from dpo_kit.files import write_atomically
from dpo_kit.training.metrics_log import read_log
from dpo_kit.views.figures import three_arms
from dpo_kit.views.report import read_report
from dpo_kit.views.style import COLOURS
from dpo_kit.views.tables import pairwise_sentence
from dpo_kit.views.training import KL, column
from dpo_kit.workbook.cells import markdown_table
from dpo_kit.workbook.show import to_png

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "data" / "runs" / "tiny"
MARKERS = re.compile(r"(<!-- result -->\n).*?(<!-- /result -->)", re.DOTALL)


def main(workdir: Path) -> None:
    """Copy the report and the log of the run in `workdir`, draw the picture, and replace the table in README.md.

    Raises SystemExit where no Chromium is installed, because nothing else draws the picture.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(workdir / "report.json", KEPT / "report.json")
    shutil.copyfile(workdir / "dpo" / "log.jsonl", KEPT / "dpo_log.jsonl")
    report = read_report(KEPT / "report.json")
    picture = to_png(overview(report, read_log(KEPT / "dpo_log.jsonl")), scale=2)
    if picture is None:
        raise SystemExit("the picture needs Chromium; install it and run again")
    write_atomically(KEPT / "result.png", picture)
    readme = ROOT / "README.md"
    write_atomically(readme, MARKERS.sub(lambda m: m[1] + result_block(report) + m[2], readme.read_text()))


def overview(report: Report, log: list[dict]) -> go.Figure:
    """A figure of one run: at the left the mean scores of the arms, at the right DPO's margin and KL over its steps."""
    figure = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.1,
        subplot_titles=("mean score on held-out prompts", "over DPO steps: reward margin, and KL in nats"),
    )  # fmt: skip
    figure.add_traces(three_arms(report.metrics).data, rows=1, cols=1)
    for key, name, kind in (("rewards/margins", "margin", "margin"), (KL, "KL", "kl")):
        steps, values = zip(*column(log, key), strict=True)
        mode = "lines" if kind == "margin" else "lines+markers"
        figure.add_scatter(x=steps, y=values, name=name, mode=mode, line_color=COLOURS[kind], row=1, col=2)
    figure.update_yaxes(autorange="reversed", row=1, col=1)
    figure.update_xaxes(title="step", row=1, col=2)
    return figure.update_layout(template="dpo_kit", width=1000, height=380, legend_y=-0.25)


def result_block(report: Report) -> str:
    """The table of metrics and the sentence on wins and losses, in Markdown, as README.md shows them."""
    return f"{markdown_table(report.metrics)}\n\n{pairwise_sentence(report.pairwise)}\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "tiny")
