"""Loading one set of frozen weights with several adapters on it: the arms that are trained and compared."""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from trl.trainer.utils import use_adapter

from dpo_kit.errors import DpoKitError
from dpo_kit.files import write_atomically
from dpo_kit.models.identity import (
    check_fingerprint,
    check_shipped_model,
    frozen_identity,
    model_identity,
    write_fingerprint,
)
from dpo_kit.models.quantization import keep_gradients, nf4
from dpo_kit.models.tokens import TEMPLATE, first_line, load_tokenizer, template_of
from dpo_kit.profiles import Profile

if os.environ.get("TQDM_DISABLE"):  # transformers has its own progress bar, which ignores this variable
    transformers_logging.disable_progress_bar()


@dataclass
class Arms:
    """Named variants of one model: "base" is the frozen weights alone, every other arm an adapter on them."""

    model: PeftModel | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    _frozen: str | None = field(default=None, init=False, repr=False)

    @contextmanager
    def use(self, arm: str) -> Iterator[PreTrainedModel]:
        """The model as `arm`, in eval mode, for the length of the block; its mode is put back afterwards.

        TRL stores its metrics by the mode that the model is in when it logs. If the model were left in eval mode, the
        training metrics of that step would be lost.
        """
        was_training = self.model.training
        try:
            with self._adapter(arm):
                yield self.model.eval()
        finally:
            self.model.train(was_training)

    def identity(self, arm: str) -> str:
        """A hash of all that decides what `arm` answers, taken from memory: weights as quantised, settings, tokenizer,
        device and library versions. The frozen weights are read once; adapters, which are trained, each time.
        """
        if self._frozen is None:
            self._frozen = frozen_identity(self.model)
        tokenizer, adapter = self.tokenizer, None if arm == "base" else arm
        context = {
            "generation": self.model.generation_config.to_dict(),
            "tokenizer": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab(),
            "template": tokenizer.chat_template,
            "special_tokens": tokenizer.special_tokens_map,
        }
        return model_identity(self.model, adapter, self._frozen, **context)

    def _adapter(self, arm: str) -> AbstractContextManager:
        if arm == "base" and not isinstance(self.model, PeftModel):
            return nullcontext()
        return use_adapter(self.model, None if arm == "base" else arm)


def load_base(profile: Profile, adapter: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the frozen base of `profile`, quantised as it says, and its tokenizer.

    The chat template is the one that `adapter` was trained with, where it holds one, else the profile's.
    Raises DpoKitError where the shipped model is missing or differs from its manifest, and where a model is one that
    cannot be trained here, with the reason.
    """
    path = profile.model_path
    check_shipped_model(Path(path))
    config = check_trainable_kind(path)
    # Policy and reference must agree at step 0, so nothing is dropped; GPT-2 and OPT would drop a tenth.
    dropout = {name: 0.0 for name, share in config.to_dict().items() if "drop" in name and isinstance(share, float)}
    tokenizer = load_tokenizer(path, profile.model, adapter)
    dtype = getattr(torch, profile.model.compute_dtype)
    quantization = nf4(dtype) if profile.model.quantize == "nf4" else None
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, quantization_config=quantization, device_map=_device(), use_safetensors=True, **dropout
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError, SafetensorError) as error:
        raise DpoKitError(f"{path}: the model cannot be loaded: {first_line(error)}") from error
    check_vocabulary(path, model, tokenizer)
    settings = model.generation_config
    if not settings.do_sample and {settings.temperature, settings.top_p, settings.top_k} - {None, 1.0, 50}:
        settings.do_sample = True  # some models list sampling values without it, and could not be saved again
    keep_gradients(model)
    model.config.use_cache = False  # training needs no cache of keys and values; generation asks for one
    return model, tokenizer


def load_arms(profile: Profile, adapters: dict[str, Path]) -> Arms:
    """Load the base once and every adapter of `adapters` (name to folder) onto it."""
    recorded = next((folder for folder in adapters.values() if template_of(folder)), None)
    model, tokenizer = load_base(profile, recorded)
    for name, folder in adapters.items():
        model = add_adapter(model, name, folder)
    return Arms(model, tokenizer)


def add_adapter(model: PreTrainedModel | PeftModel, name: str, folder: Path, *, trainable: bool = False) -> PeftModel:
    """Load an adapter, safetensors only, under `name`.

    Raises DpoKitError where the folder has none, or it was trained on another base; warns where its base is unknown.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise DpoKitError(f"{folder}: no adapter_model.safetensors there; train it again, or save it as safetensors")
    check_fingerprint(model, folder)
    if not isinstance(model, PeftModel):
        return PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable)
    model.load_adapter(folder, adapter_name=name, is_trainable=trainable)
    return model


