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

from datasets import Dataset
from torch import Tensor

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
