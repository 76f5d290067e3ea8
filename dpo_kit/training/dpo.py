"""DPO over TRL: the policy starts as the SFT arm, and the reference is a frozen copy of it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from dpo_kit.errors import DpoKitError
from dpo_kit.files import sha256, write_atomically
from dpo_kit.models.generation import Sampling
from dpo_kit.models.loading import Arms, adapters_to_fp32, add_adapter, load_base, save_adapter
from dpo_kit.models.logprobs import on_policy_kl
from dpo_kit.models.quantization import assert_gradients_alive
from dpo_kit.profiles import Profile
from dpo_kit.records import PreferencePair, Prompt
from dpo_kit.training.arguments import common_arguments
from dpo_kit.training.metrics_log import MetricsLog, attach

PROBE = 64  # pairs on which step 0 is checked


def train_dpo(
    profile: Profile,
    pairs: Sequence[PreferencePair],
    sft_adapter: Path,
    kl_prompts: Sequence[Prompt],
    folder: Path,
    seed: int,
) -> None:
    """Continue the SFT adapter with the DPO loss (arXiv 2305.18290, Eq. 7).

    Writes `adapter/`, `log.jsonl` (metrics a step, and KL to the reference every so often) and `start.json` (what was
    checked before the first step) in `folder`.
    Raises DpoKitError where the policy does not start at its reference, or its gradient is not alive.
    """
    trainer = dpo_trainer(profile, pairs, sft_adapter, folder, seed)
    log = attach(trainer, folder / "log.jsonl", "DPO")
    start = check_start(trainer)
    reference = sha256(sft_adapter / "adapter_model.safetensors")
    write_atomically(folder / "start.json", json.dumps({**start, "reference_sha256": reference}, indent=1) + "\n")
    trainer.add_callback(KlProbe(Arms(trainer.model, trainer.processing_class), kl_prompts, profile, log, seed))
    trainer.train()
    save_adapter(trainer.model, folder / "adapter")


def dpo_trainer(
    profile: Profile, pairs: Sequence[PreferencePair], sft_adapter: Path, folder: Path, seed: int
) -> DPOTrainer:
    """TRL's trainer on the quantised base. The trained adapter is `default`, TRL's frozen copy of it is `ref`."""
    model, tokenizer = load_base(profile)
    trainer = DPOTrainer(
        add_adapter(model, "default", sft_adapter, trainable=True),
        args=DPOConfig(
            **common_arguments(profile, profile.dpo, folder, seed),
            beta=profile.dpo.beta,
            lr_scheduler_type="linear",
            warmup_steps=profile.dpo.warmup_share,
        ),
        train_dataset=Dataset.from_list([pair.to_trl() for pair in pairs]),
        processing_class=tokenizer,
    )
    adapters_to_fp32(trainer.model)
    _start_at_reference(trainer.model)
    return trainer


def _start_at_reference(model: PeftModel) -> None:
    """Give the policy back what TRL's cast to bf16 rounded off it: `ref` was copied before the cast, and kept it."""
    for name, parameter in model.named_parameters():
        if ".default." in name:
            parameter.data.copy_(model.get_parameter(name.replace(".default.", ".ref.")).data)


def check_start(trainer: DPOTrainer) -> dict[str, float]:
    """Assert that nothing has been learnt yet and that something can be: loss ln 2, margin 0, gradient alive.

    -log sigmoid is strictly convex, so a mean loss of ln 2 with a mean margin of 0 means that every margin is 0.
    Returns the measured loss, margin and gradient cosine. Raises DpoKitError otherwise.
    """
    probe = trainer.train_dataset.select(range(min(PROBE, len(trainer.train_dataset))))
    metrics = trainer.evaluate(probe)
    loss, margin = metrics["eval_loss"], metrics["eval_rewards/margins"]
    if not (math.isclose(loss, math.log(2), abs_tol=1e-5) and math.isclose(margin, 0, abs_tol=1e-5)):
        raise DpoKitError(
            f"at step 0 the loss is {loss:.6f} and the margin {margin:.6f}, not ln 2 = 0.693147 and 0: the reference "
            "is not the policy's start; train from the SFT adapter, not from one that DPO has moved"
        )
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    cosine = assert_gradients_alive(trainer.model, {"input_ids": batch["input_ids"][:4], "labels": labels[:4]})
    return {"loss": loss, "margin": margin, "gradient_cosine": cosine}


class KlProbe(TrainerCallback):
    """Logs KL(policy || reference) on the policy's own answers: before, every `kl_every` steps, and after."""

    def __init__(self, arms: Arms, prompts: Sequence[Prompt], profile: Profile, log: MetricsLog, seed: int):
        self.arms, self.prompts, self.log, self.every = arms, prompts, log, profile.dpo.kl_every
        self.how = Sampling(1.0, seed, profile.pairs.max_new_tokens, profile.pairs.batch_size)

    def measure(self, step: int) -> None:
        """One row in the metrics log: `kl/sequence`, `kl/standard_error`, `kl/per_token`, in nats."""
        estimate = on_policy_kl(self.arms, "default", "ref", self.prompts, self.how)
        self.log.write({"step": step, **{f"kl/{name}": value for name, value in asdict(estimate).items()}})

    def on_train_begin(self, args, state, control, **kwargs):
        self.measure(0)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.measure(state.global_step)
