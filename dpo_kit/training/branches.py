"""Where the tokens of a batch of pairs stand, and how they attend to each other.

Both sequences of a pair begin with the same tokens. A batch is laid out as one row without padding, in which the shared
beginning of a pair stands once. The result of attention is the same as if each sequence were written out in full. On a
GPU it comes from torch's variable-length kernel, elsewhere from products of a tile of queries with the keys before it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

TILE = 256  # the number of queries that are computed together
KEPT = 512  # a tile with more keys than this computes its probabilities again in the backward pass, to save memory


@dataclass
class Branches:
    """Where the tokens of a padded batch `(2B, T)`, chosen half then rejected half, stand in one row of N places.

    With chosen [7, 8, 1], rejected [7, 9, 9, 1] and pad 0 the row is 7 8 1 9 9 1:

        packed   [[0, 1, 2, 0], [0, 3, 4, 5]]
        owner    [0, 1, 2, 5, 6, 7]
    """

    packed: Tensor  # (2B, T): the place of each padded position in the row; padding points at place 0
    owner: Tensor  # (N,): a padded position whose token stands at this place, counted through the flattened batch
    lengths: Tensor  # (2B,): tokens of each sequence
    sizes: Tensor  # (B,): places that each pair takes
    shared: Tensor  # (B,): places that the two sequences of a pair have in common
    attended: int = 0  # how many layers used this layout; 0 shows that the model did not pass it on to attention

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor) -> "Branches":
        """The layout of a right-padded batch: for each pair its common beginning, then the rest of either side."""
        real = attention_mask.bool()  # (2B, T)
        lengths = real.sum(dim=1)
        chosen, rejected = lengths.chunk(2)  # (B,) each
        alike = torch.eq(*input_ids.chunk(2)) & torch.logical_and(*real.chunk(2))  # (B, T)
        shared = alike.cumprod(dim=1).sum(dim=1)  # the product is 0 from the first difference on
        sizes = chosen + rejected - shared
        position = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
        of_chosen = (sizes.cumsum(0) - sizes)[:, None] + position  # (B, T)
        beyond = position >= shared[:, None]  # (B, T)
        of_rejected = of_chosen + (chosen - shared)[:, None] * beyond  # rejected's own tokens stand after chosen's
        packed = torch.cat([of_chosen, of_rejected]).masked_fill(~real, 0)
        branch = torch.cat([real[: len(sizes)], real[len(sizes) :] & beyond])  # (2B, T): selects each place once
        owner = torch.empty(int(sizes.sum()), dtype=torch.long, device=input_ids.device)
        owner[packed[branch]] = branch.flatten().nonzero()[:, 0]
        return cls(packed, owner, lengths, sizes, shared)

    @cached_property
    def tiles(self) -> list["Tile"]:
        """All queries of the row, in order. Rejected tokens see the shared beginning, but no token of chosen alone."""
        chosen = self.lengths[: len(self.sizes)]
        tiles: list[Tile] = []
        start = 0
        for first, own, shared in torch.stack([chosen, self.sizes - chosen, self.shared], dim=1).tolist():
            tiles += _cut(start, first, [], self.owner.device)
            tiles += _cut(start + first, own, [slice(start, start + shared)], self.owner.device)
            start += first + own
        return tiles


@dataclass(frozen=True)
class Tile:
    """Some queries of one sequence, and the keys that they attend to. The last n keys are the queries' own tokens."""

    queries: slice  # n places of the row
    keys: list[slice]  # m places, as runs of neighbouring places
    later: Tensor  # (n, n): -inf where one of the last n keys comes after the query

    def seen(self, states: Tensor) -> Tensor:
        """Select the keys that this tile attends to: `(groups, N, D)` to `(groups, m, D)`."""
        parts = [states[:, places] for places in self.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def add_to(self, total: Tensor, states: Tensor) -> None:
        """Add a gradient `(groups, m, D)` at these keys to the `total` `(groups, N, D)`, in place."""
        for places, part in zip(self.keys, states.split([s.stop - s.start for s in self.keys], dim=1), strict=True):
            total[:, places].add_(part)


def _cut(start: int, length: int, before: list[slice], device: torch.device) -> Iterator[Tile]:
    """Tiles of the `length` places from `start` on. They attend to the places `before` and, causally, to themselves."""
    for begin in range(start, start + length, TILE):
        end = min(begin + TILE, start + length)
        later = torch.full((end - begin, end - begin), -torch.inf, device=device).triu_(1)
        yield Tile(slice(begin, end), [*before, slice(start, end)], later)


def branch_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    branches: Branches | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers' interface, causal within each sequence of a pair. Without `branches`, SDPA is used.

    Query, key and value are `(1, heads, N, D)`; the result is `(1, N, heads, D)`.
    """
    if branches is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    branches.attended += 1
    attend = _varlen if _varlen_works(query.device, query.dtype) else attend_by_tiles
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # (N, heads, D)
    return attend(query, key, value, branches, options.get("scaling"))[None], None


def attend_by_tiles(query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float | None) -> Tensor:
    """Attention by tiles. `query` is `(N, heads, D)`; `key` and `value` are `(N, groups, D)`; groups divides heads.

    The result is `(N, heads, D)` in the dtype of `value`. `scale` is 1 / sqrt(D) by default.
    """
    return Attention.apply(query, key, value, branches, scale or query.shape[-1] ** -0.5)


class Attention(torch.autograd.Function):
    """Attention and its gradient, one tile of queries at a time. With q, k, v of a tile, mask M, g the gradient at o:

        P  = softmax(s q k^T + M),    o = P v
        dv = P^T g,    dS = P * (g v^T - rowsum(o * g))          * is elementwise
        dq = s dS k,   dk = s dS^T q

    As in FlashAttention (arXiv 2205.14135) scores are fp32, P has the dtype of v, and a tile with many keys computes P
    again in the backward pass. Heads that share a key are stacked as rows of one product.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float) -> Tensor:
        keys, values = _by_group(key), _by_group(value)  # (groups, N, D)
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result, *kept = ctx.saved_tensors
        groups, dtype = key.shape[1], value.dtype
        keys, values = _by_group(key), _by_group(value)
        # softmax's derivative needs the row sum of P * (g v^T); that of o * g is equal, and needs no probabilities
        mean = (result.float() * gradient.float()).sum(dim=-1, keepdim=True).to(dtype)  # (N, heads, 1)
        dq = torch.empty_like(result)
        dk, dv = (torch.zeros_like(keys, dtype=torch.float32) for _ in range(2))
        with torch.autocast(query.device.type, enabled=False):
            for tile, probabilities in zip(ctx.branches.tiles, kept, strict=True):
                if probabilities is None:
                    probabilities = _probabilities(query, keys, tile, ctx.scale).to(dtype)
                g = _by_head(gradient[tile.queries], groups)  # (groups, heads of a group * n, D)
                tile.add_to(dv, torch.bmm(probabilities.transpose(1, 2), g))
                ds = torch.bmm(g, tile.seen(values).transpose(1, 2))  # g v^T, and dS after the next line
                ds.sub_(_by_head(mean[tile.queries], groups)).mul_(probabilities)
                _write(dq[tile.queries], torch.bmm(ds, tile.seen(keys).to(dtype)))
                own = _by_head(query[tile.queries], groups).to(dtype)
                tile.add_to(dk, torch.bmm(ds.transpose(1, 2), own))
        found = dq.mul_(ctx.scale), dk.mul_(ctx.scale).transpose(0, 1), dv.transpose(0, 1)
        return *(d.to(states.dtype) for d, states in zip(found, (query, key, value), strict=True)), None, None


