"""Reference log-probs, stored so that they are computed again only when something that they depend on has changed.

The reference never changes, so a sweep over beta, learning rate, rank or seed can use the same log-probs throughout.
TRL keys its cache by the data set's history and by a hash of the whole model, fresh adapters included, so with TRL
each of these changes recomputes everything. Here a pair's key contains only what its two log-probs depend on: the
frozen weights and the reference adapter, their quantisation and dtypes, the two token sequences after truncation with
their masks, and `ld_alpha`. Each block of pairs is stored in one transaction, so a kill loses at most one block.
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

    `compute` maps rows to two `(B,)` tensors. Rows are computed in blocks with fixed borders, and each block is stored
    at once. So a run that was killed computes the same batches again and gets the same numbers, bit for bit.
    """
    known = dict(zip(keys, cache.find(keys), strict=True))
    for start in range(0, len(dataset), block):
        missing = [i for i in range(start, min(start + block, len(dataset))) if known[keys[i]] is None]
        if missing:
            chosen, rejected = compute([dataset[i] for i in missing])  # (B,) each
            made = [PairLogProbs(*both) for both in zip(chosen.tolist(), rejected.tolist(), strict=True)]
            names = [keys[i] for i in missing]
            # another process may have stored them first; its numbers are the same up to rounding
            known |= zip(names, cache.add(names, made), strict=True)
    columns = zip(*(known[key] for key in keys), strict=True)
    for name, column in zip(("ref_chosen_logps", "ref_rejected_logps"), columns, strict=True):
        dataset = dataset.add_column(name, list(column))
    return dataset


def pair_keys(batches: Iterable[dict[str, Tensor]], reference: str, ld_alpha: float | None) -> list[str]:
    """The key of each pair. Each of `batches` is one collated pair, so its tokens are already truncated."""
    keys = []
    for batch in batches:
        digest = hashlib.sha256(json.dumps([reference, ld_alpha]).encode())
        for ids, real, mask in zip(
            batch["input_ids"], batch["attention_mask"].bool(), batch["completion_mask"], strict=True
        ):
            digest.update(json.dumps([ids[real].tolist(), mask[real].tolist()]).encode())
        keys.append(digest.hexdigest())
    return keys
