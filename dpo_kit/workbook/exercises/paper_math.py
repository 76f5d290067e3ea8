"""The checks of notebook 01: the optimal policy, the loss, the sequence KL, and what beta does."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from dpo_kit.models.logprobs import exact_kl
from dpo_kit.workbook.exercises import CheckResult, verdict_on
from dpo_kit.workbook.theory import exact
from dpo_kit.workbook.theory.losses import dpo_loss


def check_optimal_policy(answer: Callable) -> CheckResult:
    """`answer(ref_probs, rewards, beta)`: (X, Y), (X, Y) and a number in, pi* of shape (X, Y) out."""
    random = torch.Generator().manual_seed(0)
    ref_probs, rewards = torch.randn(2, 3, 4, generator=random, dtype=torch.float64)
    cases = [(ref_probs.softmax(-1), rewards, beta) for beta in (0.5, 2.0)]
    return verdict_on(answer, exact.optimal_policy, _OPTIMAL_POLICY, cases)


def check_dpo_loss(answer: Callable) -> CheckResult:
    """`answer(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)`: losses (B,)."""
    logps = -30 * torch.rand(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    far = torch.tensor([-1e4, 0.0, 0.0, -1e4], dtype=torch.float64).unsqueeze(1)
    verdict = verdict_on(answer, _losses, _DPO_LOSS, [(*logps, 0.1), (*logps, 0.5)])
    if verdict.passed and not torch.as_tensor(answer(*far, 1.0)).isfinite().all():
        return CheckResult(False, "not right: at log-probs of -10,000 it overflows; F.logsigmoid does not")
    return verdict


def check_sequence_kl(answer: Callable) -> CheckResult:
    """`answer(policy_logits, ref_logits, mask)`: (B, T, V) twice and (B, T) in, KL(pi || pi_ref) of shape (B,) out."""
    random = torch.Generator().manual_seed(2)
    cases = []
    for tokens in (4, 6):
        mask = (torch.arange(tokens) >= torch.tensor([[1], [2], [3]])).long()
        cases.append((*torch.randn(2, 3, tokens, 5, generator=random, dtype=torch.float64), mask))
    return verdict_on(answer, _sequence_kl, _SEQUENCE_KL, cases)


def check_gap_at_optimum(answer: Callable) -> CheckResult:
    """`answer(p, beta)`: the optimum's log-ratio gap where the first of two answers wins with probability p."""
    return verdict_on(answer, lambda p, beta: _logit(p) / beta, _GAP, [(0.8, 0.1), (0.8, 2.0), (0.3, 0.5)])


_OPTIMAL_POLICY = {
    "the rows do not add up to one: divide by Z(x), the sum of each row": (
        lambda ref, rewards, beta: ref * (rewards / beta).exp()
    ),
    "beta is on the wrong side: rewards are divided by beta, so that a high beta stays close to the reference": (
        lambda ref, rewards, beta: (ref.log() + beta * rewards).softmax(-1)
    ),
    "beta is missing: the exponent is r / beta, not r": lambda ref, rewards, beta: (ref.log() + rewards).softmax(-1),
    "the reference is missing: this is exp(r / beta) / Z, the optimum for a uniform reference": (
        lambda ref, rewards, beta: (rewards / beta).softmax(-1)
    ),
    "there is one Z for the whole table; each prompt has its own, the sum of its row": (
        lambda ref, rewards, beta: ref * (rewards / beta).exp() / (ref * (rewards / beta).exp()).sum()
    ),
    "Z is summed over the prompts; it belongs to one prompt and is summed over its answers": (
        lambda ref, rewards, beta: (ref.log() + rewards / beta).softmax(0)
    ),
    "the sign of the reward is turned: the worst answers gain": (
        lambda ref, rewards, beta: (ref.log() - rewards / beta).softmax(-1)
    ),
    "this is log pi*; probabilities are wanted": (
        lambda ref, rewards, beta: (ref.log() + rewards / beta).log_softmax(-1)
    ),
}


def _losses(*arguments) -> torch.Tensor:
    *logps, beta = arguments
    return dpo_loss(*logps, beta=beta)[0]


def _gap(chosen, rejected, ref_chosen, ref_rejected):
    return (chosen - ref_chosen) - (rejected - ref_rejected)


