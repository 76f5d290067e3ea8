"""Where the tokens of a batch of pairs stand, and how they attend to each other.

Both sequences of a pair begin alike. A batch is laid out as one row without padding, in which what they share stands
once. Attention puts the two sequences of each pair together again, each causal by itself: on a card through torch's
variable-length kernel, elsewhere by products of a tile of queries with the keys it sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

TILE = 256  # queries at once
KEPT = 512  # keys up to which probabilities are kept for the backward pass: then they are smaller than what makes them


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

    @cached_property
    def tiles(self) -> list["Tile"]:
        """All queries, a tile after the other; rejected's own places look back over chosen's to what is shared."""
        chosen = self.lengths[: len(self.sizes)]
        tiles, start = [], 0
        for first, own, shared in torch.stack([chosen, self.sizes - chosen, self.shared], dim=1).tolist():
            tiles += _cut(start, first, [], self.owner.device)
            tiles += _cut(start + first, own, [slice(start, start + shared)], self.owner.device)
            start += first + own
        return tiles


@dataclass(frozen=True)
class Tile:
    """Some queries of one sequence and the keys they see, of which the last `len(queries)` are their own."""

    queries: slice
    keys: list[slice]
    later: Tensor  # (n, n), -inf where an own key comes after the query

    def seen(self, states: Tensor) -> Tensor:
        """Those of `(groups, N, D)`."""
        parts = [states[:, places] for places in self.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def add_to(self, total: Tensor, states: Tensor) -> None:
        """Add `(groups, m, D)` to those of `(groups, N, D)`."""
        for places, part in zip(self.keys, states.split([s.stop - s.start for s in self.keys], dim=1), strict=True):
            total[:, places].add_(part)


def _cut(start: int, length: int, before: list[slice], device: torch.device) -> Iterator[Tile]:
    for begin in range(start, start + length, TILE):
        end = min(begin + TILE, start + length)
        later = torch.full((end - begin, end - begin), -torch.inf, device=device).triu_(1)
        yield Tile(slice(begin, end), [*before, slice(start, end)], later)


def branch_attention(module: nn.Module, query, key, value, attention_mask, branches: Branches | None = None, **options):
    """Attention for transformers' interface: causal within each sequence of a pair; SDPA's own where there is no pair.

    Query, key and value are `(1, heads, N, D)`; the result is `(1, N, heads, D)`.
    """
    if branches is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    branches.attended += 1
    attend = _varlen if _varlen_works(query.device, query.dtype) else attend_by_tiles
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]  # (N, heads, D)
    return attend(*rows, branches, options.get("scaling"))[None], None


def attend_by_tiles(query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float | None) -> Tensor:
    """`(N, heads, D)` each, keys and values with fewer heads perhaps; the result is like `query`, in value's dtype."""
    return Attention.apply(query, key, value, branches, scale or query.shape[-1] ** -0.5)


class Attention(torch.autograd.Function):
    """softmax(s q k^T) v, a tile of queries at a time, and its gradient.

    As in FlashAttention (arXiv 2205.14135), scores are fp32, probabilities have the values' dtype, and those of many
    keys are computed again in the backward pass. Heads that share a key stand under one another, for one product.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float) -> Tensor:
        keys, values = _by_group(key), _by_group(value)
        result = torch.empty_like(query, dtype=value.dtype, memory_format=torch.contiguous_format)
        longest, kept = KEPT if any(ctx.needs_input_grad) else 0, []
        with torch.autocast(query.device.type, enabled=False):
            for tile in branches.tiles:
                probabilities = _probabilities(query, keys, tile, scale).to(value.dtype)
                kept.append(probabilities if probabilities.shape[-1] <= longest else None)
                _write(result[tile.queries], torch.bmm(probabilities, tile.seen(values)))
        ctx.save_for_backward(query, key, value, result, *kept)
        ctx.branches, ctx.scale = branches, scale
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor):
        query, key, value, result, *kept = ctx.saved_tensors
        groups, dtype = key.shape[1], value.dtype
        keys, values = _by_group(key), _by_group(value)
        # softmax takes sum_j p_j dp_j off each dp, and that is the result's product with its gradient
        mean = (result.float() * gradient.float()).sum(dim=-1, keepdim=True).to(dtype)
        by_query = torch.empty_like(result)
        by_key, by_value = (torch.zeros_like(keys, dtype=torch.float32) for _ in range(2))
        with torch.autocast(query.device.type, enabled=False):
            for tile, probabilities in zip(ctx.branches.tiles, kept, strict=True):
                if probabilities is None:
                    probabilities = _probabilities(query, keys, tile, ctx.scale).to(dtype)
                slope = _by_head(gradient[tile.queries], groups)
                tile.add_to(by_value, torch.bmm(probabilities.transpose(1, 2), slope))
                scores = torch.bmm(slope, tile.seen(values).transpose(1, 2))
                scores.sub_(_by_head(mean[tile.queries], groups)).mul_(probabilities)
                _write(by_query[tile.queries], torch.bmm(scores, tile.seen(keys).to(dtype)))
                own = _by_head(query[tile.queries], groups).to(dtype)
                tile.add_to(by_key, torch.bmm(scores.transpose(1, 2), own))
        found = by_query.mul_(ctx.scale), by_key.mul_(ctx.scale).transpose(0, 1), by_value.transpose(0, 1)
        return *(g.to(states.dtype) for g, states in zip(found, (query, key, value), strict=True)), None, None


def _probabilities(query: Tensor, keys: Tensor, tile: Tile, scale: float) -> Tensor:
    """fp32, `(groups, heads of a group * n, m)`."""
    own = _by_head(query[tile.queries], len(keys)).float() * scale  # not in place: of one query it is a view
    scores = torch.bmm(own, tile.seen(keys).float().transpose(1, 2))
    count = len(tile.later)
    scores.unflatten(1, (-1, count))[..., -count:].add_(tile.later)
    return torch.softmax(scores, dim=-1)


def _by_group(states: Tensor) -> Tensor:
    """`(N, groups, D)` as `(groups, N, D)`, in that order in memory."""
    return states.transpose(0, 1).contiguous()


def _by_head(states: Tensor, groups: int) -> Tensor:
    """`(n, heads, D)` as `(groups, heads of a group * n, D)`."""
    return states.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def _write(place: Tensor, states: Tensor) -> None:
    """The reverse of `_by_head`, into `place` `(n, heads, D)`."""
    place.unflatten(1, (len(states), -1)).permute(1, 2, 0, 3).copy_(states.unflatten(1, (-1, len(place))))


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
    """Whether torch's variable-length attention runs on this card and gives what tiles give; tried once."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    if (device, dtype) not in _VARLEN:
        ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0]], device=device)
        branches = Branches.of(ids, (ids > 0).long())
        states = [torch.randn(len(branches.owner), 2, 64, device=device, dtype=dtype) for _ in range(3)]
        try:
            worst = (_varlen(*states, branches, None) - attend_by_tiles(*states, branches, None)).abs().max().item()
        except (RuntimeError, ImportError):
            worst = float("inf")
        _VARLEN[device, dtype] = worst < 0.02
    return _VARLEN[device, dtype]
