"""Notebooks 01 and 02 in a real JupyterLab: run one, move a slider, see the figure follow."""

import pytest

from dpo_kit.profiles import ROOT
from tests.jupyterlab import browser_page, find_chromium, lab, run_all_cells

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMES = ("01_paper_math.ipynb", "02_loss_and_gradient.ipynb")


@pytest.fixture(scope="module")
def jupyterlab(tmp_path_factory):
    find_chromium()
    with lab(tmp_path_factory.mktemp("lab"), [ROOT / "notebooks" / name for name in NAMES]) as address:
        yield address


@pytest.fixture
def page(jupyterlab):
    with browser_page() as page:
        yield page


def run_to_first_slider(page, address):
    """Open the notebook at `address`, run it, and return the output with its first slider."""
    run_all_cells(page, address)
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
