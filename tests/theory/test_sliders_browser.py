"""Notebook 01 in a real JupyterLab: run it, move a slider, see the figure follow."""

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

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_paper_math.ipynb"
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
    """A JupyterLab on a copy of the notebook: yields its address, and stops it afterwards."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copy(NOTEBOOK, root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = [f"--ServerApp.port={port}", f"--ServerApp.root_dir={root}", "--no-browser", "--allow-root"]
    options += [
        "--IdentityProvider.token=",
        "--ServerApp.ip=127.0.0.1",
        "--LabApp.news_url=",
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
        page.set_default_timeout(120_000)
        page.goto(f"{jupyterlab}/lab/tree/{NOTEBOOK.name}?reset")
        yield page
        browser.close()


def test_moving_beta_redraws_the_optimum(page):
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.locator(".widget-slider").first.wait_for(state="attached")
    page.locator(".widget-slider").first.scroll_into_view_if_needed()  # the page has scrolled to its end
    area = page.locator(".jp-OutputArea-output:has(.widget-slider)").first
    area.locator(".bars path").first.wait_for()
    before = bars(area)
    assert "β = 0.50" in area.text_content()
    area.locator(".noUi-handle").focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    changed = "([area, old]) => [...area.querySelectorAll('.bars path')].map(p => p.getAttribute('d')).join() !== old"
    page.wait_for_function(changed, arg=[area.element_handle(), before])
    page.wait_for_function("area => !area.textContent.includes('β = 0.50')", arg=area.element_handle())


def bars(area):
    """The outlines of all bars as drawn."""
    return area.evaluate("area => [...area.querySelectorAll('.bars path')].map(p => p.getAttribute('d')).join()")
