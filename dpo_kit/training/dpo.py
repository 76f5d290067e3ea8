"""DPO over TRL: the policy starts as the SFT arm, and the reference is a frozen copy of it."""

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import DPOConfig

from dpo_kit.errors import DpoKitError
from dpo_kit.files import sha256, write_atomically
from dpo_kit.models.generation import Sampling, sample_ids
from dpo_kit.models.loading import Arms, adapters_to_fp32, add_adapter, load_base, save_adapter
from dpo_kit.models.logprobs import kl_of_answers
from dpo_kit.models.memory import fewest_checkpoints
from dpo_kit.models.tokens import Scoring, pair_row, stop_ids
from dpo_kit.profiles import SMOOTHED, DpoSettings, Profile
from dpo_kit.records import PreferencePair, Prompt
from dpo_kit.training.checkpoints import Checkpoints
from dpo_kit.training.fast import unsupported_reason
from dpo_kit.training.guards import check_gradients, check_learning_rate, check_rows, check_trainable
from dpo_kit.training.metrics_log import MetricsLog, attach
from dpo_kit.training.trainers import (
    LOG,
    GuardedDPOTrainer,
    MaskedPairs,
    common_arguments,
    refuse_several_processes,
    run_identity,
)

PROBE_PAIRS = 64  # pairs on which loss and margin are checked before the first step
SHOWN = 2  # answers written to the log at each measurement of the KL


