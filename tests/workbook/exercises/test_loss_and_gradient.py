"""The checks of notebook 02: each plausible mistake gets its own hint."""

import pytest
import torch
import torch.nn.functional as F

from dpo_kit.workbook.exercises import loss_and_gradient as checks


def positions(width):
    return torch.arange(width)[None, :]


def gathered(logits, ids):
    return logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:].unsqueeze(2))[..., 0]


def margin(chosen, rejected, ref_chosen, ref_rejected, beta):
    return beta * (chosen - rejected - ref_chosen + ref_rejected)


MASK, LOGPS = checks.check_completion_mask, checks.check_completion_logps
GRADIENT, SIMPO = checks.check_dpo_gradient, checks.check_simpo_loss
MISTAKES = [
    (MASK, lambda p, n, w: positions(w) < n[:, None], "prompt is selected, too"),
    (MASK, lambda p, n, w: positions(w) >= p[:, None], "padding is selected"),
    (MASK, lambda p, n, w: positions(w) < p[:, None], "selects the prompt"),
    (MASK, lambda p, n, w: (positions(w) > p[:, None]) & (positions(w) < n[:, None]), "first token"),
    (MASK, lambda p, n, w: (positions(w) >= p[:, None] - 1) & (positions(w) < n[:, None]), "last token is selected"),
    (MASK, lambda p, n, w: (positions(w) >= p[:, None]) & (positions(w) < n[:, None] - 1), "EOS"),
    (MASK, lambda p, n, w: (positions(w) >= p[:, None]) & (positions(w) <= n[:, None]), "first token of the padding"),
    (MASK, lambda p, n, w: (positions(w) >= p[:, None]) & (positions(w) < (p + n)[:, None]), "adding the prompt"),
    (LOGPS, lambda x, ids, m: (x[:, :-1].log_softmax(-1).sum(-1) * m[:, 1:]).sum(-1), "over the vocabulary: gather"),
    (LOGPS, lambda x, ids, m: (x.log_softmax(-1).sum(-1) * m).sum(-1), "not shifted either"),
    (
        LOGPS,
        lambda x, ids, m: (x.log_softmax(-1).gather(2, ids[..., None])[..., 0] * m).sum(1),
        "predict the next",
    ),
    (
        LOGPS,
        lambda x, ids, m: (x.log_softmax(-1)[:, 1:].gather(2, ids[:, :-1, None])[..., 0] * m[:, :-1]).sum(1),
        "turned round",
    ),
    (LOGPS, lambda x, ids, m: (gathered(x, ids) * m[:, :-1]).sum(1), "mask is off by one"),
    (LOGPS, lambda x, ids, m: (gathered(x, ids) * m[:, 1:]).sum(1) / m[:, 1:].sum(1), "mean over the answer"),
    (LOGPS, lambda x, ids, m: (gathered(x, ids) * m[:, 1:]).mean(1), "mean over all positions"),
    (LOGPS, lambda x, ids, m: gathered(x, ids).sum(1), "prompt and padding"),
    (LOGPS, lambda x, ids, m: -(gathered(x, ids) * m[:, 1:]).sum(1), "cross-entropy"),
    (
        LOGPS,
        lambda x, ids, m: (x[:, :-1].gather(2, ids[:, 1:, None])[..., 0] * m[:, 1:]).sum(1),
        "as if they were",
    ),
    (LOGPS, lambda x, ids, m: (gathered(x, ids).exp() * m[:, 1:]).sum(1), "probabilities added up"),
    (LOGPS, lambda x, ids, m: gathered(x, ids) * m[:, 1:], "single tokens"),
    (GRADIENT, lambda *a: a[-1] * torch.sigmoid(-margin(*a)), "the sign"),
    (GRADIENT, lambda *a: -a[-1] * torch.sigmoid(margin(*a)), "weight is turned round"),
    (GRADIENT, lambda *a: -torch.sigmoid(-margin(*a)), "beta is missing in front"),
    (GRADIENT, lambda *a: -a[-1] * torch.sigmoid(-margin(*a) / a[-1]), "beta is missing inside"),
    (GRADIENT, lambda *a: -torch.sigmoid(-margin(*a) / a[-1]), "both betas"),
    (SIMPO, lambda c, r, n, k, beta, gamma: -torch.sigmoid(beta * (c / n - r / k) - gamma), "logarithm is missing"),
    (GRADIENT, lambda *a: -a[-1] * torch.sigmoid(-a[-1] * (a[0] - a[1])), "reference is missing"),
    (GRADIENT, lambda *a: -a[-1] * torch.sigmoid(-margin(*a)) / 5, "batch's mean"),
    (GRADIENT, lambda *a: -a[-1] * torch.sigmoid(margin(*a)) * torch.sigmoid(-margin(*a)), "derivative of sigmoid"),
    (GRADIENT, lambda *a: F.softplus(-margin(*a)), "the loss, not its gradient"),
    (SIMPO, lambda c, r, n, k, b, g: -F.logsigmoid(b * (c - r) - g), "summed"),
    (SIMPO, lambda c, r, n, k, b, g: -F.logsigmoid(b * (c / n - r / k) + g), "sign of gamma"),
    (SIMPO, lambda c, r, n, k, b, g: -F.logsigmoid(b * (c / n - r / k - g)), "gamma stands inside"),
    (SIMPO, lambda c, r, n, k, b, g: -F.logsigmoid(b * (c / n - r / k)), "gamma is missing"),
    (SIMPO, lambda c, r, n, k, b, g: -F.logsigmoid(c / n - r / k - g), "beta is missing"),
    (SIMPO, lambda c, r, n, k, b, g: F.logsigmoid(b * (c / n - r / k) - g), "minus log sigmoid"),
    (SIMPO, lambda c, r, n, k, b, g: -F.logsigmoid(b * (c - r) / n - g), "one length"),
    (SIMPO, lambda c, r, n, k, b, g: -F.logsigmoid(b * (c / n - r / k) - g).mean(), "the mean"),
]


@pytest.mark.parametrize(("check", "answer", "word"), MISTAKES, ids=[f"{m[0].__name__}-{m[2]}" for m in MISTAKES])
def test_a_plausible_mistake_gets_its_own_hint(check, answer, word):
    verdict = check(answer)
    assert not verdict.passed
    assert verdict.message.startswith("not right:")
    assert word in verdict.message


def test_no_two_mistakes_share_a_hint():
    hints = [(check.__name__, check(answer).message) for check, answer, _ in MISTAKES]
    assert len(set(hints)) == len(hints)


def test_an_answer_by_autograd_passes_as_well():
    def by_autograd(chosen, rejected, ref_chosen, ref_rejected, beta):
        leaf = chosen.clone().requires_grad_()
        losses = -F.logsigmoid(margin(leaf, rejected, ref_chosen, ref_rejected, beta))
        return torch.autograd.grad(losses.sum(), leaf)[0]

    assert checks.check_dpo_gradient(by_autograd).passed


def test_an_unknown_mistake_in_a_mask_is_shown_at_one_position():
    """Row 0 of the first case has a prompt of two tokens, so position 2 is the first that belongs to the answer."""
    message = MASK(lambda p, n, w: 0 * positions(w) * n[:, None]).message
    assert "on case 1, at index [0, 2]," in message
    assert message.endswith("returns 0, and 1 is wanted")