def save_adapter(model: PeftModel, folder: Path, name: str = "default", template: str | None = None) -> None:
    """Save one adapter, which base it is for (`base.json`), and the chat template that it was trained with.

    The same adapter always gives the same bytes: PEFT writes sets in an order that differs between processes, so they
    are sorted here.
    """
    model.save_pretrained(folder, selected_adapters=[name])
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
    write_atomically(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_fingerprint(model, folder)
    if template:
        write_atomically(folder / TEMPLATE, template)


def lora(profile: Profile) -> LoraConfig:
    """LoRA on the layers that the profile names, without dropout: policy and reference must agree at step 0."""
    return LoraConfig(
        r=profile.model.lora_r,
        lora_alpha=profile.model.lora_alpha,
        lora_dropout=0.0,
        target_modules=profile.model.lora_targets,
        use_rslora=profile.model.rslora,
        use_dora=profile.model.dora,
        task_type="CAUSAL_LM",
    )


def adapters_to_fp32(model: PeftModel) -> None:
    """Keep adapter weights in fp32.

    TRL casts the trained adapter of a 4-bit model to bf16, whose 8 bits of precision round small updates away, and
    leaves the reference copy in fp32. Then some weights cannot change, and the policy does not start at its reference.
    Adapters are only a few megabytes, so fp32 costs little memory.
    """
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def check_trainable_kind(path: str) -> PretrainedConfig:
    """The configuration of a model that can be trained here; what could only fail later is refused.

    Raises DpoKitError where a model takes images or sounds beside text, or where a folder's weights are not whole
    safetensors files.
    """
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DpoKitError(f"{path}: the model cannot be loaded: no model configuration ({first_line(error)})") from None
    towers = [name for name in ("vision_config", "audio_config") if getattr(config, name, None) is not None]
    if towers:
        raise DpoKitError(
            f"{path}: this {config.model_type} model has a {towers[0].removesuffix('_config')} tower, and only text "
            "models are trained here; give a text-only variant of it"
        )
    folder = Path(path)
    if not folder.is_dir():
        return config
    pickled = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind))
    files = sorted(folder.glob("*.safetensors"))
    if pickled and not files:
        raise DpoKitError(
            f"{path}: only {pickled[0]} there, and pickled weights are not loaded; convert them once where you trust "
            "their source: AutoModelForCausalLM.from_pretrained(OLD, use_safetensors=False).save_pretrained(NEW)"
        )
    for file in files:
        if fault := _safetensors_fault(file):
            raise DpoKitError(f"{file}: {fault}; download it again")
    return config


def _safetensors_fault(file: Path) -> str | None:
    """What is wrong with a file of weights, from its header and its size. The header lists where each tensor ends."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < size else {}
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError):
        return "not a safetensors file"
    wanted = 8 + length + max(ends, default=0)
    return None if size == wanted else f"{size:,} bytes where its header wants {wanted:,}, so it was cut off"


def check_vocabulary(path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with tokens that have no row in the embedding, but for padding, which becomes EOS.

    Raises DpoKitError that names such a token.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if set(beyond) == {tokenizer.pad_token}:
        tokenizer.pad_token = tokenizer.eos_token
    elif beyond:
        raise DpoKitError(
            f"{path}: the tokenizer has {len(beyond)} tokens that the model has no weights for, such as "
            f"{min(beyond, key=beyond.__getitem__)!r} (the embedding has {rows} rows); use the tokenizer that the "
            "model was trained with, or resize the embedding and train the new rows first"
        )


def _device() -> dict[str, str | int]:
    return {"": 0 if torch.cuda.is_available() else "cpu"}
