"""A run that is stopped and goes on equals one that was never stopped: every row of its log, every bit of its weights.

Kills of real processes are in `benchmarks/kill_training.py`, which the slow test below runs a little of.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from dpo_kit.errors import DpoKitError
from dpo_kit.files import hashes
from dpo_kit.jsonl import read_pairs
from dpo_kit.profiles import ROOT
from dpo_kit.training.checkpoints import damage_in, manifest
from dpo_kit.training.dpo import train_dpo
from dpo_kit.training.metrics_log import read_log
from dpo_kit.training.sft import train_sft
from dpo_kit.training.trainers import TrainingStopped
from dpo_kit.triage.demonstrations import Noise, demonstrate
from dpo_kit.workbook.cells import without_timings


class Dpo:
    """A short DPO training of six steps, saved after every second, as often as wanted."""

    def __init__(self, small_run):
        self.work, self.profile, _ = small_run
        pairs = read_pairs(self.work / "pairs" / "pairs.jsonl")
        self.pairs = (pairs * 2)[:22]
        self.held_out = read_pairs(self.work / "pairs" / "heldout.jsonl")

    def __call__(self, folder, sft=None, **options):
        folder.mkdir(exist_ok=True)
        prompts = [pair.prompt for pair in self.pairs[:2]]
        sft = sft or self.work / "sft" / "adapter"
        train_dpo(self.profile, self.pairs, sft, prompts, folder, 0, held_out=self.held_out, **options)
        return folder


@pytest.fixture(scope="module")
def dpo(small_run):
    return Dpo(small_run)


@pytest.fixture(scope="module")
def whole(dpo, tmp_path_factory):
    return dpo(tmp_path_factory.mktemp("whole"), log=lambda line: None)


@pytest.fixture(scope="module")
def stopped(dpo, tmp_path_factory):
    """A run that was stopped at step 5, with checkpoints of steps 4 and 5."""
    folder, stop = tmp_path_factory.mktemp("stopped"), threading.Event()
    with pytest.raises(TrainingStopped, match="stopped at step 5 of 6; run the same again"):
        dpo(folder, callbacks=[At(5, stop.set)], stop=stop, log=lambda line: None)
    return folder


class At(TrainerCallback):
    """Calls `act` as soon as a step has begun, while the model computes."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.act()


def assert_equal_runs(found, whole):
    assert without_timings(read_log(found / "log.jsonl")) == without_timings(read_log(whole / "log.jsonl"))
    assert hashes(found / "adapter") == hashes(whole / "adapter")


def test_a_stop_saves_within_the_step_and_the_run_goes_on_bit_for_bit(dpo, stopped, whole, tmp_path):
    """It goes on elsewhere, from another folder, and what a subscriber hears then is the whole run."""
    newest = stopped / "checkpoints" / "checkpoint-5"
    assert damage_in(newest) is None
    assert not (stopped / "adapter").exists()
    said, heard = [], []
    watcher = type("Watcher", (), {"on_row": lambda self, row: heard.append(row)})()
    scratch = shutil.copytree(stopped / "checkpoints", tmp_path / "scratch")
    resumed = dpo(tmp_path / "resumed", scratch=scratch, callbacks=[watcher], log=said.append)
    assert said == ["checkpoint-5: verified, going on from it"]
    assert_equal_runs(resumed, whole)
    expected = without_timings(read_log(whole / "log.jsonl"))
    assert without_timings(heard)[-len(expected) :] == expected


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(dpo, stopped, whole, tmp_path):
    folder, said = shutil.copytree(stopped, tmp_path / "run"), []
    (folder / "checkpoints" / "checkpoint-5" / "optimizer.pt").unlink()
    dpo(folder, log=said.append)
    assert said[0] == "checkpoint-5: passed over, optimizer.pt is missing"
    assert said[1] == "checkpoint-4: verified, going on from it"
    assert_equal_runs(folder, whole)


def test_a_finished_training_that_is_run_again_only_writes_its_adapter(dpo, whole, tmp_path):
    """As after a kill between the last step and the end."""
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "adapter")
    (folder / "log.jsonl").unlink()
    steps = []
    dpo(folder, callbacks=[At(7, lambda: steps.append(7))], log=lambda line: None)
    assert not steps
    assert_equal_runs(folder, whole)


def test_other_pairs_do_not_go_on_from_these_checkpoints(dpo, stopped, tmp_path):
    folder, said, other, stop = shutil.copytree(stopped, tmp_path / "run"), [], Dpo.__new__(Dpo), threading.Event()
    vars(other).update(vars(dpo), pairs=dpo.pairs[::-1])
    stop.set()
    with pytest.raises(TrainingStopped, match="stopped at step 1 of 6"):
        other(folder, stop=stop, log=said.append)
    assert said[0] == "checkpoint-5: passed over, it is of another run, which differs in data_sha256"


