"""Implicit rewards on held-out pairs, with log-probs that are given."""

import pytest
import torch

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.heldout import held_out_rewards
from dpo_kit.records import PreferencePair, Prompt, Response, Verdict


class Arm:
    def __init__(self, name):
        self.name = name

    def weights(self):
        return None, self.name

    def release(self):
        pass


def pair(prompt):
    sides = {side: Response(prompt_id=prompt, text=side) for side in ("chosen", "rejected")}
    asked = Prompt.from_text("?").model_copy(update={"id": prompt})
    return PreferencePair(prompt=asked, **sides, verdict=Verdict(winner="a", judge="j", reason=""))


def rewards(policy, reference, beta=0.5, prompts=None):
    """The rewards from lists of log-probs, the chosen answers first."""
    given = {"dpo": torch.tensor(policy).double(), "base": torch.tensor(reference).double()}
    pairs = [pair(name) for name in prompts or map(str, range(len(policy) // 2))]
    return held_out_rewards(Arm("dpo"), Arm("base"), pairs, beta, lambda arms, arm, rows: given[arm])


def test_rewards_are_beta_times_log_ratios():
    """Chosen -1 and -2 against -2 and -2: rewards 0.5 and 0. Rejected -3 and -1 against -1 and -2: -1 and 0.5.

    Margins are 1.5 and -0.5, their mean 0.5; one of two pairs is ranked rightly.
    """
    found = rewards([-1, -2, -3, -1], [-2, -2, -1, -2])
    assert (found.policy, found.reference, found.beta, found.n) == ("dpo", "base", 0.5, 2)
    assert found.margin.mean == pytest.approx(0.5)
    assert found.accuracy.mean == 0.5
    assert found.accuracy_verdict.startswith("inconclusive")


def test_a_policy_that_equals_its_reference_prefers_nothing():
    found = rewards([-1.0] * 80, [-1.0] * 80)
    assert (found.accuracy.mean, found.margin.mean) == (0.5, 0)


def test_many_pairs_that_are_ranked_rightly_are_above_one_half():
    found = rewards([-1.0 - i / 100 for i in range(40)] + [-3.0] * 40, [-2.0] * 80)
    assert found.accuracy.mean == 1
    assert (found.accuracy_verdict, found.margin_verdict) == ("above one half", "above 0")
    swapped = rewards([-3.0] * 40 + [-1.0 - i / 100 for i in range(40)], [-2.0] * 80)
    assert (swapped.accuracy_verdict, swapped.margin_verdict) == ("below one half", "below 0")


def test_pairs_of_one_prompt_are_one_prompt():
    few = rewards([-1.0] * 30 + [-3.0] * 30, [-2.0] * 60, prompts=["1"] * 15 + ["2"] * 15)
    many = rewards([-1.0] * 30 + [-3.0] * 30, [-2.0] * 60)
    assert few.accuracy.low < many.accuracy.low
    single = rewards([-1.0, -3.0], [-2.0, -2.0])
    assert (single.margin, single.margin_verdict) == (None, "nothing to compare: one prompt")


def test_no_pairs_are_refused():
    with pytest.raises(DpoKitError, match="no held-out pairs"):
        held_out_rewards(Arm("dpo"), Arm("base"), [], 0.1, None)
