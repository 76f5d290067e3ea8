"""The cost of one DPO step: stock TRL, the best stock TRL, the fast path, and the fast path with a part switched off.

    python -m benchmarks.dpo_step --model smollm2-135m --lengths ragged [--rounds 5] [--json FILE]

One call measures one cell of the table: a model shape with random weights and a profile of lengths P:C:R. Every arm
runs in a fresh process on the same pairs in the same order. Arms are interleaved ABBA, so that a slow period of the
machine affects all of them; ratios are taken within a round. First, in fp32, every arm must give TRL's loss, log-probs
and gradient; otherwise the call fails. The best stock TRL is found by a sweep over its microbatch and autocast. The
fast path may not use more memory than that: where it would, it recomputes the activations of as few layers as needed.
"""

import argparse
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpo_kit.files import write_atomically
from dpo_kit.profiles import ROOT

SECONDS = 8.0  # timed in each process at least: a fast step is repeated until it is measured as long as a slow one
EXPLAINED = {
    "stock": "TRL's defaults: fp32, checkpointing on, references each step",
    "best_stock": "TRL in bf16, references precomputed, no checkpointing, best microbatch",
    "fast": "ours, references cached",
    "fast_cold": "ours, references computed each step",
    "fast_unshared": "ours, each prompt twice",
    "fast_padded": "ours, each prompt twice and padded",
    "fast_trl_head": "ours, with TRL's head over all positions",
    "fast_peft": "ours, adapters added by PEFT",
    "fast_single": "ours, one pair at a time",
}
ARMS = tuple(EXPLAINED)


@dataclass(frozen=True)
class Shape:
    """A model shape, how it is held, and how many places go through the fast path at once."""

    config: dict
    dtype: str
    nf4: bool
    max_tokens: int
    tokens: int  # the mean length P + C + R of a pair


