"""Keep what README.md shows of a run true to a run that was made.

    python -m tools.refresh_readme [WORKDIR]        default runs/tiny

Copies the run's report and training log to `data/runs/tiny/`, draws the picture from them, and writes the table
between the markers in README.md. A test holds README.md against the committed report.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from dpo_kit.files import write_atomically
from dpo_kit.training.metrics_log import read_log
from dpo_kit.views.figures import overview
from dpo_kit.views.style import to_png
from dpo_kit.views.tables import markdown_table, pairwise_sentence

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "data" / "runs" / "tiny"
MARKERS = re.compile(r"(<!-- result -->\n).*?(<!-- /result -->)", re.DOTALL)


def main(workdir: Path) -> None:
    """Refresh from a finished run."""
    KEPT.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(workdir / "report.json", KEPT / "report.json")
    shutil.copyfile(workdir / "dpo" / "log.jsonl", KEPT / "dpo_log.jsonl")
    report = json.loads((KEPT / "report.json").read_text())
    picture = to_png(overview(report["metrics"], read_log(KEPT / "dpo_log.jsonl")), scale=2)
    if picture is None:
        raise SystemExit("the picture needs Chromium; install it and run again")
    write_atomically(KEPT / "result.png", picture)
    readme = ROOT / "README.md"
    write_atomically(readme, MARKERS.sub(lambda m: m[1] + result_block(report) + m[2], readme.read_text()))


def result_block(report: dict) -> str:
    """What README.md says of the run, in Markdown."""
    return f"{markdown_table(report['metrics'])}\n\n{pairwise_sentence(report['pairwise'])}\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "tiny")
