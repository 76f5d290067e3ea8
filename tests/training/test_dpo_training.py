"""Conditions before, during and after training, and that each violation is noticed."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_kit.errors import DpoKitError
from dpo_kit.files import sha256
from dpo_kit.jsonl import read_pairs
from dpo_kit.models.loading import add_adapter, load_arms, load_base
from dpo_kit.training.dpo import KlProbe, check_start, dpo_trainer, train_dpo
from dpo_kit.training.metrics_log import MetricsLog, read_log
from dpo_kit.training.sft import sft_trainer, train_sft
from dpo_kit.triage.demonstrations import Noise, demonstrate
from dpo_kit.triage.reports import draw_prompts


@pytest.fixture(scope="module")
def trainer(small_run, tmp_path_factory):
    work, profile, _ = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")
    return dpo_trainer(profile, pairs, work / "sft" / "adapter", tmp_path_factory.mktemp("dpo"), seed=0)


def adapter_weights(model, name):
    return {n.replace(f".{name}.", ".x."): p for n, p in model.named_parameters() if f".{name}." in n}


def test_policy_and_reference_start_as_the_sft_adapter_bit_for_bit(trainer, small_run):
    policy, reference = (adapter_weights(trainer.model, name) for name in ("default", "ref"))
    assert policy
    assert policy.keys() == reference.keys()
    saved = load_file(small_run[0] / "sft" / "adapter" / "adapter_model.safetensors")
    for name, weight in policy.items():
        assert torch.equal(weight, reference[name])
        assert torch.equal(weight, saved[name.replace(".x.", ".")])


def test_only_the_policy_is_trained_and_in_fp32(trainer):
    trainable = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(".default." in name for name in trainable)
    assert {p.dtype for p in trainable.values()} == {torch.float32}


def test_it_trains_on_the_fast_path(trainer):
    assert trainer.stock_reason is None


def test_step_zero_is_ln_2_and_zero_margins(trainer):
    start = check_start(trainer)
    assert start["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert start["margin"] == 0
    assert start["gradient_cosine"] == pytest.approx(1, abs=1e-4)


def test_a_policy_that_does_not_start_at_its_reference_is_refused(small_run, tmp_path):
    work, profile, _ = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")
    moved = dpo_trainer(profile, pairs, work / "sft" / "adapter", tmp_path, seed=0)
    for weight in adapter_weights(moved.model, "default").values():
        weight.data.mul_(1.05)
    with pytest.raises(DpoKitError, match="the reference is not the policy's start"):
        check_start(moved)


@pytest.mark.parametrize(
    ("loss", "margin", "said"),
    [
        (0.8, 0.0, "loss 0.800000 in place of 0.693147"),
        (math.log(2), 0.5, "margins 0.500000 in place of 0.000000"),
        (float("nan"), 0.0, "loss nan"),
        (math.log(2), float("nan"), "margins nan"),
    ],
)
def test_neither_ln_2_nor_a_margin_of_zero_is_enough_alone(trainer, monkeypatch, loss, margin, said):
    """Margins of 1 and -1 have mean 0 and loss 0.81; a loss that is offset may be ln 2 at another margin."""
    measured(trainer, monkeypatch, loss, margin)
    with pytest.raises(DpoKitError, match=rf"there is {said}"):
        check_start(trainer)


def measured(trainer, monkeypatch, loss, margin, rewards=(0.0, 0.0)):
    found = {"loss": loss, "rewards/margins": margin, "rewards/chosen": rewards[0], "rewards/rejected": rewards[1]}
    monkeypatch.setattr(trainer, "evaluate", lambda data: {f"eval_{name}": value for name, value in found.items()})


def test_rewards_that_cancel_in_the_margin_are_seen(trainer, monkeypatch):
    """A reference that is off by the same on both sides leaves loss and margin as they should be."""
    measured(trainer, monkeypatch, math.log(2), 0.0, rewards=(0.3, 0.3))
    with pytest.raises(DpoKitError, match=r"chosen 0.300000 in place of 0.000000, rejected 0.300000"):
        check_start(trainer)


def test_another_loss_than_dpos_has_another_value_at_the_start(trainer, monkeypatch):
    monkeypatch.setattr(trainer, "loss_types", ["hinge"])
    measured(trainer, monkeypatch, 1.0, 0.0)
    assert check_start(trainer)["loss"] == 1.0


def test_the_gradient_is_checked_before_the_first_step(trainer, monkeypatch):
    def refuse(trainer):
        raise DpoKitError("the gradients of training differ")

    monkeypatch.setattr("dpo_kit.training.dpo.check_gradients", refuse)
    with pytest.raises(DpoKitError, match="the gradients of training differ"):
        check_start(trainer)


def test_sft_checks_the_gradient_before_its_first_step(small_profile, incidents, tmp_path, monkeypatch):
    asked = []

    def refuse(trainer):
        asked.append(trainer.state.global_step)
        raise DpoKitError("the gradients of training differ")

    monkeypatch.setattr("dpo_kit.training.sft.check_gradients", refuse)
    with pytest.raises(DpoKitError, match="the gradients of training differ"):
        train_sft(small_profile, incidents[:4], demonstrate(incidents[:4], Noise(), 0), tmp_path, seed=0)
    assert asked == [0]


def test_the_stock_forward_is_said(small_run, tmp_path, monkeypatch):
    """The log says why the fast path is not used, and the training is TRL's."""
    for module in ("fast", "dpo"):
        monkeypatch.setattr(f"dpo_kit.training.{module}.unsupported_reason", lambda model: "it has a reason")
    work, profile, _ = small_run
    pairs, said = read_pairs(work / "pairs" / "pairs.jsonl")[:4], []
    train_dpo(profile, pairs, work / "sft" / "adapter", [], tmp_path, seed=0, log=said.append)
    assert "TRL's own forward is used, not the fast one: it has a reason" in said
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_log_begins_at_ln_2_and_holds_every_step_and_the_kl(small_run):
    work, profile, _ = small_run
    log = read_log(work / "dpo" / "log.jsonl")
    steps = [row for row in log if "loss" in row]
    pairs = len(read_pairs(work / "pairs" / "pairs.jsonl"))
    assert [row["step"] for row in steps] == list(range(1, math.ceil(pairs / profile.dpo.batch_size) + 1))
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert all("rewards/margins" in row for row in steps), "measuring KL in between loses no training metric"
    kl = {row["step"]: row["kl/sequence"] for row in log if "kl/sequence" in row}
    assert kl[0] == 0, "an untrained policy is its reference"
    assert set(kl) >= {0, profile.dpo.kl_every, steps[-1]["step"]}
    assert kl[steps[-1]["step"]] > 0


