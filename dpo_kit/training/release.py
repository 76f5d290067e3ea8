"""After training: the adapter with its card, the proof that what was saved is what was trained, and merged models.

Nothing here trusts the trainer that is still in memory. Base and adapters are loaded afresh, the pairs are tokenised
afresh through the saved template, and rewards are computed with plain logits; they must be those that training ended
with. A merge changes what is computed, and by how much depends on the base: an adapter that learnt on NF4 weights fits
the dequantised ones, and meets others in the unquantised base.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpo_kit.errors import DpoKitError
from dpo_kit.files import write_atomically
from dpo_kit.jsonl import read_pairs
from dpo_kit.models.identity import FINGERPRINT
from dpo_kit.models.loading import Arms, add_adapter, load_arms, load_base
from dpo_kit.models.tokens import pad_completions, prompt_ids
from dpo_kit.profiles import Profile
from dpo_kit.records import PreferencePair
from dpo_kit.training.metrics_log import read_log
from dpo_kit.training.trainers import ELSEWHERE, LOG, PROBE_ROWS

EXACT = 1e-3  # nats of a log-prob sum in fp32, over another route than the trainer's; in bf16 ELSEWHERE holds
CURVES = ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
HELD_OUT = ("eval_rewards/margins", "eval_rewards/accuracies", "kl/sequence", "kl/per_token", "answers/stop_rate")


@dataclass(frozen=True)
class Proof:
    """How far the rewards of the reloaded adapter are from those that training ended with, in units of reward."""

    pairs: int
    distance: float
    allowed: float


@dataclass(frozen=True)
class Merged:
    """A merged model: by how many nats its log-probs of whole answers differ from those of the adapter on its base."""

    base: str
    folder: str
    mean_difference: float
    largest_difference: float
    per_token: float


def release_adapter(
    profile: Profile, root: Path, folder: Path, *, merge: bool = False, log: Callable[[str], None] = print
) -> Proof:
    """Release `root/dpo/adapter` into `folder`: `adapter/` with its card, `proof.json`, and with `merge` `merged/` and
    `merged.json`. Raises DpoKitError where the reloaded adapter does not give the rewards that training ended with.
    """
    pairs = read_pairs(root / "pairs" / "pairs.jsonl")
    proof = prove(profile, pairs, root / "sft" / "adapter", root / "dpo")
    log(f"release: the reloaded adapter gives training's own rewards, to {proof.distance:.1g}")
    shutil.copytree(root / "dpo" / "adapter", folder / "adapter")
    write_atomically(folder / "adapter" / "README.md", card(profile, root, len(pairs), proof))
    write_atomically(folder / "proof.json", json.dumps(asdict(proof), indent=1) + "\n")
    if merge:
        merged = merge_adapter(profile, root / "dpo" / "adapter", pairs[:PROBE_ROWS], folder / "merged")
        for row in merged:
            log(f"release: merged into the {row.base} base, {row.mean_difference:.2g} nats an answer away")
        write_atomically(folder / "merged.json", json.dumps([asdict(row) for row in merged], indent=1) + "\n")
    return proof


# ---- the proof --------------------------------------------------------------------------------------------------


def prove(profile: Profile, pairs: Sequence[PreferencePair], sft_adapter: Path, trained: Path) -> Proof:
    """Load base, policy and reference afresh and compare beta * (log pi - log pi_ref) with `trained/end.json`.

    Raises DpoKitError where they differ by more than rounding.
    """
    ended = json.loads((trained / "end.json").read_text(encoding="utf-8"))
    rows = list(pairs[: len(ended["chosen"])])
    arms = load_arms(profile, {"policy": trained / "adapter", "reference": sft_adapter})
    policy, reference = (sums(arms, arm, rows) for arm in ("policy", "reference"))
    found = profile.dpo.beta * (policy - reference)
    expected = torch.tensor([*ended["chosen"], *ended["rejected"]], dtype=torch.float64)
    nats = EXACT if profile.model.compute_dtype == "float32" else ELSEWHERE
    proof = Proof(len(rows), (found - expected).abs().max().item(), 2 * profile.dpo.beta * nats)
    if not proof.distance <= proof.allowed:
        raise DpoKitError(
            f"{trained / 'adapter'}: its rewards differ by {proof.distance:.2g} from those that training ended with: "
            "the adapter, the SFT adapter or the base is not the one that was trained; build the dpo stage again"
        )
    return proof


def sums(arms: Arms, arm: str, pairs: Sequence[PreferencePair]) -> Tensor:
    """log pi(y | x) under an arm, float64 `(2B,)`: chosen answers, then rejected ones."""
    with arms.use(arm) as model:
        return sequence_logps(model, arms.tokenizer, pairs)


def sequence_logps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]
) -> Tensor:
    """The summed log-probs of the answers, EOS included, one sequence at a time: float64 `(2B,)` on the CPU."""
    answers = [(pair, pair.chosen.text) for pair in pairs] + [(pair, pair.rejected.text) for pair in pairs]
    return torch.stack([_logp(model, tokenizer, *_ids(tokenizer, pair, text)) for pair, text in answers])


def _logp(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head: list[int], tail: list[int]) -> Tensor:
    inputs, _ = pad_completions(tokenizer, [head], [tail])
    with torch.no_grad():
        logits = model(**{name: t.to(model.device) for name, t in inputs.items()}, logits_to_keep=len(tail) + 1).logits
    logps = logits[0, :-1].float().log_softmax(dim=-1)
    return logps.gather(1, torch.tensor(tail, device=logps.device)[:, None]).double().sum().cpu()


def _ids(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, text: str) -> tuple[list[int], list[int]]:
    """Prompt and answer as the chat template writes them."""
    head = prompt_ids(tokenizer, pair.prompt)
    chat = [*pair.prompt.chat(), {"role": "assistant", "content": text}]
    whole = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    if whole[: len(head)] != head:
        raise DpoKitError(f"pair {pair.prompt.id}: the chat template changes the prompt once an answer follows")
    return head, whole[len(head) :]


# ---- merging ----------------------------------------------------------------------------------------------------


def merge_adapter(
    profile: Profile, adapter: Path, pairs: Sequence[PreferencePair], folder: Path, name: str = "dpo"
) -> list[Merged]:
    """Write the adapter merged into the unquantised and into the dequantised base, each a model of its own.

    W + (alpha / r) B A in place of W; `pairs` are what the log-probs are compared on. An unquantised profile has one
    base and so one merge.
    """
    arms = load_arms(profile, {name: adapter})
    truth, tokens = sums(arms, name, pairs), _answer_tokens(arms.tokenizer, pairs)
    del arms
    bases = ("unquantised", "dequantised") if profile.model.quantize == "nf4" else ("unquantised",)
    return [_merge(profile, adapter, pairs, folder / base, base, truth, tokens) for base in bases]


def _merge(profile, adapter, pairs, folder, base, truth, tokens) -> Merged:
    plain = profile.model_copy(update={"model": profile.model.model_copy(update={"quantize": "none"})})
    model, tokenizer = load_base(plain if base == "unquantised" else profile)
    if base == "dequantised":
        model = _dequantised(model, getattr(torch, profile.model.compute_dtype))
    model = add_adapter(model, "default", adapter).merge_and_unload()
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    differences = (sequence_logps(model.eval(), tokenizer, pairs) - truth).abs()
    mean = differences.mean().item()
    return Merged(base, folder.name, mean, differences.max().item(), mean / tokens)


def _dequantised(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with the weights that NF4 stands for, in plain layers; transformers says that they are not the
    original ones, which is the point.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.dequantize(dtype=dtype)


def _answer_tokens(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> float:
    """The mean length of an answer in tokens."""
    lengths = [len(_ids(tokenizer, pair, side.text)[1]) for pair in pairs for side in (pair.chosen, pair.rejected)]
    return sum(lengths) / len(lengths)


# ---- the card ---------------------------------------------------------------------------------------------------


def card(profile: Profile, root: Path, pairs: int, proof: Proof) -> str:
    """The adapter's README: base, data, settings, the curves' ends, the proof, and the evaluation if there is one."""
    origin = root / "dpo" / "adapter" / FINGERPRINT
    hashes = json.loads(origin.read_text(encoding="utf-8")) if origin.is_file() else {}
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
    """A Hub id as it is; of a path here the last part, as the rest is nobody's business."""
    return name if _on_hub(name) else Path(name).name


