"""After training: the adapter with its card, the proof that what was saved is what was trained, and merged models.

The proof uses nothing that is still in memory. It loads base and adapters again, tokenises the pairs again with the
saved template, and computes rewards from plain logits. They must equal the rewards at the end of training.

A merged model computes slightly different log-probs, and the difference depends on the base. An adapter that was
trained on NF4 weights fits the dequantised weights. The unquantised weights are not those that it was trained on.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from dpo_kit.errors import DpoKitError
from dpo_kit.files import json_object, write_atomically
from dpo_kit.jsonl import read_pairs
from dpo_kit.models.identity import FINGERPRINT, folder_of, write_record
from dpo_kit.models.loading import Arms, load_arms
from dpo_kit.models.quantization import quantized_layers
from dpo_kit.models.tokens import TEMPLATE, Scoring, encode, load_tokenizer, template_of
from dpo_kit.profiles import Profile
from dpo_kit.records import PreferencePair
from dpo_kit.training.merging import write_merged
from dpo_kit.training.metrics_log import read_log
from dpo_kit.training.trainers import LOG, OTHER_MACHINE, PROBE_ROWS

IN_FP32 = 1e-3  # nats between log-prob sums that are computed in different ways in fp32; OTHER_MACHINE is for bf16
CURVES = ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
HELD_OUT = ("eval_rewards/margins", "eval_rewards/accuracies", "kl/sequence", "kl/per_token", "answers/stop_rate")


@dataclass(frozen=True)
class Proof:
    """How far the reloaded adapter's rewards are from those at the end of training: the largest distance over `pairs`
    pairs, and the largest distance that is allowed, both in units of reward.
    """

    pairs: int
    distance: float
    allowed: float


@dataclass(frozen=True)
class Merged:
    """A merged model, and by how many nats its log-probs of answers differ from those of the adapter on its base."""

    base: str  # "unquantised" or "dequantised", and the folder's name
    mean_difference: float
    largest_difference: float
    per_token: float


def release_adapter(
    profile: Profile, root: Path, folder: Path, *, merge: bool = False, log: Callable[[str], None] = print
) -> Proof:
    """Copy `root/dpo/adapter` to `folder/adapter` and write its card and `proof.json`, after the proof.

    With `merge` also write merged models under `merged/`, and `merged.json`. Raises DpoKitError where the reloaded
    adapter does not give the rewards that training ended with; nothing is written then.
    """
    pairs = read_pairs(root / "pairs" / "pairs.jsonl")
    proof = prove(profile, pairs, root / "sft" / "adapter", root / "dpo")
    log(f"release: the reloaded adapter gives training's own rewards, to {proof.distance:.1g}")
    shutil.copytree(root / "dpo" / "adapter", folder / "adapter")
    write_record(folder / "adapter", settings_of(profile))
    write_atomically(folder / "adapter" / "README.md", card(profile, root, len(pairs), proof))
    write_atomically(folder / "proof.json", json.dumps(asdict(proof), indent=1) + "\n")
    if merge:
        merged = merge_adapter(profile, root / "dpo" / "adapter", pairs[:PROBE_ROWS], folder / "merged")
        for row in merged:
            log(f"release: merged into the {row.base} base, {row.mean_difference:.2g} nats an answer away")
        write_atomically(folder / "merged.json", json.dumps([asdict(row) for row in merged], indent=1) + "\n")
    return proof


def settings_of(profile: Profile) -> dict[str, Any]:
    """What a user of the adapter must know of the profile that it was trained with: its name and these tables."""
    tables = {name: getattr(profile, name).model_dump() for name in ("model", "sft", "data", "dpo", "evaluation")}
    tables["model"]["path"] = profile.model_path  # absolute where it is local, as PEFT's own record has it
    return {"profile": profile.name, **tables}


# ---- the proof --------------------------------------------------------------------------------------------------


def prove(profile: Profile, pairs: Sequence[PreferencePair], sft_adapter: Path, trained: Path) -> Proof:
    """Load base, policy and reference again and compare beta * (log pi - log pi_ref) with `trained/end.json`.

    Raises DpoKitError where they differ by more than rounding.
    """
    ended = json.loads((trained / "end.json").read_text(encoding="utf-8"))
    rows = list(pairs[: len(ended["chosen"])])
    arms = load_arms(profile, {"policy": trained / "adapter", "reference": sft_adapter})
    scoring = Scoring.of(profile.model)
    policy, reference = (answer_logps(arms, arm, rows, scoring) for arm in ("policy", "reference"))  # (2B,) each
    found = profile.dpo.beta * (policy - reference)
    expected = torch.tensor([*ended["chosen"], *ended["rejected"]], dtype=torch.float64)
    nats = IN_FP32 if profile.model.compute_dtype == "float32" else OTHER_MACHINE
    # a reward is beta times the difference of two sums, each of which may be off by `nats`
    proof = Proof(len(rows), (found - expected).abs().max().item(), 2 * profile.dpo.beta * nats)
    if not proof.distance <= proof.allowed:  # written so that a NaN is refused
        raise DpoKitError(
            f"{trained / 'adapter'}: its rewards differ by {proof.distance:.2g} from those that training ended with: "
            "the adapter, the SFT adapter or the base is not the one that was trained; build the dpo stage again"
        )
    return proof


def answer_logps(arms: Arms, arm: str, pairs: Sequence[PreferencePair], scoring: Scoring | None = None) -> Tensor:
    """log pi(y | x) of the answers, EOS included, under an arm: float64 `(2B,)` on the CPU, chosen ones first.

    It is the sum of log-softmax over the scored tokens, one sequence at a time; only the mask is training's own.
    """
    found = []
    for ids, mask in _sides(arms.tokenizer, pairs, scoring):
        first = mask.index(1) if 1 in mask else len(mask)
        with arms.use(arm) as model, torch.no_grad():
            inputs = torch.tensor([ids], device=model.device)
            # only the logits from before the first scored token on: each predicts the next token
            logits = model(input_ids=inputs, logits_to_keep=len(ids) - first + 1).logits[0, :-1]
        logps = logits[first - len(ids) :].float().log_softmax(dim=-1)  # (tail, V)
        tail, scored = (torch.tensor(values[first:], device=logps.device) for values in (ids, mask))
        found.append((scored * logps.gather(1, tail[:, None])[:, 0]).double().sum().cpu())
    return torch.stack(found)


def _sides(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], scoring: Scoring | None) -> list[tuple]:
    """Ids and mask of all chosen sides, then of all rejected ones."""
    sides = [(pair, pair.chosen) for pair in pairs] + [(pair, pair.rejected) for pair in pairs]
    return [encode(tokenizer, pair.prompt, answer, scoring) for pair, answer in sides]


# ---- merging ----------------------------------------------------------------------------------------------------


def merge_adapter(profile: Profile, adapter: Path, pairs: Sequence[PreferencePair], folder: Path) -> list[Merged]:
    """Write two models with W + s B A in place of W: one from the unquantised base, one from the dequantised.

    Their log-probs are compared with the adapter's on `pairs`. This is done on the CPU, because a GPU that had memory
    enough for training may be too small for merged models. An unquantised profile has one base, so one merged model.
    Raises DpoKitError where the base's files are not on this machine, and as `write_merged` does.
    """
    source = folder_of(profile.model_path)
    if source is None or not any(source.glob("*.safetensors")):
        raise DpoKitError(f"{profile.model_path}: no safetensors weights are here to merge into; download them first")
    arms = load_arms(profile, {"dpo": adapter})
    scoring = Scoring.of(profile.model)
    expected = answer_logps(arms, "dpo", pairs, scoring)  # (2B,)
    tokens = sum(sum(mask) for _, mask in _sides(arms.tokenizer, pairs, scoring)) / len(expected)
    layers = {id(layer) for layer in quantized_layers(arms.model)}
    named = arms.model.get_base_model().named_modules()
    coarse = {f"{name.removesuffix('.base_layer')}.weight" for name, layer in named if id(layer) in layers}
    del arms  # its memory is needed for the merged models
    dtype, rows = getattr(torch, profile.model.compute_dtype), []
    for base in ("unquantised", "dequantised") if coarse else ("unquantised",):
        write_merged(source, adapter, folder / base, dtype, coarse if base == "dequantised" else frozenset())
        if template := template_of(adapter):
            write_atomically(folder / base / TEMPLATE, template)
        model = AutoModelForCausalLM.from_pretrained(folder / base, dtype=dtype, use_safetensors=True)
        merged = Arms(model, load_tokenizer(str(folder / base), adapter=adapter))
        differences = (answer_logps(merged, "base", pairs, scoring) - expected).abs()
        mean = differences.mean().item()
        rows.append(Merged(base, mean, differences.max().item(), mean / tokens))
    return rows


# ---- the card ---------------------------------------------------------------------------------------------------


def card(profile: Profile, root: Path, pairs: int, proof: Proof) -> str:
    """The adapter's README: base, data, settings, last metrics, the proof, and the evaluation if there is one."""
    hashes = json_object(root / "dpo" / "adapter" / FINGERPRINT)
    libraries = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    return "\n".join([
        _front_matter(profile),
        "# A DPO adapter\n",
        f"LoRA on `{_public(profile.model.path)}`: SFT first, then DPO (arXiv 2305.18290) against the SFT adapter as "
        f"reference. The base was held in {_held(profile)} while it was trained.\n",
        *_section("Base", {f"{part}, SHA-256": f"`{digest}`" for part, digest in hashes.items()}),
        *_section("Data", {"pairs": f"{pairs} from `{_public(profile.data.pairs)}`", **_audited(root)}),
        *_section("Settings", {f"{table}.{key}": value for table in ("model", "dpo")
                               for key, value in getattr(profile, table).model_dump().items() if key != "path"}),
        *_section("Where training ended", _last(read_log(root / "dpo" / LOG))),
        *_section("Reloaded", {f"rewards of {proof.pairs} pairs, difference to training's": f"{proof.distance:.1g}"}),
        *_section("Evaluation", _evaluation(root / "report.json")),
        *_section("Made with", {name: version(name) for name in libraries}),
    ])  # fmt: skip


