"""The annotator without a screen: sides, resuming, double clicks, errors, and what a headless notebook keeps."""

import json
import sqlite3
from math import sqrt

import nbformat
import pytest
from nbclient import NotebookClient

from benchmarks.kill_annotation import item
from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.labels import Item, Labels
from dpo_kit.preferences.person import Annotator
from dpo_kit.records import Message, Prompt, Response
from dpo_kit.workbook.annotate import AnnotatorWidget, annotate, static_page

ITEMS = [item(number) for number in range(12)]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def work(tmp_path):
    return Annotator(ITEMS, "me", Labels(tmp_path / "labels.db"))


def heard(face, **message):
    face._handle_custom_msg(message, [])
    return face.scene


def press(face, side, note=""):
    return heard(face, do="label", item=face.scene["item"], side=side, note=note)


def test_the_winner_is_the_answer_that_was_pointed_at_whichever_side_it_stood_on(work):
    face, seen = AnnotatorWidget(work), {}
    for row in ITEMS:
        seen[row.id] = face.scene["left"]
        press(face, "a")
    texts = {row.id: {"a": row.a.text, "b": row.b.text} for row in ITEMS}
    verdicts = work.verdicts()
    assert {name: texts[name][verdict.winner] for name, verdict in verdicts.items()} == seen
    # the left answer was always taken, so the order says which one that was
    assert all(verdict.order[0] == verdict.winner for verdict in verdicts.values())
    assert {verdict.order for verdict in verdicts.values()} == {"ab", "ba"}


def test_sides_are_a_fair_coin_of_seed_annotator_and_item(work):
    rows = [item(number) for number in range(2000)]
    orders = [work.order(row) for row in rows]
    assert orders == [work.order(row) for row in rows]
    # four standard errors of a fair coin's share, for the sides and for their agreement with other coins
    margin = 4 * sqrt(0.25 / len(rows))
    assert abs(orders.count("ab") / len(rows) - 0.5) < margin
    for other in (Annotator(ITEMS, "you", work.labels), Annotator(ITEMS, "me", work.labels, seed=1)):
        agreed = sum(other.order(row) == order for row, order in zip(rows, orders, strict=True))
        assert abs(agreed / len(rows) - 0.5) < margin


def test_nothing_on_the_screen_tells_which_side_is_which(tmp_path):
    chosen = Response(prompt_id="p", text="one", arm="dpo", temperature=0.5, seed=1)
    rejected = Response(prompt_id="p", text="two", arm="sft", temperature=1.5, seed=2)
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),), facts={"truth": "one"})
    scene = Annotator([Item(prompt=prompt, a=chosen, b=rejected)], "me", Labels(tmp_path / "labels.db")).scene()
    assert not [word for word in ("dpo", "sft", "truth", "0.5", "chosen", '"ab"', '"ba"') if word in json.dumps(scene)]


def test_a_second_click_makes_no_second_label_and_no_label_on_the_next_item(work):
    face = AnnotatorWidget(work)
    first = face.scene["item"]
    for side in ("a", "b", "a"):
        heard(face, do="label", item=first, side=side, note="")
    assert list(work.verdicts()) == [first]
    assert face.scene["status"] == "That pair has its label already."


def test_two_windows_on_one_file_label_each_item_once(work):
    faces = AnnotatorWidget(work), AnnotatorWidget(Annotator(ITEMS, "me", Labels(work.labels.path)))
    for face in faces:
        press(face, "tie")
    assert len(work.labels.history("me")) == 1
    assert faces[0].scene["item"] == faces[1].scene["item"] == ITEMS[1].id


def test_work_goes_on_where_it_stopped_and_other_items_are_left_alone(work):
    face = AnnotatorWidget(work)
    press(face, "a", "  first look  ")
    press(face, "skip")
    again = Annotator(ITEMS[1:], "me", Labels(work.labels.path))
    assert again.current() == ITEMS[2]
    assert [verdict.winner for verdict in again.verdicts().values()] == ["unjudged"]
    again.undo()
    status, _ = again.undo()
    assert status == "There is nothing to undo.", "the label on an item of another list was taken back"
    assert [verdict.reason for verdict in work.verdicts().values()] == ["first look"]


def test_undo_brings_the_pair_back_with_its_note_on_the_same_sides(work):
    face = AnnotatorWidget(work)
    before = face.scene
    press(face, "b", "too long")
    after = heard(face, do="undo")
    assert (after["item"], after["left"], after["note"]) == (before["item"], before["left"], "too long")
    assert work.verdicts() == {}


def test_the_end_says_what_was_given(work):
    face = AnnotatorWidget(work)
    for side in ("a", "b", "tie", "skip", *"ab" * 4):
        press(face, side)
    assert face.scene["item"] is None
    assert face.scene["summary"] == "10 preferences, 1 ties, 1 skipped."


def test_saved_is_said_only_of_what_is_saved(work, monkeypatch):
    monkeypatch.setattr(Labels, "patience", 0.05)
    face, other = AnnotatorWidget(work), sqlite3.connect(work.labels.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    scene = press(face, "a", "kept")
    assert scene["error"].startswith("Not saved.")
    assert (scene["status"], scene["item"]) == ("", ITEMS[0].id)
    other.execute("COMMIT")
    assert press(face, "a", "kept")["status"] == "Saved: A is better."
    assert "error" not in face.scene


@pytest.mark.parametrize("name", ["", "  ", "a\nb"])
def test_a_name_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(DpoKitError, match="give a name"):
        annotate(ITEMS, name, tmp_path / "labels.db")


def test_the_static_page_shows_markup_as_text(tmp_path):
    prompt = Prompt(id="p", messages=(Message(role="user", content=HOSTILE),))
    row = Item(
        prompt=prompt, a=Response(prompt_id="p", text=HOSTILE), b=Response(prompt_id="p", text="</pre>" + HOSTILE)
    )
    page = static_page(Annotator([row], "me", Labels(tmp_path / "labels.db")))
    assert "<script" not in page["text/html"]
    assert "<img" not in page["text/html"]
    assert page["text/html"].count("&lt;script&gt;") == 3
    assert HOSTILE in page["text/plain"]


@pytest.mark.slow
def test_a_notebook_run_without_a_person_keeps_text_and_no_widget(tmp_path, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    code = (
        "from dpo_kit.workbook.annotate import annotate\nfrom benchmarks.kill_annotation import item\n"
        f"me = annotate([item(1)], database={str(tmp_path / 'labels.db')!r})\nme"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, store_widget_state=True, kernel_name="python3").execute()  # as nbmake does
    shown, result = notebook.cells[0].outputs
    assert set(shown.data) == {"text/plain", "text/html"}
    assert result.data == {"text/plain": "Annotator('me', 1 items, 'labels.db')"}
    assert "widgets" not in notebook.metadata
