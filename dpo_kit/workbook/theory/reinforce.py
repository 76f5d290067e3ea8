"""Policy optimisation the way RLHF does it: sample answers, score them, follow the gradient of their log-probs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def reinforce(
    start: Tensor,
    ref_probs: Tensor,
    rewards: Tensor,
    beta: float,
    *,
    lr: float,
    steps: int,
    samples: int,
    generator: torch.Generator,
) -> Tensor:
    """The path of logits (steps + 1, X, Y) of REINFORCE on E r - beta KL, `samples` fresh answers a prompt and step.

    The KL enters as a reward of -beta log(pi/pi_ref) on each sample, as in InstructGPT, arXiv 2203.02155. Each
    answer's baseline is the mean score of the others (RLOO, arXiv 2402.14740), so `samples` must be at least 2;
    raises ValueError otherwise. It is unbiased, and noisy: that noise is what sampling costs.
    """
    if samples < 2:
        raise ValueError(f"samples={samples}: the baseline of an answer needs another answer")
    logits, path = start.clone(), [start.clone()]
    for _ in range(steps):
        logps = logits.log_softmax(dim=-1)
        drawn = torch.multinomial(logps.exp(), samples, replacement=True, generator=generator)  # (X, samples)
        scores = (rewards - beta * (logps - ref_probs.log())).gather(-1, drawn)
        advantages = (scores - scores.mean(dim=-1, keepdim=True)) * samples / (samples - 1)
        directions = F.one_hot(drawn, logits.shape[-1]) - logps.exp().unsqueeze(1)  # d log pi / d logits
        logits = logits + lr * (advantages.unsqueeze(-1) * directions).mean(dim=1)
        path.append(logits)
    return torch.stack(path)
