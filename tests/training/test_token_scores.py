"""Scores computed block by block equal those of all logits, and the gradient of the forward pass equals autograd's."""

import pytest
import torch
from torch import nn

from dpo_kit.training import token_scores
from dpo_kit.training.token_scores import score

TOKENS, WIDTH, VOCABULARY = 23, 16, 101


@pytest.fixture(params=[False, True], ids=["no bias", "bias"])
def head(request):
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=request.param).requires_grad_(False)


def expected(hidden, head, labels):
    """The five fields by their definitions, through autograd."""
    logits = head(hidden)
    logps, probabilities = logits.log_softmax(dim=1), logits.softmax(dim=1)
    return (
        logps.gather(1, labels[:, None])[:, 0],
        -(probabilities * logps).sum(dim=1),
        probabilities.pow(2).sum(dim=1).log(),
        logits.mean(dim=1),
        logits.argmax(dim=1) == labels,
    )


@pytest.mark.parametrize("rows", [1, 10, 1000], ids="{} rows at once".format)  # with 10 the last part has one row
def test_parts_give_the_fields_and_the_gradient_of_the_whole(head, rows, monkeypatch):
    monkeypatch.setitem(token_scores.HEAD_BYTES, "cpu", 4 * TOKENS * rows)
    monkeypatch.setattr(token_scores, "FEWEST", 1)
    hidden, labels = torch.randn(TOKENS, WIDTH), torch.randint(VOCABULARY, (TOKENS,))
    weights = torch.randn(TOKENS)  # what a loss would hand back for each token
    found = {}
    for way in (score, expected):
        states = hidden.clone().requires_grad_()
        fields = way(states, head, labels)
        (gradient,) = torch.autograd.grad((fields[0] * weights).sum(), states)
        found[way] = [*fields, gradient]
    for own, truth in zip(found[score], found[expected], strict=True):
        torch.testing.assert_close(own, truth, atol=1e-5, rtol=1e-5)


def test_logits_far_apart_neither_overflow_nor_vanish(head):
    hidden = 1e4 * torch.randn(TOKENS, WIDTH)
    labels = head(hidden).argmax(dim=1)
    logps, entropy, squares, _, top1 = score(hidden, head, labels)
    for field in (logps, entropy, squares):
        torch.testing.assert_close(field, torch.zeros(TOKENS), atol=1e-3, rtol=0)
    assert top1.all()


def test_nothing_scored_is_no_error(head):
    fields = score(torch.randn(0, WIDTH, requires_grad=True), head, torch.empty(0, dtype=torch.long))
    assert [len(field) for field in fields] == [0] * 5
    fields[0].sum().backward()


def test_a_head_that_is_trained_has_its_gradient(head):
    head.requires_grad_()
    hidden, labels = torch.randn(TOKENS, WIDTH), torch.randint(VOCABULARY, (TOKENS,))
    own, truth = (torch.autograd.grad(way(hidden, head, labels)[0].sum(), head.weight)[0] for way in (score, expected))
    torch.testing.assert_close(own, truth, atol=1e-5, rtol=1e-5)
