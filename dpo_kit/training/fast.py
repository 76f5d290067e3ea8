"""The fast path: TRL's log-probs, with each token computed once.

A preference pair is two sequences that begin alike. TRL lays both out in full, pads them to the longest of the batch,
and off CUDA projects every position onto the vocabulary. Here the tokens of a batch stand in one row without padding,
what the two sequences of a pair share stands there once, and only scored positions meet the head:

    chosen    p p p c c e .          the row    p p p c c e d d d e | q q ...
    rejected  p p p d d d e                     shared, then two branches; then the next pair

Every layer but attention treats tokens one by one, so it neither knows nor cares. Attention is where tokens meet: there
the two sequences of each pair are put together again, each causal by itself, and a branch cannot see its sibling.
Adapters are added to their layers in one product, without copies of the activations in the adapter's dtype. What was
removed from TRL's step is work. Losses, metrics, reference modes and precomputing stay TRL's own, because all that is
replaced is the forward that hands them log-probs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from types import MethodType

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from dpo_kit.training.references import ReferenceCache, add_reference_logps, pair_keys, reference_identity
from dpo_kit.training.token_scores import score

ATTENTION = "dpo_kit_branches"
MIX_PAIRS = {"aot", "aot_unpaired", "bco_pair", "sft"}  # losses in which a pair's term depends on its batch
SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


# ---- where tokens stand -----------------------------------------------------------------------------------------


@dataclass
class Branches:
    """Where the tokens of a padded batch `(2B, T)`, chosen half then rejected half, stand in one row of N.

    `packed` `(2B, T)` gives each padded position its place in the row (padding points at place 0), and `owner` `(N,)`
    each place one of its padded positions, flat. `lengths` `(2B,)` are the sequences' lengths, `sizes` `(B,)` the
    places that each pair takes.

    With chosen [7, 8, 1], rejected [7, 9, 9, 1] and pad 0 the row is 7 8 1 9 9 1:

        packed   [[0, 1, 2, 0], [0, 3, 4, 5]]
        owner    [0, 1, 2, 5, 6, 7]
    """

    packed: Tensor
    owner: Tensor
    lengths: Tensor
    sizes: Tensor
    shared: Tensor  # (B,): how many places a pair's sequences have in common
    attended: int = 0  # by how many layers: a model that drops the layout on the way must not pass for one that obeys

    @cached_property
    def spans(self) -> list[tuple[int, int, int]]:
        """Per pair how many places chosen takes, how many rejected takes after it, and how many they share."""
        chosen = self.lengths[: len(self.sizes)]
        return torch.stack([chosen, self.sizes - chosen, self.shared], dim=1).tolist()

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor) -> "Branches":
        """The layout of a right-padded batch: each pair's common beginning once, then what is left of either side."""
        real = attention_mask.bool()
        lengths = real.sum(dim=1)
        chosen, rejected = lengths.chunk(2)
        alike = torch.eq(*input_ids.chunk(2)) & torch.logical_and(*real.chunk(2))
        shared = alike.cumprod(dim=1).sum(dim=1)
        sizes = chosen + rejected - shared
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        of_chosen = (sizes.cumsum(0) - sizes)[:, None] + position
        beyond = position >= shared[:, None]
        of_rejected = of_chosen + (chosen - shared)[:, None] * beyond
        packed = torch.cat([of_chosen, of_rejected]).masked_fill(~real, 0)
        branch = torch.cat([real[: len(sizes)], real[len(sizes) :] & beyond])  # each place once
        owner = torch.empty(int(sizes.sum()), dtype=torch.long, device=input_ids.device)
        owner[packed[branch]] = branch.flatten().nonzero()[:, 0]
        return cls(packed, owner, lengths, sizes, shared)


# ---- where tokens meet ------------------------------------------------------------------------------------------


def branch_attention(module: nn.Module, query, key, value, attention_mask, branches: Branches | None = None, **options):
    """Attention for transformers' interface: causal within each sequence of a pair; SDPA's own where there is no pair.

    Query, key and value are `(1, heads, N, D)`; the result is `(1, N, heads, D)`.
    """
    if branches is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    branches.attended += 1
    attend = _varlen if _varlen_works(query.device, query.dtype) else _by_sequence
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]  # (N, heads, D)
    return attend(*rows, branches, options.get("scaling"))[None], None


