"""The annotator in a real JupyterLab: keyboard only, with names for a screen reader, and answers that are never run."""

import nbformat
import pytest
from playwright.sync_api import expect

from dpo_kit.preferences.labels import Labels
from tests.jupyterlab import browser_page, find_chromium, lab, run_all_cells

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """
from dpo_kit.workbook.annotate import annotate
from dpo_kit.records import Message, Prompt, Response

def item(number, a, b, question="Which disk failed?"):
    turns = [Message(role="system", content="Be brief."), Message(role="user", content=question)]
    prompt = Prompt(id=f"p{number}", messages=turns)
    return prompt, Response(prompt_id=prompt.id, text=a), Response(prompt_id=prompt.id, text=b)
"""
PLAIN = """
rows = [item(n, f"It was disk {n}.", f"The log names disk {n + 1}.") for n in range(8)]
me = annotate(rows, database="plain.db")
"""
HOSTILE = r"""
attacks = [
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'><svg onload='window.ran = 3'>",
    "</div></section><iframe srcdoc='<script>parent.ran = 4</script>'></iframe><a href='javascript:ran = 5'>x</a>",
    "**bold** [link](javascript:ran=6) ![i](x) $\\frac{1}{2}$ \\(x^2\\) `code`",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00",
    "pay \u202eevil\u202c now \ud800",
    "line\n" * 20_000 + "w" * 20_000,
]
me = annotate([item(n, text, text[::-1], text) for n, text in enumerate(attacks)], database='hostile.db')
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A JupyterLab on two notebooks: its address and its folder."""
    find_chromium()
    source, root = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("lab")
    for name, code in {"plain": PLAIN, "hostile": HOSTILE}.items():
        cells = [nbformat.v4.new_code_cell(SETUP), nbformat.v4.new_code_cell(code)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), source / f"{name}.ipynb")
    with lab(root, sorted(source.glob("*.ipynb"))) as address:
        yield address, root


def widget(page):
    return page.get_by_role("group", name="Compare two answers")


def says(page, text):
    """Wait until the live region, which a screen reader speaks, says `text`."""
    expect(widget(page).get_by_role("status")).to_have_text(text, timeout=30_000)


def winners(root, name="plain"):
    return [verdict.winner for verdict in Labels(root / f"{name}.db").verdicts("me").values()]


def sides(root):
    """What was pointed at on the screen: the winner's side, by the order that was kept."""
    shown = {"ab": {"a": "A", "b": "B"}, "ba": {"a": "B", "b": "A"}}
    verdicts = Labels(root / "plain.db").verdicts("me").values()
    return [shown[verdict.order].get(verdict.winner, verdict.winner) for verdict in verdicts]


def focused(page):
    """The accessible name of what has the focus."""
    return page.evaluate(
        "document.activeElement.ariaLabel || document.activeElement.querySelector('span')?.textContent"
        " || document.activeElement.labels?.[0].querySelector('span').textContent"
    )


