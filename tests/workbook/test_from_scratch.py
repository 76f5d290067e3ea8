"""DPO written out against TRL's trainer, and what must not move a log-prob."""

import math

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from dpo_kit.models.loading import load_base, lora
from dpo_kit.profiles import load_profile
from dpo_kit.records import PreferencePair, Response, Verdict
from dpo_kit.training.trainers import common_arguments
from dpo_kit.triage.demonstrations import Noise, demonstrate
from dpo_kit.triage.incidents import Incident
from dpo_kit.workbook import from_scratch
from dpo_kit.workbook.theory.losses import dpo_loss

BATCH, STEPS = 4, 20


@pytest.fixture(scope="module")
def profile():
    settings = {"learning_rate": 5e-4, "batch_size": BATCH, "beta": 0.1}
    return load_profile("tiny", model={"quantize": "none"}, dpo=settings)


@pytest.fixture(scope="module")
def pairs(incidents):
    """The right answer against a hurried one, where they differ."""
    hurried = demonstrate(incidents, Noise(0.9, 0.5, 0.5, 0.5, 0.3), seed=0)
    verdict = Verdict(winner="a", judge="truth", reason="it is the right answer")
    made = []
    for prompt, rejected in zip(incidents, hurried, strict=True):
        right = Incident.from_facts(prompt.facts).answer
        chosen = Response(**{**rejected.model_dump(), "text": right})
        if right != rejected.text:
            made.append(PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, verdict=verdict))
    return made[: BATCH * STEPS]


def fresh(profile):
    base, tokenizer = load_base(profile)
    torch.manual_seed(0)
    return get_peft_model(base.to("cpu"), lora(profile)), tokenizer


def in_batches(tokenizer, pairs):
    return [from_scratch.collate(tokenizer, pairs[i : i + BATCH]) for i in range(0, len(pairs), BATCH)]


def trl_trainer(profile, pairs, tokenizer, folder):
    settings = common_arguments(profile, profile.dpo, folder, seed=0)
    settings |= {"use_cpu": True, "train_sampling_strategy": "sequential", "lr_scheduler_type": "linear"}
    trainer = DPOTrainer(
        load_base(profile)[0].to("cpu"),
        args=DPOConfig(**settings, beta=0.1),
        train_dataset=Dataset.from_list([pair.to_trl() for pair in pairs]),
        processing_class=tokenizer,
        peft_config=lora(profile),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@pytest.mark.slow
def test_the_loop_follows_trl_step_by_step(profile, pairs, tmp_path):
    policy, tokenizer = fresh(profile)
    start = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
    batches = in_batches(tokenizer, pairs)
    with policy.disable_adapter():
        reference = from_scratch.score(policy, batches)
    ours = list(from_scratch.train(policy, batches, reference, lr=profile.dpo.learning_rate))
    trainer = trl_trainer(profile, pairs, tokenizer, tmp_path)
    trainer.train()
    theirs = [row for row in trainer.state.log_history if "rewards/margins" in row]
    assert len(ours) == len(theirs) == STEPS
    assert ours[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "policy and reference agree before the first step"
    assert ours[-1]["loss"] < 0.65, "a run that learns nothing would agree with anything"
    for mine, row in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(row["loss"], abs=1e-5)
        assert 0.1 * (mine["h_chosen"] - mine["h_rejected"]) == pytest.approx(row["rewards/margins"], abs=1e-4)
    # Adam turns a rounding error in a tiny gradient into a step, so single weights differ; the whole way does not
    theirs_end = dict(trainer.model.named_parameters())
    trained = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    difference = torch.cat([(p - theirs_end[name]).flatten() for name, p in trained])
    moved = torch.cat([(p - start[name]).flatten() for name, p in trained])
    assert difference.norm() < 0.01 * moved.norm()


def test_ids_and_masks_are_trls(profile, pairs, tmp_path):
    _, tokenizer = fresh(profile)
    trainer = trl_trainer(profile, pairs[:BATCH], tokenizer, tmp_path)
    (theirs,) = trainer.get_train_dataloader()
    ours = from_scratch.collate(tokenizer, pairs[:BATCH])
    assert torch.equal(ours.input_ids, theirs["input_ids"])
    assert torch.equal(ours.attention_mask, theirs["attention_mask"])
    assert torch.equal(ours.completion_mask, theirs["completion_mask"].bool())


def test_both_answers_end_in_eos_and_the_lengths_count_it(profile, pairs):
    _, tokenizer = fresh(profile)
    _, chosen, rejected = from_scratch.encode(tokenizer, pairs[0])
    assert chosen[-1] == rejected[-1] == tokenizer.eos_token_id
    batch = from_scratch.collate(tokenizer, pairs[:1])
    assert [int(side) for side in batch.lengths] == [len(chosen), len(rejected)]


def test_padding_and_neighbours_move_no_log_prob(profile, pairs):
    policy, tokenizer = fresh(profile)
    together = from_scratch.score(policy, [from_scratch.collate(tokenizer, pairs[:8])])[0]
    for i in range(8):
        alone = from_scratch.score(policy, [from_scratch.collate(tokenizer, pairs[i : i + 1])])[0]
        for side, own in zip(together, alone, strict=True):
            torch.testing.assert_close(side[i : i + 1], own, rtol=1e-5, atol=1e-4)


def test_completion_log_probs_are_worked_out_by_hand():
    """Two tokens of vocabulary with logits (0, log 3): probabilities 1/4 and 3/4 at every position."""
    logits = torch.tensor([0.0, math.log(3)]).expand(1, 4, 2)
    ids, mask = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 0, 1, 1]])
    each = from_scratch.token_logps(logits, ids, mask)
    torch.testing.assert_close(each, torch.tensor([[0.0, 0.75, 0.25]]).log().masked_fill(mask[:, 1:] == 0, 0.0))
    assert from_scratch.completion_logps(logits, ids, mask).item() == pytest.approx(math.log(0.75 * 0.25))


def test_a_log_prob_is_predicted_from_the_position_before_its_token():
    logits = torch.zeros(1, 3, 2)
    logits[0, 1] = torch.tensor([0.0, math.log(3)])  # what position 1 says of the token at position 2
    value = from_scratch.completion_logps(logits, torch.tensor([[0, 0, 1]]), torch.tensor([[0, 0, 1]]))
    assert value.item() == pytest.approx(math.log(0.75))


def test_a_mask_with_the_prompt_is_caught_by_rewards_and_not_by_the_loss(profile, pairs):
    policy, tokenizer = fresh(profile)
    batch = from_scratch.collate(tokenizer, pairs[:BATCH])
    torch.manual_seed(1)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.02)  # a policy that is not its reference
    with torch.no_grad():
        now = policy(batch.input_ids, attention_mask=batch.attention_mask).logits
        with policy.disable_adapter():
            then = policy(batch.input_ids, attention_mask=batch.attention_mask).logits

    def losses_and_rewards(mask):
        sides = (
            x for logits in (now, then) for x in from_scratch.completion_logps(logits, batch.input_ids, mask).chunk(2)
        )
        losses, rewards, _ = dpo_loss(*sides, beta=0.1)
        return losses, rewards

    right, right_rewards = losses_and_rewards(batch.completion_mask)
    wrong, wrong_rewards = losses_and_rewards(batch.attention_mask)
    torch.testing.assert_close(wrong, right, rtol=1e-4, atol=1e-5)
    assert (wrong_rewards - right_rewards).abs().min() > 1e-3
