"""The store of labels: durable, one label an annotator and item, one clear error for a file that is none of ours."""

import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kill_annotation import item, trial
from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_pairs, write_pairs
from dpo_kit.preferences.labels import Item, Labels, aligned, as_items
from dpo_kit.records import Message, PreferencePair, Prompt, Response, Verdict
from dpo_kit.workbook.statistics import kappa

ONE, TWO, THREE, FOUR = (item(number) for number in range(4))


@pytest.fixture
def store(tmp_path):
    return Labels(tmp_path / "deep" / "labels.db")


def test_a_label_is_a_verdict_that_says_who_when_why_and_in_which_order(store):
    assert store.add("ann", ONE, "b", "ba", "shorter")
    (verdict,) = Labels(store.path).verdicts("ann").values()
    assert (verdict.winner, verdict.judge, verdict.order, verdict.reason) == ("b", "human:ann", "ba", "shorter")
    assert verdict.at.endswith("+00:00")


def test_one_annotator_and_item_have_one_label_and_the_first_stands(store):
    assert store.add("ann", ONE, "a", "ab")
    assert not store.add("ann", ONE, "b", "ab")
    assert store.add("bob", ONE, "b", "ab")
    assert [store.verdicts(name)[ONE.id].winner for name in store.annotators()] == ["a", "b"]


def test_eight_writers_at_once_make_one_file_and_one_label(tmp_path):
    # nothing is there when they begin: they race for the file's making, too
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda _: Labels(tmp_path / "labels.db").add("ann", ONE, "a", "ab"), range(8)))
    assert sorted(added) == [False] * 7 + [True]


def test_many_may_make_a_file_at_once(tmp_path):
    # a hundred files, because a race for one is seldom lost
    with ThreadPoolExecutor(8) as pool:
        for n in range(100):
            list(pool.map(Labels, [tmp_path / f"{n}.db"] * 8))


def test_an_undone_label_leaves_the_verdicts_and_stays_in_the_history(store):
    store.add("ann", ONE, "a", "ab", "hasty")
    assert store.undo("ann", ONE.id)
    assert not store.undo("ann", ONE.id)
    assert store.verdicts("ann") == {}
    assert store.add("ann", ONE, "b", "ab")
    first, second = store.history("ann")
    assert (first.choice, first.note, first.undone_at >= first.at) == ("a", "hasty", True)
    assert (second.choice, second.undone_at) == ("b", None)


def test_pairs_follow_the_preferences_alone_and_can_be_trained_on(store, tmp_path):
    for row, choice in zip((ONE, TWO, THREE, FOUR), ("b", "tie", "skip", "a"), strict=True):
        store.add("ann", row, choice, "ab", "why")
    pairs = store.pairs("ann")
    assert [(p.chosen, p.rejected) for p in pairs] == [(ONE.b, ONE.a), (FOUR.a, FOUR.b)]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs


def test_aligned_takes_what_both_judged_and_kappa_is_the_one_worked_by_hand(store):
    # on the four items both judged: observed agreement 3/4; chance = (3/4)(2/4) + (1/4)(2/4) = 1/2; kappa = 1/2
    rows = [item(number) for number in range(6)]
    for row, ann, bob in zip(rows, ("a", "a", "a", "b", "skip", "a"), ("a", "a", "b", "b", "a", None), strict=True):
        store.add("ann", row, ann, "ab")
        if bob:
            store.add("bob", row, bob, "ba")
    assert aligned(store.verdicts("ann"), store.verdicts("bob")) == (["a", "a", "a", "b"], ["a", "a", "b", "b"])
    assert kappa(*aligned(store.verdicts("ann"), store.verdicts("bob"))).mean == pytest.approx(0.5)
    judge = {row.id: Verdict(winner="a", judge="j", reason="") for row in reversed(rows)}
    assert aligned(store.verdicts("bob"), judge) == (["a", "a", "b", "b", "a"], ["a"] * 5)


