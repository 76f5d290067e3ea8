import pytest
import torch

from dpo_kit.models.generation import GumbelNoise, Sampling, generate, sample_ids
from dpo_kit.models.loading import load_arms
from dpo_kit.models.tokens import pad_completions, prompt_ids
from dpo_kit.profiles import load_profile


@pytest.fixture(scope="module")
def arms(small_run):
    work, profile, _ = small_run
    return load_arms(profile, {"sft": work / "sft" / "adapter"})


def how(temperature=1.0, seed=0, batch_size=64):
    return Sampling(temperature, seed, max_new_tokens=24, batch_size=batch_size)


def test_gumbel_noise_samples_from_the_softmax():
    # 40,000 rows with the same three logits: shares must match softmax(logits / T) within four standard errors
    rows, temperature = 40_000, 0.7
    logits = torch.tensor([2.0, 1.0, -1.0]).repeat(rows, 1)
    noise = GumbelNoise([f"p{i}" for i in range(rows)], temperature, seed=0)
    shares = torch.bincount(noise(None, logits).argmax(dim=1), minlength=3) / rows
    expected = (logits[0] / temperature).softmax(dim=0)
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / rows).sqrt()).all()


def test_temperature_zero_adds_nothing():
    logits = torch.randn(2, 5)
    assert torch.equal(GumbelNoise(["a", "b"], 0.0, seed=0)(None, logits), logits)


def test_a_prompt_gets_the_same_answer_in_any_batch_and_any_order(arms, incidents):
    prompts = incidents[:12]
    together = generate(arms, "sft", prompts, how())
    assert generate(arms, "sft", prompts, how(batch_size=5)) == together
    assert generate(arms, "sft", prompts[::-1], how())[::-1] == together
    assert generate(arms, "sft", prompts[3:4], how()) == together[3:4]


def test_seeds_differ_and_greedy_does_not_depend_on_them(arms, incidents):
    prompts = incidents[:8]
    texts = [[r.text for r in generate(arms, "sft", prompts, how(t, seed))] for t in (1.0, 0.0) for seed in (0, 1)]
    assert texts[0] != texts[1]
    assert texts[2] == texts[3]


def test_sampled_ids_end_with_eos_or_at_the_limit(arms, incidents):
    eos = arms.tokenizer.eos_token_id
    for ids in sample_ids(arms, "sft", incidents[:16], how()):
        assert len(ids) == 24 if eos not in ids else ids.index(eos) == len(ids) - 1


def test_an_answer_says_whether_it_was_cut_off(arms, incidents):
    short = Sampling(0.0, 0, max_new_tokens=3, batch_size=8)
    assert not any(response.stopped for response in generate(arms, "sft", incidents[:4], short))


def test_the_base_arm_is_the_weights_without_any_adapter(arms, incidents):
    alone = load_arms(load_profile("tiny"), {})
    inputs, _ = pad_completions(arms.tokenizer, [prompt_ids(arms.tokenizer, incidents[0])], [[7, 8]])
    with torch.no_grad(), arms.use("base") as model:
        base = model(**inputs).logits
        plain = alone.model.eval()(**inputs).logits
    with torch.no_grad(), arms.use("sft") as model:
        assert not torch.allclose(model(**inputs).logits, plain)
    assert torch.equal(base, plain)


def test_using_an_arm_puts_back_the_mode_and_the_adapter(arms):
    arms.model.train()
    with arms.use("base") as model:
        assert not model.training
    assert arms.model.training
    assert arms.model.active_adapter == "sft"
    arms.model.eval()


def test_completions_are_padded_and_masked_as_the_docstring_shows(arms):
    inputs, mask = pad_completions(arms.tokenizer, [[5, 6], [7]], [[8], [9, 1]])
    assert inputs["input_ids"].tolist() == [[5, 6, 8], [7, 9, 1]]
    assert mask.tolist() == [[False, False, True], [False, True, True]]
    inputs, mask = pad_completions(arms.tokenizer, [[5], [7]], [[8], [9, 1]])
    assert inputs["input_ids"].tolist() == [[5, 8, 0], [7, 9, 1]]
    assert mask.tolist() == [[False, True, False], [False, True, True]]
