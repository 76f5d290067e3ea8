"""Supervised fine-tuning. Its adapter is the start of DPO, and the reference that DPO is compared with."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import get_peft_model
from transformers import set_seed
from trl import SFTConfig

from dpo_kit.errors import DpoKitError
from dpo_kit.files import write_atomically
from dpo_kit.models.loading import adapters_to_fp32, add_adapter, load_base, lora, save_adapter
from dpo_kit.models.tokens import TEMPLATE, Scoring, encode
from dpo_kit.profiles import Profile
from dpo_kit.records import Prompt, Response
from dpo_kit.training.checkpoints import Checkpoints
from dpo_kit.training.guards import check_gradients, check_learning_rate, check_rows, check_trainable
from dpo_kit.training.metrics_log import attach
from dpo_kit.training.trainers import LOG, GuardedSFTTrainer, common_arguments, refuse_several_processes, run_identity


def train_sft(
    profile: Profile,
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Response],
    folder: Path,
    seed: int,
    *,
    callbacks: Sequence[Any] = (),
    scratch: Path | None = None,
    stop: threading.Event | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Train a LoRA adapter on demonstrations. Only their tokens, EOS included, bear loss.

    Writes `adapter/` and `log.jsonl` in `folder`. Callbacks, checkpoints, resuming and stopping are as in `train_dpo`.
    Raises DpoKitError where the gradient is wrong, a row would teach the model not to stop, or a loss is not finite.
    """
    refuse_several_processes()
    scratch = scratch or folder / "checkpoints"
    trainer = sft_trainer(profile, prompts, demonstrations, folder, seed, scratch)
    template = trainer.processing_class.chat_template
    write_atomically(scratch / TEMPLATE, template)  # a run that goes on tomorrow has today's date in its prompts
    rows = [_row(*row) for row in zip(prompts, demonstrations, strict=True)]
    made_for = run_identity(profile, trainer.model, seed, rows, "sft")
    trainer.checkpoints = Checkpoints(scratch, made_for, log)
    trainer.metrics_log = attach(trainer, folder / LOG, "SFT", callbacks)
    check_rows(trainer)
    check_trainable(trainer.model)
    check_learning_rate(trainer.model, "sft", profile.sft)
    check_gradients(trainer)
    trainer.run(stop)
    save_adapter(trainer.model, folder / "adapter", template=template)


def start_at_base(profile: Profile, folder: Path, seed: int) -> None:
    """Write a new adapter with B = 0. It leaves the base's output unchanged, so DPO starts from the base itself."""
    set_seed(seed)
    model, tokenizer = load_base(profile)
    adapted = get_peft_model(model, lora(profile), autocast_adapter_dtype=True)
    save_adapter(adapted, folder, template=tokenizer.chat_template)


def copy_adapter(profile: Profile, source: Path, folder: Path) -> None:
    """Copy the adapter in the folder `source`, for DPO to start from.

    Raises DpoKitError where there is none, or where it was trained on another base.
    """
    if not (source / "adapter_config.json").is_file():
        raise DpoKitError(f"sft.from = {source}: no adapter_config.json there; name the folder of an adapter")
    model, tokenizer = load_base(profile, source)
    save_adapter(add_adapter(model, "default", source), folder, template=tokenizer.chat_template)


def sft_trainer(
    profile: Profile,
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Response],
    folder: Path,
    seed: int,
    template: Path | None = None,
) -> GuardedSFTTrainer:
    """TRL's trainer on the quantised base with a fresh adapter, which is held in fp32.

    The chat template of the folder `template` is used where there is one.
    """
    model, tokenizer = load_base(profile, template)
    scoring = Scoring.of(profile.model)
    encoded = (encode(tokenizer, *row, scoring) for row in zip(prompts, demonstrations, strict=True))
    trainer = GuardedSFTTrainer(
        model,
        args=SFTConfig(
            **common_arguments(profile, profile.sft, folder, seed), completion_only_loss=True, router_aux_loss_coef=0.0
        ),
        train_dataset=Dataset.from_list([{"input_ids": ids, "completion_mask": mask} for ids, mask in encoded]),
        processing_class=tokenizer,
        peft_config=lora(profile),
    )
    trainer.row_names = [prompt.id for prompt in prompts]
    adapters_to_fp32(trainer.model)
    return trainer


def _row(prompt: Prompt, demonstration: Response) -> dict[str, list[dict[str, str]]]:
    return {"prompt": prompt.chat(), "completion": demonstration.chat()}