def test_a_session_by_keyboard_alone_survives_a_reload_and_a_restart(room):
    address, root = room
    with browser_page() as page:
        run_all_cells(page, f"{address}/lab/tree/plain.ipynb?reset")
        expect(widget(page)).to_be_visible(timeout=120_000)
        cells = page.locator(".jp-Cell").count()
        for _ in range(60):
            if focused(page) == "Compare two answers":
                break
            page.keyboard.press("Tab")
        assert focused(page) == "Compare two answers", "the Tab key does not lead into the widget"

        page.keyboard.press("a")
        says(page, "Saved: A is better. Pair 2 of 8.")
        page.keyboard.press("Shift+B")
        says(page, "Saved: B is better. Pair 3 of 8.")
        page.keyboard.press("t")
        says(page, "Saved: tie. Pair 4 of 8.")
        page.keyboard.press("s")
        says(page, "Saved: skipped. Pair 5 of 8.")
        page.keyboard.press("u")
        says(page, "Undone: the label was taken back. Pair 4 of 8.")
        page.keyboard.press("n")
        page.keyboard.type("abtsu, all letters of the shortcuts")
        page.keyboard.press("Enter")
        page.keyboard.press("b")
        says(page, "Saved: B is better. Pair 5 of 8.")
        assert sides(root) == ["A", "B", "tie", "B"]
        *_, undone, last = Labels(root / "plain.db").history("me")
        assert (undone.choice, undone.undone_at is not None) == ("skip", True)
        assert last.note == "abtsu, all letters of the shortcuts"
        for key in ("x", "d", "d", "c", "v", "m", "Enter"):  # cut, delete, copy, paste, to Markdown, edit
            page.keyboard.press(key)
        assert page.locator(".jp-Cell").count() == cells, "JupyterLab's command mode heard a key"
        assert page.locator(".jp-CodeCell").count() == cells
        assert focused(page) == "Compare two answers"

        page.keyboard.press("Control+s")  # what has a modifier is still JupyterLab's
        page.wait_for_function("!document.querySelector('.jp-mod-dirty')")
        page.reload()
        expect(widget(page)).to_contain_text("Pair 5 of 8", timeout=120_000)
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_text("Restart Kernel and Run All Cells").click()
        page.get_by_role("button", name="Confirm Kernel Restart").click()
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        expect(widget(page)).to_contain_text("Pair 5 of 8", timeout=120_000)
        widget(page).focus()
        page.keyboard.press("2")
        says(page, "Saved: B is better. Pair 6 of 8.")
        assert sides(root) == ["A", "B", "tie", "B", "B"]
        assert "widgets" not in nbformat.read(root / "plain.ipynb", 4).metadata

        check_focus_order_and_names(page)
        page.keyboard.down("t")
        says(page, "Saved: tie. Pair 7 of 8.")
        page.keyboard.down("t")  # a `down` without an `up` before it is what a held key sends
        page.keyboard.up("t")
        widget(page).get_by_role("button", name="A is better").click()
        says(page, "Saved: A is better. Pair 8 of 8.")
        page.mouse.down(click_count=2)  # the second half of a double click, later than the answer to the first
        page.mouse.up(click_count=2)
        page.keyboard.press("u")
        says(page, "Undone: the label was taken back. Pair 7 of 8.")
        widget(page).get_by_role("button", name="A is better").dblclick()
        says(page, "Saved: A is better. Pair 8 of 8.")
        assert sides(root)[5:] == ["tie", "A"]
        page.keyboard.press("Space")  # the button kept the focus
        says(page, "Saved: A is better. All 8 pairs are labelled. 6 preferences, 2 ties, 0 skipped.")


def check_focus_order_and_names(page):
    """Tab goes down the page as one reads it; each stop has a name, and shows that it has the focus."""
    box = widget(page)
    for role, name in (("region", "Prompt"), ("region", "Answer A"), ("textbox", "Note"), ("progressbar", "Labelled")):
        assert box.get_by_role(role, name=name, exact=True).count() == 1, name
    box.focus()
    stops = []
    for _ in range(9):
        page.keyboard.press("Tab")
        stops.append(focused(page))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", stops[-1]
    assert stops == ["Prompt", "Answer A", "Answer B", "Note", "A is better", "B is better", "Tie", "Skip", "Undo"]
    box.focus()


def test_what_an_answer_holds_is_shown_as_text_and_never_runs(room):
    address, root = room
    with browser_page() as page:
        run_all_cells(page, f"{address}/lab/tree/hostile.ipynb?reset")
        expect(widget(page)).to_be_visible(timeout=120_000)
        widget(page).focus()
        seen = []
        for number in range(6):
            expect(widget(page)).to_contain_text(f"Pair {number + 1} of 6", timeout=30_000)
            texts = widget(page).locator(".text")
            assert texts.locator("*").count() == 0, "an element grew out of a text"
            seen.append(texts.nth(1).text_content())
            if number == 5:
                break
            page.keyboard.press("a")
        assert page.evaluate("window.ran") is None
        shown = "\n".join(seen)
        for text in (
            "<script>window.ran = 1</script>",
            "⟨U+001B⟩[31mred",
            "**bold**",
            r"$\frac{1}{2}$",
            "⟨U+202E⟩",
            "⟨U+D800⟩",
        ):
            assert text in shown or text in shown[::-1], text
        answer = widget(page).get_by_role("region", name="Answer A")
        height, content, width, inner = answer.evaluate(
            "n => [n.clientHeight, n.scrollHeight, n.clientWidth, n.scrollWidth]"
        )
        assert height < 500 < content, "a long answer scrolls in its own box"
        assert inner == width, "a long word breaks"
        answer.focus()
        page.keyboard.press("End")
        page.wait_for_function("n => n.scrollTop > 0", arg=answer.element_handle())
        assert winners(root, "hostile")


def test_without_a_kernel_nothing_is_called_saved(room):
    address, root = room
    with browser_page() as page:
        run_all_cells(page, f"{address}/lab/tree/hostile.ipynb?reset")
        expect(widget(page)).to_contain_text("Pair 6 of 6", timeout=120_000)
        before = winners(root, "hostile")
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_text("Shut Down Kernel", exact=True).click()
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(state="hidden")
        widget(page).get_by_role("button", name="Tie").click()
        says(page, "Not saved yet: the kernel is busy or has stopped.")
        assert winners(root, "hostile") == before
