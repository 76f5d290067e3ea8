"""The fast path: TRL's log-probs, with each token computed once.

A preference pair is two sequences that begin alike. TRL lays both out in full, pads them to the longest of the batch,
and off CUDA projects every position onto the vocabulary. Here the tokens of a batch stand in one row without padding,
what the two sequences of a pair share stands there once, and only scored positions meet the head:

    chosen    p p p c c e .          the row    p p p c c e d d d e | q q ...
    rejected  p p p d d d e                     shared, then two branches; then the next pair

Every layer but attention treats tokens one by one, so it neither knows nor cares; how attention keeps sequences and
siblings apart is in `branches`, and the head in `token_scores`. Adapters are added to their layers in one step. What
was removed from TRL's step is work. Losses, metrics, reference modes and precomputing stay TRL's own, because all that
is replaced is the forward that hands them log-probs.
"""

from collections.abc import Callable
from functools import wraps
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
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from dpo_kit.models.quantization import whole
from dpo_kit.training.branches import Branches, branch_attention
from dpo_kit.training.references import ReferenceCache, add_reference_logps, pair_keys, reference_identity
from dpo_kit.training.token_scores import score

ATTENTION = "dpo_kit_branches"
MIX_PAIRS = {"aot", "aot_unpaired", "bco_pair", "sft"}  # losses in which a pair's term depends on its batch
SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


# ---- adapters ---------------------------------------------------------------------------------------------------


class AdaptedLinear(torch.autograd.Function):
    """W x + s B A x under a frozen W, in one step: x and A x are all that is kept, and sums are made in place.

    PEFT computes B A x in the adapter's dtype, and so copies x and the result to fp32; here A and B are cast to that of
    x. A W in 4 bits is made whole for a product and dropped again, as QLoRA does (arXiv 2305.14314).
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, base: nn.Linear, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        ctx.base, ctx.scaling, ctx.dtype, ctx.shape = base, scaling, a.dtype, hidden.shape
        a, b, rows = a.to(hidden.dtype), b.to(hidden.dtype), hidden.flatten(0, -2)
        with torch.autocast(hidden.device.type, enabled=False):
            inner = rows @ a.T
            bias = None if base.bias is None else base.bias.to(rows.dtype)
            result = F.linear(rows, whole(base.weight, rows.dtype), bias)
            result.addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(rows, inner, a, b)
        return result.unflatten(0, hidden.shape[:-1])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        rows, inner, a, b = ctx.saved_tensors
        by_hidden = by_a = by_b = None
        slope = gradient.flatten(0, -2)
        with torch.autocast(slope.device.type, enabled=False):
            by_inner = (slope @ b).mul_(ctx.scaling)
            if ctx.needs_input_grad[0]:
                by_hidden = torch.mm(slope, whole(ctx.base.weight, slope.dtype)).addmm_(by_inner, a).view(ctx.shape)
            if ctx.needs_input_grad[2]:
                by_a = (by_inner.T @ rows).to(ctx.dtype)
            if ctx.needs_input_grad[3]:
                by_b = (inner.T @ slope).T.to(ctx.dtype) * ctx.scaling
        return by_hidden, None, by_a, by_b, None


def adapted(layer: LoraLayer, hidden: Tensor, *args, **options) -> Tensor:
    """The forward of a LoRA layer with one active adapter; anything else is PEFT's own matter.

    So is one token at a time, as answers are drawn: 4-bit weights have kernels for that, which never make them whole.
    """
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    drawing = hidden.shape[-2] == 1
    if drawing or layer.merged or layer.disable_adapters or len(active) != 1 or args or options:
        return type(layer).forward(layer, hidden, *args, **options)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    a, b = (side[active[0]].weight for side in (layer.lora_A, layer.lora_B))
    return AdaptedLinear.apply(hidden, layer.get_base_layer(), a, b, layer.scaling[active[0]])


def _is_plain(layer: nn.Module) -> bool:
    """LoRA on a frozen linear layer, in 4 bits or not, and nothing else about it: no DoRA, no bias of its own."""
    return (
        isinstance(layer, LoraLayer)
        and type(layer).__name__ in ("Linear", "Linear4bit")  # the second exists only where bitsandbytes does
        and isinstance(layer.get_base_layer(), nn.Linear)
        and not any(parameter.requires_grad for parameter in layer.get_base_layer().parameters())
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
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(adapted, layer)

    def remove() -> None:
        model.forward = stock
        model.set_attn_implementation(before)
        for layer in layers:
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


def unsupported_reason(model: PreTrainedModel | PeftModel) -> str | None:
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
    """TRL's `DPOTrainer` on the fast forward, where it applies; `stock_reason` says why not, and is None where it does.

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
        self.stock_reason: str | None = "not tried yet"
        self._share = 1.0
        self._identity: str | None = None
        super().__init__(*args, **options)
        self._install()

    def _install(self) -> None:
        """Put the fast forward in place, unless it does not apply or does not agree with TRL's."""
        if self.stock_reason != "not tried yet":
            return
        self.stock_reason = (
            "it runs in several processes" if self.args.world_size > 1 else unsupported_reason(self.model)
        )
        if self.stock_reason is None:
            base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
            self.stock_reason = self_test(base)
            if self.stock_reason is None and self.ref_model is not None:
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
        if self.stock_reason is not None or self.max_tokens is None or MIX_PAIRS & set(self.loss_types):
            return [list(range(pairs))]
        sizes = Branches.of(inputs["input_ids"].cpu(), inputs["attention_mask"].cpu()).sizes.numpy()
        longest_first = np.argsort(-sizes, kind="stable").tolist()
        groups: list[list[int]] = []
        for pair in longest_first:  # each into the first group with room
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
    scored = [[int(half[:, 1:].sum()) for half in part["completion_mask"].chunk(2)] for part in parts]
    chosen, rejected = np.array(scored).T
    by_tokens = {"logits/chosen": chosen, "logits/rejected": rejected, "mean_token_accuracy": chosen}
    by_tokens["entropy"] = chosen + rejected
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
