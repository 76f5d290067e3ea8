"""Which base an adapter belongs to, written beside it, so that it is not laid over another in silence.

The hashes are of the base's files and not of what is in memory: the same adapter fits the base quantised or not.
Weights are sampled, evenly over each file, so that a model of any size takes a moment; a training of any kind that
touched a good part of them shows, a change of a few bytes may not.
"""

import hashlib
import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import PreTrainedModel

from dpo_kit.errors import DpoKitError
from dpo_kit.files import sha256, write_atomically

FINGERPRINT = "base.json"
RECORD = "dpo_kit.json"
WHOLE = 1 << 26  # bytes: a weights file up to this size is read as a whole
BLOCKS, BLOCK = 256, 4096  # of a larger one: how many places, and bytes at each


def base_fingerprint(model: PreTrainedModel | PeftModel) -> dict[str, str] | None:
    """Hashes of the `weights`, `tokenizer` and chat `template` of a model's base; None where it has no files here."""
    folder = _folder(model)
    return None if folder is None else folder_fingerprint(folder)


def folder_fingerprint(folder: Path) -> dict[str, str]:
    """The same hashes of the files in a model's folder; nothing of the model is loaded."""
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        weights.update(path.name.encode() + _sample(path))
    tokenizer = folder / "tokenizer.json"
    return {
        "weights": weights.hexdigest(),
        "tokenizer": sha256(tokenizer) if tokenizer.is_file() else "",
        "template": hashlib.sha256(_template(folder).encode()).hexdigest(),
    }


def write_fingerprint(model: PeftModel, adapter: Path) -> None:
    """Write `base.json` into an adapter's folder; nothing where the base has no files."""
    if origin := base_fingerprint(model):
        write_atomically(adapter / FINGERPRINT, json.dumps(origin, indent=1) + "\n")


def check_fingerprint(model: PreTrainedModel | PeftModel, adapter: Path) -> None:
    """Raises DpoKitError where `adapter` was trained on another base; warns where it does not say on which."""
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
    differing = [part for part in found if trained_on.get(part) != found[part]]
    if differing:
        raise DpoKitError(
            f"{adapter}: this adapter was trained on another base, whose {' and '.join(differing)} differ from that of "
            f"{_folder(model)}; load the base it was trained on, or train it on this one"
        )


def write_record(adapter: Path, settings: dict[str, Any]) -> None:
    """Write `dpo_kit.json` into an adapter's folder: the settings that it was trained with, as plain data."""
    record = {"version": version("dpo_kit"), **settings}
    write_atomically(adapter / RECORD, json.dumps(record, indent=1) + "\n")


def read_record(adapter: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None where there is no record. Raises DpoKitError where it is no JSON object.

    Whoever made the adapter wrote it. Nothing may be downloaded or run because it says so.
    """
    try:
        return dict(json.loads((adapter / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise DpoKitError(f"{adapter / RECORD}: not a JSON object; restore it, or remove it and use --model") from None


def _folder(model: PreTrainedModel | PeftModel) -> Path | None:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    name = base.config.name_or_path
    if Path(name).is_dir():
        return Path(name) if name else None
    try:
        return Path(snapshot_download(name, local_files_only=True)) if name else None
    except (OSError, ValueError):  # built from a config, or its files have gone
        return None


def _sample(path: Path) -> bytes:
    """The whole of a small file; of a large one evenly spaced blocks, names and shapes in the first."""
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