_DPO_LOSS = {
    "the sign: a loss is minimised, so it is minus log sigmoid": lambda *a: F.logsigmoid(a[-1] * _gap(*a[:4])),
    "the margin is turned round: it is chosen minus rejected, and policy minus reference": (
        lambda *a: -F.logsigmoid(-a[-1] * _gap(*a[:4]))
    ),
    "this is one number, the mean; one loss per pair is wanted, of shape (B,)": lambda *a: _losses(*a).mean(),
    "this is one number, the sum; one loss per pair is wanted, of shape (B,)": lambda *a: _losses(*a).sum(),
    "beta is on the wrong side: it multiplies the log-ratios, it does not divide them": (
        lambda *a: -F.logsigmoid(_gap(*a[:4]) / a[-1])
    ),
    "beta stands outside: it belongs inside the sigmoid": lambda *a: -a[-1] * F.logsigmoid(_gap(*a[:4])),
    "beta is missing": lambda *a: -F.logsigmoid(_gap(*a[:4])),
    "the reference is missing: each log-prob is compared with the reference's own": (
        lambda *a: -F.logsigmoid(a[-1] * (a[0] - a[1]))
    ),
    "the logarithm is missing: this is minus sigmoid(margin)": lambda *a: -torch.sigmoid(a[-1] * _gap(*a[:4])),
    "the reference's log-ratio is added; it is subtracted": (
        lambda *a: -F.logsigmoid(a[-1] * ((a[0] - a[1]) + (a[2] - a[3])))
    ),
}


def _sequence_kl(policy_logits, ref_logits, mask):
    return exact_kl(policy_logits, ref_logits, mask).sum(dim=1)


def _log_ratios(policy_logits, ref_logits, mask):
    return (policy_logits.log_softmax(-1) - ref_logits.log_softmax(-1)) * mask.unsqueeze(-1)


def _weighted(policy_logits, ref_logits, mask):
    return policy_logits.softmax(-1) * _log_ratios(policy_logits, ref_logits, mask)


_SEQUENCE_KL = {
    "the direction: this is KL(ref || policy), the forward KL; the policy's probabilities are the weights": (
        lambda p, q, mask: _sequence_kl(q, p, mask)
    ),
    "the sign: the KL is never negative, and this is minus the KL": lambda p, q, mask: -_sequence_kl(p, q, mask),
    "log-ratios are summed over the vocabulary without weights: each counts as often as the policy picks that symbol": (
        lambda p, q, mask: _log_ratios(p, q, mask).sum(dim=(1, 2))
    ),
    "this is the mean over the vocabulary; the expectation is a weighted sum over it": (
        lambda p, q, mask: _weighted(p, q, mask).mean(dim=-1).sum(dim=1)
    ),
    "this is the mean over the positions; the KL of a sequence is the sum of its tokens' KLs": (
        lambda p, q, mask: _weighted(p, q, mask).sum(dim=(1, 2)) / mask.sum(dim=1)
    ),
    "this is the mean over all positions, masked ones too; the KL of a sequence is a sum": (
        lambda p, q, mask: _weighted(p, q, mask).sum(dim=-1).mean(dim=1)
    ),
    "the mask is not applied: prompt and padding are in the sum": (
        lambda p, q, mask: _weighted(p, q, torch.ones_like(mask)).sum(dim=(1, 2))
    ),
    "these are the KLs of single tokens, (B, T); sum them over the positions": (
        lambda p, q, mask: _weighted(p, q, mask).sum(dim=-1)
    ),
    "the logarithm is missing: each probability is multiplied by the logarithm of the ratio, not by the ratio": (
        lambda p, q, mask: (p.softmax(-1).square() / q.softmax(-1) * mask.unsqueeze(-1)).sum(dim=(1, 2))
    ),
    "logits are used as if they were log-probs: normalise them with log_softmax first": (
        lambda p, q, mask: (p.softmax(-1) * (p - q) * mask.unsqueeze(-1)).sum(dim=(1, 2))
    ),
}


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


_GAP = {
    "beta is on the wrong side: a high beta holds the policy close, so the gap shrinks with it": (
        lambda p, beta: beta * _logit(p)
    ),
    "beta is missing: this is the gap of the rewards, and the log-ratio is reward over beta": lambda p, beta: _logit(p),
    "the sign: an answer that wins more often than not has the larger log-ratio": lambda p, beta: -_logit(p) / beta,
    "this is log p; the gap compares winning with losing, log p/(1 - p)": lambda p, beta: math.log(p) / beta,
    "this is p / beta; the margin at the optimum is the logit, log p/(1 - p), and not the probability": (
        lambda p, beta: p / beta
    ),
    "the logarithm is missing: p/(1 - p) are the odds, and the gap is their logarithm": (
        lambda p, beta: p / (1 - p) / beta
    ),
    "this is the first gradient step's direction, p - 1/2; the optimum is where the gradient is zero": (
        lambda p, beta: (p - 0.5) * beta
    ),
}
