"""Log-probs of tokens from hidden states: only where they are asked for, and the head met once.

TRL projects every position onto the vocabulary and does it again in the backward pass. The head is most of a small
model's work, so here scored positions alone meet it, a few rows of it at a time, and the gradient is taken on the way.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_BYTES = {"cpu": 2 << 20, "cuda": 16 << 20}  # logits held at once: what a cache holds, or what fills a card
FEWEST = 256  # rows of the head at once, however many tokens


class Softmax:
    """What TRL logs of softmax(logits), for fp32 logits `(n, V)` that come a few columns at a time.

    Sums are kept relative to the largest logit so far, and faded when a larger one comes, as FlashAttention does
    (arXiv 2205.14135).
    """

    def __init__(self, labels: Tensor):
        self.labels = labels  # (n,)
        self.columns = 0  # seen so far
        lowest = torch.finfo(torch.float32).min / 2  # and not -inf, of which a difference would be nan
        self.top = torch.full(labels.shape, lowest, device=labels.device)
        self.logit = torch.zeros_like(self.top)  # of the label
        self.sum, self.mass, self.squares, self.energy = (torch.zeros_like(self.top) for _ in range(4))

    def add(self, logits: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take the next columns `(n, k)`, overwritten; give exp(logit - top) of them, in `out` where there is one, and
        the factor `(n,)` that those of earlier columns have to be multiplied by now.
        """
        width, own = logits.shape[1], self.labels - self.columns
        here = (own >= 0) & (own < width)
        self.logit = torch.where(here, logits.gather(1, own.clamp(0, width - 1)[:, None])[:, 0], self.logit)
        self.sum += logits.sum(dim=1)
        self.columns += width
        top = torch.maximum(self.top, logits.amax(dim=1))
        fall, self.top = self.top - top, top
        fade = fall.exp()
        shifted = logits.sub_(top[:, None])
        weights = torch.exp(shifted, out=out)
        self.energy = fade * (self.energy + fall * self.mass) + shifted.mul_(weights).sum(dim=1)
        self.mass = fade * self.mass + weights.sum(dim=1)
        self.squares = fade**2 * self.squares + torch.linalg.vector_norm(weights, dim=1) ** 2
        return weights, fade

    def fields(self) -> tuple[Tensor, ...]:
        """Each `(n,)`: log-prob of the label, entropy, log of the sum of squared probabilities, mean logit, and
        whether no token is more likely than the label.
        """
        log_mass = self.mass.log()
        logps, entropy = self.logit - self.top - log_mass, log_mass - self.energy / self.mass
        squares = self.squares.log() - 2 * log_mass
        return logps, entropy, squares, self.sum / self.columns, self.logit == self.top


class ScoreTokens(torch.autograd.Function):
    """Log-probs of labels under a frozen head, with the gradient taken on the way forward.

    The derivative of log p(y) with respect to the hidden state is w_y - sum_v p(v) w_v. The sum is taken as attention
    would take it, with the head's rows for keys and values: logits are neither kept nor computed twice.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor):
        """Hidden states `(n, H)` and labels `(n,)` in; the five fields of `Softmax`, each `(n,)`, out."""
        wanted = ctx.needs_input_grad[0]
        softmax, expected = Softmax(labels), torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
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
    def backward(ctx, gradient: Tensor, *_):
        (slopes,) = ctx.saved_tensors
        return gradient[:, None].to(slopes.dtype) * slopes, None, None, None


def _projected(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """fp32 logits `(n, k)` of some rows of the head, room for as many numbers, and the rows; all rows in turn.

    In fp32 because rounding logits to bf16 would cost more than the bf16 hidden states did. On a CPU all parts share
    one room: memory fresh from the system costs more there than the arithmetic in it.
    """
    count, mixed = len(hidden), hidden.device.type == "cuda" and hidden.dtype != torch.float32
    hidden = hidden.to(weight.dtype) if mixed else hidden.float()
    # few tokens would take many rows at once, and their fp32 copy is room as well
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
    """`Softmax`'s five fields for hidden states `(n, H)`, the first differentiable, also in a head that is trained."""
    if not head.weight.requires_grad:
        return ScoreTokens.apply(hidden, head.weight, head.bias, labels)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())
    softmax = Softmax(labels)
    softmax.add(logits.detach().clone())
    return (-F.cross_entropy(logits, labels, reduction="none"), *softmax.fields()[1:])