def _by_sequence(query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float | None) -> Tensor:
    """Through SDPA, a pair at a time: chosen lies together in the row; rejected's own places look back over the gap."""
    groups, dtype = query.shape[1] // key.shape[1], value.dtype
    if query.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):  # faster than in bf16, and closer
        query, key, value = (states.float() for states in (query, key, value))
    sizes = [places for chosen, own, _ in branches.spans for places in (chosen, own)]
    parts = zip(*(states.split(sizes) for states in (query, key, value)), strict=True)
    attended = []
    for (_, own, shared), chosen, rejected in zip(branches.spans, parts, parts, strict=True):
        attended.append(_attend(*chosen, groups, scale))
        if own:
            seen = (torch.cat([begun[:shared], rest]) for begun, rest in zip(chosen[1:], rejected[1:], strict=True))
            attended.append(_attend(rejected[0], *seen, groups, scale))
    return torch.cat(attended).to(dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor, groups: int, scale: float | None) -> Tensor:
    """Causal attention of the last `len(query)` places of one sequence to all of it; `(n, heads, D)`."""
    before = len(key) - len(query)
    mask = query.new_ones(len(query), len(key), dtype=torch.bool).tril(before) if before else None
    query, key, value = (
        query.transpose(0, 1),
        *(s.repeat_interleave(groups, dim=1).transpose(0, 1) for s in (key, value)),
    )
    rows = (states[None] for states in (query, key, value))
    return F.scaled_dot_product_attention(*rows, attn_mask=mask, is_causal=mask is None, scale=scale)[0].transpose(0, 1)


def _varlen(query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float | None) -> Tensor:
    """Through the variable-length attention that is built into torch: no padding here either."""
    from torch.nn.attention.varlen import varlen_attn

    width = branches.packed.shape[1]
    real = torch.arange(width, device=query.device) < branches.lengths[:, None]
    places = branches.packed[real]
    starts = F.pad(branches.lengths.cumsum(0), (1, 0)).int()
    rows = [states.index_select(0, places) for states in (query, key, value)]
    attended = varlen_attn(
        *rows, starts, starts, width, width, scale=scale, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1]
    )
    number = real.flatten().cumsum(0) - 1  # of each padded position among the real ones
    return attended.index_select(0, number[branches.owner])


_VARLEN: dict[tuple, bool] = {}


def _varlen_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's variable-length attention runs on this card and agrees with SDPA; tried once."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    if (device, dtype) not in _VARLEN:
        ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0]], device=device)
        branches = Branches.of(ids, (ids > 0).long())
        states = [torch.randn(len(branches.owner), 2, 64, device=device, dtype=dtype) for _ in range(3)]
        try:
            worst = (_varlen(*states, branches, None) - _by_sequence(*states, branches, None)).abs().max().item()
        except (RuntimeError, ImportError):
            worst = float("inf")
        _VARLEN[device, dtype] = worst < 0.02
    return _VARLEN[device, dtype]


# ---- adapters ---------------------------------------------------------------------------------------------------


def add_adapters(layer: LoraLayer, hidden: Tensor, *args, **options) -> Tensor:
    """W x + s B A x, as PEFT's layer, which takes B A x in the adapter's dtype and so copies x and the result to fp32.

    Here the adapter is cast to the dtype of x, and its second product is added to W x as it is made.
    """
    if layer.merged or args or options:
        return type(layer).forward(layer, hidden, *args, **options)
    result = layer.base_layer(hidden)
    for name in layer.active_adapters if not layer.disable_adapters else ():
        if name in layer.lora_A:
            a, b = (side[name].weight.to(hidden.dtype) for side in (layer.lora_A, layer.lora_B))
            inner = F.linear(hidden, a) * layer.scaling[name]
            result = torch.addmm(result.flatten(0, -2), inner.flatten(0, -2), b.T).view_as(result)
    return result


def _is_plain(layer: nn.Module) -> bool:
    """LoRA on a linear layer, in 4 bits or not, and nothing else about it: no DoRA, no bias of its own."""
    return (
        isinstance(layer, LoraLayer)
        and type(layer).__name__ in ("Linear", "Linear4bit")  # the second exists only where bitsandbytes does
        and isinstance(layer.get_base_layer(), nn.Linear)
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
    )


# ---- the forward ------------------------------------------------------------------------------------------------


