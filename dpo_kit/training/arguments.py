"""What SFT and DPO ask of TRL in common, and why it is not TRL's default; and what a run is known by."""

import hashlib
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel

from dpo_kit.errors import DpoKitError
from dpo_kit.models.identity import base_fingerprint
from dpo_kit.profiles import DpoSettings, Profile, SftSettings

datasets.disable_progress_bars()  # tokenising takes a second; our own bars show what takes longer


def common_arguments(profile: Profile, settings: SftSettings | DpoSettings, folder: Path, seed: int) -> dict:
    """Keyword arguments for `SFTConfig` and `DPOConfig`. Raises DpoKitError where a tracker is not installed."""
    if settings.report_to != "none" and find_spec(settings.report_to) is None:
        raise DpoKitError(f"report_to = {settings.report_to!r} is not installed; install it, or set report_to = 'none'")
    rows = rows_at_once(profile, settings)
    return {
        "output_dir": str(folder),
        "seed": seed,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": settings.batch_size // rows,
        "max_length": profile.model.max_length,
        # TRL trains in bf16 unless told otherwise; the profile decides.
        "bf16": profile.model.compute_dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        # Recomputing activations saves memory that a small model does not need, for a third more time.
        "gradient_checkpointing": profile.model.checkpointing,
        "logging_steps": 1,
        # By default a NaN loss is logged as 0.0.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "report_to": settings.report_to,
        "disable_tqdm": True,
        # pinned memory is for copies to a GPU and warns without one
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def rows_at_once(profile: Profile, settings: SftSettings | DpoSettings) -> int:
    """The most rows that divide the batch and hold no more than `max_tokens`, were each padded to `max_length`."""
    if settings.max_tokens is None:
        return settings.batch_size
    sides = 2 if isinstance(settings, DpoSettings) else 1
    most = settings.max_tokens // (sides * profile.model.max_length)
    return max((n for n in range(1, settings.batch_size + 1) if settings.batch_size % n == 0 and n <= most), default=1)


def identity(profile: Profile, model: PeftModel, seed: int, data: Iterable[Any], *tables: str) -> dict[str, Any]:
    """What decides a training run, as plain data: a checkpoint of a run that differs in it is not resumed from."""
    digest = hashlib.sha256()
    for row in data:
        digest.update(json.dumps(row).encode() + b"\n")
    settings = {table: getattr(profile, table).model_dump() for table in ("model", *tables)}
    return {
        "stage": tables[0],
        "seed": seed,
        **settings,
        "data_sha256": digest.hexdigest(),
        "base": base_fingerprint(model),
    }
