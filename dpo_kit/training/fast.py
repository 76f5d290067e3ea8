"""The fast path: TRL's log-probs, with each token computed once.

A preference pair is two sequences that begin with the same tokens. TRL writes both out in full, pads them to the
longest sequence of the batch, and without CUDA projects every position onto the vocabulary. Here the tokens of a batch
stand in one row without padding. The shared beginning of a pair stands in that row once, and only the positions whose
next token is scored are projected onto the vocabulary:

    chosen    p p p c c e .          the row    p p p c c e d d d e | q q ...
    rejected  p p p d d d e                     shared, then two branches; then the next pair

Every layer but attention treats tokens one by one, so the row changes nothing for it. `branches` says how attention
keeps sequences apart, `token_scores` how log-probs are computed; `AdaptedLinear` adds an adapter to its layer in one
step. Losses, metrics, reference modes and precomputing stay TRL's own, because only the forward pass that hands them
log-probs is replaced. It is replaced only where `disagreement` finds that both paths give the same log-probs and
gradients.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from types import MethodType
from typing import Any

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

from dpo_kit.models.identity import model_identity
from dpo_kit.models.quantization import dequantized
from dpo_kit.models.store import Store
from dpo_kit.training.branches import Branches, branch_attention
from dpo_kit.training.references import PairLogProbs, add_reference_logps, pair_keys
from dpo_kit.training.token_scores import score

ATTENTION = "dpo_kit_branches"
MIX_PAIRS = {"aot", "aot_unpaired", "bco_pair", "sft"}  # losses in which a pair's term depends on its batch
SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


# ---- adapters ---------------------------------------------------------------------------------------------------


class AdaptedLinear(torch.autograd.Function):
    """A linear layer with frozen W and c, and a LoRA adapter (A, B, scaling s) on it, as one step of autograd.

        y  = W x + c + s B (A x)
        dx = W^T g + s A^T (B^T g)                    where g is the gradient at y
        dA = s (B^T g) x^T,    dB = s g (A x)^T

    Only x and A x are kept for the backward pass. PEFT copies x and its result to the adapter's fp32; here the adapter,
    which is small, is cast to the dtype of x instead. A W that is held in 4 bits is dequantised for one product and
    then dropped, as in QLoRA (arXiv 2305.14314).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, base: nn.Linear, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        ctx.base, ctx.scaling, ctx.dtype, ctx.shape = base, scaling, a.dtype, hidden.shape
        a, b = a.to(hidden.dtype), b.to(hidden.dtype)  # (r, in), (out, r)
        rows = hidden.flatten(0, -2)  # (N, in)
        # autocast is off because the dtypes are chosen here: under it each product would cast its operands once more
        with torch.autocast(hidden.device.type, enabled=False):
            inner = rows @ a.T  # (N, r)
            bias = None if base.bias is None else base.bias.to(rows.dtype)
            result = F.linear(rows, dequantized(base.weight, rows.dtype), bias)  # (N, out)
            result.addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(rows, inner, a, b)
        return result.unflatten(0, hidden.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, a, b = ctx.saved_tensors
        dx = da = db = None
        g = gradient.flatten(0, -2)  # (N, out)
        with torch.autocast(g.device.type, enabled=False):
            d_inner = (g @ b).mul_(ctx.scaling)  # (N, r)
            if ctx.needs_input_grad[0]:
                weight = dequantized(ctx.base.weight, g.dtype)
                dx = torch.mm(g, weight).addmm_(d_inner, a).view(ctx.shape)
            if ctx.needs_input_grad[2]:
                da = (d_inner.T @ rows).to(ctx.dtype)
            if ctx.needs_input_grad[3]:
                db = (inner.T @ g).T.to(ctx.dtype) * ctx.scaling
        return dx, None, da, db, None


def forward_adapted(layer: LoraLayer, hidden: Tensor, *args: Any, **options: Any) -> Tensor:
    """The forward of a LoRA layer through `AdaptedLinear`, where exactly one adapter is active.

    All other cases use PEFT's own forward: a merged or disabled adapter, several adapters, or further arguments. Single
    tokens, as in sampling, use it too, because for one token bitsandbytes has a kernel that does not dequantise W.
    """
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    sampling = hidden.shape[-2] == 1
    if sampling or layer.merged or layer.disable_adapters or len(active) != 1 or args or options:
        return type(layer).forward(layer, hidden, *args, **options)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    a, b = (side[active[0]].weight for side in (layer.lora_A, layer.lora_B))
    return AdaptedLinear.apply(hidden, layer.get_base_layer(), a, b, layer.scaling[active[0]])


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is what `AdaptedLinear` computes: LoRA on a frozen linear layer, without DoRA or a LoRA bias."""
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
    """Replace the forward of `model`, which has TRL's fused head, by the fast one. Returns a function that undoes it.

    Only calls with `fused_lm_head=True` are computed in one row. Generation and all other calls stay as they were,
    except that `AdaptedLinear` computes the adapters in them too.
    """
    AttentionInterface.register(ATTENTION, branch_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before, stock = model.config._attn_implementation, model.forward

    @wraps(type(model).forward)  # `generate` compares its arguments with the signature
    def forward(self, *args, fused_lm_head=False, input_ids=None, attention_mask=None, labels=None, **options):
        if not fused_lm_head:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            return stock(*args, **{k: v for k, v in given.items() if v is not None}, **options)
        return _score_pairs(self, input_ids, attention_mask, labels)

    model.set_attn_implementation(ATTENTION)
    model.forward = MethodType(forward, model)
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(forward_adapted, layer)

    def remove() -> None:
        model.forward = stock
        model.set_attn_implementation(before)
        for layer in layers:
            del layer.forward

    return remove


def _score_pairs(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> FusedCausalLMOutput:
    """What TRL's fused head returns for a padded batch of pairs, each field `(2B, T - 1)`; all arguments `(2B, T)`."""
    branches = Branches.of(input_ids, attention_mask)
    hidden = row_states(model, input_ids, branches)  # (N, H)
    targets = labels[:, 1:]  # (2B, T - 1): position t predicts token t + 1
    mask = targets != -100
    # where chosen and rejected score the same token at a shared place, project it once and use the result for both
    places = torch.stack([branches.packed[:, :-1][mask], targets[mask]])  # (2, scored): place in the row, target
    places, back = places.unique(dim=1, return_inverse=True)
    fields = (field[back] for field in score(hidden[places[0]], model.get_output_embeddings(), places[1]))
    log_probs, entropy, squares, mean, top1 = (
        field.new_zeros(mask.shape).masked_scatter(mask, field) for field in fields
    )
    return FusedCausalLMOutput(
        log_probs=log_probs, entropy=entropy, log_sum_sq_probs=squares, mean_logits=mean, is_top1=top1, label_mask=mask
    )


def row_states(model: PreTrainedModel, input_ids: Tensor, branches: Branches) -> Tensor:
    """The last hidden states `(N, H)` of the row that `branches` makes of a padded batch `(2B, T)`.

    Raises RuntimeError where the model does not pass the layout on to its attention layers.
    """
    hidden = model.base_model(
        input_ids=input_ids.flatten()[branches.owner][None],  # (1, N)
        # a token keeps the position that it has in its own sequence
        position_ids=(branches.owner % input_ids.shape[1])[None],
        # given a mask of four dimensions, transformers builds none of its own; `branch_attention` does not read it
        attention_mask=torch.zeros(1, 1, 1, 1, device=input_ids.device),
        use_cache=False,
        branches=branches,
    ).last_hidden_state[0]
    if branches.attended != model.config.get_text_config().num_hidden_layers:
        raise RuntimeError(f"{branches.attended} layers saw the layout: this model does not pass it on to attention")
    return hidden


def unsupported_reason(model: PreTrainedModel | PeftModel) -> str | None:
    """Why the fast path does not apply to this model, or None where it does."""
    adapters = model.peft_config.values() if isinstance(model, PeftModel) else ()
    base = base_of(model)
    config = base.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in base.modules())
    reasons = {
        "it takes images, whose tokens are laid out by the model": config is not base.config,
        "its attention cannot be exchanged": not getattr(base, "_supports_attention_backend", False),
        f"it has layers that the fast path does not know ({', '.join(sorted(layers))})": bool(layers),
        "its attention looks through a sliding window": window is not None and not hasattr(config, "layer_types"),
        "it balances experts over a batch, padding included": getattr(config, "output_router_logits", None) is not None,
        "its logits are rescaled": any(getattr(config, name, None) not in (None, 1.0) for name in SCALED_LOGITS),
        "its adapter learns a prompt of its own": any(adapter.is_prompt_learning for adapter in adapters),
        "dropout is active, and the two sequences of a pair would share it": dropout,
        "it runs on several devices": len(set(getattr(base, "hf_device_map", {}).values())) > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model without PEFT's wrapper; its layers keep their adapters."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


# ---- agreement with TRL -----------------------------------------------------------------------------------------


def trained_gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """The gradient of a scalar at the trained weights: flat, fp32, one per layer (A and B of an adapter together).

    The weights' `grad` is neither read nor written.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(value, list(trained.values()), allow_unused=True) if trained else ()
    by_layer: defaultdict[str, list[Tensor]] = defaultdict(list)
    for (name, weight), slope in zip(trained.items(), slopes, strict=True):
        slope = torch.zeros_like(weight) if slope is None else slope
        by_layer[name.split(".lora_")[0]].append(slope.flatten().float())
    return {layer: torch.cat(parts) for layer, parts in by_layer.items()}


def compare_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], exact: bool) -> tuple[float, str | None]:
    """The lowest cosine between the two gradients of a layer, and what is wrong with the first layer that differs.

    Direction and length of each layer's gradient are compared; a layer whose gradient is zero on both sides is skipped.
    `exact` says that everything was computed in fp32. In bf16 the two paths round differently: in a pretrained model of
    135 million parameters (SmolLM2, in NF4) the worst layers had a cosine of 0.992 and lengths 5% apart; in fp32 both
    agreed to four digits. A gradient that does not pass through the 4-bit weights has both near 0.1.
    """
    closest, furthest = (0.999, 0.01) if exact else (0.9, 0.25)
    lowest, wrong = 1.0, None
    for layer, right in expected.items():
        own = found[layer]
        if own.any() or right.any():
            cosine = (torch.dot(own, right) / (own.norm() * right.norm())).item()
            length = (own.norm() / right.norm()).item()
            lowest = min(lowest, cosine)
            if not (cosine > closest and abs(length - 1) < furthest) and wrong is None:  # a NaN is wrong, too
                wrong = f"the gradient of {layer} has cosine {cosine:.3f} and relative length {length:.3f}, both not 1"
    return lowest, wrong


def computes_exactly(model: nn.Module) -> bool:
    """Whether neither a weight nor, under the present autocast, an activation is rounded to 16 bits."""
    coarse = any(p.is_floating_point() and p.dtype.itemsize < 4 for p in model.parameters())
    return not coarse and not torch.is_autocast_enabled(next(model.parameters()).device.type)


def disagreement(
    model: PreTrainedModel, autocast: Callable[[], AbstractContextManager[None]] = nullcontext
) -> str | None:
    """Why the fast forward may not replace the forward of `model`, or None where both compute the same.

    Log-probs and gradients of one short pair are compared in train mode and under `autocast`, as training computes
    them. `model` has TRL's fused head. It is left as it was: nothing is installed.
    """
    top = model.config.get_text_config().vocab_size
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 11, 12, 0, 0]], device=model.device) % top
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], device=model.device)
    batch = {"input_ids": ids, "attention_mask": real, "labels": ids.masked_fill(real == 0, -100)}
    weights = torch.linspace(1, 2, 10, device=model.device).view(2, 5)  # all different, so that no two errors cancel

    def compute() -> tuple[Tensor, dict[str, Tensor]]:
        with autocast():
            log_probs = model(**batch, use_cache=False, fused_lm_head=True).log_probs.float()  # (2, 5)
        return log_probs.detach(), trained_gradients(model, (weights * log_probs).sum())

    was_training, remove = model.training, None
    try:
        model.train()
        log_probs, expected = compute()
        remove = install(model)
        fast_log_probs, found = compute()
    except (RuntimeError, TypeError, ValueError) as error:
        return f"the layout does not go through: {error}"
    finally:
        if remove is not None:
            remove()
        model.train(was_training)
    # here TRL still holds the adapters of a 4-bit model in bf16: PEFT rounds to it, and the fast path does not
    with autocast():
        exact = computes_exactly(model)
    worst = (fast_log_probs - log_probs).abs().max().item()
    if not worst <= (1e-3 if exact else 0.25):
        return f"log-probs differ from TRL's by {worst:.2g}"
    return compare_gradients(found, expected, exact)[1]


# ---- the trainer ------------------------------------------------------------------------------------------------


class FastDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` on the fast forward, where that applies to the model and agrees with TRL's.

    `stock_reason` says why TRL's own forward is used instead; it is None where the fast one is.
    `max_tokens` is the largest number of places that go through the model at once in training: a batch is cut into
    groups of pairs, whose gradients are weighted by n_i / N and so add up to the gradient of the batch.
    `reference_cache` is a SQLite file for precomputed reference log-probs. Without it TRL keeps its own.
    `checkpoint_layers` says how many layers recompute their activations where TRL's arguments ask for checkpointing.
    """

    model: Any  # a PreTrainedModel or a PeftModel

    def __init__(
        self,
        *args: Any,
        max_tokens: int | None = None,
        reference_cache: Path | None = None,
        checkpoint_layers: int | None = None,
        **options: Any,
    ):
        self.max_tokens, self.reference_cache, self.checkpoint_layers = max_tokens, reference_cache, checkpoint_layers
        self.stock_reason: str | None = None
        self._fast_models: list[PreTrainedModel] | None = None  # None: not decided yet; empty: TRL's forward is used
        self._removers: list[Callable[[], None]] = []
        self._share = 1.0  # the share of the batch's pairs that is in the group being computed
        self._identity: str | None = None
        super().__init__(*args, **options)
        self._choose_forward()

    def _choose_forward(self) -> None:
        """Decide once between TRL's forward and the fast one, and install the latter where it is chosen."""
        if self._fast_models is not None:
            return
        several = "it runs in several processes" if self.args.world_size > 1 else None
        base, references = base_of(self.model), [] if self.ref_model is None else [self.ref_model]
        self.stock_reason = several or unsupported_reason(self.model) or disagreement(base, self.accelerator.autocast)
        self._fast_models = [] if self.stock_reason else [base, *references]
        self._removers = [install(model) for model in self._fast_models]

    @contextmanager
    def stock_forward(self) -> Iterator[None]:
        """Compute with TRL's own forward and PEFT's own adapter layers for the length of the block."""
        for remove in self._removers:
            remove()
        try:
            yield
        finally:
            self._removers = [install(model) for model in self._fast_models or ()]

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._choose_forward()  # TRL calls this while it is being built
        if self.reference_cache is None:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        if "ref_chosen_logps" in dataset.column_names:  # `evaluate` passes data that already has these columns
            return dataset
        model = self.ref_model or self.model
        # the reference is frozen, so its gigabytes are hashed once and not once for each data set
        if self._identity is None:
            adapter = "ref" if "ref" in getattr(model, "peft_config", {}) else None  # else the base alone
            self._identity = model_identity(model, adapter, autocast="bfloat16" if self.args.bf16 else "")
        keys = pair_keys((self.data_collator([row]) for row in dataset), self._identity, self.ld_alpha)

        def compute(rows: list[dict]) -> tuple[Tensor, Tensor]:
            batch = {k: v.to(self.accelerator.device) for k, v in self.data_collator(rows).items()}
            return self.compute_ref_log_probs(model, batch)

        return add_reference_logps(dataset, keys, Store(self.reference_cache, PairLogProbs), compute, batch_size)

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        if self.checkpoint_layers is not None:  # `train` has switched it on for all layers by now
            checkpoint_first(self.model, self.checkpoint_layers)
        groups = self._groups(inputs)
        if len(groups) == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        parts = [select_rows(inputs, group) for group in groups]
        metrics = self._metrics["train"]
        before = {name: len(values) for name, values in metrics.items()}
        total = torch.zeros((), device=self.args.device)
        for group, part in zip(groups, parts, strict=True):
            self._share = len(group) / sum(map(len, groups))
            total += super().training_step(model, part, num_items_in_batch)
        self._share = 1.0
        _average_over_groups(metrics, before, parts)
        return total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss if return_outputs or self._share == 1.0 else loss * self._share

    def _groups(self, inputs: dict[str, Tensor]) -> list[list[int]]:
        """The indices of a batch's pairs, in few groups of at most `max_tokens` places; a longer pair is alone."""
        pairs = len(inputs["input_ids"]) // 2
        if self.stock_reason is not None or self.max_tokens is None or MIX_PAIRS & set(self.loss_types):
            return [list(range(pairs))]
        sizes = Branches.of(inputs["input_ids"].cpu(), inputs["attention_mask"].cpu()).sizes.numpy()
        longest_first = np.argsort(-sizes, kind="stable").tolist()
        groups: list[list[int]] = []
        for pair in longest_first:  # each goes into the first group that has room for it
            room = (group for group in groups if sizes[[*group, pair]].sum() <= self.max_tokens)
            group = next(room, None)
            if group is None:
                groups.append(group := [])
            group.append(pair)
        return groups


def select_rows(inputs: dict[str, Any], rows: Sequence[int], sides: int = 2) -> dict[str, Tensor]:
    """Some rows of the data from a batch `(sides * B, T)`, with all sides of each and only the padding they need."""
    count = len(inputs["input_ids"]) // sides  # all chosen sequences come first, then all rejected ones
    places = torch.tensor([side * count + row for side in range(sides) for row in rows])
    width = int(inputs["attention_mask"][places].sum(dim=1).max())
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    # reference log-probs are one number for each row of the data
    return {name: t[places][:, :width] if t.dim() == 2 else t[torch.tensor(rows)] for name, t in tensors.items()}


def _average_over_groups(metrics: dict[str, list[float]], before: dict[str, int], parts: list[dict[str, Tensor]]):
    """Replace the values that the groups added to `metrics`, one per group, by the mean over the batch.

    TRL averages most metrics over pairs and some over tokens, so groups are weighted by their pairs or their tokens.
    `before` says how many values each metric had before this step.
    """
    scored = [[int(half[:, 1:].sum()) for half in part["completion_mask"].chunk(2)] for part in parts]
    chosen, rejected = np.array(scored).T
    by_tokens = {"logits/chosen": chosen, "logits/rejected": rejected, "entropy": chosen + rejected}
    by_tokens["mean_token_accuracy"] = chosen  # TRL measures it on chosen answers alone
    pairs = np.array([len(part["input_ids"]) for part in parts])
    for name, values in metrics.items():
        if name == "num_tokens":  # TRL overwrites this one: it is a running total
            continue
        start = before.get(name, 0)
        added = values[start:]
        assert len(added) == len(parts), f"{len(parts)} groups logged {len(added)} values of {name}, not one each"
        weights = by_tokens.get(name, pairs)
        values[start:] = [float(np.average(added, weights=weights if weights.sum() else pairs))]


def checkpoint_first(model: nn.Module, layers: int) -> None:
    """Recompute activations in the first `layers` layers only, as many as memory needs.

    It works with precomputed references only: TRL's reference forward would switch checkpointing on for all layers.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for number, block in enumerate(blocks):
        block.gradient_checkpointing = number < layers
