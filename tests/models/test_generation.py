import itertools
import random
import subprocess
import sys

import pytest
import torch

from dpo_kit.models import generation
from dpo_kit.models.generation import Answer, GumbelNoise, Sampling, answers_in, count_stops, generate, sample_ids
from dpo_kit.models.loading import Arms, load_arms, load_base
from dpo_kit.models.store import Store
from dpo_kit.models.tokens import pad_completions, prompt_ids
from dpo_kit.profiles import load_profile
from dpo_kit.records import Response


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


def test_an_answer_says_that_it_ended_by_itself_where_its_tokens_hold_eos(arms, incidents):
    prompts, longer = incidents[:16], Sampling(1.0, 0, max_new_tokens=40, batch_size=64)
    ended = [arms.tokenizer.eos_token_id in ids for ids in sample_ids(arms, "sft", prompts, longer)]
    assert set(ended) == {True, False}, "some of these answers are longer than the limit"
    assert [response.stopped for response in generate(arms, "sft", prompts, longer)] == ended


def test_what_follows_eos_is_cut_off_and_eos_stays():
    ids = torch.tensor([[7, 7, 5, 2, 0], [7, 7, 5, 6, 4], [7, 7, 2, 5, 2]])  # (B, T): two tokens of prompt, EOS is 2
    assert answers_in(ids, 2, [2]) == [[5, 2], [5, 6, 4], [2]]


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


def test_how_answers_ended_is_counted_and_said():
    ends = [True] * 6 + [False] * 2 + [None]
    counted = count_stops([Response(prompt_id=str(i), text="", stopped=end) for i, end in enumerate(ends)])
    assert (counted.answers, counted.stopped, counted.cut_off) == (9, 6, 2)
    assert (counted.stop_rate, counted.truncation_rate) == (0.75, 0.25)
    assert str(counted) == "9 answers: 75.0% ended by themselves, 25.0% were cut off, 1 unknown"
    nothing = count_stops([])
    assert (nothing.stop_rate, nothing.truncation_rate) == (None, None)
    assert str(nothing) == "0 answers; how they ended is unknown"


@pytest.fixture
def asked(monkeypatch):
    """How many rows each call of the model answers; with `fail_at`, which call fails."""
    real, calls = generation._generate_batch, []

    def counting(model, tokenizer, heads, *rest):
        if len(calls) == counting.fail_at:
            raise KeyboardInterrupt
        calls.append(len(heads))
        return real(model, tokenizer, heads, *rest)

    counting.fail_at, counting.calls = None, calls
    monkeypatch.setattr(generation, "_generate_batch", counting)
    return counting


@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_an_interrupted_call_goes_on_in_the_same_batches_and_ends_with_the_same_answers(
    arms, incidents, tmp_path, asked, fail_at
):
    prompts, path = incidents[:14], tmp_path / "answers.sqlite"
    whole = generate(arms, "sft", prompts, how(batch_size=4))
    assert asked.calls == [4, 4, 4, 2]
    asked.calls.clear()
    asked.fail_at = fail_at
    with pytest.raises(KeyboardInterrupt):
        generate(arms, "sft", prompts, how(batch_size=4), Store(path, Answer))
    asked.fail_at = None
    assert generate(arms, "sft", prompts, how(batch_size=4), Store(path, Answer)) == whole
    assert asked.calls == [4, 4, 4, 2], "before and after the interruption together: no batch twice"
    assert generate(arms, "sft", prompts[::-1], how(batch_size=9), Store(path, Answer)) == whole[::-1]
    assert len(asked.calls) == 4, "nothing is left to ask"
    assert arms.model.active_adapter == "sft"


def test_a_store_is_missed_when_the_arm_the_seed_or_the_limit_changes(arms, incidents, tmp_path, asked):
    store = Store(tmp_path / "answers.sqlite", Answer)
    variants = [
        ("sft", how()),
        ("base", how()),
        ("sft", how(seed=1)),
        ("sft", how(0.5)),
        ("sft", Sampling(1.0, 0, 9, 64)),
    ]
    for arm, sampling in variants:
        generate(arms, arm, incidents[:2], sampling, store)
    assert asked.calls == [2] * 5
    for arm, sampling in variants:
        assert generate(arms, arm, incidents[:2], sampling, store) == generate(arms, arm, incidents[:2], sampling)
    assert asked.calls == [2] * 10, "the store answered, and as the model does"


