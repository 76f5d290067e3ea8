"""Checks that need a GPU: memory against its estimate, speed against stock TRL, and losses against the CPU's.

    python -m benchmarks.gpu_check [--caps 8 12 16 24] [--skip-speed] [--json FILE]

A cap is a share of the GPU's memory that torch may not exceed. For each cap a separate process trains the gpu-* profile
of that size for two steps, on a model of the profile's shape with arbitrary weights and on the longest rows that the
profile allows. Its peak is compared with `models.memory`. Any GPU will do; caps above its memory are listed as skipped.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.dpo_step import SHAPES, build_trainer, make_rows
from dpo_kit.files import write_atomically
from dpo_kit.profiles import Profile, load_profile

NEAR = 0.1  # the share by which an estimate may miss
EQUAL = 1e-3  # between losses of two devices in fp32 over a few steps
STEPS = 5


def main() -> int:
    """Run all checks, print one table each; 1 where one of them failed, 2 where there is no GPU."""
    arguments = _arguments()
    if arguments.child:
        cap = float(arguments.child.removeprefix("memory-")) if arguments.child.startswith("memory-") else None
        result = tiny_losses() if cap is None else memory(load_profile(f"gpu-{cap:g}gb"), cap)
        arguments.json.write_text(json.dumps(result))
        return 0
    import torch

    if not torch.cuda.is_available():
        print("no GPU here: torch.cuda.is_available() is False; run this where there is one", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_properties(0)
    print(f"{card.name}, {card.total_memory / 2**30:.0f} GB, torch {torch.__version__}\n", flush=True)
    rows = [_row(cap, card.total_memory / 2**30) for cap in arguments.caps]
    print(memory_table(rows))
    losses = {device: _child("losses", hide=device == "cpu") for device in ("cpu", "cuda")}
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    print(f"\nlosses of {STEPS} steps, CPU against GPU: {apart:.1e} apart, {_verdict(apart < EQUAL)}\n", flush=True)
    if not arguments.skip_speed:
        subprocess.run([sys.executable, "-m", "benchmarks.dpo_step", *SPEED], check=True)
    if arguments.json:
        write_atomically(arguments.json, json.dumps({"card": card.name, "memory": rows, "losses": losses}) + "\n")
    return 0 if apart < EQUAL and all(row.get("near", True) for row in rows) else 1


SPEED = ["--model", "qwen3-0.6b", "--lengths", "ragged", "--rounds", "3", "--arms", "stock", "best_stock", "fast"]


def memory_table(rows: list[dict]) -> str:
    """One line a cap: estimate and peak in GB, and whether they are within a tenth."""
    lines = [
        "| cap | profile | estimate GB | peak GB | peak / estimate | |",
        "| ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['cap']:g} | | | | | {row['error']} |")
            continue
        ratio = row["peak"] / row["estimate"]
        cells = f"{row['estimate'] / 1e9:.2f} | {row['peak'] / 1e9:.2f} | {ratio:.3f} | {_verdict(row['near'])}"
        lines.append(f"| {row['cap']:g} | {row['profile']} | {cells} |")
    return "\n".join(lines)


def _row(cap: float, installed: float) -> dict:
    """The result for one cap, or the reason why there is none."""
    if cap > installed + 1:  # cards have a little less than their name says
        return {"cap": cap, "error": f"the card has {installed:.0f} GB"}
    try:
        row = _child(f"memory-{cap:g}")
    except RuntimeError as error:
        return {"cap": cap, "near": False, "error": str(error)}
    return {"cap": cap, **row, "near": abs(row["peak"] / row["estimate"] - 1) <= NEAR}


# ---- in a process of its own ------------------------------------------------------------------------------------


def memory(profile: Profile, cap: float) -> dict:
    """Two DPO steps of `profile` under `cap` GB; bytes estimated and bytes at the peak."""
    import torch

    from dpo_kit.models.memory import estimate

    fraction = cap * 2**30 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(fraction, 1.0))
    trainer = capped_trainer(profile)
    torch.cuda.reset_peak_memory_stats()
    train_steps(trainer, longest_rows(profile), 2)
    return {"profile": profile.name, "estimate": estimate(profile).total, "peak": torch.cuda.max_memory_allocated()}


def capped_trainer(profile: Profile, config=None):
    """The fast trainer on a model of the profile's shape: weights of no meaning, NF4 and adapters as in training.

    The model is made and quantised in main memory, so that the card never holds it unquantised.
    """
    import torch
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.initialization import no_init_weights
    from trl import DPOConfig

    from dpo_kit.models.loading import adapters_to_fp32, lora
    from dpo_kit.models.memory import configuration
    from dpo_kit.models.quantization import quantize
    from dpo_kit.training.fast import FastDPOTrainer

    dtype = getattr(torch, profile.model.compute_dtype)
    with no_init_weights():  # drawing eight billion numbers takes minutes
        model = AutoModelForCausalLM.from_config(config or configuration(profile.model_path), dtype=dtype)
    some = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.02
    for weight in model.parameters():
        weight.data.copy_(some.repeat(-(-weight.numel() // len(some)))[: weight.numel()].view_as(weight))
    model = quantize(model, dtype).to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        trainer = FastDPOTrainer(
            get_peft_model(model, lora(profile)),
            args=DPOConfig(
                folder, bf16=dtype == torch.bfloat16, gradient_checkpointing=profile.model.checkpointing,
                disable_tqdm=True, max_length=None, use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
            processing_class=AutoTokenizer.from_pretrained(load_profile("tiny").model_path),
            max_tokens=profile.dpo.max_tokens,
        )  # fmt: skip
    if trainer.stock_reason:
        raise SystemExit(f"the fast path does not apply: {trainer.stock_reason}")
    adapters_to_fp32(trainer.model)
    if profile.model.checkpointing:
        trainer.model.gradient_checkpointing_enable()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def longest_rows(profile: Profile) -> list[dict]:
    """As many pairs of full length as go through the model at once, hardly any of it shared."""
    import random

    draw, length = random.Random(0), profile.model.max_length
    parts = {"prompt_ids": 4, "chosen_ids": length - 4, "rejected_ids": length - 4}
    pairs = max(1, (profile.dpo.max_tokens or 2 * length) // (2 * length))
    return [{name: [draw.randrange(5, 500) for _ in range(n)] for name, n in parts.items()} for _ in range(pairs)]


def train_steps(trainer, rows: list[dict], count: int) -> list[float]:
    """Steps of AdamW on the same rows; the loss of each."""
    import torch

    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        losses.append(trainer.training_step(trainer.model, trainer.data_collator(rows)).item())
        optimizer.step()
    return losses


def tiny_losses() -> list[float]:
    """The losses of a few fp32 steps of the tiny model on this process's device."""
    shape = SHAPES["tiny"]
    how = {"autocast": False, "checkpointing": False, "precomputed": False}
    trainer = build_trainer("fast", shape, "float32", **how)
    return train_steps(trainer, make_rows("ragged", shape, 1024, 4), STEPS)


def _child(job: str, *, hide: bool = False) -> list | dict:
    """The result of one job in a fresh process, without the GPU where `hide`. Raises RuntimeError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--child", job, "--json", str(out)]
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if hide else {})
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{job} failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}")
        return json.loads(out.read_text())


def _verdict(good: bool) -> str:
    return "as it should be" if good else "NOT as it should be"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caps", type=float, nargs="+", choices=(8, 12, 16, 24), default=(8, 12, 16, 24), help="in GB")
    parser.add_argument("--skip-speed", action="store_true", help="leave out pairs a second against stock TRL")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