def qwen3(hidden, inner, layers, heads, kv_heads, nf4=False, tied=True):
    """A Qwen3 shape; head_dim 128 and the vocabulary are the family's."""
    config = {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 128,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    return Shape(config, "bfloat16", nf4, 8192, 1536)


SHAPES = {
    "tiny": Shape({"path": "data/tiny-base"}, "float32", True, 4096, 240),
    "smollm2-135m": Shape(
        {
            "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
        },
        "bfloat16", False, 1024, 240,
    ),
    "qwen3-0.6b": qwen3(1024, 3072, 28, 16, 8),
    "qwen3-4b": qwen3(2560, 9728, 36, 32, 8),
    "qwen3-8b-nf4": qwen3(4096, 12288, 36, 32, 8, nf4=True, tied=False),
}  # fmt: skip


def lengths(profile: str, tokens: int, pairs: int) -> list[tuple[int, int, int]]:
    """`pairs` triples (P, C, R): fixed shares of `tokens`, or log-normal around 2:1:1 with sigma 0.5."""
    draw = random.Random(0)
    if profile == "ragged":
        return [
            tuple(max(4, int(tokens * s * math.exp(draw.gauss(0, 0.5)))) for s in (0.5, 0.25, 0.25))
            for _ in range(pairs)
        ]
    parts = [int(part) for part in profile.split(":")]
    return [tuple(tokens * part // sum(parts) for part in parts)] * pairs


def make_rows(profile: str, shape: Shape, vocabulary: int, pairs: int) -> list[dict]:
    """Random token ids with arbitrary reference log-probs, which do not change the cost."""
    draw = random.Random(1)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = []
    for triple in lengths(profile, shape.tokens, pairs):
        ids = {name: [draw.randrange(5, vocabulary) for _ in range(n)] for name, n in zip(names, triple, strict=True)}
        rows.append({**ids, "ref_chosen_logps": -400.0, "ref_rejected_logps": -410.0})
    return rows


# ---- one process, one arm ---------------------------------------------------------------------------------------


def build_model(shape: Shape, dtype: str):
    """The frozen model with a LoRA adapter on every linear layer but the head."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_kit.models.loading import load_base
    from dpo_kit.models.quantization import quantize
    from dpo_kit.profiles import load_profile

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if "path" in shape.config:
        model, _ = load_base(load_profile("tiny", model={"compute_dtype": dtype}))
    else:
        with torch.device(device):
            options = dict(shape.config)
            config = AutoConfig.for_model(options.pop("model_type"), **options)
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        model = quantize(model, getattr(torch, dtype)) if shape.nf4 else model
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))


def build_trainer(
    arm: str,
    shape: Shape,
    dtype: str,
    *,
    autocast: bool,
    checkpointing: bool,
    precomputed: bool,
    layers: int | None = None,
):
    """TRL's trainer or ours, without data: steps are fed by hand. `layers`: how many checkpointing is for, in ours."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from dpo_kit.training.fast import FastDPOTrainer

    fast = arm.startswith("fast")
    own = {"max_tokens": 1 if arm == "fast_single" else shape.max_tokens, "checkpoint_layers": layers} if fast else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = (FastDPOTrainer if fast else DPOTrainer)(
            build_model(shape, dtype),
            args=DPOConfig(
                folder, bf16=autocast, gradient_checkpointing=checkpointing, max_length=None, disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
            processing_class=AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base"), **own,
        )  # fmt: skip
    if fast and trainer.stock_reason:
        raise SystemExit(f"the fast path does not apply: {trainer.stock_reason}")
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()
    trainer.precompute_ref_logps = precomputed
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


@contextmanager
def without(part: str):
    """Switch a part of the fast path off by patching it, because the package has no options for this."""
    import torch
    import torch.nn.functional as F
    from trl.trainer import utils

    from dpo_kit.training import branches, fast
    from dpo_kit.training.branches import Branches

    places = ((branches, "attend_by_tiles"), (fast, "_score_pairs"), (fast, "_is_plain"))
    before = [(module, name, getattr(module, name)) for module, name in places]
    layout = Branches.of

    def unshared(input_ids, attention_mask):
        chosen, rejected = input_ids.chunk(2)
        return layout(torch.cat([chosen, rejected + (1 << 20)]), attention_mask)  # no two tokens are alike

    def padded(input_ids, attention_mask):
        places = torch.arange(input_ids.numel(), device=input_ids.device)
        lengths = attention_mask.sum(dim=1)
        return Branches(places.view_as(input_ids), places, lengths, sum(lengths.chunk(2)), 0 * lengths.chunk(2)[0])

    def padded_attention(query, key, value, row, scale):
        groups, rows, dtype = query.shape[1] // key.shape[1], len(row.packed), query.dtype
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        query, key, value = (states.float().unflatten(0, (rows, -1)).transpose(1, 2) for states in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return attended.transpose(1, 2).flatten(0, 1).to(dtype)

    def every_position(model, input_ids, attention_mask, labels):
        row = layout(input_ids, attention_mask)
        hidden = fast.row_states(model, input_ids, row)[row.packed[:, :-1].flatten()]
        head, targets = model.get_output_embeddings(), labels[:, 1:]
        chunk, names = utils._CHUNKED_LOGPROB_CHUNK_SIZE, ("log_probs", "entropy", "mean_logits", "is_top1")
        fields = utils._ChunkedLogProbFunction.apply(
            hidden, head.weight, head.bias, targets.clamp(min=0).flatten(), 1.0, chunk, None, 1.0, names
        )
        fields = (f if f is None else f.view(targets.shape).masked_fill(targets == -100, 0) for f in fields)
        log_probs, entropy, _, mean, top1 = fields
        return utils.FusedCausalLMOutput(log_probs=log_probs, entropy=entropy, mean_logits=mean, is_top1=top1)

    if part == "fast_unshared":
        Branches.of = staticmethod(unshared)
    elif part == "fast_padded":
        Branches.of, branches.attend_by_tiles = staticmethod(padded), padded_attention
    elif part == "fast_trl_head":
        fast._score_pairs = every_position
    elif part == "fast_peft":
        fast._is_plain = lambda layer: False
    try:
        yield
    finally:
        Branches.of = layout
        for module, name, function in before:
            setattr(module, name, function)


def settings(arm: str, shape: Shape, best: dict) -> dict:
    """How the arm's trainer is set up in the timed runs."""
    if arm == "stock":
        return {"dtype": "float32", "autocast": False, "checkpointing": True, "precomputed": False}
    how = {"dtype": shape.dtype, "autocast": False, "checkpointing": False, "precomputed": arm != "fast_cold"}
    if arm == "best_stock":
        return how | {"autocast": best["autocast"]}
    if arm != "fast_cold" and best.get("layers"):  # with references each step TRL would switch all layers on
        return how | {"checkpointing": True, "layers": best["layers"]}
    return how


def step(trainer, rows: list[dict], microbatch: int) -> None:
    """Forward and backward of one optimizer step, under the autocast that `train` would put around the model."""
    trainer.model.zero_grad()
    with trainer.accelerator.autocast():
        for start in range(0, len(rows), microbatch):
            trainer.training_step(trainer.model, trainer.data_collator(rows[start : start + microbatch]))


def timed(trainer, rows: list[dict], microbatch: int, steps: int) -> float:
    """Seconds a step: the median of `steps` or of what `SECONDS` hold, after one that is not counted."""
    import torch

    seconds = []
    while len(seconds) <= steps or sum(seconds[1:]) < SECONDS:
        started = time.perf_counter()
        step(trainer, rows, microbatch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def measure(arm: str, shape: Shape, rows: list[dict], best: dict, steps: int) -> dict:
    """One arm in this process: speed, memory, and the log-probs of its batch."""
    import torch

    microbatch = best["microbatch"] if arm == "best_stock" else len(rows)
    with without(arm):
        trainer = build_trainer(arm, shape, **settings(arm, shape, best))
        seconds = timed(trainer, rows, microbatch, steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
        logps = sequence_logps(trainer, rows)
    tokens = sum(len(row[name]) * (1 + (name == "prompt_ids")) for row in rows for name in row if name.endswith("_ids"))
    unique = sum(len(row[name]) for row in rows for name in row if name.endswith("_ids"))
    ideal = ideal_flops(trainer.model, rows, unique) / product_rate(trainer.model.dtype)
    return {
        "arm": arm,
        "pairs_per_s": len(rows) / seconds,
        "tokens_per_s": tokens / seconds,
        "peak_memory_mb": round(peak),
        "share_of_peak": ideal / seconds,
        "over_ideal": seconds / ideal,
        "logps": logps,
    }


def ideal_flops(model, rows: list[dict], unique: int) -> float:
    """The lowest possible cost of a step: forward and backward once a token, and the head for scored tokens only.

    2 N for a forward through N frozen weights and as much again for the backward, which has no weight gradients.
    """
    head = model.get_output_embeddings().weight.numel()
    backbone = sum(
        math.prod(module.weight.quant_state.shape)
        if getattr(module.weight, "quant_state", None)
        else module.weight.numel()
        for name, module in model.named_modules()
        if name.endswith("base_layer")
    )
    scored = sum(len(row[name]) for row in rows for name in ("chosen_ids", "rejected_ids"))
    return 4.0 * (backbone * unique + head * scored)


def product_rate(dtype, size: int = 1024) -> float:
    """Floating-point operations a second of a square matrix product, the best of ten."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else size
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def sequence_logps(trainer, rows: list[dict]) -> list[float]:
    """log pi(y | x) of every sequence of the batch, chosen half first."""
    import torch

    batch = {name: tensor.to(trainer.model.device) for name, tensor in trainer.data_collator(rows).items()}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), trainer.accelerator.autocast():
        found = trainer.model(**inputs, labels=labels, use_cache=False, fused_lm_head=True)
    return found.log_probs.double().sum(dim=1).tolist()


def sweep(shape: Shape, rows: list[dict]) -> dict:
    """The best stock TRL on this machine: autocast and microbatch by pairs a second, one model for all."""
    tried = []
    for autocast in (False, True):
        how = {**settings("best_stock", shape, {"autocast": autocast}), "autocast": autocast}
        trainer = build_trainer("best_stock", shape, **how)
        for microbatch in (1, 2, 4, 8):
            if microbatch <= len(rows):
                rate = len(rows) / timed(trainer, rows, microbatch, 1)
                tried.append({"autocast": autocast, "microbatch": microbatch, "pairs_per_s": rate})
        del trainer
    return {**max(tried, key=lambda row: row["pairs_per_s"]), "tried": tried}


def check(shape: Shape, rows: list[dict], arms: list[str]) -> dict[str, float]:
    """In fp32: each arm's largest difference to stock in a sequence's log-prob; loss and gradient are asserted."""
    import torch

    from dpo_kit.models.loading import adapters_to_fp32

    how = {"dtype": "float32", "autocast": False, "checkpointing": False, "precomputed": False}
    found = {}
    for arm in ("stock", *(arm for arm in arms if arm.startswith("fast"))):
        with without(arm):
            trainer = build_trainer(arm, shape, **how)
            adapters_to_fp32(trainer.model)  # TRL holds those of a 4-bit model in bf16
            trainer.model.zero_grad()
            loss = trainer.training_step(trainer.model, trainer.data_collator(rows)).item()
            gradient = torch.cat([p.grad.flatten().cpu() for p in trainer.model.parameters() if p.grad is not None])
            found[arm] = loss, gradient, torch.tensor(sequence_logps(trainer, rows), dtype=torch.float64)
            beta = trainer.beta
        del trainer
    loss, gradient, logps = found["stock"]
    rounding = torch.finfo(torch.float32).eps * logps.abs().max().item()  # of a sequence's sum, as TRL takes it
    distances = {}
    for arm, (own_loss, own_gradient, own) in found.items():
        apart = ((own_gradient - gradient).norm() / gradient.norm()).item()
        distance = distances[arm] = (own - logps).abs().max().item()
        assert distance < 1e-4 + rounding, f"{arm}: a sequence's log-prob is {distance:.1e} away from stock's"
        # the loss has four of them, and moves by at most beta times as much as they do
        assert abs(own_loss - loss) <= 4 * beta * (distance + rounding), f"{arm}: loss {own_loss} instead of {loss}"
        assert apart < 1e-4, f"{arm}: the gradient is {apart:.1e} away from stock's"
    return distances


# ---- all of them ------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure one cell and print its table; `--json` writes every row."""
    arguments = _arguments()
    shape = SHAPES[arguments.model]
    if arguments.child:
        rows = make_rows(arguments.lengths, shape, shape.config.get("vocab_size", 1024), arguments.pairs)
        job, best = arguments.child, json.loads(arguments.best)
        jobs = {"sweep": lambda: sweep(shape, rows), "check": lambda: check(shape, rows[:2], arguments.arms)}
        result = jobs[job]() if job in jobs else measure(job, shape, rows, best, arguments.steps)
        arguments.json.write_text(json.dumps(result))
        return
    apart = _child(arguments, "check")
    print(f"in fp32 all arms agree: log-probs to {max(apart.values()):.1e}, loss and gradient asserted", flush=True)
    best = _child(arguments, "sweep")
    print(f"best stock: microbatch {best['microbatch']}, autocast {best['autocast']}", flush=True)
    best["layers"] = fewest_layers(arguments, best)
    print(f"ours: activations of {best['layers']} layers computed again, to need no more memory", flush=True)
    rows = []
    for number in range(arguments.rounds):
        for arm in arguments.arms[:: 1 if number % 2 == 0 else -1]:
            row = _child(arguments, arm, best)
            rows.append({"model": arguments.model, "lengths": arguments.lengths, "round": number, **row})
            print(f"round {number}, {arm}: {row['pairs_per_s']:.3f} pairs/s", flush=True)
    exact = {row["round"]: row["logps"] for row in rows if row["arm"] == "stock"}
    for row in rows:
        row["max_logp_diff"] = apart.get(row["arm"], 0.0)
        logps, truth = row.pop("logps"), exact.get(row["round"])
        row["logp_distance_to_fp32"] = max(abs(a - b) for a, b in zip(logps, truth, strict=True)) if truth else None
    print(table(rows))
    if arguments.json:
        write_atomically(arguments.json, json.dumps(rows, indent=1) + "\n")


def fewest_layers(arguments: argparse.Namespace, best: dict) -> int:
    """How many layers ours must checkpoint to peak no higher than best stock, tried a tenth of them at a time."""

    def peak(arm: str, layers: int = 0) -> float:
        return _child(arguments, arm, best | {"layers": layers})["peak_memory_mb"]

    config = SHAPES[arguments.model].config
    if "path" in config:
        config = json.loads((ROOT / config["path"] / "config.json").read_text())
    layers, most = config["num_hidden_layers"], peak("best_stock")
    return next((n for n in range(0, layers, max(1, layers // 10)) if peak("fast", n) <= most), layers)


def table(rows: list[dict]) -> str:
    """One line an arm: medians, and the ratio to both stocks as median and range over rounds."""
    lines = [
        "| arm | pairs/s | tokens/s | peak MB | over ideal | to stock | to best stock |",
        "| --- |" + " ---: |" * 6,
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        middle = {key: statistics.median(row[key] for row in own) for key in (
            "pairs_per_s", "tokens_per_s", "peak_memory_mb", "over_ideal")}  # fmt: skip
        against = [_ratios(rows, arm, peer) for peer in ("stock", "best_stock")]
        cells = [f"{arm}: {EXPLAINED[arm]}", *(f"{value:.3g}" for value in middle.values()), *against]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratios(rows: list[dict], arm: str, peer: str) -> str:
    from dpo_kit.workbook.figures.fast import ratios  # not in the processes that are measured

    found = ratios(rows, rows[0]["model"], rows[0]["lengths"], arm, peer)
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})" if found else ""


def _child(arguments: argparse.Namespace, job: str, best: dict | None = None) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.dpo_step", "--child", job, "--json", str(out)]
        command += ["--model", arguments.model, "--lengths", arguments.lengths, "--best", json.dumps(best or {})]
        command += ["--pairs", str(arguments.pairs), "--steps", str(arguments.steps), "--arms", *arguments.arms]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{job} failed:\n{done.stderr[-2000:]}")
        return json.loads(out.read_text())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--lengths", choices=("1:1:1", "3:1:1", "1:3:3", "ragged"), default="ragged")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="timed steps a process at least")
    parser.add_argument("--pairs", type=int, default=4, help="pairs in an optimizer step")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--best", default="{}", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
