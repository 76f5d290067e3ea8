"""Is a label safe once it is acknowledged? Two annotators write into one file and are killed, again and again.

    python -m benchmarks.kill_annotation [--kills 200] [--seed 0]

Each writer is a separate process. It labels its first item without a label, undoes one label in five, and prints a line
after each commit, which is the acknowledgement. SIGKILL comes at a random moment, one time in four while the writer
still opens the file. Every 20 kills a new file begins, so that some writers are killed while they create it. After each
kill the file is compared with the printed lines: each acknowledged label must be there exactly once and unchanged, and
at most one unacknowledged change may be there too.

A kill does not clear the system's file cache, so this shows nothing about a power cut. For that the store relies on
SQLite's `synchronous = EXTRA`, which flushes each commit to the disk.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dpo_kit.preferences.labels import Item, Labels
from dpo_kit.records import Message, Prompt, Response

NAMES = ("ann", "bob")
KILLS_PER_FILE = 20


def item(number: int) -> Item:
    """The item of that number, always the same."""
    prompt = Prompt(id=f"p{number}", messages=(Message(role="user", content=f"question {number}"),))
    return Item(prompt=prompt, **{side: Response(prompt_id=prompt.id, text=f"{side}{number}") for side in "ab"})


def write(path: Path, name: str, seed: int) -> None:
    """Label item after item until killed; print `label ID CHOICE` or `undo ID` after each commit."""
    print("ready", flush=True)
    labels, rng = Labels(path), random.Random(seed)
    done = list(labels.standing(name))
    while True:
        if done and rng.random() < 0.2:
            last = done.pop()
            assert labels.undo(name, last), "a standing label could not be undone"
            print("undo", last, flush=True)
        else:
            row, choice = item(len(done)), rng.choice(("a", "b", "tie", "skip"))
            assert labels.add(name, row, choice, "ab", f"said {choice}"), "an item without a label refused one"
            done.append(row.id)
            print("label", row.id, choice, flush=True)


def kill_once(path: Path, rng: random.Random, within: float) -> dict[str, list[list[str]]]:
    """Start both writers, kill each `within` so many seconds; return what each had acknowledged, in order."""
    writers = {}
    for name in NAMES:
        command = [sys.executable, "-m", "benchmarks.kill_annotation", "--write", name, "--file", str(path)]
        writers[name] = subprocess.Popen([*command, "--seed", str(rng.random())], stdout=subprocess.PIPE, text=True)
    for writer in writers.values():
        writer.stdout.readline()  # "ready": all that follows is the store's own time
    time.sleep(rng.uniform(0, within))
    for name in rng.sample(NAMES, 2):
        writers[name].kill()
        time.sleep(rng.uniform(0, 0.02))
    said = {}
    for name, writer in writers.items():
        lines = writer.stdout.read().split("\n")[:-1]  # what follows the last line's end was cut off
        assert writer.wait() == -9, f"{name} ended by itself with {writer.returncode}"
        said[name] = [line.split() for line in lines]
    return said


def compare(labels: Labels, name: str, before: dict[str, str], said: list[list[str]]) -> tuple[dict[str, str], int]:
    """What stands now, and whether an unacknowledged act is among it; fails where it is not what was said."""
    expected = dict(before)
    for act, item_id, *choice in said:
        if act == "undo":
            assert expected.pop(item_id), "an undo of what did not stand"
        else:
            assert item_id not in expected, f"{item_id} was acknowledged twice"
            expected[item_id] = choice[0]
    rows = [label for label in labels.history(name) if label.undone_at is None]
    found = {label.item: label.choice for label in rows}
    assert len(found) == len(rows), "an item has two standing labels"
    assert all(label.note == f"said {label.choice}" for label in rows), "a label lost its note"
    differing = [key for key in {*found, *expected} if found.get(key) != expected.get(key)]
    assert len(differing) <= 1, f"{name}: acknowledged labels lost or changed: {differing}"
    for key in differing:  # the act in flight: either the next item's label, or the undo of the last
        assert key in (item(len(expected)).id, next(reversed(expected), None)), f"{name}: {key} was not in flight"
    return found, len(differing)


def main() -> None:
    """Kill as often as asked and print the figures; exit with an error at the first label lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.file, arguments.write, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(trial(Path(folder), arguments.kills, arguments.seed)))


def trial(folder: Path, kills: int, seed: str) -> dict[str, int]:
    """Kill at least `kills` writers and count what was acknowledged; AssertionError where anything was lost."""
    rng = random.Random(seed)
    figures = {"kills": 0, "files": 0, "acknowledged": 0, "kept_unacknowledged": 0, "killed_before_the_first_ack": 0}
    while figures["kills"] < kills:
        if figures["kills"] % KILLS_PER_FILE == 0:
            figures["files"] += 1
            path, standing = folder / f"labels-{figures['files']}.db", {name: {} for name in NAMES}
        early = not path.exists() or rng.random() < 0.25
        for name, said in kill_once(path, rng, 0.01 if early else 0.5).items():
            standing[name], more = compare(Labels(path), name, standing[name], said)
            figures["kills"] += 1
            figures["acknowledged"] += len(said)
            figures["kept_unacknowledged"] += more
            figures["killed_before_the_first_ack"] += not said
    return figures


if __name__ == "__main__":
    main()
