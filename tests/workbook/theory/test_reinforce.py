"""REINFORCE: an unbiased gradient, and the optimum that the closed form gives."""

import pytest
import torch

from dpo_kit.workbook.theory.exact import objective, optimal_policy, total_variation
from dpo_kit.workbook.theory.reinforce import reinforce

REF = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=torch.float64)
REWARDS = torch.tensor([[0.0, 1.0, -0.5], [1.0, -1.0, 0.5]], dtype=torch.float64)


def run(**settings):
    return reinforce(REF.log(), REF, REWARDS, 0.5, generator=torch.Generator().manual_seed(0), **settings)


def test_it_ends_at_the_optimal_policy():
    path = run(lr=0.5, steps=400, samples=16).softmax(-1)
    assert path.shape == (401, 2, 3)
    assert total_variation(path[-1], optimal_policy(REF, REWARDS, 0.5)).max() < 0.01


def test_its_first_step_is_the_exact_gradient_on_average():
    logits = REF.log().requires_grad_()
    objective(logits.softmax(-1), REF, REWARDS, 0.5).sum().backward()
    step = run(lr=1.0, steps=1, samples=200_000)
    torch.testing.assert_close(step[1] - step[0], logits.grad, rtol=0, atol=5e-3)


def test_one_sample_has_no_baseline():
    with pytest.raises(ValueError, match="samples=1"):
        run(lr=1.0, steps=1, samples=1)
