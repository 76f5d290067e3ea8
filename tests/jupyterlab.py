"""A real JupyterLab, driven by the Chromium of the system."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


def find_chromium() -> str:
    """The path of Chromium; skips the test where there is none, or fails it where nothing may be skipped."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = "no Chromium on the PATH, and BROWSER_PATH is not set: nothing can be tried in a browser"
        (pytest.fail if os.environ.get("DPO_KIT_REQUIRE_ALL") == "1" else pytest.skip)(reason)
    return found


@contextmanager
def lab(root: Path, notebooks: Sequence[Path], theme: str = "JupyterLab Light") -> Iterator[str]:
    """A JupyterLab on copies of `notebooks` in `root`: yields its address, and stops it afterwards."""
    for path in notebooks:
        shutil.copy(path, root)
    # JupyterLab attaches only the cells in sight unless told otherwise, and what is looked for may be far down
    settings = root / ".settings" / "@jupyterlab"
    for name, value in {
        "notebook-extension/tracker": '{"windowingMode": "none"}',
        "apputils-extension/themes": f'{{"theme": "{theme}"}}',
        "apputils-extension/notification": '{"fetchNews": "false"}',
    }.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value)
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
        _wait_for(address + "/api/status", server)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=20)


@contextmanager
def browser_page(width: int = 1400, height: int = 1000):
    """A page of a fresh headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(300_000)
        yield page
        browser.close()


def run_all_cells(page, address: str) -> None:
    """Open the notebook at `address` and choose Run All Cells once the kernel is idle."""
    page.goto(address)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def _wait_for(address, server, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, "JupyterLab ended before it answered"
        try:
            return urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not answer within {seconds} s")