def test_the_identity_of_an_arm_is_its_weights_wherever_they_lie(arms, small_run):
    work, profile, _ = small_run
    alone = Arms(*load_base(profile))
    again = load_arms(profile, {"other_name": work / "sft" / "adapter", "dpo": work / "dpo" / "adapter"})
    assert alone.identity("base") == again.identity("base") == arms.identity("base")
    assert again.identity("other_name") == arms.identity("sft")
    unquantised = load_arms(load_profile("tiny", model={"quantize": "none"}), {})
    template = load_arms(profile, {})
    template.tokenizer.chat_template += " "
    identities = [again.identity(arm) for arm in ("base", "other_name", "dpo")]
    identities += [unquantised.identity("base"), template.identity("base")]
    again.model.peft_config["dpo"].lora_alpha *= 2  # the same weights, scaled otherwise
    identities.append(again.identity("dpo"))
    with torch.no_grad():
        next(p for name, p in again.model.named_parameters() if ".dpo." in name).view(-1)[0] += 1e-6
    identities.append(again.identity("dpo"))
    assert len(set(identities)) == 7


def test_a_store_is_missed_once_the_code_that_samples_has_changed(arms, incidents, tmp_path, asked, monkeypatch):
    store = Store(tmp_path / "answers.sqlite", Answer)
    generate(arms, "base", incidents[:2], how(), store)
    changed = tmp_path / "generation.py"
    changed.write_text("# sampling works in another way here")
    monkeypatch.setattr(generation, "__file__", str(changed))
    generate(arms, "base", incidents[:2], how(), store)
    assert asked.calls == [2, 2]


def test_a_model_without_adapters_is_an_arm_called_base(arms, incidents):
    alone = Arms(*load_base(load_profile("tiny")))
    assert generate(alone, "base", incidents[:3], how()) == generate(arms, "base", incidents[:3], how())


CHILD = """
import sys; from pathlib import Path
from dpo_kit.models import generation
from dpo_kit.models.generation import Answer
from dpo_kit.models.store import Store
from dpo_kit.models.loading import load_arms
from dpo_kit.preferences.sampling import sample
from dpo_kit.profiles import load_profile
from dpo_kit.jsonl import write_records
from dpo_kit.triage.reports import draw_prompts

adapter, folder = map(Path, sys.argv[1:])
profile = load_profile("tiny", pairs={"max_new_tokens": 24, "batch_size": 3})
real = generation._generate_batch
def told(model, tokenizer, heads, noise, limit):
    print("batch", flush=True)
    return real(model, tokenizer, heads, noise, limit)
generation._generate_batch = told
prompts, store = draw_prompts(40, "train", "kill", 0), Store(folder / "answers.sqlite", Answer)
columns = sample(load_arms(profile, {"sft": adapter}), "sft", prompts, [1.0, 1.0, 0.0], profile.pairs, 0, store)
write_records(folder / "responses.jsonl", [response for row in columns for response in row])
"""


@pytest.mark.slow
def test_sigkill_at_random_moments_makes_no_answer_twice_and_loses_none(small_run, tmp_path):
    rng, adapter = random.Random(1), small_run[0] / "sft" / "adapter"

    def child(folder):
        command = [sys.executable, "-c", CHILD, str(adapter), str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def finish(folder):
        process = child(folder)
        batches = process.communicate()[0].splitlines()
        assert process.returncode == 0
        return len(batches)

    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    begun = 0
    for batches in (rng.randint(1, 14) for _ in range(3)):
        process = child(interrupted)
        begun += sum(1 for _ in itertools.islice(process.stdout, batches))
        process.kill()
        begun += len(process.communicate()[0].splitlines())
    begun += finish(interrupted)
    assert finish(whole) == 42
    with Store(interrupted / "answers.sqlite", Answer)._transaction() as db:
        assert db.execute("SELECT count(*) FROM kept").fetchone() == (3 * 40,)
    # 3 temperatures of 14 batches; each kill can cost the one batch that was being made, and no other
    assert 42 <= begun <= 42 + 3
    assert (interrupted / "responses.jsonl").read_bytes() == (whole / "responses.jsonl").read_bytes()