def test_a_step_logs_what_one_looks_at(small_run):
    work, profile, _ = small_run
    for row in read_log(work / "dpo" / "log.jsonl"):
        if "loss" not in row:
            continue
        for side in ("chosen", "rejected", "margins"):
            assert row[f"rewards/{side}"] == pytest.approx(profile.dpo.beta * row[f"log_ratios/{side}"], abs=1e-9)
        assert row["log_ratios/margins"] == pytest.approx(
            row["log_ratios/chosen"] - row["log_ratios/rejected"], abs=1e-4
        )
        assert {"grad_norm", "learning_rate", "logps/chosen", "logps/rejected", "num_tokens"} <= row.keys()
        assert row["pairs_per_s"] > 0
        assert row["memory_mb"] > 100


def test_held_out_margins_and_answers_stand_beside_each_kl(small_run):
    """At the same steps. Before the first one the held-out margin is zero, as the policy is its reference."""
    work, profile, _ = small_run
    log = read_log(work / "dpo" / "log.jsonl")
    held_out = {row["step"]: row["eval_rewards/margins"] for row in log if "eval_loss" in row}
    measured = {row["step"]: row for row in log if "kl/sequence" in row}
    assert held_out.keys() == measured.keys()
    assert held_out[0] == 0
    assert any(held_out[step] != 0 for step in held_out)
    for row in measured.values():
        assert 0 < row["answers/length"] <= profile.pairs.max_new_tokens
        assert 0 <= row["answers/stop_rate"] <= 1
        assert len(row["answers/samples"]) == 2
        assert all(sample["prompt"].startswith("Triage") for sample in row["answers/samples"])


def test_the_share_of_answers_that_ended_is_that_of_answers_with_eos(small_run, tmp_path, monkeypatch):
    work, profile, _ = small_run
    arms = load_arms(profile, {"default": work / "dpo" / "adapter", "ref": work / "sft" / "adapter"})
    eos, log = arms.tokenizer.eos_token_id, MetricsLog(tmp_path / "log.jsonl")
    answers = [[5, eos], [6, 7, 8], [5, 6, eos], [eos]]
    monkeypatch.setattr("dpo_kit.training.dpo.sample_ids", lambda *_: answers)
    KlProbe(arms, draw_prompts(4, "heldout", "probe", 0), profile, log, 0, evaluate=False).measure(0)
    (row,) = read_log(log.path)
    assert (row["answers/stop_rate"], row["answers/length"]) == (3 / 4, (2 + 3 + 3 + 1) / 4)


