"""One set of frozen weights, and adapters on it: the arms that are trained and compared."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from trl.trainer.utils import use_adapter

from dpo_kit.errors import DpoKitError
from dpo_kit.files import sha256, write_atomically
from dpo_kit.models.quantization import keep_gradients, nf4
from dpo_kit.profiles import Profile

if os.environ.get("TQDM_DISABLE"):  # transformers draws a bar of its own, which does not know this variable
    transformers_logging.disable_progress_bar()


@dataclass
class Arms:
    """Named variants of one model: "base" is the frozen weights alone, every other arm an adapter on them."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase

    @contextmanager
    def use(self, arm: str) -> Iterator[PreTrainedModel]:
        """The model as `arm`, in eval mode, for the length of the block; its mode is put back afterwards.

        TRL files what it measured under the mode the model is in when it logs: a model left in eval mode loses the
        training metrics of that step.
        """
        was_training = self.model.training
        try:
            with use_adapter(self.model, None if arm == "base" else arm):
                yield self.model.eval()
        finally:
            self.model.train(was_training)


def load_base(profile: Profile) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the frozen base of `profile`, quantised as it says, and its tokenizer.

    Raises DpoKitError where the shipped model is missing or differs from its manifest.
    """
    path = profile.model_path
    check_shipped_model(Path(path))
    dtype = getattr(torch, profile.model.compute_dtype)
    quantization = nf4(dtype) if profile.model.quantize == "nf4" else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, quantization_config=quantization, device_map=_device(), use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise DpoKitError(f"{path}: the model cannot be loaded: {str(error).splitlines()[0]}") from error
    keep_gradients(model)
    model.config.use_cache = False
    return model, tokenizer


def load_arms(profile: Profile, adapters: dict[str, Path]) -> Arms:
    """Load the base once and every adapter of `adapters` (name to folder) onto it."""
    model, tokenizer = load_base(profile)
    for name, folder in adapters.items():
        model = add_adapter(model, name, folder)
    return Arms(model, tokenizer)


def add_adapter(model: PreTrainedModel | PeftModel, name: str, folder: Path, *, trainable: bool = False) -> PeftModel:
    """Load an adapter, safetensors only, under `name`."""
    if not isinstance(model, PeftModel):
        return PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable)
    model.load_adapter(folder, adapter_name=name, is_trainable=trainable)
    return model


def save_adapter(model: PeftModel, folder: Path, name: str = "default") -> None:
    """Save one adapter; the same adapter gives the same bytes. PEFT writes sets in an order that changes by process."""
    model.save_pretrained(folder, selected_adapters=[name])
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    write_atomically(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def lora(profile: Profile) -> LoraConfig:
    """LoRA on every linear layer but the head, without dropout: policy and reference must agree at step 0."""
    return LoraConfig(
        r=profile.model.lora_r,
        lora_alpha=profile.model.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def adapters_to_fp32(model: PeftModel) -> None:
    """Keep adapter weights in fp32.

    TRL casts the trained adapter of a 4-bit model to bf16, whose 8 bits of precision round small updates to nothing,
    and leaves its reference copy as it was. They are a few megabytes: precision is cheaper than a weight that cannot
    move, or than a reference that is not the policy's start.
    """
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def check_shipped_model(folder: Path) -> None:
    """Verify a model folder that carries a manifest of ours; folders without one, and Hub ids, pass.

    Raises DpoKitError where a shipped model is absent, or a file of it is missing or changed.
    """
    manifest = folder / "manifest.json"
    if "tiny-base" in folder.parts and not manifest.is_file():
        raise DpoKitError(f"{folder}: the shipped model is missing; restore it with git, or rebuild it: {REBUILD}")
    if not manifest.is_file():
        return
    for name, expected in json.loads(manifest.read_text(encoding="utf-8"))["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise DpoKitError(f"{folder / name}: missing or changed; restore it with git, or rebuild it: {REBUILD}")


REBUILD = "python -m dpo_kit pretrain"


def _device() -> dict[str, str | int]:
    return {"": 0 if torch.cuda.is_available() else "cpu"}
