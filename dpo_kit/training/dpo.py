"""DPO over TRL: the policy starts as the SFT arm, and the reference is a frozen copy of it."""

import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig

from dpo_kit.errors import DpoKitError
from dpo_kit.files import sha256, write_atomically
from dpo_kit.models.loading import Arms, adapters_to_fp32, add_adapter, load_base, save_adapter
from dpo_kit.models.memory import fewest_checkpoints
from dpo_kit.models.quantization import assert_gradients_alive
from dpo_kit.profiles import Profile
from dpo_kit.records import PreferencePair, Prompt
from dpo_kit.training.arguments import common_arguments, identity
from dpo_kit.training.checkpoints import Checkpoints
from dpo_kit.training.fast import unsupported_reason
from dpo_kit.training.guards import check_learning_rate, check_rows, check_trainable
from dpo_kit.training.metrics_log import attach
from dpo_kit.training.probes import KlProbe
from dpo_kit.training.trainers import LOG, CarefulDpo

PROBE = 64  # pairs on which step 0 is checked


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
    """Continue the SFT adapter with the DPO loss (arXiv 2305.18290, Eq. 7).

    Writes `adapter/`, `log.jsonl` (metrics a step; on `held_out` pairs and as KL to the reference every so often),
    `start.json` (what was checked before the first step) and `end.json` (see `last_rewards`) in `folder`. Checkpoints
    go to `scratch`, by default `folder/checkpoints`: a call with the same arguments goes on from the newest that
    verifies, to the same weights bit for bit as if it had never been stopped. `callbacks` are the trainer's, and those
    with an `on_row` hear each row of the log. Setting `stop` ends training after the step under way, with a checkpoint.
    Reference log-probs are computed once and kept in the file `references`, by default in the checkpoints' folder.
    Raises TrainingStopped then, and DpoKitError where the policy does not start at its reference, its gradient is not
    alive, a row teaches nothing or would teach it not to stop, or a loss is not finite.
    """
    scratch = scratch or folder / "checkpoints"
    cache = references or scratch / "references.sqlite"
    trainer = dpo_trainer(profile, pairs, sft_adapter, folder, seed, held_out, cache)
    if trainer.stock_reason:
        log(f"the stock forward is used, not the fast one: {trainer.why_stock}")
    if trainer.checkpoint_layers:
        log(f"activations of the first {trainer.checkpoint_layers} layers are computed again")
    reference = sha256(sft_adapter / "adapter_model.safetensors")
    data = [pair.to_trl() for pair in (*pairs, *held_out)] + [prompt.chat() for prompt in kl_prompts]
    made_for = {**identity(profile, trainer.model, seed, data, "dpo", "pairs"), "reference_sha256": reference}
    trainer.checkpoints = Checkpoints(scratch, made_for, log)
    trainer.metrics_log = attach(trainer, folder / LOG, "DPO", callbacks)
    check_rows(trainer)
    check_trainable(trainer.model)
    check_learning_rate(trainer.model, "dpo", profile.dpo)
    start = check_start(trainer)
    write_atomically(folder / "start.json", json.dumps({**start, "reference_sha256": reference}, indent=1) + "\n")
    arms = Arms(trainer.model, trainer.processing_class)
    trainer.add_callback(KlProbe(arms, kl_prompts, profile, trainer.metrics_log, seed, evaluate=bool(held_out)))
    trainer.run(stop)
    save_adapter(trainer.model, folder / "adapter")
    write_atomically(folder / "end.json", json.dumps(last_rewards(trainer), indent=1) + "\n")


