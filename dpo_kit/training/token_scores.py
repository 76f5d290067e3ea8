"""Log-probs of tokens from hidden states: only where they are asked for, and the head met once.

TRL projects every position onto the vocabulary and does it again in the backward pass. The head is most of a small
model's work, so here scored positions alone meet it, in parts that fit, and each part leaves its gradient behind.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_BYTES = 16 << 20  # logits held at once while scoring
HEAD_ROWS = 2048  # of the head that are converted to fp32 at once


class ScoreTokens(torch.autograd.Function):
    """Log-probs of labels under a frozen head, with the gradient taken on the way forward.

    The derivative of log p(y) with respect to the hidden state is w_y - sum_v p(v) w_v, and p is at hand while the
    logits are: one more product there, and neither logits kept nor a head computed twice.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor):
        """Hidden states `(n, H)` and labels `(n,)` in; the five fields of `describe`, each `(n,)`, out."""
        wanted = ctx.needs_input_grad[0]
        slopes, fields = [], []
        rows = max(1, min(len(hidden), HEAD_BYTES // (4 * len(weight))))
        # one room for all parts: memory fresh from the system costs a CPU more than the arithmetic in it
        room = torch.empty(2, rows, len(weight), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for part, target in zip(hidden.split(rows), labels.split(rows), strict=True):
                logits = _project(part, weight, bias, room[0, : len(part)])
                probabilities, described = describe(logits, target, room[1, : len(part)])
                fields.append(described)
                if wanted:
                    expected = probabilities.to(weight.dtype) @ weight
                    slopes.append((weight[target].float() - expected.float()).to(hidden.dtype))
        if wanted:
            ctx.save_for_backward(torch.cat(slopes))
        fields = [torch.cat(column) for column in zip(*fields, strict=True)]
        ctx.mark_non_differentiable(*fields[1:])
        return tuple(fields)

    @staticmethod
    def backward(ctx, gradient: Tensor, *_):
        (slopes,) = ctx.saved_tensors
        return gradient[:, None].to(slopes.dtype) * slopes, None, None, None


def describe(logits: Tensor, labels: Tensor, out: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What TRL logs of fp32 logits `(n, V)`, which are overwritten, and the probabilities `(n, V)`, written to `out`.

    The fields, each `(n,)`: log-prob of the label, entropy, log of the sum of squared probabilities, mean logit, and
    whether the label is the most likely token.
    """
    mean, top = logits.mean(dim=1), logits.max(dim=1)
    shifted = logits.sub_(top.values[:, None])
    probabilities = torch.exp(shifted, out=out)  # not through logsumexp, which takes ten times as long on a CPU
    total = probabilities.sum(dim=1)
    probabilities.div_(total[:, None])
    logps = shifted.gather(1, labels[:, None])[:, 0] - total.log()
    entropy = total.log() - torch.einsum("nv,nv->n", probabilities, shifted)
    squares = torch.einsum("nv,nv->n", probabilities, probabilities).log()
    return probabilities, (logps, entropy, squares, mean, top.indices == labels)


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """fp32 logits: rounding them to bf16 would cost more than the bf16 hidden states did."""
    if hidden.device.type == "cuda" and hidden.dtype != torch.float32:
        logits = torch.mm(hidden.to(weight.dtype), weight.T, out_dtype=torch.float32)
    else:  # a few rows of the head at a time, so that their fp32 copy stays in the processor's cache
        hidden = hidden.float()
        copy = torch.empty(HEAD_ROWS, weight.shape[1], dtype=torch.float32, device=weight.device)
        for columns, rows in zip(out.split(HEAD_ROWS, dim=1), weight.split(HEAD_ROWS), strict=True):
            torch.mm(hidden, copy[: len(rows)].copy_(rows).T, out=columns)
        logits = out
    return logits if bias is None else logits + bias.float()


def score(hidden: Tensor, head: nn.Linear, labels: Tensor) -> tuple[Tensor, ...]:
    """`describe`'s five fields for hidden states `(n, H)`, the first differentiable, also in a head that is trained."""
    if not head.weight.requires_grad:
        return ScoreTokens.apply(hidden, head.weight, head.bias, labels)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())
    _, fields = describe(logits.detach().clone(), labels)
    return (-F.cross_entropy(logits, labels, reduction="none"), *fields[1:])
