"""Reference log-probs, computed once for what they depend on and for nothing else.

The reference never changes, so neither do its log-probs: a sweep over beta, learning rate, rank or seed needs none
again. TRL keys its cache by the data set's history and by a hash of the whole model, fresh adapters included, so each
of these changes recomputes everything. Here a pair's key is what its two numbers are a function of: the frozen
weights and the reference adapter, their quantisation and dtypes, the two token sequences after truncation with their
masks, and `ld_alpha`. A block of pairs is one transaction, so a kill loses the block at hand.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn

if TYPE_CHECKING:
    from dpo_kit.models.store import Store


class PairLogProbs(NamedTuple):
    """The reference's log-probs of both answers of a pair, in nats."""

    chosen: float
    rejected: float


def add_reference_logps(
    dataset: Dataset,
    keys: Sequence[str],
    cache: "Store[PairLogProbs]",
    compute: Callable[[list[dict]], tuple[Tensor, Tensor]],
    block: int,
) -> Dataset:
    """`dataset` with the columns `ref_chosen_logps` and `ref_rejected_logps`, from the cache or else computed.

    `compute` maps rows to two `(B,)` tensors. Rows are computed in blocks with fixed borders, each stored at once, so a
    run that was killed meets the same batches again and ends in the same bits.
    """
    known = dict(zip(keys, cache.find(keys), strict=True))
    for start in range(0, len(dataset), block):
        missing = [i for i in range(start, min(start + block, len(dataset))) if known[keys[i]] is None]
        if missing:
            chosen, rejected = compute([dataset[i] for i in missing])  # (B,) each
            made = [PairLogProbs(*both) for both in zip(chosen.tolist(), rejected.tolist(), strict=True)]
            names = [keys[i] for i in missing]
            # another process may have been first; its numbers are the same up to rounding
            known |= zip(names, cache.add(names, made), strict=True)
    columns = zip(*(known[key] for key in keys), strict=True)
    for name, column in zip(("ref_chosen_logps", "ref_rejected_logps"), columns, strict=True):
        dataset = dataset.add_column(name, list(column))
    return dataset


def pair_keys(batches: Iterable[dict[str, Tensor]], reference: str, ld_alpha: float | None) -> list[str]:
    """The key of each pair; `batches` holds one collated pair each, so truncation has been done."""
    keys = []
    for batch in batches:
        digest = hashlib.sha256(json.dumps([reference, ld_alpha]).encode())
        for ids, real, mask in zip(
            batch["input_ids"], batch["attention_mask"].bool(), batch["completion_mask"], strict=True
        ):
            digest.update(json.dumps([ids[real].tolist(), mask[real].tolist()]).encode())
        keys.append(digest.hexdigest())
    return keys


def reference_identity(model: nn.Module, compute: str = "") -> str:
    """A hash of all that decides what the reference answers: config, weights, quantisation, reference adapter, dtypes.

    Of a PEFT model the reference is the adapter `ref` where there is one, else the base with adapters off; other
    adapters, and what is trained, do not enter. `compute` names an autocast dtype.
    """
    adapters = model.peft_config if isinstance(model, PeftModel) else {}
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_") and k != "transformers_version"}
    adapter = adapters["ref"].to_dict() if "ref" in adapters else None
    digest = hashlib.sha256(json.dumps([compute, config, adapter], sort_keys=True, default=_plain).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        owner = next((part for part in name.split(".") if part in adapters), None)
        if (owner is None and ".lora_" not in name) or owner == "ref":
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for part in [tensor, *_quantisation(tensor)]:
                digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _quantisation(tensor: Tensor) -> list[Tensor]:
    """The scales and code book of a 4-bit weight: the same bytes mean other weights under others."""
    state = getattr(tensor, "quant_state", None)
    parts = state.as_dict(packed=True) if state is not None else {}
    return [part for _, part in sorted(parts.items()) if isinstance(part, Tensor)]


def _plain(value) -> str | list:
    return sorted(map(str, value)) if isinstance(value, set) else str(value)
