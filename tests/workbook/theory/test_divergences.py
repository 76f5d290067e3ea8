"""Divergences against torch.distributions, autograd, and exact sums over a small sample space."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from dpo_kit.models.logprobs import exact_kl
from dpo_kit.workbook.theory.divergences import F_DIVERGENCES, alpha_divergence, k1, k2, k3
from dpo_kit.workbook.theory.exact import kl

torch.manual_seed(0)
P, Q = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
MASK = torch.tensor([[0, 1, 1], [1, 0, 0]])


def test_exact_kl_is_that_of_torch_and_zero_outside_the_mask():
    expected = kl_divergence(Categorical(logits=P), Categorical(logits=Q)) * MASK
    torch.testing.assert_close(exact_kl(P, Q, MASK), expected)
    torch.testing.assert_close(exact_kl(P, Q, MASK.bool()), expected)


def test_exact_kl_worked_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): log 2 / 2 + log(2/3) / 2 = 0.1438."""
    p, q = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[1.0, 3.0]]]).log()
    value = exact_kl(p.log(), q, torch.ones(1, 1))
    assert value.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_exact_kl_is_float32_whatever_the_logits_are(dtype):
    assert exact_kl(P.to(dtype), Q.to(dtype), MASK).dtype == torch.float32


def test_exact_kl_never_reads_outside_the_mask():
    """Padding may hold nan: neither the value nor the gradient may see it."""
    spoiled = P.masked_fill(MASK[..., None] == 0, torch.nan).requires_grad_()
    value = exact_kl(spoiled, Q, MASK)
    value.sum().backward()
    assert value.isfinite().all()
    assert spoiled.grad.isfinite().all()


def test_exact_kl_of_a_symbol_ruled_out_is_finite_one_way_and_infinite_the_other():
    without = P.index_fill(2, torch.tensor([0]), -torch.inf).requires_grad_()
    value = exact_kl(without, Q, torch.ones(2, 3))
    value.sum().backward()
    assert value.isfinite().all()
    assert without.grad.isfinite().all()
    assert exact_kl(Q, without, torch.ones(2, 3)).isinf().all()


def test_exact_kl_of_equals_is_zero_and_an_empty_mask_is_allowed():
    assert not exact_kl(P, P, MASK).any()
    assert not exact_kl(P, Q, torch.zeros(2, 3)).any()


def test_exact_kl_gradient_agrees_with_finite_differences():
    p, q = (part.double().requires_grad_() for part in (P, Q))
    assert torch.autograd.gradcheck(lambda a, b: exact_kl(a, b, MASK), (p, q))


def test_estimators_expectations_over_the_whole_sample_space():
    """E_p k1 = E_p k3 = KL exactly; E_p k2 is half the second moment of the log-ratio, and is not the KL."""
    p, q = P.double()[0, 0].softmax(0), Q.double()[0, 0].softmax(0)
    expectation = {k: (p * k(p.log(), q.log())).sum() for k in (k1, k2, k3)}
    torch.testing.assert_close(expectation[k1], kl(p, q))
    torch.testing.assert_close(expectation[k3], kl(p, q))
    assert (expectation[k2] - kl(p, q)).abs() > 0.01
    assert (k3(p.log(), q.log()) >= 0).all()
    assert (k2(p.log(), q.log()) >= 0).all()


@pytest.mark.parametrize("name", sorted(F_DIVERGENCES))
def test_link_is_the_derivative_of_the_generator(name):
    t = torch.linspace(0.05, 6, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F_DIVERGENCES[name].generator(t).sum(), t)
    torch.testing.assert_close(F_DIVERGENCES[name].link(t.detach().log()), slope)


@pytest.mark.parametrize("name", sorted(F_DIVERGENCES))
def test_divergence_is_zero_only_between_equals(name):
    p, q = P.double().softmax(-1), Q.double().softmax(-1)
    assert F_DIVERGENCES[name].between(p, p).abs().max() < 1e-12
    assert (F_DIVERGENCES[name].between(p, q) > 1e-3).all()


def test_the_named_divergences_are_what_they_are_called():
    p, q = P.double().softmax(-1), Q.double().softmax(-1)
    middle = (p + q) / 2
    torch.testing.assert_close(F_DIVERGENCES["reverse_kl"].between(p, q), kl(p, q))
    torch.testing.assert_close(F_DIVERGENCES["forward_kl"].between(p, q), kl(q, p))
    torch.testing.assert_close(F_DIVERGENCES["js_divergence"].between(p, q), kl(p, middle) + kl(q, middle))
    # alpha = 1/2: 4 (1 - sum sqrt(p q))
    torch.testing.assert_close(
        F_DIVERGENCES["alpha_divergence"].between(p, q), 4 * (1 - (p * q).sqrt().sum(-1)), rtol=1e-9, atol=1e-12
    )


def test_alpha_divergence_tends_to_both_kls():
    p, q = P.double().softmax(-1), Q.double().softmax(-1)
    torch.testing.assert_close(alpha_divergence(1 - 1e-6).between(p, q), kl(p, q), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alpha_divergence(1e-6).between(p, q), kl(q, p), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="limit"):
        alpha_divergence(1.0)
