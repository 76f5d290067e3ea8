"""Worlds small enough to enumerate. Each expectation is a sum, so each claim of the paper can be computed exactly.

A world has X prompts with Y possible answers each. Probabilities and rewards are tensors (..., Y), one row per
prompt; functions act on the last dimension and leave the others alone. Use float64: equalities then hold to 1e-12.
Equation numbers are those of DPO, arXiv 2305.18290.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats of probabilities (..., Y): shape (...). Infinite where p has mass and q has none."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(dim=-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the summed absolute difference, in [0, 1]: the most any event's probability differs. Shape (...)."""
    return (p - q).abs().sum(dim=-1) / 2


def objective(probs: Tensor, ref_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """E_{y~pi} r(x, y) - beta KL(pi || pi_ref), per prompt: what RLHF maximises (Eq. 3). Shape (...)."""
    return (probs * rewards).sum(dim=-1) - beta * kl(probs, ref_probs)


def log_partition(ref_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log Z(x), Z(x) = sum over y of pi_ref(y|x) exp(r(x, y) / beta): shape (...)."""
    return torch.logsumexp(ref_probs.log() + rewards / beta, dim=-1)


def optimal_policy(ref_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """pi* = pi_ref exp(r / beta) / Z, the maximiser of `objective` (Eq. 4): shape (..., Y).

    An answer that the reference never gives stays at probability 0, however well it is rewarded. Raises ValueError
    unless beta > 0.
    """
    if not beta > 0:
        raise ValueError(f"beta={beta}: without a price on the KL the optimum is a single answer, not a policy")
    return torch.softmax(ref_probs.log() + rewards / beta, dim=-1)


def implicit_reward(probs: Tensor, ref_probs: Tensor, beta: float) -> Tensor:
    """beta log(pi / pi_ref): the reward that `probs` is optimal for, up to beta log Z(x) (Eq. 5). Shape (..., Y)."""
    return beta * (probs.log() - ref_probs.log())


def bradley_terry(rewards: Tensor) -> Tensor:
    """P[i, j] = sigmoid(r_i - r_j), the probability that answer i is preferred to j (Eq. 1): shape (..., Y, Y)."""
    return torch.sigmoid(rewards.unsqueeze(-1) - rewards.unsqueeze(-2))


def plackett_luce(rewards: Tensor, ranking: Tensor) -> Tensor:
    """log P(ranking | rewards): the best is drawn by softmax, then the next from those left (Eq. 18, appendix A.3).

    `rewards` is (..., Y), `ranking` (..., K) holds indices of answers, best first. Shape (...). With K = 2 it is the
    log of Bradley-Terry; with rewards = beta log(pi/pi_ref) its negative is DPO on rankings (Eq. 20).
    """
    ranked = rewards.expand(*ranking.shape[:-1], -1).gather(-1, ranking)
    left = ranked.flip(-1).logcumsumexp(dim=-1).flip(-1)  # log-sum over the answers not yet placed
    return (ranked - left).sum(dim=-1)


def expected_dpo_loss(logps: Tensor, ref_logps: Tensor, wins: Tensor, beta: float) -> Tensor:
    """The DPO loss averaged over all comparisons of a prompt (Eq. 7), shape (...).

    `logps` and `ref_logps` are (..., Y), `wins` is (..., Y, Y): how often i beat j, as counts or probabilities, so
    that `bradley_terry(rewards)` stands for infinitely many pairs. The diagonal is ignored. Raises ValueError where a
    prompt has no comparison.
    """
    return _expected_logistic_loss(beta * (logps - ref_logps), wins)


def expected_reward_loss(rewards: Tensor, wins: Tensor) -> Tensor:
    """-log likelihood per comparison of a reward model (..., Y) under Bradley-Terry (Eq. 2): shape (...)."""
    return _expected_logistic_loss(rewards, wins)


def sample_wins(preferences: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """Counts of `pairs` comparisons per prompt: two different answers at random, a winner by `preferences`.

    `preferences` is (..., Y, Y), as from `bradley_terry`. Returns counts of the same shape and dtype.
    """
    size = preferences.shape[-1]
    matches = 1 - torch.eye(size, dtype=preferences.dtype)
    outcomes = (preferences * matches).reshape(-1, size * size)
    drawn = torch.multinomial(outcomes, pairs, replacement=True, generator=generator)  # (X, pairs)
    counts = torch.zeros_like(outcomes).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=outcomes.dtype))
    return counts.reshape(preferences.shape)


def _expected_logistic_loss(rewards: Tensor, wins: Tensor) -> Tensor:
    size = wins.shape[-1]
    counted = wins * (1 - torch.eye(size, dtype=wins.dtype))
    total = counted.sum(dim=(-1, -2))
    if (total == 0).any():
        raise ValueError("a prompt has no comparison between two different answers")
    margins = rewards.unsqueeze(-1) - rewards.unsqueeze(-2)
    return -(counted * F.logsigmoid(margins)).sum(dim=(-1, -2)) / total
