"""Choices for a training: the loss, label smoothing, the optimiser, the start of DPO, and how it stops."""

import math
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_pairs
from dpo_kit.models.identity import read_record, write_record
from dpo_kit.models.loading import load_arms
from dpo_kit.profiles import DpoSettings, load_profile
from dpo_kit.training.dpo import check_moved, check_schedule, check_start, dpo_trainer, loss_arguments, train_dpo
from dpo_kit.training.metrics_log import read_log
from dpo_kit.training.release import answer_logps, settings_of
from dpo_kit.training.sft import copy_adapter, start_at_base, train_sft
from dpo_kit.training.trainers import GuardedDPOTrainer, TrainingStopped
from dpo_kit.triage.demonstrations import Noise, demonstrate
from dpo_kit.workbook.cells import without_timings


def settings(**changed):
    """The small profile's table `dpo` with these settings, checked as those of a profile are."""
    return DpoSettings(**{**load_profile("tiny").dpo.model_dump(), **changed})


def with_dpo(profile, **changed):
    return profile.model_copy(update={"dpo": DpoSettings(**{**profile.dpo.model_dump(), **changed})})


@pytest.mark.parametrize("noise", [0.1, 0.25, 0.4])
def test_cdpo_is_the_cross_entropy_of_smoothed_labels(noise):
    """-(1 - e) log sigmoid(x) - e log sigmoid(-x), from two losses that TRL has, for any x."""
    arguments = loss_arguments(settings(loss=["cdpo"], label_smoothing=noise))
    x, s = torch.linspace(-5, 5, 41, dtype=torch.float64), arguments["label_smoothing"]
    trl = {
        "sigmoid": -F.logsigmoid(x),
        "robust": (-(1 - s) * F.logsigmoid(x) + s * F.logsigmoid(-x)) / (1 - 2 * s),
    }
    weights = dict(zip(arguments["loss_type"], arguments["loss_weights"], strict=True))
    found = sum(weight * trl[name] for name, weight in weights.items())
    expected = -(1 - noise) * F.logsigmoid(x) - noise * F.logsigmoid(-x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_trls_trainer_computes_cdpo(small_run, tmp_path):
    """The same at x = 0.1 * (log-ratio of chosen - rejected) of a policy that has moved, through the whole trainer."""
    work, profile, _ = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")[:4]
    profile = with_dpo(profile, loss=["cdpo"], label_smoothing=0.2)
    trainer = dpo_trainer(profile, pairs, work / "sft" / "adapter", tmp_path, seed=0)
    for name, weight in trainer.model.named_parameters():
        if ".default." in name:
            weight.data.mul_(1.2)
    batch = trainer.probe_batch()
    with torch.no_grad():
        ratios = trainer.sequence_logps(batch) - torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))
        chosen, rejected = ratios.chunk(2)
        x = trainer.beta * (chosen - rejected)
        found = trainer.compute_loss(trainer.model.train(), batch)
    assert x.abs().max() > 0.01
    expected = (-0.8 * F.logsigmoid(x) - 0.2 * F.logsigmoid(-x)).mean()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", ["ipo", "hinge", "robust", "apo_zero", "sigmoid_norm", "aot"])
def test_a_loss_of_trls_trains_from_its_reference(small_run, tmp_path, loss):
    work, profile, _ = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")[:8]
    noise = {"label_smoothing": 0.1} if loss in ("robust", "aot") else {}
    trained = with_dpo(profile, loss=[loss], warmup_share=0, **noise)
    train_dpo(trained, pairs, work / "sft" / "adapter", [], tmp_path, seed=0, held_out=pairs[:2], log=lambda line: None)
    rows = [row for row in read_log(tmp_path / "log.jsonl") if "loss" in row]
    assert rows
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_the_likelihood_of_chosen_answers_is_added_with_its_weight(small_run, tmp_path):
    """["sigmoid", "sft"]: at the start ln 2 plus w times the mean negative log-prob of the chosen answers' tokens."""
    work, profile, _ = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")[:4]
    found = {}
    for weight in (0.0, 0.5):
        trained = with_dpo(profile, loss=["sigmoid", "sft"], loss_weights=[1.0, weight])
        trainer = dpo_trainer(trained, pairs, work / "sft" / "adapter", tmp_path, seed=0)
        found[weight] = check_start(trainer)["loss"]
    batch = trainer.probe_batch()
    mask = batch["completion_mask"].bool()
    with torch.no_grad():
        chosen_sum = trainer.sequence_logps(batch).chunk(2)[0].sum()
    tokens = mask.chunk(2)[0].sum()
    assert found[0.0] == pytest.approx(math.log(2), abs=1e-6)
    assert found[0.5] - found[0.0] == pytest.approx(-0.5 * float(chosen_sum / tokens), abs=1e-4)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label_smoothing": 0.1}, "would be ignored by sigmoid"),
        ({"loss": ["robust"]}, "robust needs label_smoothing"),
        ({"loss": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 loss_weights for 2 losses"),
        ({"loss": ["sigmoid", "sigmoid"]}, "each once"),
        ({"loss": []}, "name at least one loss"),
    ],
    ids=["ignored", "needed", "weights", "twice", "none"],
)
def test_losses_that_do_not_fit_are_refused_when_the_profile_is_read(changed, said):
    with pytest.raises(DpoKitError, match=said):
        load_profile("tiny", dpo=changed)


