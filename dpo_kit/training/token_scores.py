"""Log-probs of tokens from hidden states, for scored positions only, with one projection onto the vocabulary.

Without CUDA, TRL projects every position onto the vocabulary, and does so again in the backward pass. In a small model
this projection (the head) is most of the work. Here only scored positions are projected, a few rows of the head at a
time. The forward pass also computes the gradient, so the backward pass needs no second projection.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_BYTES = {"cpu": 2 << 20, "cuda": 16 << 20}  # logits at a time: they fit a CPU's cache, and keep a GPU busy
FEWEST = 256  # rows of the head that are used at a time, however many tokens there are


class Softmax:
    """What TRL logs about softmax(logits), computed from fp32 logits `(n, V)` that are given a few columns at a time.

    Exponentials are summed relative to the largest logit so far. When a larger one comes, the sums are rescaled, as in
    FlashAttention (arXiv 2205.14135).
    """

    def __init__(self, labels: Tensor):
        self.labels = labels  # (n,)
        self.columns = 0  # seen so far
        lowest = torch.finfo(torch.float32).min / 2  # instead of -inf, because -inf minus -inf is nan
        self.top = torch.full(labels.shape, lowest, device=labels.device)  # (n,): the largest logit
        self.logit = torch.zeros_like(self.top)  # (n,): the label's logit
        # with x = logit - top, each (n,): sum of logits, of e^x, of e^2x, and of x e^x
        self.sum, self.mass, self.squares, self.energy = (torch.zeros_like(self.top) for _ in range(4))

    def add(self, logits: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take the next columns `(n, k)`; they are overwritten.

        Returns exp(logit - top) of these columns `(n, k)`, written into `out` if it is given, and the factor `(n,)` by
        which exponentials of earlier columns have to be multiplied, because `top` may have grown.
        """
        width, own = logits.shape[1], self.labels - self.columns
        here = (own >= 0) & (own < width)  # (n,): whether the label is among these columns
        self.logit = torch.where(here, logits.gather(1, own.clamp(0, width - 1)[:, None])[:, 0], self.logit)
        self.sum += logits.sum(dim=1)
        self.columns += width
        top = torch.maximum(self.top, logits.amax(dim=1))
        fall, self.top = self.top - top, top  # (n,), at most 0
        fade = fall.exp()
        shifted = logits.sub_(top[:, None])
        weights = torch.exp(shifted, out=out)
        # sum (x + fall) e^(x + fall) = fade * (sum x e^x + fall * sum e^x)
        self.energy = fade * (self.energy + fall * self.mass) + shifted.mul_(weights).sum(dim=1)
        self.mass = fade * self.mass + weights.sum(dim=1)
        self.squares = fade**2 * self.squares + torch.linalg.vector_norm(weights, dim=1) ** 2
        return weights, fade

    def fields(self) -> tuple[Tensor, ...]:
        """Each `(n,)`: log-prob of the label, entropy, log of the sum of squared probabilities, mean logit, and
        whether no token is more likely than the label.
        """
        log_mass = self.mass.log()
        # log p(y) = x_y - log sum e^x;  entropy = -sum p log p = log sum e^x - sum p x
        logps, entropy = self.logit - self.top - log_mass, log_mass - self.energy / self.mass
        squares = self.squares.log() - 2 * log_mass
        return logps, entropy, squares, self.sum / self.columns, self.logit == self.top


class ScoreTokens(torch.autograd.Function):
    """Log-probs of labels under a frozen head with rows w_v, and their gradient, which the forward pass computes.

        z_v = w_v h + b_v,    log p(y) = z_y - log sum_v exp z_v
        d log p(y) / dh = w_y - sum_v p(v) w_v

    The last sum has the form of attention, with w_v as keys and as values. So it is added up block by block over the
    rows of the head, and logits are neither kept nor computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, ...]:
        """From hidden states `(n, H)`, a head `(V, H)` and labels `(n,)`, the five fields of `Softmax`, each `(n,)`."""
        wanted = ctx.needs_input_grad[0]
        softmax = Softmax(labels)
        expected = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)  # (n, H): sum_v e^(x_v) w_v
        with torch.autocast(hidden.device.type, enabled=False):
            for logits, out, rows in _projected(hidden, weight, bias):
                weights, fade = softmax.add(logits, out)
                if wanted:
                    expected.mul_(fade[:, None]).add_(weights.to(rows.dtype) @ rows)
        if wanted:
            ctx.save_for_backward((weight[labels] - expected / softmax.mass[:, None]).to(hidden.dtype))
        fields = softmax.fields()
        ctx.mark_non_differentiable(*fields[1:])
        return fields

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (derivative,) = ctx.saved_tensors  # (n, H)
        return gradient[:, None].to(derivative.dtype) * derivative, None, None, None


def _projected(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Yield, for every k rows of the head `(V, H)`: fp32 logits `(n, k)`, a buffer `(n, k)` to write to, the k rows.

    Logits are fp32 because rounding them to bf16 would lose more than the rounding of hidden states did. On a CPU all
    parts reuse the same memory: there, asking the system for new memory takes longer than computing in it.
    """
    # only CUDA multiplies 16-bit numbers into a 32-bit result
    count, mixed = len(hidden), hidden.device.type == "cuda" and hidden.dtype != torch.float32
    hidden = hidden.to(weight.dtype) if mixed else hidden.float()
    # with few tokens k would be large, and so would the fp32 copy of k rows; the second number limits it
    most = max(FEWEST, HEAD_BYTES.get(hidden.device.type, HEAD_BYTES["cuda"]) // (4 * max(count, hidden.shape[1] // 2)))
    if not mixed:
        room, copy = hidden.new_empty(2, count * most), hidden.new_empty(most, hidden.shape[1])
    for number, rows in enumerate(weight.split(most)):
        if mixed:
            logits, free = torch.mm(hidden, rows.T, out_dtype=torch.float32), None
        else:
            logits, free = room[:, : count * len(rows)].view(2, count, len(rows))
            torch.mm(hidden, copy[: len(rows)].copy_(rows).T, out=logits)
        if bias is not None:
            logits += bias[number * most :][: len(rows)]
        yield logits, free, rows


def score(hidden: Tensor, head: nn.Linear, labels: Tensor) -> tuple[Tensor, ...]:
    """The five fields of `Softmax` for hidden states `(n, H)` and labels `(n,)`; only the log-probs have a gradient."""
    if not head.weight.requires_grad:
        return ScoreTokens.apply(hidden, head.weight, head.bias, labels)
    # a head that is trained needs a gradient of its own, so autograd differentiates the textbook's expression
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())
    softmax = Softmax(labels)
    softmax.add(logits.detach().clone())
    return (-F.cross_entropy(logits, labels, reduction="none"), *softmax.fields()[1:])
