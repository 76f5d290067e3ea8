"""What training loses through SIGKILL, damaged files and a full disk, with this package and with stock TRL.

    python -m benchmarks.kill_training [--kills 100] [--stock-kills 10] [--only kills,damage,disk]

Every training is a real child process, forked from a parent that has only imported the libraries. It saves after every
step, so that many kills fall into a save. After each kill this script finds the newest complete checkpoint with hashlib
alone, and the next child must resume from exactly that one. When a child reaches the end, its weights and its log must
equal those of a run that was never interrupted. Prints Markdown tables; exits with 1 where anything was lost. The full
disk is a small tmpfs, which needs root; without root it is a limit on the size of a file.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}

import argparse
import hashlib
import json
import multiprocessing
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_kit.files import hashes, sha256
from dpo_kit.jsonl import read_pairs, read_records, write_pairs, write_records
from dpo_kit.profiles import load_profile
from dpo_kit.records import Prompt
from dpo_kit.training.dpo import dpo_trainer, train_dpo
from dpo_kit.training.metrics_log import read_log
from dpo_kit.workbook.cells import without_timings

PROFILE = load_profile(
    "tiny",
    sft={"demonstrations": 64},
    pairs={"max_new_tokens": 24},
    dpo={"batch_size": 2, "kl_prompts": 2, "kl_every": 4, "save_every": 1, "warmup_share": 0.0},
)
PAIRS, HELD_OUT = 14, 2
SAVE = 0.1  # seconds: about what a save takes
TRIES = 10  # runs that may be killed too late before the benchmark gives up
FORK = multiprocessing.get_context("fork")


def main() -> int:
    """Prepare, run the suites that were asked for, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stock-kills", type=int, default=10)
    parser.add_argument("--only", default="kills,damage,disk")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw, failures = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        in_child(prepare, root)
        whole = Reference(root)
        if "kills" in arguments.only:
            failures += kills(root, whole, arguments.kills, draw) + stock_kills(root, arguments.stock_kills)
        if "damage" in arguments.only:
            failures += damage(root, whole)
        if "disk" in arguments.only:
            failures += full_disk(root, whole)
    print(f"\n{failures} failures")
    return int(failures > 0)


# ---- the children -----------------------------------------------------------------------------------------------


def prepare(root: Path, pipe) -> None:
    """An SFT adapter and pairs sampled from it."""
    from dpo_kit.models.loading import load_arms
    from dpo_kit.preferences.judges import by_score
    from dpo_kit.preferences.sampling import make_pairs, sample_twice
    from dpo_kit.training.sft import train_sft
    from dpo_kit.triage import rubric
    from dpo_kit.triage.demonstrations import Noise, demonstrate
    from dpo_kit.triage.reports import draw_prompts

    prompts = draw_prompts(64, "train", "kills", 0)
    (root / "sft").mkdir()
    train_sft(PROFILE, prompts, demonstrate(prompts, Noise(), 0), root / "sft", 0)
    arms = load_arms(PROFILE, {"sft": root / "sft" / "adapter"})
    answers = sample_twice(arms, "sft", prompts, PROFILE.pairs, 0)
    pairs = make_pairs(prompts, *answers, by_score(rubric.overall, "rubric"))
    write_pairs(root / "pairs.jsonl", pairs[: PAIRS + HELD_OUT])
    write_records(root / "prompts.jsonl", prompts[:2])


class Begun(TrainerCallback):
    """Tells the parent that the first step is about to be made."""

    def __init__(self, pipe):
        self.pipe = pipe

    def on_train_begin(self, args, state, control, **kwargs):
        self.pipe.send("begun")


def train(root: Path, folder: Path, pipe) -> None:
    """Train or resume in `folder`; what is said goes to `said.txt` as it is said."""
    pairs = read_pairs(root / "pairs.jsonl")
    with (folder / "said.txt").open("w", buffering=1) as said:
        train_dpo(
            PROFILE,
            pairs[:PAIRS],
            root / "sft" / "adapter",
            read_records(root / "prompts.jsonl", Prompt),
            folder,
            0,
            held_out=pairs[PAIRS:],
            callbacks=[Begun(pipe)],
            log=lambda line: said.write(line + "\n"),
        )


def train_stock(root: Path, folder: Path, pipe) -> None:
    """The same training by TRL's own trainer, resumed as its documentation says."""
    pairs = read_pairs(root / "pairs.jsonl")[:PAIRS]
    built = dpo_trainer(PROFILE, pairs, root / "sft" / "adapter", folder, 0)
    built.__class__ = DPOTrainer  # the same weights, data and arguments, without what this project adds
    built.data_collator = DataCollatorForPreference(built.processing_class.pad_token_id, built.args.max_length)
    built.add_callback(Begun(pipe))
    last = get_last_checkpoint(str(folder))
    (folder / "said.txt").write_text(f"{Path(last).name if last else 'nothing'}: gone on from\n")
    built.train(resume_from_checkpoint=True if last else None)
    built.save_model(str(folder / "adapter"))