def test_cdpo_beside_another_loss_with_smoothed_labels_is_refused():
    with pytest.raises(DpoKitError, match="cdpo cannot stand beside robust"):
        loss_arguments(settings(loss=["cdpo", "robust"], label_smoothing=0.1))


@pytest.mark.parametrize("optimizer", ["adamw_torch", "rmsprop", "sgd"])
def test_the_optimiser_is_the_one_that_the_profile_names(small_run, tmp_path, optimizer):
    work, profile, _ = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")[:4]
    trainer = dpo_trainer(
        with_dpo(profile, optimizer=optimizer, scheduler="cosine"), pairs, work / "sft" / "adapter", tmp_path, seed=0
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    assert type(trainer.optimizer).__name__.lower() == {"adamw_torch": "adamw"}.get(optimizer, optimizer)
    assert trainer.args.lr_scheduler_type == "cosine"


def test_a_run_that_is_all_warm_up_is_refused_before_it_begins(small_run, tmp_path):
    """One step with a warm-up of ceil(0.1 * 1) = 1 step trains at rate 0."""
    work, profile, _ = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")[:4]
    trainer = dpo_trainer(
        with_dpo(profile, batch_size=4, epochs=1, warmup_share=0.1), pairs, work / "sft" / "adapter", tmp_path, seed=0
    )
    with pytest.raises(DpoKitError, match="1 optimiser steps, and the warm-up takes 1"):
        check_schedule(trainer)
    trainer = dpo_trainer(
        with_dpo(profile, batch_size=4, warmup_share=0), pairs, work / "sft" / "adapter", tmp_path, seed=0
    )
    check_schedule(trainer)


def test_a_run_that_ends_where_it_started_is_refused(small_run, tmp_path):
    work, profile, _ = small_run
    trainer = dpo_trainer(
        profile, read_pairs(work / "pairs" / "pairs.jsonl")[:4], work / "sft" / "adapter", tmp_path, seed=0
    )
    with pytest.raises(DpoKitError, match="the weights that it started with"):
        check_moved(trainer)
    next(p for n, p in trainer.model.named_parameters() if ".default." in n).data.view(-1)[0] += 1e-3
    check_moved(trainer)


def test_an_adapter_that_starts_at_the_base_gives_the_bases_log_probs(small_run, small_profile, tmp_path):
    start_at_base(small_profile, tmp_path / "zero", seed=0)
    pairs = read_pairs(small_run[0] / "pairs" / "pairs.jsonl")[:2]
    arms = load_arms(small_profile, {"zero": tmp_path / "zero", "sft": small_run[0] / "sft" / "adapter"})
    base, zero, sft = (answer_logps(arms, arm, pairs) for arm in ("base", "zero", "sft"))
    torch.testing.assert_close(zero, base, rtol=0, atol=1e-4)
    assert (sft - base).abs().max() > 0.1  # another adapter does change them


def test_an_adapter_to_start_from_is_copied_with_what_says_its_base(small_run, small_profile, tmp_path):
    source = small_run[0] / "sft" / "adapter"
    copy_adapter(small_profile, source, tmp_path / "copy")
    for name in ("adapter_model.safetensors", "base.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
    with pytest.raises(DpoKitError, match=r"sft.from = .*no adapter_config.json there"):
        copy_adapter(small_profile, tmp_path / "nowhere", tmp_path / "other")


def test_layers_rank_and_kind_of_the_adapter_are_the_profiles(small_profile, tmp_path):
    model = {"lora_targets": ["q_proj", "v_proj"], "lora_r": 4, "dora": True, "rslora": True}
    profile = small_profile.model_copy(update={"model": small_profile.model.model_copy(update=model)})
    start_at_base(profile, tmp_path / "adapter", seed=0)
    arms = load_arms(profile, {"x": tmp_path / "adapter"})
    config = arms.model.peft_config["x"]
    assert (set(config.target_modules), config.r, config.use_dora, config.use_rslora) == (
        {"q_proj", "v_proj"}, 4, True, True,
    )  # fmt: skip
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in arms.model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "v_proj"}


def test_a_record_travels_with_the_adapter(small_profile, tmp_path):
    write_record(tmp_path, settings_of(small_profile))
    record = read_record(tmp_path)
    assert record["model"]["max_length"] == small_profile.model.max_length
    assert Path(record["model"]["path"]) == Path(small_profile.model_path)
    assert record["dpo"]["beta"] == small_profile.dpo.beta
    assert read_record(tmp_path / "nowhere") is None
    (tmp_path / "dpo_kit.json").write_text("[1, 2")
    with pytest.raises(DpoKitError, match=r"dpo_kit.json: not a JSON object"):
        read_record(tmp_path)


def test_the_released_adapter_says_how_it_was_trained(small_run):
    work, profile, _ = small_run
    from dpo_kit import pipeline
    from dpo_kit.workspace import Workspace

    released = pipeline.release(Workspace(work, profile.name, lambda line: None), profile, 0)
    assert read_record(released / "adapter")["dpo"] == profile.dpo.model_dump()


def test_the_longest_batch_is_tried_first_and_changes_nothing(small_run, tmp_path, monkeypatch):
    """Weights and log are, bit for bit, those of a run that does not try it."""
    work, profile, _ = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")[:12]
    tried = []
    own = GuardedDPOTrainer._try_longest
    monkeypatch.setattr(GuardedDPOTrainer, "_try_longest", lambda self, model: tried.append(1) or own(self, model))
    for name, fits in (("with", False), ("without", True)):
        monkeypatch.setattr(GuardedDPOTrainer, "_longest_fits", fits)
        folder = tmp_path / name
        folder.mkdir()
        train_dpo(profile, pairs, work / "sft" / "adapter", [], folder, seed=0, log=lambda line: None)
    assert tried == [1]
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]
    logs = [without_timings(read_log(tmp_path / name / "log.jsonl")) for name in ("with", "without")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_too_little_memory_is_said_before_the_first_step_with_a_setting_that_helps(
    small_run, small_profile, incidents, tmp_path, monkeypatch, stage
):
    def no_memory(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("transformers.Trainer.training_step", no_memory)
    pairs, adapter = read_pairs(small_run[0] / "pairs" / "pairs.jsonl")[:8], small_run[0] / "sft" / "adapter"
    shown = demonstrate(incidents[:8], Noise(), 0)
    train = {
        "sft": lambda: train_sft(small_profile, incidents[:8], shown, tmp_path, seed=0),
        "dpo": lambda: train_dpo(small_profile, pairs, adapter, [], tmp_path, seed=0),
    }[stage]
    with pytest.raises(DpoKitError, match=rf"{stage}: the \d+ longest rows, of up to \d+ tokens, do not fit") as told:
        train()
    assert f"--set {stage}.max_tokens=" in str(told.value)


def test_a_run_goes_on_with_fewer_tokens_at_once(small_run, tmp_path):
    """`max_tokens` says how a batch is cut, not what is learnt from it: a checkpoint made with another one is used."""
    work, profile, _ = small_run
    pairs, said = read_pairs(work / "pairs" / "pairs.jsonl")[:12], []
    stop = threading.Event()
    stopper = SimpleNamespace(on_row=lambda row: stop.set())
    profile = with_dpo(profile, batch_size=4, warmup_share=0)
    adapter = work / "sft" / "adapter"
    with pytest.raises(TrainingStopped):
        train_dpo(profile, pairs, adapter, [], tmp_path, seed=0, callbacks=[stopper], stop=stop)
    smaller = with_dpo(profile, max_tokens=256)
    train_dpo(smaller, pairs, work / "sft" / "adapter", [], tmp_path, seed=0, log=said.append)
    assert any("verified, going on from it" in line for line in said), said
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl") if "loss" in row] == [1, 2, 3]
