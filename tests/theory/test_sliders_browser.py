"""Notebooks 01 and 02 in a real JupyterLab: run one, move a slider, see the figure follow."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        reason = "no Chromium on the PATH: sliders cannot be tried in a browser"
        (pytest.fail if os.environ.get("DPO_KIT_REQUIRE_ALL") == "1" else pytest.skip)(reason)
    return found


@pytest.fixture(scope="module")
def jupyterlab(tmp_path_factory):
    """A JupyterLab on a copy of the notebooks: yields its address, and stops it afterwards."""
    root = tmp_path_factory.mktemp("lab")
    for name in ("01_paper_math.ipynb", "02_loss_and_gradient.ipynb"):
        shutil.copy(NOTEBOOKS / name, root)
    # JupyterLab attaches only the cells in sight unless told otherwise, and the slider may be far down
    tracker = root / ".settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text('{"windowingMode": "none"}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = [f"--ServerApp.port={port}", f"--ServerApp.root_dir={root}", "--no-browser", "--allow-root"]
    options += [
        "--IdentityProvider.token=",
        "--ServerApp.ip=127.0.0.1",
        "--LabApp.news_url=",
        f"--LabApp.user_settings_dir={root / '.settings'}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(root / ".config"), "JUPYTER_DATA_DIR": str(root / ".data")}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(address + "/api/status", server)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=20)


def wait_for(address, server, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, "JupyterLab ended before it answered"
        try:
            return urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not answer within {seconds} s")


@pytest.fixture
def page(jupyterlab, chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(300_000)
        yield page
        browser.close()


def run_to_first_slider(page, address):
    """Open the notebook at `address`, run it, and return the output with its first slider."""
    page.goto(address)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.locator(".widget-slider").first.wait_for(state="attached")
    page.locator(".widget-slider").first.scroll_into_view_if_needed()  # the page has scrolled to its end
    return page.locator(".jp-OutputArea-output:has(.widget-slider)").first


def move(page, area, shapes):
    """Push the first slider of `area` to the right, and wait until what `shapes` selects is drawn otherwise."""
    area.locator(shapes).first.wait_for(state="attached")
    outlines = f"[...area.querySelectorAll('{shapes}')].map(p => p.getAttribute('d')).join()"
    before = area.evaluate(f"area => {outlines}")
    area.locator(".noUi-handle").first.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(f"([area, old]) => {outlines} !== old", arg=[area.element_handle(), before])


def test_moving_beta_redraws_the_optimum(page, jupyterlab):
    area = run_to_first_slider(page, f"{jupyterlab}/lab/tree/01_paper_math.ipynb?reset")
    assert "β = 0.50" in area.text_content()
    move(page, area, ".bars path")
    page.wait_for_function("area => !area.textContent.includes('β = 0.50')", arg=area.element_handle())


def test_moving_beta_redraws_the_relatives(page, jupyterlab):
    area = run_to_first_slider(page, f"{jupyterlab}/lab/tree/02_loss_and_gradient.ipynb?reset")
    assert "β = 0.30" in area.text_content()
    move(page, area, ".scatterlayer path.js-line")
    page.wait_for_function("area => !area.textContent.includes('β = 0.30')", arg=area.element_handle())