def in_child(work: Callable, *arguments) -> str:
    """Run to the end in a child; returns "done", or the error that ended it."""
    process, pipe = start(work, *arguments)
    process.join()
    return outcome(process, pipe)


def start(work: Callable, *arguments):
    """Start a child; it reports what it has to say through a pipe, whose end for reading is returned with it."""
    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_child, args=(send, work, *arguments))
    process.start()
    send.close()
    return process, receive


def _child(pipe, work: Callable, *arguments) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        work(*arguments, pipe)
        pipe.send("done")
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}")


def outcome(process, pipe) -> str:
    """The last thing a child said before it ended."""
    last = f"killed by signal {-process.exitcode}"
    try:
        while pipe.poll():
            said = pipe.recv()
            last = last if said == "begun" else said
    except EOFError:
        pass
    return last


# ---- what is expected -------------------------------------------------------------------------------------------


class Reference:
    """The run that was never interrupted."""

    def __init__(self, root: Path):
        folder = fresh(root, "whole")
        started = time.monotonic()
        process, pipe = start(train, root, folder)
        while pipe.recv() != "begun":
            pass
        self.setup = time.monotonic() - started
        process.join()
        self.training = time.monotonic() - started - self.setup
        self.weights = sha256(folder / "adapter" / "adapter_model.safetensors")
        self.log = without_timings(read_log(folder / "log.jsonl"))
        print(
            f"{len({row['step'] for row in self.log}) - 1} steps, setting up {self.setup:.1f} s, training and saving",
            end=" ",
        )
        print(f"after every step {self.training:.1f} s", flush=True)

    def is_equalled_in(self, folder: Path) -> bool:
        """Whether a finished run has the same weights and the same log."""
        same = sha256(folder / "adapter" / "adapter_model.safetensors") == self.weights
        return same and without_timings(read_log(folder / "log.jsonl")) == self.log


def newest_whole(folder: Path) -> str | None:
    """The newest checkpoint whose every file is as its manifest says, found with hashlib alone."""
    for path in sorted(folder.glob("checkpoints/checkpoint-*"), key=lambda p: -int(p.name[11:])):
        try:
            files = json.loads((path / "checkpoint.json").read_text())["files"]
            if all(hashlib.sha256((path / n).read_bytes()).hexdigest() == f["sha256"] for n, f in files.items()):
                return path.name
        except (OSError, ValueError, KeyError):
            continue
    return None


def fresh(root: Path, name: str) -> Path:
    """An empty folder."""
    shutil.rmtree(root / name, ignore_errors=True)
    (root / name).mkdir()
    return root / name


def gone_on_from(folder: Path) -> str | None:
    """Which checkpoint the last child said it went on from."""
    lines = (folder / "said.txt").read_text().splitlines() if (folder / "said.txt").exists() else []
    return next((line.split(":")[0] for line in lines if "going on" in line or "gone on" in line), None)


# ---- kills ------------------------------------------------------------------------------------------------------


def kills(root: Path, whole: Reference, count: int, draw: random.Random) -> int:
    """SIGKILL at random moments, again and again, each run going on where the last was killed."""
    found, folder, done = Counter(), fresh(root, "kills"), 0
    while done < count:
        expected = newest_whole(folder)
        (folder / "said.txt").unlink(missing_ok=True)
        process, pipe = start(train, root, folder)
        kind = draw.random()
        if kind < 0.1:  # some before the first step
            process.join(draw.uniform(0, whole.setup))
        elif pipe.poll(60) and pipe.recv() == "begun":
            process.join(draw.uniform(0, whole.training))
            if kind < 0.6:  # half of all wait for the next save and then for some part of it
                while process.is_alive() and not any(folder.glob("checkpoints/.writing/checkpoint-*")):
                    process.join(0.001)
                process.join(draw.uniform(0, SAVE))
        killed = process.is_alive()
        process.kill()
        process.join()
        said = (folder / "said.txt").exists() and gone_on_from(folder)
        if said or (not killed and expected):
            found["resumes"] += 1
            found["from the newest whole checkpoint"] += said == expected
            found["from another, or partial"] += said != expected
        if killed:
            done += 1
            found["inside a save"] += any(folder.glob("checkpoints/.writing/checkpoint-*"))
            found["before a first checkpoint"] += newest_whole(folder) is None
            continue
        found["runs that reached the end"] += 1
        found["of these equal to the uninterrupted one"] += outcome(process, pipe) == "done" and whole.is_equalled_in(
            folder
        )
        folder = fresh(root, "kills")
    if in_child(train, root, folder) == "done":
        found["runs that reached the end"] += 1
        found["of these equal to the uninterrupted one"] += whole.is_equalled_in(folder)
    table(f"{count} SIGKILLs at random moments", found)
    different = found["runs that reached the end"] - found["of these equal to the uninterrupted one"]
    return found["from another, or partial"] + different


