"""What SFT and DPO ask of TRL in common, and why it is not TRL's default."""

from pathlib import Path

import datasets
import torch

from dpo_kit.profiles import DpoSettings, Profile, SftSettings

datasets.disable_progress_bars()  # tokenising takes a second; our own bars show what takes longer


def common_arguments(profile: Profile, settings: SftSettings | DpoSettings, folder: Path, seed: int) -> dict:
    """Keyword arguments for `SFTConfig` and `DPOConfig`."""
    return {
        "output_dir": str(folder),
        "seed": seed,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "max_length": profile.model.max_length,
        # TRL trains in bf16 unless told otherwise; the profile decides.
        "bf16": profile.model.compute_dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        # Recomputing activations saves memory that a small model does not need, for a third more time.
        "gradient_checkpointing": False,
        "logging_steps": 1,
        # By default a NaN loss is logged as 0.0.
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        # pinned memory is for copies to a GPU and warns without one
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
