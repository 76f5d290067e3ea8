"""Merged models: W + s B A in place of W, written one file of weights at a time.

The model itself is never built. Tensors are read, changed and written on the CPU, so merging needs only as much memory
as the largest file of weights, and works on every machine that can train the adapter.
"""

import json
import shutil
from collections.abc import Callable, Set
from functools import partial
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_kit.errors import DpoKitError
from dpo_kit.files import json_object, write_atomically

COPIED = (".json", ".jinja", ".model", ".txt")  # what belongs to a model besides its weights
NOT_COPIED = ("manifest.json",)


def write_merged(
    base: Path, adapter: Path, folder: Path, dtype: torch.dtype, in_4_bits: Set[str] = frozenset()
) -> None:
    """Write the model in the folder `base` with an adapter merged in, in `dtype`, file by file.

    Weights that `in_4_bits` names are first rounded to NF4 and back. Raises DpoKitError for an adapter that is no
    plain LoRA, and where one of its layers is not among the base's weights.
    """
    changes = _changes(adapter)
    folder.mkdir(parents=True, exist_ok=True)
    merged = set()
    for path in sorted(base.glob("*.safetensors")):
        tensors = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                weight = file.get_tensor(name).to(dtype)
                if name in in_4_bits:
                    weight = dequantize_4bit(*quantize_4bit(weight, compress_statistics=True, quant_type="nf4"))
                if name in changes:
                    weight = (weight.float() + changes[name]()).to(dtype)
                    merged.add(name)
                tensors[name] = weight.contiguous()
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
    if missing := sorted(changes.keys() - merged):
        shutil.rmtree(folder)
        raise DpoKitError(
            f"{adapter}: {len(missing)} of its layers, such as {missing[0]}, are stored under other names in {base}; "
            "merge this architecture with PEFT's merge_and_unload, which builds the whole model"
        )
    for path in base.iterdir():
        if path.suffix in COPIED and path.name not in NOT_COPIED:
            shutil.copyfile(path, folder / path.name)
    config = json_object(folder / "config.json")
    config.pop("torch_dtype", None)  # the older name of `dtype`
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _changes(adapter: Path) -> dict[str, Callable[[], Tensor]]:
    """For each weight of the base that the adapter changes, by name, a function that computes s B A in fp32."""
    config = LoraConfig.from_pretrained(str(adapter))
    unsupported = {
        "DoRA": config.use_dora, "a trained bias": config.bias != "none" or config.lora_bias,
        "modules that are trained whole": config.modules_to_save, "transposed weights": config.fan_in_fan_out,
    }  # fmt: skip
    if found := [name for name, given in unsupported.items() if given]:
        raise DpoKitError(f"{adapter}: has {found[0]}, which is not merged here; use PEFT's merge_and_unload")
    weights = load_file(adapter / "adapter_model.safetensors")
    changes: dict[str, Callable[[], Tensor]] = {}
    for name, a in weights.items():
        if not name.endswith(".lora_A.weight"):
            continue
        b = weights[name.replace(".lora_A.", ".lora_B.")]
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        rank = a.shape[0]
        alpha = next((v for k, v in config.alpha_pattern.items() if module.endswith(k)), config.lora_alpha)
        scale = alpha / (rank**0.5 if config.use_rslora else rank)
        changes[f"{module}.weight"] = partial(_product, a, b, scale)
    return changes


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """s B A, `(out, in)`, in fp32."""
    return scale * (b.float() @ a.float())