def test_held_out_pairs_are_of_other_prompts(small_run):
    pairs, held_out = (read_pairs(small_run[0] / "pairs" / f"{name}.jsonl") for name in ("pairs", "heldout"))
    assert held_out
    assert not {p.prompt.text for p in held_out} & {p.prompt.text for p in pairs}


def test_a_tracker_gets_the_metrics_and_one_that_is_missing_is_said(small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    work, profile, _ = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")[:8]

    def train(tracker):
        dpo = profile.dpo.model_copy(update={"report_to": tracker})
        train_dpo(profile.model_copy(update={"dpo": dpo}), pairs, work / "sft" / "adapter", [], tmp_path, 0)

    with pytest.raises(DpoKitError, match="report_to = 'nobody' is not installed"):
        train("nobody")
    pytest.importorskip("tensorboard")
    train("tensorboard")
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    assert b"train/rewards/margins" in events.read_bytes()


def test_the_identity_of_the_reference_is_recorded(small_run):
    work = small_run[0]
    start = json.loads((work / "dpo" / "start.json").read_text())
    assert start["reference_sha256"] == sha256(work / "sft" / "adapter" / "adapter_model.safetensors")


def test_training_moved_the_policy_and_left_the_reference_file(small_run):
    work = small_run[0]
    sft, dpo = (load_file(work / arm / "adapter" / "adapter_model.safetensors") for arm in ("sft", "dpo"))
    assert sft.keys() == dpo.keys(), "the saved adapter is the policy alone, without `ref`"
    assert all(not torch.equal(sft[name], dpo[name]) for name in sft), "every weight can move"


def test_the_same_seed_trains_the_same_weights_and_another_does_not(small_profile, small_run, tmp_path):
    work = small_run[0]
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")
    trained = {}
    for name, seed in (("again", 0), ("other", 1)):
        folder = tmp_path / name
        folder.mkdir()
        train_dpo(small_profile, pairs, work / "sft" / "adapter", [pair.prompt for pair in pairs[:2]], folder, seed)
        trained[name] = load_file(folder / "adapter" / "adapter_model.safetensors")
    first = load_file(work / "dpo" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(first[name], trained["again"][name]) for name in first)
    assert not all(torch.equal(first[name], trained["other"][name]) for name in first)


def test_a_saved_adapter_gives_back_the_trained_model(small_run):
    work, profile, _ = small_run
    model = add_adapter(load_base(profile)[0], "dpo", work / "dpo" / "adapter").eval()
    again = add_adapter(load_base(profile)[0], "dpo", work / "dpo" / "adapter").eval()
    ids = torch.arange(5, 40)[None]
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_sft_bears_loss_on_the_demonstration_and_its_eos_only(small_profile, incidents, tmp_path):
    prompts = incidents[:4]
    demonstrations = demonstrate(prompts, Noise(), 0)
    trainer = sft_trainer(small_profile, prompts, demonstrations, tmp_path, seed=0)
    labels = next(iter(trainer.get_train_dataloader()))["labels"]
    trained = {trainer.processing_class.decode(row[row >= 0]) for row in labels}
    assert trained == {demonstration.text + "<|end|>" for demonstration in demonstrations}


def test_a_nan_is_logged_as_nan_and_a_cut_last_line_is_left_out(tmp_path):
    log = MetricsLog(tmp_path / "log.jsonl")
    log.write({"step": 1, "loss": float("nan")})
    log.write({"step": 2, "loss": 0.5})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    rows = read_log(tmp_path / "log.jsonl")
    assert math.isnan(rows[0]["loss"])
    assert [row["step"] for row in rows] == [1, 2]


def test_nan_weights_show_in_the_log(small_profile, small_run, tmp_path):
    """The library's default would log this loss as 0.0."""
    work = small_run[0]
    weights = load_file(work / "sft" / "adapter" / "adapter_model.safetensors")
    first = next(iter(weights))
    weights[first] = torch.full_like(weights[first], float("nan"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    (adapter / "adapter_config.json").write_bytes((work / "sft" / "adapter" / "adapter_config.json").read_bytes())
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")
    with pytest.raises(DpoKitError, match=r"there is loss nan .*a weight of the base or the adapter is not finite"):
        train_dpo(small_profile, pairs, adapter, [], tmp_path, seed=0)
    assert math.isnan(read_log(tmp_path / "log.jsonl")[0]["eval_loss"])
