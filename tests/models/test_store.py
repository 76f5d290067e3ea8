"""The store: a value that was acknowledged is still there after kills, errors and concurrent writers."""

import multiprocessing
import random
import resource
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_kit.errors import DpoKitError
from dpo_kit.models.generation import Answer, answer_key
from dpo_kit.models.store import Store
from dpo_kit.preferences.labels import Labels
from dpo_kit.records import Message, Prompt

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),), facts={"truth": 1})
MADE = {"arm": "abc", "temperature": 1.0, "seed": 0}


def store(folder):
    return Store(folder / "deep" / "answers.sqlite", Answer)


def test_what_is_added_is_found_again_by_another_process_or_object(tmp_path):
    assert store(tmp_path).find(["k"]) == [None]
    assert store(tmp_path).add(["k", "l"], [Answer("yes", True), Answer("no", None)]) == [("yes", True), ("no", None)]
    assert store(tmp_path).find(["l", "m", "k"]) == [Answer("no", None), None, Answer("yes", True)]


def test_the_first_answer_to_a_key_stays(tmp_path):
    one, other = store(tmp_path), store(tmp_path)  # as two processes that began together
    one.add(["k"], [Answer("first", True)])
    assert other.add(["k"], [Answer("second", True)]) == [Answer("first", True)]
    assert store(tmp_path).find(["k"]) == [Answer("first", True)]


@settings(max_examples=25)  # each flushes to the disk
@given(texts=st.lists(st.text(st.characters()), min_size=1, max_size=3))
def test_any_text_comes_back_as_it_was(texts, tmp_path_factory):
    texts = [*texts, "\ud800 lone", "line\nbreak\u2028", "\x00\x1b[31m<script>"]
    folder = tmp_path_factory.mktemp("store")
    keys = [str(i) for i in range(len(texts))]
    store(folder).add(keys, [Answer(text, True) for text in texts])
    assert [answer.text for answer in store(folder).find(keys)] == texts


def test_a_batch_is_stored_as_a_whole_or_not_at_all(tmp_path):
    kept = store(tmp_path)
    with pytest.raises(TypeError):
        kept.add(["good", "bad"], [Answer("1", True), Answer(object(), True)])
    with kept._connected("rw") as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON kept WHEN NEW.key = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with pytest.raises(DpoKitError, match="damaged"):
        kept.add(["good", "bad"], [Answer("1", True), Answer("2", True)])
    assert kept.find(["good", "bad"]) == [None, None]


@pytest.mark.parametrize("make", [lambda path: Store(path, Answer), Labels], ids=["store", "labels"])
def test_a_commit_is_flushed_to_the_disk(tmp_path, make):
    with make(tmp_path / "kept.sqlite")._connected("rw") as db:
        modes = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert modes == ["delete", 3], "3 is EXTRA: https://sqlite.org/pragma.html#pragma_synchronous"


def test_a_file_of_another_program_or_a_damaged_one_is_refused_in_one_line_and_left_as_it_was(tmp_path):
    foreign, labels, text = tmp_path / "foreign.db", tmp_path / "labels.db", tmp_path / "text.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE logps (key TEXT)")
    Labels(labels)
    text.write_text("this is no database, and it is longer than the header of an SQLite file: " + "x" * 100)
    for path, said in ((foreign, "another program"), (labels, "another program"), (text, r"damaged .*; remove it")):
        before = path.read_bytes()
        with pytest.raises(DpoKitError, match=said) as error:
            Store(path, Answer)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == before


def test_answers_that_an_earlier_version_kept_in_json_lines_are_found(tmp_path):
    bad = [b"\x00" * 9, b"[1]", b'{"b": [1]}', b'{"b": 1}', b"\xff", b"null", b'{"b": [1, 2, 3]}', b'{"b": ["cut o']
    rows = [b'{"a": ["1", true], "c": ["\\ud800", null]}', *bad]
    (tmp_path / "answers.jsonl").write_bytes(b"\n".join(rows))
    kept = Store(tmp_path / "answers.sqlite", Answer)
    assert kept.find(["a", "b", "c"]) == [Answer("1", True), None, Answer("\ud800", None)]
    (tmp_path / "answers.jsonl").unlink()
    assert Store(tmp_path / "answers.sqlite", Answer).find(["a"]) == [Answer("1", True)]