def stock_kills(root: Path, count: int) -> int:
    """SIGKILL inside a save of the stock trainer, each time with an older whole checkpoint there."""
    found = Counter({"resumed": 0})
    for _ in range(count):
        folder = fresh(root, "stock")
        process, _pipe = start(train_stock, root, folder)
        while process.is_alive():
            half = [p for p in folder.glob("checkpoint-*") if not (p / "trainer_state.json").exists()]
            if half and half[0].name != "checkpoint-1":
                process.kill()
            process.join(0.001)
        result = in_child(train_stock, root, folder)
        found["resumed" if result == "done" else f"failed with {result.split(':')[0]}"] += 1
    table(f"{count} SIGKILLs inside a save of stock TRL, an older whole checkpoint being there", found)
    return 0


# ---- damage -----------------------------------------------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    """Delete a file, or cut it in half."""
    if how == "deleted":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)


def begun(folder: Path, step: int) -> bool:
    """Whether a checkpoint of `step` is being written or there."""
    try:
        return bool(list(folder.glob(f"**/checkpoint-{step}")))
    except FileNotFoundError:  # a folder was renamed while it was looked at
        return False


def stopped_late(root: Path, work: Callable, name: str, marker: str, last: int) -> Path:
    """A run that was killed when the checkpoint of step `last` was whole.

    On a busy machine the kill may come so late that this checkpoint has made room for newer ones; then once more.
    """
    for _ in range(TRIES):
        folder = fresh(root, name)
        process, _pipe = start(work, root, folder)
        while process.is_alive() and not begun(folder, last + 1):
            time.sleep(0.001)
        process.kill()
        process.join()
        for path in folder.glob(f"**/checkpoint-{last + 1}"):
            shutil.rmtree(path)
        if list(folder.glob(f"**/checkpoint-{last}/{marker}")):
            return folder
    raise AssertionError(f"{TRIES} runs were killed, and none left a whole checkpoint of step {last}")


def damage(root: Path, whole: Reference) -> int:
    """Each file of the newest checkpoint deleted or cut in half in turn, then resumed."""
    rows, failures = [], 0
    last = whole.log[-1]["step"] - 2
    ours = stopped_late(root, train, "late", "checkpoint.json", last)
    stock = stopped_late(root, train_stock, "late_stock", "trainer_state.json", last)
    stock_end = fresh(root, "stock_end")
    assert in_child(train_stock, root, stock_end) == "done"
    expected = sha256(stock_end / "adapter" / "adapter_model.safetensors")
    names = hashes(ours / "checkpoints" / f"checkpoint-{last}")
    for name in names:
        for how in ("deleted", "cut in half"):
            here = _damaged(root, ours, f"checkpoints/checkpoint-{last}/{name}", how)
            result = in_child(train, root, here)
            held = result == "done" and gone_on_from(here) == f"checkpoint-{last - 1}" and whole.is_equalled_in(here)
            failures += not held
            row = [name, how, "passed over, same end" if held else f"**{result}**", "no such file"]
            if (stock / f"checkpoint-{last}" / name).exists():
                here = _damaged(root, stock, f"checkpoint-{last}/{name}", how)
                result = in_child(train_stock, root, here)
                if result == "done":
                    same = sha256(here / "adapter" / "adapter_model.safetensors") == expected
                    result = "resumed, same end" if same else "**resumed without a word, other weights**"
                row[3] = result
            rows.append(row)
    print("\n| file of the newest checkpoint | what befell it | here | stock TRL |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    return failures


def _damaged(root: Path, source: Path, name: str, how: str) -> Path:
    folder = root / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    spoil(folder / name, how)
    return folder


# ---- a full disk ------------------------------------------------------------------------------------------------


def full_disk(root: Path, whole: Reference) -> int:
    """The disk fills while a checkpoint is written; then there is room again."""
    size = sum(p.stat().st_size for p in (root / "whole").glob("checkpoints/*/*") if p.is_file()) // 2
    found, same = Counter(), False
    for work, name in ((train, "here"), (train_stock, "stock TRL")):
        with small_disk(root, int(2.6 * size)) as (folder, make_room, limit):
            found[f"{name}: {in_child(limited, limit, work, root, folder)}"] += 1
            if work is train:
                found[f"here: newest whole checkpoint then: {newest_whole(folder)}"] += 1
            make_room()
            result = in_child(work, root, folder)
            found[f"{name}: with room again: {result}"] += 1
            if work is train:
                same = result == "done" and whole.is_equalled_in(folder)
                found["here: equal to the uninterrupted run"] += same
    table("A disk that is full at a save", found)
    return int(not same)


def limited(limit: int | None, work: Callable, root: Path, folder: Path, pipe) -> None:
    """`work` with no file larger than `limit` bytes, where there is one."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    work(root, folder, pipe)


@contextmanager
def small_disk(root: Path, size: int) -> Iterator[tuple[Path, Callable[[], None], int | None]]:
    """A folder on a tmpfs of `size` bytes, how to enlarge it, and no limit; or a plain folder and a file size limit."""
    folder = fresh(root, "disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield folder, lambda: None, size // 20
        return
    try:
        yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True), None
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def table(title: str, found: Counter) -> None:
    """Print counts as a Markdown table."""
    print(f"\n| {title} | |\n| --- | ---: |")
    for what, count in found.items():
        print(f"| {what} | {int(count)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