def _held(profile: Profile) -> str:
    return "NF4 with double quantisation" if profile.model.quantize == "nf4" else profile.model.compute_dtype


def _section(title: str, values: dict[str, object]) -> list[str]:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return [f"## {title}\n", "| | |\n| --- | --- |", *rows, ""] if rows else []


def _audited(root: Path) -> dict[str, str]:
    path = root / "pairs" / "audit.json"
    if not path.is_file():
        return {}
    audit = json.loads(path.read_text(encoding="utf-8"))
    found = ", ".join(f"{f['name']} {f['count']}" for f in audit["findings"] if f["drops"])
    return {"audit": f"{audit['kept']} of {audit['rows']} rows kept" + (f"; dropped for {found}" if found else "")}


def _last(log: Sequence[dict]) -> dict[str, str]:
    """The last value of each curve, with its step."""
    ends = {name: row for row in log for name in (*CURVES, *HELD_OUT) if isinstance(row.get(name), (int, float))}
    ordered = [name for name in (*CURVES, *HELD_OUT) if name in ends]
    return {f"`{name}`": f"{ends[name][name]:.4g} at step {ends[name]['step']}" for name in ordered}


def _evaluation(path: Path) -> dict[str, str]:
    """DPO against SFT from the report of `run` or `evaluate`, where there is one."""
    if not path.is_file():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    rows = {}
    for name, metric in report.get("metrics", {}).items():
        gain = metric.get("difference", {}).get("interval")
        if gain and report["primary"] == ["dpo", "sft"]:
            before, after = (metric["means"][arm] for arm in ("sft", "dpo"))
            change = f"difference {gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
            rows[name] = f"{before:.3f} to {after:.3f}; {change}"
    return rows