def test_another_reference_does_not_go_on_from_these_checkpoints(dpo, stopped, tmp_path):
    """The SFT adapter is the policy's start and the reference: with another one this is another run."""
    folder, said, stop = shutil.copytree(stopped, tmp_path / "run"), [], threading.Event()
    other = shutil.copytree(dpo.work / "sft" / "adapter", tmp_path / "sft")
    weights = load_file(other / "adapter_model.safetensors")
    save_file({n: 1.001 * w for n, w in weights.items()}, other / "adapter_model.safetensors", {"format": "pt"})
    stop.set()
    with pytest.raises(TrainingStopped, match="stopped at step 1 of 6"):
        dpo(folder, sft=other, stop=stop, log=said.append)
    assert said[0] == "checkpoint-5: passed over, it is of another run, which differs in reference_sha256"


@pytest.mark.parametrize(
    ("number", "ending", "code"), [(signal.SIGTERM, SystemExit, 143), (signal.SIGINT, KeyboardInterrupt, None)]
)
def test_a_signal_saves_and_ends_as_its_sender_expects(dpo, tmp_path, number, ending, code, capsys):
    before = signal.getsignal(number)
    with pytest.raises(ending) as ended:
        dpo(tmp_path, callbacks=[At(1, lambda: os.kill(os.getpid(), number))], log=lambda line: None)
    assert getattr(ended.value, "code", None) == code
    assert "stopped at step 1 of 6" in (capsys.readouterr().err if code else str(ended.value))
    assert damage_in(tmp_path / "checkpoints" / "checkpoint-1") is None
    assert signal.getsignal(number) == before


def test_a_second_signal_interrupts_at_once(dpo, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        dpo(tmp_path, callbacks=[At(1, twice)], log=lambda line: None)
    assert not list(tmp_path.glob("checkpoints/checkpoint-*"))


def test_a_reference_that_moves_is_found_at_the_next_save(dpo, tmp_path):
    """A hundredth of one of its weights is enough, and what is saved before stays."""
    moved = At(3, lambda: moved.shift())

    def shift():
        weights = [p for name, p in moved.model.named_parameters() if ".ref." in name and "lora_B" in name]
        weights[-1].data.mul_(1.01)

    moved.shift = shift
    moved.on_train_begin = lambda args, state, control, model=None, **kwargs: setattr(moved, "model", model)
    with pytest.raises(DpoKitError, match="the reference changed: at step 4 and at the start its log-probs"):
        dpo(tmp_path, callbacks=[moved], log=lambda line: None)
    assert [path.name for path in tmp_path.glob("checkpoints/checkpoint-*")] == ["checkpoint-2"]


def test_the_probe_is_what_the_reference_adapter_says(stopped, dpo):
    """Recomputed by the textbook: log-softmax, gather, sum over the completion."""
    from dpo_kit.models.loading import add_adapter, load_base

    model, tokenizer = load_base(dpo.profile)
    model = add_adapter(model, "sft", dpo.work / "sft" / "adapter").eval()
    pair = dpo.pairs[0]
    head = tokenizer.apply_chat_template(pair.prompt.chat(), add_generation_prompt=True, return_dict=True)["input_ids"]
    tail = tokenizer(pair.chosen.text + "<|end|>")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tail)[:, None]).sum().item()
    recorded = manifest(stopped / "checkpoints" / "checkpoint-5")["reference_logps"]
    assert recorded[0] == pytest.approx(expected, abs=1e-4)


def test_sft_goes_on_bit_for_bit(small_profile, incidents, tmp_path):
    prompts = incidents[:64]
    demonstrations, stop = demonstrate(prompts, Noise(), 0), threading.Event()
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()

    def train(name, **options):
        train_sft(small_profile, prompts, demonstrations, tmp_path / name, 0, log=lambda line: None, **options)

    train("whole")
    with pytest.raises(TrainingStopped, match="stopped at step 2 of 4"):
        train("cut", callbacks=[At(2, stop.set)], stop=stop)
    train("cut")
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_kills_damage_and_a_full_disk_lose_nothing():
    command = [sys.executable, "-m", "benchmarks.kill_training", "--kills", "6", "--stock-kills", "1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "6 SIGKILLs at random moments" in ended.stdout
    assert ended.stdout.count("passed over, same end") == 30, "fifteen files, deleted or cut in half"