def dpo_trainer(
    profile: Profile,
    pairs: Sequence[PreferencePair],
    sft_adapter: Path,
    folder: Path,
    seed: int,
    held_out: Sequence[PreferencePair] = (),
    references: Path | None = None,
) -> CarefulDpo:
    """TRL's trainer on the quantised base. The trained adapter is `default`, TRL's frozen copy of it is `ref`.

    With a file `references`, the reference's log-probs are precomputed or found there; else computed at each step.
    """
    model, tokenizer = load_base(profile)
    policy = add_adapter(model, "default", sft_adapter, trainable=True)
    arguments = common_arguments(profile, profile.dpo, folder, seed)
    if unsupported_reason(policy) is None:  # the fast path takes the whole batch and cuts it by tokens, not by rows
        arguments |= {"per_device_train_batch_size": profile.dpo.batch_size, "gradient_accumulation_steps": 1}
    trainer = CarefulDpo(
        policy,
        args=DPOConfig(
            **arguments,
            beta=profile.dpo.beta,
            lr_scheduler_type="linear",
            warmup_steps=profile.dpo.warmup_share,
            precompute_ref_log_probs=references is not None,
            precompute_ref_batch_size=arguments["per_device_eval_batch_size"],
        ),
        max_tokens=profile.dpo.max_tokens,
        reference_cache=references,
        checkpoint_layers=fewest_checkpoints(profile) if references else None,
        train_dataset=_dataset(pairs),
        eval_dataset=_dataset(held_out) if held_out else None,
        processing_class=tokenizer,
    )
    trainer.row_names = [pair.prompt.id for pair in pairs]
    adapters_to_fp32(trainer.model)
    _start_at_reference(trainer.model)
    return trainer


def _dataset(pairs: Sequence[PreferencePair]) -> Dataset:
    return Dataset.from_list([pair.to_trl() for pair in pairs])


def _start_at_reference(model: PeftModel) -> None:
    """Give the policy back what TRL's cast to bf16 rounded off it: `ref` was copied before the cast, and kept it."""
    for name, parameter in model.named_parameters():
        if ".default." in name:
            parameter.data.copy_(model.get_parameter(name.replace(".default.", ".ref.")).data)


def last_rewards(trainer: CarefulDpo) -> dict[str, list[float]]:
    """The rewards that the trained policy gives the first pairs, as the training itself computes them, so that whoever
    loads the saved adapter can prove that it is the same: see `release.prove`.
    """
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in trainer.probed]))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    trainer.model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        policy = trainer.model(**inputs, use_cache=False, fused_lm_head=True).log_probs.float().sum(dim=1)
    reference = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))
    chosen, rejected = (trainer.beta * (policy - reference)).chunk(2)
    return {"chosen": chosen.tolist(), "rejected": rejected.tolist()}


def check_start(trainer: CarefulDpo) -> dict[str, float]:
    """Assert that nothing has been learnt yet and that something can be: loss ln 2, margin 0, gradient alive.

    -log sigmoid is strictly convex, so a mean loss of ln 2 with a mean margin of 0 means that every margin is 0. It is
    measured on the held-out pairs where there are some, so that their curve has its first point, else on trained ones.
    Returns the measured loss, margin and gradient cosine. Raises DpoKitError otherwise.
    """
    probe = trainer.train_dataset.select(range(min(PROBE, len(trainer.train_dataset))))
    metrics = trainer.evaluate(trainer.eval_dataset or probe)
    loss, margin = metrics["eval_loss"], metrics["eval_rewards/margins"]
    # in bf16 the reference's log-probs, computed in other batches, are rounded another way
    rounding = 1e-5 if trainer.model.dtype == torch.float32 else 0.02
    if not (math.isclose(loss, math.log(2), abs_tol=rounding) and math.isclose(margin, 0, abs_tol=rounding)):
        raise DpoKitError(
            f"at step 0 the loss is {loss:.6f} and the margin {margin:.6f}, not ln 2 = 0.693147 and 0: the reference "
            "is not the policy's start; train from the SFT adapter, not from one that DPO has moved"
        )
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    cosine = assert_gradients_alive(trainer.model, {"input_ids": batch["input_ids"][:4], "labels": labels[:4]})
    return {"loss": loss, "margin": margin, "gradient_cosine": cosine}