def install(model: PreTrainedModel) -> Callable[[], None]:
    """Give `model`, which has TRL's fused head, the fast forward in its place; returns what takes it back.

    Only calls with `fused_lm_head=True` change; generation and everything else run as before.
    """
    AttentionInterface.register(ATTENTION, branch_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before, stock = model.config._attn_implementation, model.forward

    @wraps(type(model).forward)  # `generate` holds its arguments against the signature
    def forward(self, *args, fused_lm_head=False, input_ids=None, attention_mask=None, labels=None, **options):
        if not fused_lm_head:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            return stock(*args, **{k: v for k, v in given.items() if v is not None}, **options)
        return _score_pairs(self, input_ids, attention_mask, labels)

    model.set_attn_implementation(ATTENTION)
    model.forward = MethodType(forward, model)
    adapted = [module for module in model.modules() if _is_plain(module)]
    for layer in adapted:
        layer.forward = MethodType(add_adapters, layer)

    def remove() -> None:
        model.forward = stock
        model.set_attn_implementation(before)
        for layer in adapted:
            del layer.forward

    return remove


def _score_pairs(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor):
    """TRL's per-token fields, each `(2B, T - 1)`, of a padded batch of pairs."""
    branches = Branches.of(input_ids, attention_mask)
    hidden = row_states(model, input_ids, branches)
    targets = labels[:, 1:]
    mask = targets != -100
    # a token that both sides share is scored once
    places = torch.stack([branches.packed[:, :-1][mask], targets[mask]])
    places, back = places.unique(dim=1, return_inverse=True)
    fields = (field[back] for field in score(hidden[places[0]], model.get_output_embeddings(), places[1]))
    log_probs, entropy, squares, mean, top1 = (
        field.new_zeros(mask.shape).masked_scatter(mask, field) for field in fields
    )
    return FusedCausalLMOutput(
        log_probs=log_probs, entropy=entropy, log_sum_sq_probs=squares, mean_logits=mean, is_top1=top1, label_mask=mask
    )


def row_states(model: PreTrainedModel, input_ids: Tensor, branches: Branches) -> Tensor:
    """The last hidden states `(N, H)` of the row that `branches` makes of a padded batch `(2B, T)`."""
    hidden = model.base_model(
        input_ids=input_ids.flatten()[branches.owner][None],
        position_ids=(branches.owner % input_ids.shape[1])[None],
        # four dimensions: transformers takes it for a finished mask and builds none; the attention ignores it
        attention_mask=torch.zeros(1, 1, 1, 1, device=input_ids.device),
        use_cache=False,
        branches=branches,
    ).last_hidden_state[0]
    if branches.attended != model.config.get_text_config().num_hidden_layers:
        raise RuntimeError(f"{branches.attended} layers saw the layout: this model does not hand it on to attention")
    return hidden


def why_not(model: PreTrainedModel | PeftModel) -> str | None:
    """Why the fast path does not apply to this model, or None where it does."""
    adapters = model.peft_config.values() if isinstance(model, PeftModel) else ()
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config = base.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in base.modules())
    reasons = {
        "it takes images, whose tokens are laid out by the model": config is not base.config,
        "its attention cannot be exchanged": not getattr(base, "_supports_attention_backend", False),
        f"it has layers of another kind ({', '.join(sorted(layers))})": bool(layers),
        "its attention looks through a sliding window": window is not None and not hasattr(config, "layer_types"),
        "it balances experts over a batch, padding included": getattr(config, "output_router_logits", None) is not None,
        "its logits are rescaled": any(getattr(config, name, None) not in (None, 1.0) for name in SCALED_LOGITS),
        "its adapter learns a prompt of its own": any(adapter.is_prompt_learning for adapter in adapters),
        "dropout is active, and shared tokens would share it": dropout,
        "it runs on several devices": len(set(getattr(base, "hf_device_map", {}).values())) > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class FastDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` on the fast forward, where it applies; `why_stock` says why not, and is None where it does.

    `max_tokens` is the largest number of places that go through the model at once in training: a batch is cut into
    groups of pairs, whose gradients add up to that of the batch (weights n_i / N).
    `reference_cache` is a SQLite file for precomputed reference log-probs; without it TRL keeps its own.
    `checkpoint_layers` says how many layers recompute their activations where TRL's arguments ask for checkpointing.
    """

    def __init__(
        self,
        *args,
        max_tokens: int | None = None,
        reference_cache: Path | None = None,
        checkpoint_layers: int | None = None,
        **options,
    ):
        self.max_tokens, self.reference_cache, self.checkpoint_layers = max_tokens, reference_cache, checkpoint_layers
        self.why_stock: str | None = "not tried yet"
        self._share = 1.0
        self._identity: str | None = None
        super().__init__(*args, **options)
        self._install()

    def _install(self) -> None:
        """Put the fast forward in place, unless it does not apply or does not agree with TRL's."""
        if self.why_stock != "not tried yet":
            return
        self.why_stock = "it runs in several processes" if self.args.world_size > 1 else why_not(self.model)
        if self.why_stock is None:
            base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
            self.why_stock = self_test(base)
            if self.why_stock is None and self.ref_model is not None:
                install(self.ref_model)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._install()  # TRL precomputes while it is being built
        if self.reference_cache is None:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        if "ref_chosen_logps" in dataset.column_names:  # evaluated again
            return dataset
        model = self.ref_model or self.model
        # the reference is frozen: its gigabytes are hashed once, not once a data set
        self._identity = self._identity or reference_identity(model, "bfloat16" if self.args.bf16 else "")
        keys = pair_keys((self.data_collator([row]) for row in dataset), self._identity, self.ld_alpha)

        def compute(rows: list[dict]) -> tuple[Tensor, Tensor]:
            batch = {k: v.to(self.accelerator.device) for k, v in self.data_collator(rows).items()}
            return self.compute_ref_log_probs(model, batch)

        return add_reference_logps(dataset, keys, ReferenceCache(self.reference_cache), compute, batch_size)

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        if self.checkpoint_layers is not None:  # `train` has switched it on for all by now
            checkpoint_first(self.model, self.checkpoint_layers)
        groups = self._groups(inputs)
        if len(groups) == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        parts = [take(inputs, group) for group in groups]
        total = torch.zeros((), device=self.args.device)
        for group, part in zip(groups, parts, strict=True):
            self._share = len(group) / sum(map(len, groups))
            total += super().training_step(model, part, num_items_in_batch)
        self._share = 1.0
        _merge(self._metrics["train"], parts)
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss if return_outputs or self._share == 1.0 else loss * self._share

    def _groups(self, inputs: dict[str, Tensor]) -> list[list[int]]:
        """The pairs in few groups, each within `max_tokens` unless it is one pair."""
        pairs = len(inputs["input_ids"]) // 2
        if self.why_stock is not None or self.max_tokens is None or MIX_PAIRS & set(self.loss_types):
            return [list(range(pairs))]
        sizes = Branches.of(inputs["input_ids"].cpu(), inputs["attention_mask"].cpu()).sizes.numpy()
        groups: list[list[int]] = []
        for pair in np.argsort(
            -sizes, kind="stable"
        ).tolist():  # the longest first, each into the first group with room
            room = (group for group in groups if sizes[[*group, pair]].sum() <= self.max_tokens)
            group = next(room, None)
            if group is None:
                groups.append(group := [])
            group.append(pair)
        return groups


def take(inputs: dict[str, Tensor], pairs: list[int]) -> dict[str, Tensor]:
    """Those pairs of a batch, with no more padding than they need."""
    count = len(inputs["input_ids"]) // 2
    rows = torch.tensor([*pairs, *(count + pair for pair in pairs)])
    width = int(inputs["attention_mask"][rows].sum(dim=1).max())
    return {name: t[rows][:, :width] if t.dim() == 2 else t[torch.tensor(pairs)] for name, t in inputs.items()}


def _merge(metrics: dict[str, list[float]], parts: list[dict[str, Tensor]]) -> None:
    """Replace what the groups logged by the batch's mean: over pairs, or over tokens where TRL averages over those."""
    chosen, rejected = np.array(
        [[int(half[:, 1:].sum()) for half in part["completion_mask"].chunk(2)] for part in parts]
    ).T
    by_tokens = {
        "entropy": chosen + rejected,
        "logits/chosen": chosen,
        "mean_token_accuracy": chosen,
        "logits/rejected": rejected,
    }
    pairs = np.array([len(part["input_ids"]) for part in parts])
    for name, values in metrics.items():
        weights = by_tokens.get(name, pairs)
        if name != "num_tokens" and weights.sum():
            values[-len(parts) :] = [float(np.average(values[-len(parts) :], weights=weights))]


def self_test(model: PreTrainedModel) -> str | None:
    """Install the fast forward if it agrees with the one in place on a small batch; else say why not."""
    top = model.config.get_text_config().vocab_size
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 11, 12, 0, 0]], device=model.device) % top
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], device=model.device)
    batch = {"input_ids": ids, "attention_mask": real, "labels": ids.masked_fill(real == 0, -100)}
    with torch.no_grad():
        expected = model(**batch, use_cache=False, fused_lm_head=True).log_probs
        remove = install(model)
        try:
            worst = (model(**batch, fused_lm_head=True).log_probs - expected).abs().max().item()
        except (RuntimeError, TypeError, ValueError) as error:
            remove()
            return f"the layout does not go through: {error}"
    # TRL holds the adapters of a 4-bit model in bf16 at this moment, where PEFT rounds and the fast path does not
    exact = all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())
    if worst > (1e-3 if exact else 0.25):
        remove()
        return f"log-probs differ from TRL's by {worst:.2g}"
    return None


def checkpoint_first(model: PreTrainedModel, layers: int) -> None:
    """Recompute activations in the first `layers` layers only, as many as memory needs.

    Wants precomputed references: TRL's online reference forward switches checkpointing on again for all layers.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for number, block in enumerate(blocks):
        block.gradient_checkpointing = number < layers
