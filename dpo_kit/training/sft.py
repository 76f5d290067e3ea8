"""Supervised fine-tuning: the arm that DPO starts from, and the reference it is measured against."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from dpo_kit.models.loading import adapters_to_fp32, load_base, lora, save_adapter
from dpo_kit.models.quantization import assert_gradients_alive
from dpo_kit.profiles import Profile
from dpo_kit.records import Prompt, Response
from dpo_kit.training.arguments import common_arguments
from dpo_kit.training.metrics_log import attach


def train_sft(
    profile: Profile, prompts: Sequence[Prompt], demonstrations: Sequence[Response], folder: Path, seed: int
) -> None:
    """Train a LoRA adapter on demonstrations; only their tokens, EOS included, bear loss.

    Writes `adapter/` and `log.jsonl` in `folder`.
    Raises DpoKitError where the gradient does not reach the lowest adapter.
    """
    model, tokenizer = load_base(profile)
    trainer = SFTTrainer(
        model,
        args=SFTConfig(**common_arguments(profile, profile.sft, folder, seed)),
        train_dataset=Dataset.from_list([_row(*row) for row in zip(prompts, demonstrations, strict=True)]),
        processing_class=tokenizer,
        peft_config=lora(profile),
    )
    adapters_to_fp32(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    assert_gradients_alive(trainer.model, {"input_ids": batch["input_ids"][:4], "labels": batch["labels"][:4]})
    attach(trainer, folder / "log.jsonl", "SFT")
    trainer.train()
    save_adapter(trainer.model, folder / "adapter")


def _row(prompt: Prompt, demonstration: Response) -> dict:
    return {"prompt": prompt.chat(), "completion": [{"role": "assistant", "content": demonstration.text}]}
