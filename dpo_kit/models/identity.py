"""Identity of weights: a record of the hashes of a base's files, and one hash of what a model in memory computes.

The record is made from files, so that an adapter fits its base quantised or not, and so that a stage can compare it
before any model is loaded. It is saved beside each adapter. Of a large weights file only blocks at even distances are
hashed, so that it takes a moment for a model of any size. This finds every training that changed a good part of the
weights, but perhaps not a change of a few bytes.

The hash is made from tensors, so that stored answers and log-probs are used only for the model that gave them.
"""

import hashlib
import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_kit.errors import DpoKitError
from dpo_kit.files import sha256, write_atomically

if TYPE_CHECKING:  # a stage needs a fingerprint before it knows whether torch has to be imported at all
    from torch import Tensor, nn

FINGERPRINT = "base.json"
ADAPTED = ("weights", "tokenizer", "template")  # must match for an adapter; saving a model again can change `settings`
SCALING = ("r", "lora_alpha", "use_rslora", "use_dora", "alpha_pattern", "rank_pattern")  # what scales B A
RECORD = "dpo_kit.json"
WHOLE = 1 << 26  # bytes: a weights file up to this size is read as a whole
BLOCKS, BLOCK = 256, 4096  # of a larger file: how many blocks are read, and the bytes of each
REBUILD = "python -m dpo_kit pretrain"


def base_fingerprint(base: "str | nn.Module") -> dict[str, str] | None:
    """SHA-256 of the `weights`, `tokenizer`, chat `template` and `settings` of a base, from its files.

    `base` is a folder, a Hub id, or a model that was loaded from one, with or without adapters on it. None where it has
    no files here.
    """
    folder = folder_of(base)
    if folder is None:
        return None
    weights, settings = hashlib.sha256(), hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        weights.update(path.name.encode() + _sample(path))
    for path in sorted(folder.glob("*.json")):
        if path.name not in ("tokenizer.json", "manifest.json"):
            settings.update(path.name.encode() + path.read_bytes())
    tokenizer = folder / "tokenizer.json"
    return {
        "weights": weights.hexdigest(),
        "tokenizer": sha256(tokenizer) if tokenizer.is_file() else "",
        "template": hashlib.sha256(_template(folder).encode()).hexdigest(),
        "settings": settings.hexdigest(),
    }


def write_fingerprint(model: "nn.Module", adapter: Path) -> None:
    """Write `base.json` into an adapter's folder; nothing where the base has no files."""
    if found := base_fingerprint(model):
        write_atomically(adapter / FINGERPRINT, json.dumps(found, indent=1) + "\n")


def check_fingerprint(model: "nn.Module", adapter: Path) -> None:
    """Raise DpoKitError where `adapter` was trained on another base; warn where its base is not recorded."""
    found = base_fingerprint(model)
    if found is None:
        return
    try:
        trained_on = dict(json.loads((adapter / FINGERPRINT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        warnings.warn(
            f"{adapter}: no {FINGERPRINT} says which base it was trained on, so that was not checked", stacklevel=2
        )
        return
    except (ValueError, TypeError):
        raise DpoKitError(
            f"{adapter / FINGERPRINT}: not a JSON object; restore it, or train the adapter again"
        ) from None
    differing = [part for part in ADAPTED if trained_on.get(part) != found[part]]
    if differing:
        raise DpoKitError(
            f"{adapter}: this adapter was trained on another base, whose {' and '.join(differing)} differ from that of "
            f"{folder_of(model)}; load the base it was trained on, or train it on this one"
        )


def write_record(adapter: Path, settings: dict[str, Any]) -> None:
    """Write `dpo_kit.json` into an adapter's folder: the settings that it was trained with, as plain data."""
    record = {"version": version("dpo_kit"), **settings}
    write_atomically(adapter / RECORD, json.dumps(record, indent=1) + "\n")


def read_record(adapter: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None where there is no record. Raises DpoKitError where it is no JSON object.

    The record may come from a stranger, so never download or run anything because it says so.
    """
    try:
        return dict(json.loads((adapter / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise DpoKitError(f"{adapter / RECORD}: not a JSON object; restore it, or remove it and use --model") from None


def check_shipped_model(folder: Path) -> None:
    """Verify a model folder that has a manifest of this package; folders without one, and Hub ids, are not checked.

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


# ---- in memory --------------------------------------------------------------------------------------------------


def model_identity(model: Any, adapter: str | None = None, frozen: str | None = None, **context: Any) -> str:
    """A hash of all that decides what a model computes: its frozen weights, `adapter` on them, and `context`.

    Other adapters do not change it. `frozen` is an earlier result of `frozen_identity`, given to avoid reading
    gigabytes again; `context` is plain data, such as the dtype of autocast.
    """
    tensors, scaling = {}, {}
    if adapter is not None:
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
        scaling = {name: getattr(model.peft_config[adapter], name) for name in SCALING}
    return _hash(tensors, [frozen or frozen_identity(model), scaling, context])


def frozen_identity(model: "nn.Module") -> str:
    """A hash of the frozen weights as quantised, the model's settings, the device, and the library versions.

    It is the same with and without adapters on the weights, and wherever the model was loaded from.
    """
    base = _without_adapters(model)
    weights = {name.replace(".base_layer.", "."): t for name, t in base.state_dict().items() if ".lora_" not in name}
    config = {name: value for name, value in base.config.to_dict().items() if not name.startswith("_")}
    versions = {library: version(library) for library in ("torch", "transformers", "peft", "bitsandbytes")}
    return _hash(weights, [config, next(base.parameters()).device.type, versions])


def _hash(tensors: "dict[str, Tensor]", settings: Any) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _without_adapters(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# ---- files ------------------------------------------------------------------------------------------------------


def folder_of(base: "str | nn.Module") -> Path | None:
    """The folder with the files of `base`, which is a folder, a Hub id or a model; None where they are not here."""
    from huggingface_hub import snapshot_download

    name = base if isinstance(base, str) else _without_adapters(base).config.name_or_path
    if not name or Path(name).is_dir():
        return Path(name) if name else None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # built from a config, or its files have gone
        return None


def _sample(path: Path) -> bytes:
    """All bytes of a small file; blocks at even distances of a large one, the first with the names and shapes."""
    size = path.stat().st_size
    if size <= WHOLE:
        return path.read_bytes()
    with path.open("rb") as file:

        def block(start: int) -> bytes:
            file.seek(start)
            return file.read(BLOCK)

        return size.to_bytes(8) + b"".join(block(size * i // BLOCKS) for i in range(BLOCKS))


def _template(folder: Path) -> str:
    """The chat template, from its own file or the tokenizer's settings."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    return (
        json.dumps(json.loads(settings.read_text(encoding="utf-8")).get("chat_template")) if settings.is_file() else ""
    )