def test_a_key_moves_with_everything_an_answer_depends_on():
    key = answer_key(PROMPT, **MADE)
    assert key == answer_key(PROMPT.model_copy(update={"facts": {}}), **MADE), "the model is not told the facts"
    others = [PROMPT.model_copy(update={"id": "q"})]
    others += [
        PROMPT.model_copy(update={"messages": (Message(role=r, content=c),)})
        for r, c in (("user", "!"), ("system", "?"))
    ]
    keys = {key, *(answer_key(other, **MADE) for other in others)}
    keys |= {answer_key(PROMPT, **{**MADE, **change}) for change in ({"arm": "x"}, {"temperature": 0.0}, {"seed": 1})}
    assert len(keys) == 7


def test_a_place_that_cannot_be_written_is_one_clear_error():
    with pytest.raises(DpoKitError, match=r"/proc/nowhere/answers\.sqlite: no folder for stored results here"):
        Store(Path("/proc/nowhere/answers.sqlite"), Answer)


def test_a_full_disk_is_one_clear_error_and_what_was_stored_stays(tmp_path):
    filled = store(tmp_path)
    filled.add(["a"], [Answer("1", True)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # as a disk that takes a part of the row and no more
    try:
        with pytest.raises(DpoKitError, match=r"nothing was saved: .*has the disk room"):
            filled.add(["b"], [Answer("2" * 1_000_000, True)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert filled.find(["a", "b"]) == store(tmp_path).find(["a", "b"]) == [Answer("1", True), None]
    filled.add(["c"], [Answer("3", True)])
    assert store(tmp_path).find(["a", "b", "c"]) == [Answer("1", True), None, Answer("3", True)]


def test_many_may_make_it_at_once(tmp_path):
    # a hundred files, because a race for one is seldom lost
    with ThreadPoolExecutor(8) as pool:
        for n in range(100):
            list(pool.map(lambda path: Store(path, Answer), [tmp_path / f"{n}.sqlite"] * 8))


def _add_many(path, start):
    kept = Store(path, Answer)
    for n in range(start, start + 200):
        kept.add([f"key-{n}", "shared"], [Answer(str(n), None), Answer("1", True)])


def test_two_processes_may_share_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_many, args=(tmp_path / "cache.sqlite", start)) for start in (0, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = Store(tmp_path / "cache.sqlite", Answer).find([*(f"key-{n}" for n in range(300)), "shared"])
    assert None not in found
    assert found[299] == ("299", None)


WRITER = """
import sys, time; from collections import namedtuple; from pathlib import Path
from dpo_kit.models.store import Store
Answer = namedtuple("Answer", "text stopped")
store, name = Store(Path(sys.argv[1]), Answer), sys.argv[2]
for batch in range(100_000):
    store.add([f"{name}/{batch}/{row}" for row in range(40)], [Answer("x" * 300, True)] * 40)
    print(batch, flush=True)
    time.sleep(0.02)  # an answer takes longer than its storing; else one writer could keep the other waiting
"""


@pytest.mark.slow
def test_sigkill_of_two_writers_at_random_moments_loses_no_acknowledged_batch_and_keeps_no_half_one(tmp_path):
    rng, path = random.Random(0), tmp_path / "answers.sqlite"
    acknowledged = {}
    for attempt in range(8):
        writers = {
            name: subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True)
            for name in (f"{attempt}a", f"{attempt}b")
        }
        for name, child in writers.items():
            for _ in range(rng.randint(1, 40)):
                acknowledged[name] = int(child.stdout.readline())
        for name, child in writers.items():
            child.kill()
            seen = child.communicate()[0].split("\n")[:-1]
            acknowledged[name] = int(seen[-1]) if seen else acknowledged[name]
    found = Store(path, Answer)
    for name, last in acknowledged.items():
        assert None not in found.find([f"{name}/{batch}/{row}" for batch in range(last + 1) for row in range(40)])
        half = found.find([f"{name}/{last + 1}/{row}" for row in range(40)])
        assert len({answer is None for answer in half}) == 1, "a half batch"
