"""The checks of notebook 02: the completion mask, log-probs of a completion, the gradient, and one relative."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_kit.workbook.exercises import CheckResult, verdict_on
from dpo_kit.workbook.theory.losses import dpo_loss, simpo_loss


def check_completion_mask(answer: Callable) -> CheckResult:
    """`answer(prompt_lengths, lengths, width)`: tokens before the answer and in all, (N,) each; mask (N, width) out."""
    cases = [(torch.tensor([2, 3, 1]), torch.tensor([5, 4, 6]), 8), (torch.tensor([4, 1]), torch.tensor([7, 7]), 9)]
    return verdict_on(answer, _mask, _COMPLETION_MASK, cases)


def check_completion_logps(answer: Callable) -> CheckResult:
    """`answer(logits, input_ids, mask)`: (N, T, V), (N, T) and (N, T) in; log pi(y|x), (N,), out."""
    random = torch.Generator().manual_seed(3)
    cases = []
    for width in (6, 7):
        logits = 2 * torch.randn(3, width, 5, generator=random, dtype=torch.float64)
        ids = torch.randint(0, 5, (3, width), generator=random)
        cases.append((logits, ids, _mask(torch.tensor([2, 3, 1]), torch.tensor([4, 5, 6]), width)))
    return verdict_on(answer, _completion_logps, _COMPLETION_LOGPS, cases)


def check_dpo_gradient(answer: Callable) -> CheckResult:
    """`answer(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)`: dL/d(policy_chosen) of each pair, (B,).

    All four log-probs are (B,); L is the DPO loss of the pair, not the mean over the batch.
    """
    logps = -30 * torch.rand(4, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return verdict_on(answer, _gradient, _DPO_GRADIENT, [(*logps, 0.1), (*logps, 0.4)])


def check_simpo_loss(answer: Callable) -> CheckResult:
    """`answer(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths, beta, gamma)`: losses, (B,)."""
    logps = -30 * torch.rand(2, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    lengths = torch.tensor([12, 5, 30, 8]), torch.tensor([10, 25, 6, 8])
    return verdict_on(answer, _simpo, _SIMPO, [(*logps, *lengths, 2.0, 1.0), (*logps, *lengths, 2.5, 0.5)])


def _between(low: Tensor, high: Tensor, width: int) -> Tensor:
    positions = torch.arange(width)
    return ((positions >= low[:, None]) & (positions < high[:, None])).long()


def _mask(prompt_lengths: Tensor, lengths: Tensor, width: int) -> Tensor:
    return _between(prompt_lengths, lengths, width)


_COMPLETION_MASK = {
    "the prompt is selected, too: the answer begins at position prompt_length": (
        lambda prompts, lengths, width: _between(0 * prompts, lengths, width)
    ),
    "padding is selected, too: a row ends at its length, and what follows is filler": (
        lambda prompts, lengths, width: _between(prompts, 0 * lengths + width, width)
    ),
    "this selects the prompt; the answer is what comes after it": (
        lambda prompts, lengths, width: _between(0 * prompts, prompts, width)
    ),
    "off by one: the answer's first token, at position prompt_length, is left out": (
        lambda prompts, lengths, width: _between(prompts + 1, lengths, width)
    ),
    "off by one: the prompt's last token is selected; positions are counted from zero": (
        lambda prompts, lengths, width: _between(prompts - 1, lengths, width)
    ),
    "the last token of the answer is left out: it is EOS, and without it the model never learns to stop": (
        lambda prompts, lengths, width: _between(prompts, lengths - 1, width)
    ),
    "off by one: the first token of the padding is selected; a row ends before position length": (
        lambda prompts, lengths, width: _between(prompts, lengths + 1, width)
    ),
    "lengths are those of whole rows, prompt included; adding the prompt again reaches into the padding": (
        lambda prompts, lengths, width: _between(prompts, prompts + lengths, width)
    ),
}


def _token_logps(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    logps = logits[:, :-1].log_softmax(dim=-1)  # (N, T - 1, V): position t predicts token t + 1
    return logps.gather(-1, ids[:, 1:, None]).squeeze(-1) * mask[:, 1:]


def _completion_logps(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return _token_logps(logits, ids, mask).sum(dim=1)


def _unshifted(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return (logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1) * mask).sum(dim=1)


_COMPLETION_LOGPS = {
    "log-probs are summed over the vocabulary: gather the one of the token that is there": (
        lambda logits, ids, mask: (logits[:, :-1].log_softmax(-1).sum(-1) * mask[:, 1:]).sum(1)
    ),
    "summed over the vocabulary, and not shifted either: gather the token's log-prob from the position before it": (
        lambda logits, ids, mask: (logits.log_softmax(-1).sum(-1) * mask).sum(1)
    ),
    "off by one: the logits at a position predict the next token, so logits[:, :-1] go with input_ids[:, 1:]": (
        _unshifted
    ),
    "the shift is turned round: logits[:, :-1] go with input_ids[:, 1:], not the other way": (
        lambda logits, ids, mask: (
            logits[:, 1:].log_softmax(-1).gather(-1, ids[:, :-1, None]).squeeze(-1) * mask[:, :-1]
        ).sum(1)
    ),
    "the mask is off by one: it belongs to the tokens that are predicted, so it is shifted as they are, mask[:, 1:]": (
        lambda logits, ids, mask: (_token_logps(logits, ids, torch.ones_like(mask)) * mask[:, :-1]).sum(1)
    ),
    "this is the mean over the answer's tokens; log pi(y|x) is their sum": (
        lambda logits, ids, mask: _completion_logps(logits, ids, mask) / mask.sum(1)
    ),
    "this is the mean over all positions; log pi(y|x) is a sum over the answer's tokens": (
        lambda logits, ids, mask: _token_logps(logits, ids, mask).mean(1)
    ),
    "prompt and padding are in the sum: multiply by the mask": (
        lambda logits, ids, mask: _completion_logps(logits, ids, torch.ones_like(mask))
    ),
    "the sign: log-probs are negative; this is the cross-entropy": (
        lambda logits, ids, mask: -_completion_logps(logits, ids, mask)
    ),
    "logits are gathered as if they were log-probs: normalise them with log_softmax first": (
        lambda logits, ids, mask: (logits[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1) * mask[:, 1:]).sum(1)
    ),
    "these are probabilities added up; take their logarithms": (
        lambda logits, ids, mask: (
            logits[:, :-1].softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1) * mask[:, 1:]
        ).sum(1)
    ),
    "these are the log-probs of single tokens; sum them over the positions": _token_logps,
}


def _margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    return beta * ((chosen - ref_chosen) - (rejected - ref_rejected))


def _gradient(*arguments) -> Tensor:
    return -arguments[-1] * torch.sigmoid(-_margin(*arguments))


_DPO_GRADIENT = {
    "the sign: the loss falls as the chosen log-prob rises; what you have is the gradient for the rejected one": (
        lambda *a: -_gradient(*a)
    ),
    "the weight is turned round: sigmoid(-margin) is large for wrongly ordered pairs, sigmoid(margin) for right ones": (
        lambda *a: -a[-1] * torch.sigmoid(_margin(*a))
    ),
    "beta is missing in front: it is the inner derivative of the margin": lambda *a: -torch.sigmoid(-_margin(*a)),
    "beta is missing inside the sigmoid: the margin is beta times the difference of log-ratios": (
        lambda *a: -a[-1] * torch.sigmoid(-_margin(*a[:4], 1.0))
    ),
    "both betas are missing: one stands in front, the other inside the sigmoid, in the margin": (
        lambda *a: -torch.sigmoid(-_margin(*a[:4], 1.0))
    ),
    "the reference is missing: the margin compares log-ratios, not log-probs": (
        lambda *a: -a[-1] * torch.sigmoid(-a[-1] * (a[0] - a[1]))
    ),
    "this is the gradient of the batch's mean; here each pair stands for itself": (
        lambda *a: _gradient(*a) / len(a[0])
    ),
    "this is the derivative of sigmoid; the loss is minus its logarithm": (
        lambda *a: -a[-1] * torch.sigmoid(_margin(*a)) * torch.sigmoid(-_margin(*a))
    ),
    "this is the loss, not its gradient": lambda *a: dpo_loss(*a[:4], beta=a[-1])[0],
}


def _simpo(chosen, rejected, chosen_lengths, rejected_lengths, beta, gamma):
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    return simpo_loss(chosen, rejected, **lengths, beta=beta, gamma=gamma)[0]


def _average_gap(chosen, rejected, chosen_lengths, rejected_lengths):
    return chosen / chosen_lengths - rejected / rejected_lengths


_SIMPO = {
    "log-probs are summed; SimPO divides each by its number of tokens": (
        lambda c, r, n, k, beta, gamma: -F.logsigmoid(beta * (c - r) - gamma)
    ),
    "the sign of gamma: it is a margin that has to be reached, so it is subtracted": (
        lambda c, r, n, k, beta, gamma: -F.logsigmoid(beta * _average_gap(c, r, n, k) + gamma)
    ),
    "gamma stands inside: beta multiplies the averages alone": (
        lambda c, r, n, k, beta, gamma: -F.logsigmoid(beta * (_average_gap(c, r, n, k) - gamma))
    ),
    "gamma is missing": lambda c, r, n, k, beta, gamma: -F.logsigmoid(beta * _average_gap(c, r, n, k)),
    "beta is missing": lambda c, r, n, k, beta, gamma: -F.logsigmoid(_average_gap(c, r, n, k) - gamma),
    "the sign: a loss is minimised, so it is minus log sigmoid": (
        lambda c, r, n, k, beta, gamma: F.logsigmoid(beta * _average_gap(c, r, n, k) - gamma)
    ),
    "the logarithm is missing: this is minus sigmoid; the loss is minus log sigmoid": (
        lambda c, r, n, k, beta, gamma: -torch.sigmoid(beta * _average_gap(c, r, n, k) - gamma)
    ),
    "one length is used for both: each answer is divided by its own": (
        lambda c, r, n, k, beta, gamma: -F.logsigmoid(beta * (c - r) / n - gamma)
    ),
    "this is one number, the mean; one loss per pair is wanted, of shape (B,)": lambda *a: _simpo(*a).mean(),
}