def _probabilities(query: Tensor, keys: Tensor, tile: Tile, scale: float) -> Tensor:
    """The attention probabilities P of a tile, fp32 `(groups, heads of a group * n, m)`."""
    # not in place: for a single query `_by_head` returns a view of `query`
    own = _by_head(query[tile.queries], len(keys)).float() * scale
    scores = torch.bmm(own, tile.seen(keys).float().transpose(1, 2))
    count = len(tile.later)
    scores.unflatten(1, (-1, count))[..., -count:].add_(tile.later)
    return torch.softmax(scores, dim=-1)


def _by_group(states: Tensor) -> Tensor:
    """`(N, groups, D)` as `(groups, N, D)`, contiguous."""
    return states.transpose(0, 1).contiguous()


def _by_head(states: Tensor, groups: int) -> Tensor:
    """`(n, heads, D)` as `(groups, heads of a group * n, D)`."""
    return states.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def _write(place: Tensor, states: Tensor) -> None:
    """Undo `_by_head`: write `(groups, heads of a group * n, D)` into `place` `(n, heads, D)`."""
    place.unflatten(1, (len(states), -1)).permute(1, 2, 0, 3).copy_(states.unflatten(1, (-1, len(place))))


def _varlen(query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float | None) -> Tensor:
    """The same as `attend_by_tiles`, by torch's variable-length kernel, for which each sequence is written in full."""
    from torch.nn.attention.varlen import varlen_attn

    width = branches.packed.shape[1]
    real = torch.arange(width, device=query.device) < branches.lengths[:, None]  # (2B, T)
    places = branches.packed[real]  # (tokens,)
    starts = F.pad(branches.lengths.cumsum(0), (1, 0)).int()
    query, key, value = (states.index_select(0, places) for states in (query, key, value))
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0), "enable_gqa": query.shape[1] != key.shape[1]}
    attended: Any = varlen_attn(query, key, value, starts, starts, width, width, **options)
    number = real.flatten().cumsum(0) - 1  # (2B * T,): which token, counted without padding
    return attended.index_select(0, number[branches.owner])


@cache
def _varlen_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's variable-length attention runs here and agrees with tiles; tried once for a device and dtype."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        return same_attention(_varlen, attend_by_tiles, device, dtype)
    except (RuntimeError, ImportError):
        return False


def same_attention(
    one: Callable[..., Any], other: Callable[..., Any], device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether two attentions give the same result and gradients on one small pair, up to rounding in 16 bits."""
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0]], device=device)
    branches = Branches.of(ids, (ids > 0).long())
    draw = torch.Generator(device).manual_seed(0)
    states = [torch.randn(len(branches.owner), 2, 64, generator=draw, device=device, dtype=dtype) for _ in range(3)]
    results = []
    for attend in (one, other):
        leaves = [tensor.clone().requires_grad_() for tensor in states]
        with torch.enable_grad():  # the first call may come from a forward without gradients
            attended = attend(*leaves, branches, None)
            results.append([attended, *torch.autograd.grad(attended, leaves, states[0])])
    return all((a - b).norm() <= 0.03 * b.norm() for a, b in zip(*results, strict=True))
