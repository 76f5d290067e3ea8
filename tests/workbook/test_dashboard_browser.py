"""The dashboard in a real JupyterLab: curves move while DPO trains, Stop saves, nothing comes from outside."""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect

from dpo_kit.training.checkpoints import damage_in, manifest
from tests.conftest import SMALL
from tests.jupyterlab import browser_page, find_chromium, lab, run_all_cells

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = f"""
import json, math, threading
from pathlib import Path
from dpo_kit.jsonl import read_pairs
from dpo_kit.profiles import load_profile
from dpo_kit.training.dpo import train_dpo
from dpo_kit.training.trainers import TrainingStopped
from dpo_kit.training.metrics_log import read_log
from dpo_kit.workbook.dashboard import Dashboard, show_training

profile = load_profile("tiny", **{SMALL | {"dpo": {**SMALL["dpo"], "epochs": 100, "kl_every": 4}}})
pairs, held_out = (read_pairs(Path(name)) for name in ("pairs.jsonl", "heldout.jsonl"))

class Marked(threading.Event):  # remembers the last step logged before it was set
    def set(self):
        self.after = getattr(self, "after", dashboard.step())
        super().set()
"""
TRAIN = """
steps = math.ceil(len(pairs) / profile.dpo.batch_size) * profile.dpo.epochs  # far more than are waited for
dashboard = Dashboard(steps, Marked(), batch_size=profile.dpo.batch_size)
prompts = [pair.prompt for pair in held_out][:4]
try:
    await dashboard.watch(train_dpo, profile, pairs, Path("adapter"), prompts, Path("out"), 0, held_out=held_out)
except TrainingStopped as error:
    Path("end.json").write_text(json.dumps({"said": str(error), "after": dashboard.stop.after}))
"""

FOREIGN = 'show_training(read_log(Path("trainer_state.json")), above="Somebody else\'s run.")'
HISTORY = [
    {"step": n, "loss": 0.6, "rewards/margins": n / 9, "rewards/accuracies": float(n % 3 > 0)} for n in range(12)
]


@pytest.fixture(scope="module")
def room(small_run, tmp_path_factory):
    """A JupyterLab beside the finished stages before DPO: its address and its folder."""
    find_chromium()
    source, root = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("lab")
    work = small_run[0]
    (root / "out").mkdir()
    shutil.copytree(work / "sft" / "adapter", root / "adapter")
    for name in ("pairs.jsonl", "heldout.jsonl"):
        shutil.copy(work / "pairs" / name, root)
    (root / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    cells = [nbformat.v4.new_code_cell(code) for code in (SETUP, TRAIN, FOREIGN)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), source / "watch.ipynb")
    with lab(root, [source / "watch.ipynb"]) as address:
        yield address, root


def step(page) -> int:
    return int(page.locator(".dpo-live progress").evaluate("bar => bar.value"))


def picture(page, name):
    """Keep a screenshot to look at, where `DPO_KIT_SCREENSHOTS` names a folder."""
    if folder := os.environ.get("DPO_KIT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def turn_dark(page):
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).hover()
    page.get_by_text("JupyterLab Dark", exact=True).click()
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    page.locator("#jupyterlab-splash").wait_for(state="detached")


def test_curves_move_stop_saves_and_nothing_is_fetched_from_outside(room):
    address, root = room
    with browser_page(height=1350) as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        run_all_cells(page, f"{address}/lab/tree/watch.ipynb?reset")
        controls = page.get_by_role("group", name="Training", exact=True)
        expect(controls).to_contain_text(re.compile(r"step ([6-9]|\d\d+) of \d+ · .* left"), timeout=240_000)

        curves = "[...document.querySelectorAll('.scatterlayer path.js-line')].map(path => path.getAttribute('d'))"
        page.locator(".scatterlayer path.js-line").first.wait_for(state="attached")
        before, begun = page.evaluate(curves), step(page)
        page.wait_for_function(f"old => {curves}.filter((d, i) => d !== old[i]).length >= 6", arg=before)
        page.wait_for_function("begun => document.querySelector('.dpo-live progress').value > begun", arg=begun)
        expect(page.get_by_text(re.compile(r"Sampled at step \d+"))).to_be_visible()
        controls.scroll_into_view_if_needed()
        picture(page, "live_light")
        turn_dark(page)
        picture(page, "live_dark")

        button = controls.get_by_role("button", name="Stop training and save a checkpoint")
        spoken = controls.get_by_role("status")
        expect(spoken).to_contain_text(re.compile(r"Training\. Step \d+ of \d+\."))
        spoken.evaluate(
            "node => { window.heard = []; const hear = () => heard.push(node.textContent);"
            " new MutationObserver(hear).observe(node, { childList: true, subtree: true }) }"
        )
        button.click()
        page.get_by_text(re.compile(r"stopped at step \d+ of \d+")).wait_for()
        assert any("Stopping after the step under way" in text for text in page.evaluate("window.heard"))
        expect(page.locator(".dpo-live")).to_have_count(0, timeout=60_000)
        expect(page.locator(".jp-RenderedPlotly")).to_have_count(2, timeout=120_000)
        read_on = page.get_by_role("link", name="Read on")
        expect(read_on).to_have_attribute("href", re.compile("02_loss_and_gradient"))
        read_on.scroll_into_view_if_needed()
        picture(page, "foreign_dark")
        page.get_by_text(re.compile(r"stopped at step")).scroll_into_view_if_needed()
        picture(page, "end_dark")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.keyboard.press("Control+s")
        page.wait_for_function("!document.querySelector('.jp-mod-dirty')")

    end = json.loads((root / "end.json").read_text())
    stopped = int(re.search(r"stopped at step (\d+)", end["said"])[1])
    assert 0 <= stopped - end["after"] <= 2
    checkpoint = root / "out" / "checkpoints" / f"checkpoint-{stopped}"
    assert damage_in(checkpoint) is None
    assert manifest(checkpoint)["step"] == stopped

    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not outside
    assert len(asked) > 50, "the page's requests were not seen"

    saved = nbformat.read(root / "watch.ipynb", 4)
    assert "widgets" not in saved.metadata
    kinds = {kind for output in saved.cells[1].outputs for kind in output.get("data", {})}
    assert "application/vnd.plotly.v1+json" in kinds
    assert "application/vnd.jupyter.widget-view+json" not in kinds
    assert (root / "watch.ipynb").stat().st_size < 1_000_000
