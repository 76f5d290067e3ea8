"""The paper's chain of equations on random enumerable worlds, each step against an independent computation."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_kit.workbook.theory.descent import descend, minimise
from dpo_kit.workbook.theory.exact import (
    bradley_terry,
    expected_dpo_loss,
    expected_reward_loss,
    implicit_reward,
    kl,
    log_partition,
    objective,
    optimal_policy,
    plackett_luce,
    sample_wins,
    total_variation,
)
from dpo_kit.workbook.theory.losses import dpo_loss


@st.composite
def worlds(draw, prompts=2, answers=4):
    """`(ref_probs, rewards, beta)` with float64 tensors (X, Y)."""
    values = st.lists(st.floats(-2, 2), min_size=prompts * answers, max_size=prompts * answers)
    logits, rewards = (torch.tensor(draw(values), dtype=torch.float64).reshape(prompts, answers) for _ in range(2))
    return logits.softmax(-1), rewards, draw(st.floats(0.2, 3))


def test_optimal_policy_worked_by_hand():
    """ref (1/2, 1/2), rewards (log 3, 0), beta 1: weights 3/2 and 1/2, so (3/4, 1/4). At beta 1/2: 9 to 1."""
    ref, rewards = torch.tensor([0.5, 0.5]).double(), torch.tensor([math.log(3), 0.0]).double()
    torch.testing.assert_close(optimal_policy(ref, rewards, 1.0), torch.tensor([0.75, 0.25]).double())
    torch.testing.assert_close(optimal_policy(ref, rewards, 0.5), torch.tensor([0.9, 0.1]).double())
    assert log_partition(ref, rewards, 1.0).item() == pytest.approx(math.log(2))


@given(worlds())
@settings(max_examples=15)
def test_no_policy_beats_the_optimal_one(world):
    ref, rewards, beta = world
    best = objective(optimal_policy(ref, rewards, beta), ref, rewards, beta)
    torch.testing.assert_close(best, beta * log_partition(ref, rewards, beta))  # its value is beta log Z
    rivals = torch.randn(200, *ref.shape, dtype=torch.float64).softmax(-1)
    assert (objective(rivals, ref, rewards, beta) <= best + 1e-12).all()


@given(worlds())
@settings(max_examples=10)
def test_numerical_optimisation_finds_the_closed_form(world):
    ref, rewards, beta = world
    found = minimise(lambda logits: -objective(logits.softmax(-1), ref, rewards, beta).sum(), ref.log()).softmax(-1)
    assert total_variation(found, optimal_policy(ref, rewards, beta)).max() < 1e-6


@given(worlds())
@settings(max_examples=30)
def test_implicit_reward_is_the_reward_up_to_log_z(world):
    ref, rewards, beta = world
    implied = implicit_reward(optimal_policy(ref, rewards, beta), ref, beta)
    recovered = implied + beta * log_partition(ref, rewards, beta).unsqueeze(-1)
    torch.testing.assert_close(recovered, rewards, rtol=1e-9, atol=1e-9)


@given(worlds(), st.floats(-5, 5))
@settings(max_examples=30)
def test_a_constant_added_to_a_prompts_rewards_changes_nothing_that_can_be_seen(world, constant):
    ref, rewards, beta = world
    moved = rewards + torch.tensor([[constant], [0.0]]).double()
    torch.testing.assert_close(optimal_policy(ref, moved, beta), optimal_policy(ref, rewards, beta))
    torch.testing.assert_close(bradley_terry(moved), bradley_terry(rewards))


@given(worlds())
@settings(max_examples=30)
def test_bradley_terry_in_both_orders_adds_to_one(world):
    preferences = bradley_terry(world[1])
    torch.testing.assert_close(preferences + preferences.transpose(-1, -2), torch.ones_like(preferences))


@given(worlds())
@settings(max_examples=8)
def test_the_minimum_of_the_expected_dpo_loss_is_the_optimal_policy(world):
    ref, rewards, beta = world
    wins = bradley_terry(rewards)
    found = minimise(lambda logits: expected_dpo_loss(logits.log_softmax(-1), ref.log(), wins, beta).sum(), ref.log())
    assert total_variation(found.softmax(-1), optimal_policy(ref, rewards, beta)).max() < 1e-5


@given(worlds())
@settings(max_examples=20)
def test_expected_loss_is_the_mean_of_dpo_loss_over_listed_pairs(world):
    """Counts 3 : 1 for one pair of answers, 2 for another, against the same six pairs put through `dpo_loss`."""
    ref, rewards, beta = world
    logps = rewards.log_softmax(-1)
    wins = torch.zeros(2, 4, 4, dtype=torch.float64)
    wins[:, 0, 1], wins[:, 1, 0], wins[:, 2, 3] = 3, 1, 2
    chosen, rejected = [0, 0, 0, 1, 2, 2], [1, 1, 1, 0, 3, 3]
    for x in range(2):
        losses, *_ = dpo_loss(
            logps[x, chosen], logps[x, rejected], ref.log()[x, chosen], ref.log()[x, rejected], beta=beta
        )
        torch.testing.assert_close(expected_dpo_loss(logps, ref.log(), wins, beta)[x], losses.mean())


def test_a_reward_model_and_a_policy_have_one_likelihood():
    rewards, ref = torch.randn(2, 4).double(), torch.rand(2, 4).double().softmax(-1)
    wins, beta = torch.rand(2, 4, 4).double(), 0.3
    logps = optimal_policy(ref, rewards, beta).log()
    torch.testing.assert_close(expected_dpo_loss(logps, ref.log(), wins, beta), expected_reward_loss(rewards, wins))


def test_a_prompt_without_comparisons_is_refused():
    with pytest.raises(ValueError, match="no comparison"):
        expected_reward_loss(torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3))


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="beta=0"):
        optimal_policy(torch.ones(2) / 2, torch.zeros(2), 0)


def test_kl_of_a_certain_policy_is_minus_its_log_reference():
    certain, ref = torch.tensor([1.0, 0.0]), torch.tensor([0.2, 0.8])
    assert kl(certain, ref).item() == pytest.approx(-math.log(0.2))
    assert kl(ref, certain).isinf()


def test_sampled_wins_tend_to_the_preferences():
    preferences = bradley_terry(torch.tensor([[0.0, 1.0, -1.0]]).double())
    wins = sample_wins(preferences, 200_000, torch.Generator().manual_seed(0))
    assert wins.sum() == 200_000
    assert not wins.diagonal(dim1=-2, dim2=-1).any()
    share = wins / (wins + wins.transpose(-1, -2))
    off = ~torch.eye(3, dtype=torch.bool)
    assert (share - preferences)[0][off].abs().max() < 0.01


@given(worlds(prompts=1))
@settings(max_examples=20)
def test_plackett_luce_is_a_distribution_over_rankings(world):
    rankings = torch.tensor(list(permutations(range(4))))
    assert plackett_luce(world[1], rankings).exp().sum().item() == pytest.approx(1)


def test_plackett_luce_worked_by_hand_and_of_two_is_bradley_terry():
    """Rewards log 3, log 2, log 1: first 2/6, then 3/4, then the last."""
    rewards = torch.tensor([3.0, 2.0, 1.0]).double().log()
    assert plackett_luce(rewards, torch.tensor([1, 0, 2])).exp().item() == pytest.approx(2 / 6 * 3 / 4)
    pair = plackett_luce(rewards, torch.tensor([0, 2])).exp()
    torch.testing.assert_close(pair, bradley_terry(rewards)[0, 2])


def test_descend_returns_its_whole_path():
    """x <- x - 0.25 * 2x halves x at each step."""
    path = descend(lambda x: x.square().sum(), torch.ones(1).double(), lr=0.25, steps=3)
    assert path.squeeze().tolist() == [1.0, 0.5, 0.25, 0.125]


def test_adams_first_step_is_its_learning_rate_whatever_the_loss_is_scaled_by():
    for scale in (0.01, 100.0):
        path = descend(lambda x, s=scale: s * x.sum(), torch.zeros(1).double(), lr=0.1, steps=1, optimiser="adam")
        assert path[1].item() == pytest.approx(-0.1, rel=1e-4)
