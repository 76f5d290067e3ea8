"""Which base an evaluation loads and how: read from the records of the adapters that take part, and checked.

An adapter's record says which base it was trained on, how that was quantised, and within which lengths. Whoever made
the adapter wrote the record, so it is not to be trusted. It may say *how* a base is loaded; *which* base that is comes
from the user: from `--model`, from the profile, or as a folder here whose files are those that the adapter names by
their hashes. Any other base is named in an error, and nothing is downloaded.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpo_kit.errors import DpoKitError
from dpo_kit.files import json_object
from dpo_kit.models.identity import FINGERPRINT, RECORD, folder_fingerprint, read_record
from dpo_kit.profiles import ModelSettings, Profile, load_profile, profile_names

# settings of the table `model` that shape an adapter or its training, and not what its arm answers
OF_TRAINING = {"lora_r", "lora_alpha", "checkpointing", "checkpoint_layers"}
Overrides = Mapping[str, Mapping[str, Any]]  # table -> key -> value, as the command line sets it


def profile_of_adapters(folders: Iterable[Path], name: str | None, typed: Overrides) -> Profile:
    """The profile to evaluate the adapters in `folders` with: `name`'s, with the `model` table of their records.

    Without a name it is that of `DPO_KIT_PROFILE`, else the shipped profile that a record names, else `tiny`. What the
    user `typed`, or set in the environment, stands above any record. Folders without a record change nothing.
    Raises DpoKitError where two records disagree in what the user did not type, where a record cannot be used, and
    where it names another base than the user did.
    """
    records = {folder: record for folder in folders if (record := _record(folder)) is not None}
    shipped = (record.get("profile") for record in records.values() if record.get("profile") in profile_names())
    name = name or os.environ.get("DPO_KIT_PROFILE") or next(shipped, None)
    chosen = load_profile(name, **typed)
    ours = {key for key in ModelSettings.model_fields if f"DPO_KIT_MODEL__{key.upper()}" in os.environ}
    model, said_by = _agreed(records, OF_TRAINING | ours | set(typed.get("model", {})))
    if not model:
        return chosen
    if "path" in model:
        _check_base(said_by["path"], model["path"], chosen)
    try:
        return load_profile(name, **{**typed, "model": {**model, **typed.get("model", {})}})
    except DpoKitError as error:
        wrong = next((folder for key, folder in said_by.items() if f"model.{key}" in str(error)), next(iter(records)))
        raise DpoKitError(f"{wrong / RECORD}: {error}; was it written by another version of dpo_kit?") from None


def beta_of(folder: Path | None, default: float) -> float:
    """The beta that an adapter was trained with, from its record; `default` where there is none, or no usable one."""
    record = _record(folder) if folder else None
    beta = (record or {}).get("dpo", {}).get("beta")
    return float(beta) if type(beta) in (int, float) and 0 < beta < float("inf") else default


def _record(folder: Path) -> dict[str, Any] | None:
    """An adapter's record, whose tables are tables. Raises DpoKitError as `read_record` does."""
    record = read_record(folder)
    for table in ("model", "dpo"):
        if record is not None and not isinstance(record.get(table, {}), dict):
            raise DpoKitError(f"{folder / RECORD}: {table!r} is no table; restore it, or remove it and use --model")
    return record


def _agreed(records: Mapping[Path, dict], without: set[str]) -> tuple[dict[str, Any], dict[str, Path]]:
    """The `model` settings that the records agree on, and for each the folder that said it first."""
    model: dict[str, Any] = {}
    said_by: dict[str, Path] = {}
    for folder, record in records.items():
        for key, value in record.get("model", {}).items():
            if key in without:
                continue
            if model.setdefault(key, value) != value:
                option = "--model PATH" if key == "path" else f"--set model.{key}=VALUE"
                raise DpoKitError(
                    f"{said_by[key]} and {folder} were trained with model.{key} = {model[key]!r} and {value!r}; "
                    f"evaluate them in two runs, or say which to use: {option}"
                )
            said_by.setdefault(key, folder)
    return model, said_by


def _check_base(folder: Path, path: Any, chosen: Profile) -> None:
    """Raises DpoKitError unless the base that a record names is the user's own, or a folder with the right files."""
    if path == chosen.model.path:
        return
    named = f"{folder / RECORD}: the adapter was trained on {path!r}"
    if not isinstance(path, str) or not Path(path).is_dir():
        raise DpoKitError(
            f"{named}, and profile {chosen.name} has {chosen.model.path!r}; a record does not decide what is loaded or "
            "downloaded: if you trust that model, name it with --model"
        )
    hashes = json_object(folder / FINGERPRINT)
    if not hashes or hashes != folder_fingerprint(Path(path)):
        raise DpoKitError(
            f"{named}, but the files in that folder are not those that {FINGERPRINT} lists; "
            "name the right base with --model"
        )
