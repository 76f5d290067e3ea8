"""Enumerated sequences: probabilities that add up, a chain rule that holds, and pi* found token by token."""

import pytest
import torch

from dpo_kit.models.logprobs import exact_kl
from dpo_kit.workbook.theory.descent import minimise
from dpo_kit.workbook.theory.exact import bradley_terry, expected_dpo_loss, kl, optimal_policy, total_variation
from dpo_kit.workbook.theory.sequences import SequenceWorld

WORLD = SequenceWorld("ab", 3)
POLICY, REFERENCE = (
    torch.randn(len(WORLD.prefixes), len(WORLD.symbols), generator=torch.Generator().manual_seed(seed)).double()
    for seed in (1, 2)
)


def test_the_smallest_world_written_out():
    world = SequenceWorld("ab", 2)
    assert world.sequences == (".", "a.", "aa", "ab", "b.", "ba", "bb")
    assert world.prefixes == ("", "a", "b")
    assert world.lengths.tolist() == [1, 2, 2, 2, 2, 2, 2]


def test_a_sequences_probability_is_the_product_of_its_tokens():
    """'ab.' takes a in row '', b in row 'a', the stop in row 'ab'."""
    table = POLICY.softmax(-1)
    rows = [WORLD.prefixes.index(prefix) for prefix in ("", "a", "ab")]
    expected = table[rows[0], 0] * table[rows[1], 1] * table[rows[2], 2]
    torch.testing.assert_close(WORLD.logps(POLICY)[WORLD.sequences.index("ab.")].exp(), expected)


def test_probabilities_of_all_sequences_add_up_to_one():
    assert WORLD.logps(POLICY).exp().sum().item() == pytest.approx(1)


def test_any_distribution_can_be_written_as_a_table():
    joint = torch.randn(len(WORLD.sequences), generator=torch.Generator().manual_seed(3)).double().log_softmax(0)
    torch.testing.assert_close(WORLD.logps(WORLD.table(joint)), joint)


def test_sequence_kl_is_the_expected_sum_of_token_kls():
    logits, mask = WORLD.step_logits(POLICY)
    ref_logits, _ = WORLD.step_logits(REFERENCE)
    probs, ref_probs = WORLD.logps(POLICY).exp(), WORLD.logps(REFERENCE).exp()
    per_sequence = exact_kl(logits, ref_logits, mask).sum(dim=1)
    torch.testing.assert_close((probs * per_sequence).sum(), kl(probs, ref_probs))
    # the same sum over sequences that the reference writes is another number
    assert ((ref_probs * per_sequence).sum() - kl(probs, ref_probs)).abs() > 0.01


def test_token_level_training_finds_the_sequence_level_optimum():
    rewards = torch.tensor([sequence.count("a") - 0.5 * sequence.count("b") for sequence in WORLD.sequences]).double()
    ref_logps = WORLD.logps(REFERENCE)
    wins = bradley_terry(rewards)
    found = minimise(lambda table: expected_dpo_loss(WORLD.logps(table), ref_logps, wins, 0.5), REFERENCE)
    assert total_variation(WORLD.logps(found).exp(), optimal_policy(ref_logps.exp(), rewards, 0.5)) < 1e-4