def train_dpo(
    profile: Profile,
    pairs: Sequence[PreferencePair],
    sft_adapter: Path,
    kl_prompts: Sequence[Prompt],
    folder: Path,
    seed: int,
    *,
    held_out: Sequence[PreferencePair] = (),
    callbacks: Sequence[Any] = (),
    scratch: Path | None = None,
    stop: threading.Event | None = None,
    references: Path | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Train the SFT adapter further with the DPO loss (arXiv 2305.18290, Eq. 7).

    Writes in `folder`: `adapter/`; `log.jsonl` with the metrics of each step and, every `kl_every` steps, those of the
    `held_out` pairs and the KL to the reference; `start.json` with what was measured before the first step; `end.json`
    (see `last_rewards`). Checkpoints go to `scratch`, by default `folder/checkpoints`. A call with the same arguments
    goes on from the newest checkpoint that verifies, and ends with the same weights, bit for bit, as a run that was not
    stopped. Each of `callbacks` is a TrainerCallback, or has a method `on_row` that is called with each row of the log.
    Setting `stop` ends training after the step under way, with a checkpoint. Reference log-probs are computed once and
    kept in the file `references`, by default in the checkpoints' folder.

    Raises TrainingStopped after `stop`. Raises DpoKitError where this is one of several processes, the policy differs
    from its reference before the first step, its gradient is wrong, a row has no gradient or would teach the model not
    to stop, or a loss is not finite.
    """
    refuse_several_processes()
    scratch = scratch or folder / "checkpoints"
    cache = references or scratch / "reference_logps.sqlite"
    trainer = dpo_trainer(profile, pairs, sft_adapter, folder, seed, held_out, cache)
    if trainer.stock_reason:
        log(f"TRL's own forward is used, not the fast one: {trainer.stock_reason}")
    if trainer.checkpoint_layers:
        log(f"activations of the first {trainer.checkpoint_layers} layers are recomputed in the backward pass")
    reference = sha256(sft_adapter / "adapter_model.safetensors")
    data = [pair.to_trl() for pair in (*pairs, *held_out)] + [prompt.chat() for prompt in kl_prompts]
    made_for = {**run_identity(profile, trainer.model, seed, data, "dpo", "pairs"), "reference_sha256": reference}
    trainer.checkpoints = Checkpoints(scratch, made_for, log)
    trainer.metrics_log = attach(trainer, folder / LOG, "DPO", callbacks)
    check_rows(trainer)
    check_trainable(trainer.model)
    check_learning_rate(trainer.model, "dpo", profile.dpo)
    check_schedule(trainer)
    start = check_start(trainer)
    write_atomically(folder / "start.json", json.dumps({**start, "reference_sha256": reference}, indent=1) + "\n")
    arms = Arms(trainer.model, trainer.processing_class)
    trainer.add_callback(KlProbe(arms, kl_prompts, profile, trainer.metrics_log, seed, evaluate=bool(held_out)))
    trainer.run(stop)
    check_moved(trainer)
    save_adapter(trainer.model, folder / "adapter", template=trainer.processing_class.chat_template)
    write_atomically(folder / "end.json", json.dumps(last_rewards(trainer), indent=1) + "\n")


def dpo_trainer(
    profile: Profile,
    pairs: Sequence[PreferencePair],
    sft_adapter: Path,
    folder: Path,
    seed: int,
    held_out: Sequence[PreferencePair] = (),
    references: Path | None = None,
) -> GuardedDPOTrainer:
    """TRL's trainer on the quantised base. The adapter that is trained is `default`; TRL's frozen copy of it is `ref`.

    With a file `references` the reference's log-probs are read from it, or computed once and stored there. Without it
    they are computed at each step.
    """
    model, tokenizer = load_base(profile, sft_adapter)
    scoring = Scoring.of(profile.model)
    rows, measured = (Dataset.from_list([pair_row(tokenizer, p, scoring) for p in some]) for some in (pairs, held_out))
    policy = add_adapter(model, "default", sft_adapter, trainable=True)
    arguments = common_arguments(profile, profile.dpo, folder, seed)
    if unsupported_reason(policy) is None:  # the fast path takes the whole batch and cuts it by tokens, not by rows
        arguments |= {"per_device_train_batch_size": profile.dpo.batch_size, "gradient_accumulation_steps": 1}
    trainer = GuardedDPOTrainer(
        policy,
        args=DPOConfig(
            **arguments,
            beta=profile.dpo.beta,
            **loss_arguments(profile.dpo),
            warmup_steps=profile.dpo.warmup_share,
            precompute_ref_log_probs=references is not None,
            precompute_ref_batch_size=arguments["per_device_eval_batch_size"],
            router_aux_loss_coef=0.0,  # the balancing loss of experts is no part of DPO: at step 0 the loss is ln 2
        ),
        max_tokens=profile.dpo.max_tokens,
        reference_cache=references,
        checkpoint_layers=fewest_checkpoints(profile) if references else None,
        train_dataset=rows,
        eval_dataset=measured if held_out else None,
        data_collator=MaskedPairs(tokenizer.pad_token_id, arguments["max_length"]),
        processing_class=tokenizer,
    )
    trainer.row_names = [pair.prompt.id for pair in pairs]
    adapters_to_fp32(trainer.model)
    _start_at_reference(trainer.model)
    return trainer


def _start_at_reference(model: PeftModel) -> None:
    """Undo the rounding of the policy's adapter to bf16 by TRL, which copied the adapter to `ref` before it rounded."""
    for policy, reference in _trained_and_start(model):
        policy.data.copy_(reference.data)


def _trained_and_start(model: PeftModel) -> Iterator[tuple[Tensor, Tensor]]:
    """Each weight of the adapter that is trained, with the same weight of the reference, where it started."""
    for name, parameter in model.named_parameters():
        if ".default." in name:
            yield parameter, model.get_parameter(name.replace(".default.", ".ref."))


def check_start(trainer: GuardedDPOTrainer) -> dict[str, float]:
    """Check that the policy equals its reference before the first step, and that training computes the right gradient.

    Where the loss is DPO's, -log sigmoid, it is ln 2 at margin 0. It is strictly convex, so a mean loss of ln 2
    together with a mean margin of 0 means that every margin is 0. Other losses have other values at margin 0, so for
    them only the mean rewards of both sides and the margin are compared with 0. All are measured on the held-out pairs
    where there are any, so that their curve has its first point, else on training pairs.

    Returns the loss, the margin and the lowest cosine of the gradients (see `check_gradients`).
    Raises DpoKitError where one of them is wrong.
    """
    probe = trainer.train_dataset.select(range(min(PROBE_PAIRS, len(trainer.train_dataset))))
    metrics = trainer.evaluate(trainer.eval_dataset or probe)
    loss, margin = metrics["eval_loss"], metrics["eval_rewards/margins"]
    # in bf16 the reference's log-probs, which were computed in other batches, are rounded in another way
    rounding = 1e-5 if trainer.model.dtype == torch.float32 else 0.02
    expected = {"loss": (loss, math.log(2))} if trainer.loss_types == ["sigmoid"] else {}
    expected |= {name: (metrics[f"eval_rewards/{name}"], 0.0) for name in ("margins", "chosen", "rejected")}
    wrong = [name for name, (found, at) in expected.items() if not math.isclose(found, at, abs_tol=rounding)]
    if wrong:
        found = ", ".join(f"{name} {expected[name][0]:.6f} in place of {expected[name][1]:.6f}" for name in wrong)
        raise DpoKitError(
            f"at step 0 nothing has been learnt, yet there is {found}: "
            + (
                "a weight of the base or the adapter is not finite"
                if math.isnan(margin)
                else "the reference is not "
                "the policy's start; train from the SFT adapter, not from one that DPO has moved"
            )
        )
    return {"loss": loss, "margin": margin, "gradient_cosine": check_gradients(trainer)}


def loss_arguments(settings: DpoSettings) -> dict[str, Any]:
    """The losses of a profile as keyword arguments of TRL's `DPOConfig`.

    TRL has no cDPO: its "sigmoid" ignores `label_smoothing`. With x = beta * (log-ratio chosen - rejected),

        cDPO(e)   = -(1 - e) log sigmoid(x) - e log sigmoid(-x) = -log sigmoid(x) + e x
        robust(s) = -log sigmoid(x) - s x / (1 - 2 s)

    so cDPO(e) = (1 + 2 e) DPO - 2 e robust(1/4). Raises DpoKitError where "cdpo" stands beside another loss that uses
    `label_smoothing`, because TRL has one value for all.
    """
    weights = settings.loss_weights or [1.0] * len(settings.loss)
    losses = dict(zip(settings.loss, weights, strict=True))
    smoothing = settings.label_smoothing
    if "cdpo" in losses:
        if others := SMOOTHED.intersection(losses) - {"cdpo"}:
            raise DpoKitError(f"dpo.loss: cdpo cannot stand beside {', '.join(sorted(others))}; choose one of them")
        weight = losses.pop("cdpo")
        losses["sigmoid"] = losses.get("sigmoid", 0.0) + weight * (1 + 2 * smoothing)
        losses["robust"], smoothing = -2 * smoothing * weight, 0.25
    return {"loss_type": list(losses), "loss_weights": list(losses.values()), "label_smoothing": smoothing}


def check_schedule(trainer: GuardedDPOTrainer) -> None:
    """Raise DpoKitError where every optimiser step falls into the warm-up, which starts at a learning rate of 0."""
    steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    warmup = trainer.args.get_warmup_steps(steps)
    if steps <= warmup:
        raise DpoKitError(
            f"{steps} optimiser steps, and the warm-up takes {warmup}: the learning rate would start at 0 and never "
            f"reach {trainer.args.learning_rate:g}; lower dpo.batch_size (now {trainer.args.train_batch_size}), raise "
            "dpo.epochs, or set dpo.warmup_share = 0"
        )


def check_moved(trainer: GuardedDPOTrainer) -> None:
    """Raise DpoKitError where training has not changed any weight."""
    if all(torch.equal(policy, reference) for policy, reference in _trained_and_start(trainer.model)):
        raise DpoKitError(
            "training ended with the weights that it started with: nothing was learnt; raise dpo.learning_rate or the "
            "number of steps (dpo.epochs, or a smaller dpo.batch_size)"
        )


def last_rewards(trainer: GuardedDPOTrainer) -> dict[str, list[float]]:
    """The rewards that the trained policy gives to the first pairs, by side, as training itself computes them.

    `release.prove` compares the saved adapter with them, to prove that it is the one that was trained.
    """
    batch = trainer.probe_batch()
    trainer.model.eval()
    with torch.no_grad():
        policy = trainer.sequence_logps(batch)
    reference = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))
    chosen, rejected = (trainer.beta * (policy - reference)).chunk(2)
    return {"chosen": chosen.tolist(), "rejected": rejected.tolist()}


