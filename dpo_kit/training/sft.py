"""Supervised fine-tuning: the arm that DPO starts from, and the reference it is measured against."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig

from dpo_kit.models.loading import adapters_to_fp32, load_base, lora, save_adapter
from dpo_kit.models.quantization import assert_gradients_alive
from dpo_kit.profiles import Profile
from dpo_kit.records import Prompt, Response
from dpo_kit.training.arguments import common_arguments, identity
from dpo_kit.training.checkpoints import Checkpoints
from dpo_kit.training.guards import check_learning_rate, check_rows, check_trainable
from dpo_kit.training.metrics_log import attach
from dpo_kit.training.trainers import LOG, CarefulSft


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
    """Train a LoRA adapter on demonstrations; only their tokens, EOS included, bear loss.

    Writes `adapter/` and `log.jsonl` in `folder`. Callbacks, checkpoints, resuming and stopping are as in `train_dpo`.
    Raises DpoKitError where the gradient does not reach the lowest adapter, a row would teach not to stop, or a loss is
    not finite.
    """
    model, tokenizer = load_base(profile)
    rows = [_row(*row) for row in zip(prompts, demonstrations, strict=True)]
    trainer = CarefulSft(
        model,
        args=SFTConfig(**common_arguments(profile, profile.sft, folder, seed)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora(profile),
    )
    adapters_to_fp32(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    assert_gradients_alive(trainer.model, {"input_ids": batch["input_ids"][:4], "labels": batch["labels"][:4]})
    trainer.row_names = [prompt.id for prompt in prompts]
    trainer.checkpoints = Checkpoints(
        scratch or folder / "checkpoints", identity(profile, trainer.model, seed, rows, "sft"), log
    )
    trainer.metrics_log = attach(trainer, folder / LOG, "SFT", callbacks)
    check_rows(trainer)
    check_trainable(trainer.model)
    check_learning_rate(trainer.model, "sft", profile.sft)
    trainer.run(stop)
    save_adapter(trainer.model, folder / "adapter")


def _row(prompt: Prompt, demonstration: Response) -> dict:
    return {"prompt": prompt.chat(), "completion": [{"role": "assistant", "content": demonstration.text}]}
