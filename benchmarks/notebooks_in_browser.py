"""Run All of every notebook in a real JupyterLab and a real Chromium, as a reader does.

    python -m benchmarks.notebooks_in_browser [NAME ...] [--runs runs/soak/notebooks]

Each notebook is opened in a fresh JupyterLab and run from its menu. Prints one row a notebook: its cells, how long they
took, and how many stopped with an error or wrote to standard error. Exits with 1 where a cell stopped or never ran.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.jupyterlab import browser_page, lab, run_all_cells

ROOT = Path(__file__).parents[1]
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent.trim())"
ERRORS, SAID = ('[data-mime-type="application/vnd.jupyter.' + kind + '"]' for kind in ("error", "stderr"))


def run(name: str) -> tuple[int, int, int, int, float]:
    """Run one notebook: how many cells it has, how many of them never ran, stopped, wrote to stderr, and seconds."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, browser_page() as page:
        page.set_default_timeout(1_800_000)
        with lab(Path(folder), [ROOT / "notebooks" / f"{name}.ipynb"]) as address:
            run_all_cells(page, f"{address}/lab/tree/{name}.ipynb?reset")
            # a cell in the queue shows [*]; the counts that were stored with the notebook have gone by then
            page.wait_for_function(f"{PROMPTS}.some(prompt => prompt.includes('*'))")
            page.wait_for_function(f"!{PROMPTS}.some(prompt => prompt.includes('*'))")
            prompts = [prompt for prompt in page.evaluate(PROMPTS) if prompt]
            never = sum(prompt.strip("[]: ") == "" for prompt in prompts)
            stopped, said = (page.locator(kind).count() for kind in (ERRORS, SAID))
    return len(prompts), never, stopped, said, time.monotonic() - started


def main() -> int:
    """Run the notebooks that were named, or all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 01_paper_math; default: all")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "soak" / "notebooks")
    arguments = parser.parse_args()
    os.environ |= {"DPO_KIT_RUNS": str(arguments.runs), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    os.environ["PYTHONPATH"] = str(ROOT)
    failed = False
    columns = ["notebook", "cells", "never ran", "stopped", "wrote to stderr", "seconds"]
    print(f"| {' | '.join(columns)} |\n| --- {'| ---: ' * 5}|")
    for name in arguments.names or sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")):
        cells, never, stopped, said, seconds = run(name)
        failed |= bool(never or stopped)
        print(f"| {name} | {cells} | {never} | {stopped} | {said} | {seconds:.0f} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
