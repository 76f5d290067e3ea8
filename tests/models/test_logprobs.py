import pytest
import torch

from dpo_kit.models.generation import Sampling, sample_ids
from dpo_kit.models.loading import load_arms
from dpo_kit.models.logprobs import on_policy_kl
from dpo_kit.models.tokens import prompt_ids

HOW = Sampling(1.0, 3, max_new_tokens=32, batch_size=7)


@pytest.fixture(scope="module")
def arms(small_run):
    work, profile, _ = small_run
    return load_arms(profile, {arm: work / arm / "adapter" for arm in ("sft", "dpo")})


def answer_logps(arms, arm, prompt, tail):
    """Log-probs over the vocabulary at each token of one answer, unbatched: (tokens, V)."""
    head = prompt_ids(arms.tokenizer, prompt)
    with arms.use(arm) as model, torch.no_grad():
        return model(input_ids=torch.tensor([head + tail])).logits[0, len(head) - 1 : -1].log_softmax(dim=-1)


def test_a_policy_has_no_distance_from_itself(arms, incidents):
    estimate = on_policy_kl(arms, "sft", "sft", incidents[:9], HOW)
    assert (estimate.sequence, estimate.per_token) == (0, 0)


def test_kl_is_that_of_a_row_by_row_computation(arms, incidents):
    prompts = incidents[:9]
    estimate = on_policy_kl(arms, "sft", "base", prompts, HOW)
    by_hand = []
    for prompt, tail in zip(prompts, sample_ids(arms, "sft", prompts, HOW), strict=True):
        p, q = (answer_logps(arms, arm, prompt, tail) for arm in ("sft", "base"))
        by_hand.append((p.exp() * (p - q)).sum().item())
    assert estimate.sequence == pytest.approx(sum(by_hand) / 9, rel=1e-3)
    assert estimate.sequence > 0


def test_kl_agrees_with_the_mean_log_ratio_of_many_samples(arms, incidents):
    # KL = E log p/q: over many answers the unbiased estimator k1 must agree within its own standard errors
    prompts = incidents[:60]
    how = Sampling(1.0, 11, max_new_tokens=32, batch_size=60)
    exact = on_policy_kl(arms, "dpo", "base", prompts, how)
    ratios = []
    for prompt, tail in zip(prompts, sample_ids(arms, "dpo", prompts, how), strict=True):
        p, q = (answer_logps(arms, arm, prompt, tail) for arm in ("dpo", "base"))
        ratios.append((p - q).gather(1, torch.tensor(tail)[:, None]).sum())
    ratios = torch.stack(ratios).double()
    error = ratios.std() / len(ratios) ** 0.5
    assert abs(ratios.mean() - exact.sequence) < 4 * error