@settings(max_examples=25)  # each flushes to the disk
@given(st.text(st.characters(), max_size=20), st.text(st.characters(), max_size=20))
def test_any_text_comes_back_as_it_was(tmp_path_factory, text, note):
    prompt = Prompt(id="p", messages=(Message(role="user", content=text),), facts={"n": 1})
    row = Item(prompt=prompt, a=Response(prompt_id="p", text=text, seed=3), b=Response(prompt_id="p", text="\ud800"))
    store = Labels(tmp_path_factory.mktemp("labels") / "labels.db")
    store.add("ann", row, "a", "ab", note)
    assert store.items() == {row.id: row}
    assert store.verdicts("ann")[row.id].reason == note.encode(errors="replace").decode()


def test_other_texts_are_another_item_and_how_they_were_made_is_not():
    other = ONE.model_copy(update={"b": Response(prompt_id="p0", text="changed")})
    assert Item(**other.model_dump()).id != ONE.id
    made = {**ONE.model_dump(), "a": ONE.a.model_copy(update={"temperature": 0.7})}
    assert Item(**made).id == ONE.id


def test_rows_of_each_kind_become_items_and_what_is_none_is_named():
    verdict = Verdict(winner="a", judge="j", reason="")
    pair = PreferencePair(prompt=TWO.prompt, chosen=TWO.a, rejected=TWO.b, verdict=verdict)
    assert as_items([ONE, pair, (THREE.prompt, THREE.a, THREE.b)]) == [ONE, TWO, THREE]
    for rows, said in (
        ([ONE, TWO, ONE], "row 3: p0#.* twice"),
        ([], "nothing to label"),
        ([ONE, "text"], "row 2: .*str"),
    ):
        with pytest.raises(DpoKitError, match=said):
            as_items(rows)


def test_a_locked_file_is_an_error_and_nothing_is_saved(store, monkeypatch):
    monkeypatch.setattr(Labels, "patience", 0.05)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DpoKitError, match=r"nothing was saved.*another program holds it"):
        store.add("ann", ONE, "a", "ab")
    assert store.verdicts("ann") == {}, "a reader need not wait for a writer"
    other.execute("COMMIT")
    assert store.add("ann", ONE, "a", "ab")


def test_a_file_of_another_kind_or_version_is_refused_and_left_as_it_was(store, tmp_path):
    foreign, newer, text = tmp_path / "foreign.db", tmp_path / "newer.db", tmp_path / "text.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE theirs (x)")
    shutil.copy(store.path, newer)
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 2")
    text.write_text("these are no labels, and they are longer than the header of an SQLite file: " + "x" * 100)
    for path, said in ((foreign, "another program"), (newer, "version 2, .* version 1"), (text, "not a database")):
        before = path.read_bytes()
        with pytest.raises(DpoKitError, match=said):
            Labels(path)
        assert path.read_bytes() == before
    with pytest.raises(DpoKitError, match="unable to open"):
        Labels(tmp_path)
    with pytest.raises(DpoKitError, match="no folder"):
        Labels(text / "labels.db")


def test_whichever_page_is_damaged_opening_the_file_says_so(store):
    for number in range(60):
        store.add("ann", item(number), "a", "ab", "x" * 300)
    whole = store.path.read_bytes()
    for start in range(0, len(whole), 4096):
        store.path.write_bytes(whole[:start] + b"\xff" * 4096 + whole[start + 4096 :])
        with pytest.raises(DpoKitError, match=r"labels\.db"):
            Labels(store.path)
    store.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DpoKitError, match="damaged"):
        Labels(store.path)


def test_a_file_that_vanished_is_not_made_anew_in_silence(store):
    store.path.unlink()
    with pytest.raises(DpoKitError, match="unable to open"):
        store.add("ann", ONE, "a", "ab")


def test_a_commit_is_flushed_to_the_disk(store):
    with store._connected("rw") as db:
        modes = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert modes == ["delete", 3], "3 is EXTRA: https://sqlite.org/pragma.html#pragma_synchronous"


@pytest.mark.slow
def test_a_kill_loses_no_acknowledged_label_and_doubles_none(tmp_path):
    figures = trial(tmp_path, kills=12, seed="test")
    assert figures["acknowledged"] > 12, "the writers were killed before they wrote anything"