class KlProbe(TrainerCallback):
    """Logs KL(policy || reference) on the policy's own answers: before training, every `kl_every` steps, and after it.

    With `evaluate` the trainer's held-out pairs are evaluated at the same steps, so that margin and KL can be compared.
    """

    def __init__(
        self, arms: Arms, prompts: Sequence[Prompt], profile: Profile, log: MetricsLog, seed: int, *, evaluate: bool
    ):
        self.arms, self.prompts, self.log, self.every = arms, prompts, log, profile.dpo.kl_every
        self.evaluate = evaluate
        self.sampling = Sampling(1.0, seed, profile.pairs.max_new_tokens, profile.pairs.batch_size)

    def measure(self, step: int) -> None:
        """Write one row about answers that are sampled at temperature 1 to the metrics log.

        `kl/sequence`, `kl/standard_error` and `kl/per_token` are in nats, `answers/length` is in tokens. The share that
        ended in EOS is `answers/stop_rate`, and `answers/samples` holds the first few answers with their prompts.
        """
        if not self.prompts:
            return
        answers = sample_ids(self.arms, "default", self.prompts, self.sampling)
        kl = kl_of_answers(self.arms, "default", "ref", self.prompts, answers, self.sampling.batch_size)
        tokenizer, shown = self.arms.tokenizer, list(zip(self.prompts, answers, strict=True))[:SHOWN]
        texts = [(prompt.text, tokenizer.decode(ids, skip_special_tokens=True)) for prompt, ids in shown]
        row = {"step": step, **{f"kl/{name}": value for name, value in asdict(kl).items()}}
        row["answers/length"] = sum(map(len, answers)) / len(answers)
        stops = set(stop_ids(tokenizer, self.arms.model))
        row["answers/stop_rate"] = sum(not stops.isdisjoint(ids) for ids in answers) / len(answers)
        row["answers/samples"] = [{"prompt": prompt, "answer": answer} for prompt, answer in texts]
        self.log.write(row)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 0:  # the log of a resumed run has this row already
            self.measure(0)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.measure(state.global_step)
            control.should_evaluate = self.evaluate
