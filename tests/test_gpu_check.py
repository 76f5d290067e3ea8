"""The GPU check, as far as a CPU can test it: its arithmetic, its trainer, and its message without a GPU."""

import subprocess
import sys

import pytest
import torch

from benchmarks import gpu_check
from dpo_kit.models.memory import SHAPES
from dpo_kit.profiles import ROOT, load_profile


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 2
    assert "no GPU here" in capsys.readouterr().err


def test_it_has_a_help_page():
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--caps" in done.stdout


@pytest.mark.parametrize("name", ["gpu-8gb", "gpu-12gb", "gpu-16gb", "gpu-24gb"])
def test_the_rows_fill_what_goes_through_the_model_at_once(name):
    profile = load_profile(name)
    rows = gpu_check.longest_rows(profile)
    sides = [len(row["prompt_ids"]) + len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
    assert set(sides) == {profile.model.max_length}
    assert sum(sides) == profile.dpo.max_tokens


def test_the_trainer_that_is_measured_learns():
    from transformers import AutoConfig

    shape = {**SHAPES["Qwen/Qwen3-0.6B"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = AutoConfig.for_model(shape.pop("model_type"), **{**shape, "vocab_size": 512})
    profile = load_profile("gpu-8gb", model={"max_length": 24}, dpo={"max_tokens": 96})
    trainer = gpu_check.capped_trainer(profile, config)
    losses = gpu_check.train_steps(trainer, gpu_check.longest_rows(profile), 3)
    assert losses[0] == pytest.approx(0.693147, abs=1e-5), "the policy starts at its reference"
    assert losses[-1] < losses[0]


def test_a_table_shows_what_missed_and_what_was_left_out():
    met = {"cap": 8, "profile": "gpu-8gb", "estimate": 4e9, "peak": 4.2e9, "near": True}
    missed = {**met, "cap": 12, "peak": 6e9, "near": False}
    table = gpu_check.memory_table([met, missed, gpu_check._row(24, 16.0)])
    assert "| 8 | gpu-8gb | 4.00 | 4.20 | 1.050 | as it should be |" in table
    assert "| 1.500 | NOT as it should be |" in table
    assert "the card has 16 GB" in table
