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
from dpo_kit.models.identity import ADAPTED, FINGERPRINT, RECORD, base_fingerprint, read_record
from dpo_kit.profiles import Profile, load_profile, profile_names

# settings of the table `model` that shape an adapter or its training, and not what its arm answers; and the template,
# which lies beside the adapter and is read there, so that no record names a file to open
OF_TRAINING = {
    "lora_r", "lora_alpha", "lora_targets", "rslora", "dora", "checkpointing", "checkpoint_layers", "chat_template",
}  # fmt: skip
Overrides = Mapping[str, dict[str, Any]]  # table -> key -> value, as the command line sets it


def profile_of_adapters(folders: Iterable[Path], name: str | None, typed: Overrides) -> Profile:
    """The profile to evaluate the adapters in `folders` with: `name`'s, with the `model` table of their records.

    Without a name it is that of `DPO_KIT_PROFILE`, else the shipped profile that a record names, else `tiny`; the table
    `evaluation` then comes from the first record too. What the user `typed`, or set in the environment, stands above
    any record. Folders without a record change nothing.
    Raises DpoKitError where two records disagree in what the user did not type, where a record cannot be used, and
    where it names another base than the user did.
    """
    records = {folder: record for folder in folders if (record := _record(folder)) is not None}
    shipped = (record.get("profile") for record in records.values() if record.get("profile") in profile_names())
    named = name or os.environ.get("DPO_KIT_PROFILE")
    used = named or next(shipped, None)
    chosen = load_profile(used, **typed)
    if not records:
        return chosen
    first = next(iter(records))
    said = {"model": _agreed(records, OF_TRAINING | {"path"} | _ours("model", typed))}
    if "path" not in _ours("model", typed):
        said["model"] |= _base(records, chosen)
    if not named:
        ours = _ours("evaluation", typed)
        said["evaluation"] = {k: v for k, v in records[first].get("evaluation", {}).items() if k not in ours}
    tables = {table: {**said.get(table, {}), **typed.get(table, {})} for table in {*said, *typed}}
    try:
        return load_profile(used, **tables)
    except DpoKitError as error:
        raise DpoKitError(f"{first / RECORD}: {error}; was it written by another version of dpo_kit?") from None


def beta_of(folder: Path | None, default: float) -> float:
    """The beta that an adapter was trained with, from its record; `default` where there is none, or no usable one."""
    record = _record(folder) if folder else None
    beta = (record or {}).get("dpo", {}).get("beta")
    return float(beta) if type(beta) in (int, float) and 0 < beta < float("inf") else default


def _record(folder: Path) -> dict[str, Any] | None:
    """An adapter's record, whose tables are tables. Raises DpoKitError as `read_record` does."""
    record = read_record(folder)
    for table in ("model", "dpo", "evaluation"):
        if record is not None and not isinstance(record.get(table, {}), dict):
            raise DpoKitError(f"{folder / RECORD}: {table!r} is no table; restore it, or remove it and use --model")
    return record


def _ours(table: str, typed: Overrides) -> set[str]:
    """The keys of a table that the user typed or set in the environment."""
    start = f"DPO_KIT_{table}__".upper()
    return {*typed.get(table, {}), *(name.removeprefix(start).lower() for name in os.environ if name.startswith(start))}


def _agreed(records: Mapping[Path, dict], without: set[str]) -> dict[str, Any]:
    """The `model` settings that the records agree on. Raises DpoKitError where two say different things."""
    model: dict[str, Any] = {}
    said_by: dict[str, Path] = {}
    for folder, record in records.items():
        for key, value in record.get("model", {}).items():
            if key not in without and model.setdefault(key, value) != value:
                raise DpoKitError(
                    f"{said_by[key]} and {folder} were trained with model.{key} = {model[key]!r} and {value!r}; "
                    f"evaluate them in two runs, or say which to use: --set model.{key}=VALUE"
                )
            said_by.setdefault(key, folder)
    return model


def _base(records: Mapping[Path, dict], chosen: Profile) -> dict[str, str]:
    """The table entry `path` of the one base that all records name; {} where none names any."""
    bases = {folder: _usable(folder, record["model"]["path"], chosen) for folder, record in records.items()
             if "path" in record.get("model", {})}  # fmt: skip
    if len(set(bases.values())) > 1:
        (first, path), (second, other) = list({path: (folder, path) for folder, path in bases.items()}.values())[:2]
        raise DpoKitError(
            f"{first} and {second} were trained on two bases, {path} and {other}; evaluate them in two runs"
        )
    return {"path": next(iter(bases.values()))} if bases else {}


def _usable(folder: Path, path: Any, chosen: Profile) -> str:
    """The base of an adapter: the user's own, or the named folder where its files are those that the adapter lists.

    Raises DpoKitError where it is neither.
    """
    if path in (chosen.model.path, chosen.model_path):
        return chosen.model.path
    listed = json_object(folder / FINGERPRINT)
    local = [path] if isinstance(path, str) and Path(path).is_dir() else []
    for usable in (chosen.model.path, *local):
        found = base_fingerprint(chosen.model_path if usable == chosen.model.path else usable)
        if found and all(listed.get(part) == found[part] for part in ADAPTED):
            return usable
    named = f"{folder / RECORD}: the adapter was trained on {path!r}"
    if local:
        raise DpoKitError(
            f"{named}, but the files in that folder are not those that {FINGERPRINT} lists; "
            "name the right base with --model"
        )
    raise DpoKitError(
        f"{named}, and profile {chosen.name} has {chosen.model.path!r}; a record does not decide what is loaded or "
        "downloaded: if you trust that model, name it with --model"
    )