def _front_matter(profile: Profile) -> str:
    data = [f"datasets:\n- {profile.data.pairs}"] if _on_hub(profile.data.pairs) else []
    base = [f"base_model: {profile.model.path}"] if _on_hub(profile.model.path) else []
    lines = ["library_name: peft", "pipeline_tag: text-generation", *base, *data, "tags:\n- dpo\n- lora\n- trl"]
    return "\n".join(["---", *lines, "---", ""])


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and not Path(name).exists() and not Path(name).suffix


def _public(name: str) -> str:
    """A Hub id as it is, and only the last part of a local path, because the rest may show private names."""
    return name if _on_hub(name) else Path(name).name


def _held(profile: Profile) -> str:
    return "NF4 with double quantisation" if profile.model.quantize == "nf4" else profile.model.compute_dtype


def _section(title: str, values: Mapping[str, object]) -> list[str]:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return [f"## {title}\n", "| | |\n| --- | --- |", *rows, ""] if rows else []


def _audited(root: Path) -> dict[str, str]:
    """What the audit found in external pairs, where they were audited."""
    audit = json_object(root / "pairs" / "audit.json")
    if not audit:
        return {}
    found = ", ".join(f"{f['name']} {f['count']}" for f in audit["findings"] if f["drops"])
    return {"audit": f"{audit['kept']} of {audit['rows']} rows kept" + (f"; dropped for {found}" if found else "")}


def _last(log: Sequence[dict]) -> dict[str, str]:
    """The last value of each metric, with its step."""
    ends = {name: row for row in log for name in (*CURVES, *HELD_OUT) if isinstance(row.get(name), (int, float))}
    ordered = [name for name in (*CURVES, *HELD_OUT) if name in ends]
    return {f"`{name}`": f"{ends[name][name]:.4g} at step {ends[name]['step']}" for name in ordered}


def _evaluation(path: Path) -> dict[str, str]:
    """DPO against SFT from the report of `run` or `evaluate`, where there is one."""
    report, rows = json_object(path), {}
    for name, metric in report.get("metrics", {}).items():
        gain = metric.get("difference", {}).get("interval")
        if gain and report["primary"] == ["dpo", "sft"]:
            before, after = (metric["means"][arm] for arm in ("sft", "dpo"))
            change = f"difference {gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
            rows[name] = f"{before:.3f} to {after:.3f}; {change}"
    return rows
