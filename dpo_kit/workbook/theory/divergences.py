"""How far a policy is from its reference: exact where it can be summed, estimated where it can only be sampled.

Three ways to the same number, KL(p || q) = E_{y~p} log p(y)/q(y):

- `models.logprobs.exact_kl` sums over the vocabulary at each position. No variance; needs both models' logits.
- `k1`, `k2`, `k3` look only at log-ratios of samples. The samples must come from p: log-ratios on a dataset's
  chosen and rejected answers are not a KL, whatever the plot's label says.
- `F_DIVERGENCES` generalises the KL; each member changes which reward a policy stands for (f-DPO, arXiv 2309.16240).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# exp of more than this leaves fp32, and inf - inf is nan; the value TRL clamps its alpha divergence at.
MAX_EXPONENT = 80.0


def k1(logps_p: Tensor, logps_q: Tensor) -> Tensor:
    """log p/q at samples from p: unbiased, but a single value may be negative. Any shape, returned as it came."""
    return logps_p - logps_q


def k2(logps_p: Tensor, logps_q: Tensor) -> Tensor:
    """(log p/q)^2 / 2 at samples from p: never negative, biased; half the second moment, good only near p = q."""
    return (logps_p - logps_q).square() / 2


def k3(logps_p: Tensor, logps_q: Tensor) -> Tensor:
    """q/p - 1 - log q/p at samples from p: unbiased and never negative, with low variance only near p = q."""
    log_ratio = logps_q - logps_p
    return torch.expm1(log_ratio) - log_ratio


@dataclass(frozen=True)
class FDivergence:
    """D_f(p || q) = E_{y~q} f(p(y)/q(y)), with f convex and f(1) = f'(1) = 0.

    `generator` is f as a function of the ratio t = p/q. `link` is f' as a function of u = log t, because that is what
    f-DPO needs: the reward a policy stands for is beta f'(pi/pi_ref) plus a term of the prompt alone.
    """

    generator: Callable[[Tensor], Tensor]
    link: Callable[[Tensor], Tensor]

    def between(self, p: Tensor, q: Tensor) -> Tensor:
        """D_f(p || q) of probabilities (..., Y), both positive: shape (...)."""
        return (q * self.generator(p / q)).sum(dim=-1)


def alpha_divergence(alpha: float) -> FDivergence:
    """The family between the two KLs: alpha near 1 is the reverse KL, near 0 the forward one, 1/2 a Hellinger distance.

    TRL's parameter; the f-DPO paper's is 1 minus it. Raises ValueError at 0 and 1, where the formula has no value.
    """
    if alpha in (0.0, 1.0):
        raise ValueError(f"alpha={alpha} is a limit: use 'reverse_kl' for 1 and 'forward_kl' for 0")
    return FDivergence(
        generator=lambda t: (t**alpha - alpha * t + alpha - 1) / (alpha * (alpha - 1)),
        link=lambda u: torch.expm1(((alpha - 1) * u).clamp(max=MAX_EXPONENT)) / (alpha - 1),
    )


F_DIVERGENCES = {
    # KL(p || q), the one DPO is derived from: the link is log t itself
    "reverse_kl": FDivergence(lambda t: t * t.log() - t + 1, lambda u: u),
    # KL(q || p): the reward can rise only to beta, so no answer can be pushed far up
    "forward_kl": FDivergence(lambda t: t - 1 - t.log(), lambda u: -torch.expm1((-u).clamp(max=MAX_EXPONENT))),
    # KL(p || m) + KL(q || m) with m their midpoint: the reward rises only to beta log 2
    "js_divergence": FDivergence(
        lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(), lambda u: math.log(2) + F.logsigmoid(u)
    ),
    "alpha_divergence": alpha_divergence(0.5),
}
