"""The checks of notebook 03: rounding a block to NF4, counting an adapter's weights, the loss of fine-tuning."""

from collections.abc import Callable

import torch
from torch import Tensor

from dpo_kit.workbook.exercises import CheckResult, verdict_on

# The levels of NF4 (QLoRA, arXiv 2305.14314, appendix E), to four places.
LEVELS = torch.tensor([
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
    0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0,
])  # fmt: skip


def check_rounding(answer: Callable) -> CheckResult:
    """`answer(block, levels)`: weights (N,) and the 16 levels in; the weights as NF4 stores them, (N,), out."""
    draw = torch.Generator().manual_seed(0)
    blocks = [0.3 * torch.randn(64, generator=draw), 5 * torch.randn(64, generator=draw) - 4]
    blocks.append(torch.linspace(-2.0, 0.7, 64))
    return verdict_on(answer, _rounding, _ROUNDING, [(block, LEVELS) for block in blocks])


def check_adapter_size(answer: Callable) -> CheckResult:
    """`answer(layers, r)`: a list of (inputs, outputs) and the rank in; the number of trained weights out."""
    cases = [([(192, 192)], 8), ([(192, 576), (576, 192), (192, 192)], 32), ([(4096, 1024)] * 36, 16)]
    return verdict_on(answer, _adapter_size, _ADAPTER_SIZE, cases)


def check_sft_loss(answer: Callable) -> CheckResult:
    """`answer(logits, input_ids, mask)`: (N, T, V), (N, T) and (N, T) in; the mean loss of a trained token out."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]]).bool()
    cases = [
        (torch.randn(3, 6, 11, generator=draw), torch.randint(0, 11, (3, 6), generator=draw), mask) for _ in range(3)
    ]
    return verdict_on(answer, _sft_loss, _SFT_LOSS, cases)


def _nearest(scaled: Tensor, levels: Tensor) -> Tensor:
    return levels[(scaled[:, None] - levels).abs().argmin(dim=1)]


def _rounding(block: Tensor, levels: Tensor) -> Tensor:
    scale = block.abs().max()
    return _nearest(block / scale, levels) * scale


def _adapter_size(layers: list[tuple[int, int]], r: int) -> int:
    return sum(r * (inputs + outputs) for inputs, outputs in layers)


def _logps(logits: Tensor, input_ids: Tensor) -> Tensor:
    return logits[:, :-1].log_softmax(dim=-1).gather(2, input_ids[:, 1:, None])[..., 0]


def _sft_loss(logits: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    return -_logps(logits, input_ids)[mask[:, 1:]].mean()


_ROUNDING = {
    "the block is not scaled back: multiply the levels by the block's largest size": lambda w, q: _nearest(
        w / w.abs().max(), q
    ),
    "the block is not scaled: divide by its largest size before rounding": _nearest,
    "the scale is the largest value; take the largest size, abs().max()": lambda w, q: (
        _nearest(w / w.max(), q) * w.max()
    ),
    "the scale is the standard deviation; the largest size is what puts every weight in [-1, 1]": lambda w, q: (
        _nearest(w / w.std(), q) * w.std()
    ),
    "this rounds to evenly spaced levels; use the given ones": lambda w, q: (
        (w / w.abs().max() * 7).round() / 7 * w.abs().max()
    ),
    "this rounds down to the next level; take the nearest": lambda w, q: (
        q[torch.searchsorted(q, w / w.abs().max(), right=True) - 1] * w.abs().max()
    ),
}
_ADAPTER_SIZE = {
    "that is the size of the frozen matrices": lambda layers, r: sum(i * o for i, o in layers),
    "a rank-r matrix has two factors, r x inputs and outputs x r: add their sizes, do not multiply them": (
        lambda layers, r: sum(r * i * o for i, o in layers)
    ),
    "only A is counted, r x inputs; B has outputs x r more": lambda layers, r: sum(r * i for i, _ in layers),
    "only B is counted, outputs x r; A has r x inputs more": lambda layers, r: sum(r * o for _, o in layers),
}
_SFT_LOSS = {
    "the sign: a loss is minus the log-prob": lambda x, ids, m: -_sft_loss(x, ids, m),
    "the prompt bears loss too: only tokens under the mask do": lambda x, ids, m: -_logps(x, ids).mean(),
    "logits at a position speak of the next token: drop the last logits and the first ids": lambda x, ids, m: (
        -x.log_softmax(-1).gather(2, ids[..., None])[..., 0][m].mean()
    ),
    "the mask is off by one: it belongs to the ids, so it loses its first position as they do": lambda x, ids, m: (
        -_logps(x, ids)[m[:, :-1]].mean()
    ),
    "this is a mean of the rows' means, in which a short answer's tokens weigh more; take one mean over all tokens": (
        lambda x, ids, m: -((_logps(x, ids) * m[:, 1:]).sum(1) / m[:, 1:].sum(1)).mean()
    ),
    "this is the sum over tokens; fine-tuning takes the mean": lambda x, ids, m: -_logps(x, ids)[m[:, 1:]].sum(),
    "divide by the number of trained tokens, not by all positions": lambda x, ids, m: (
        -(_logps(x, ids) * m[:, 1:]).mean()
    ),
}
