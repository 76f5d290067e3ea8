"""Pairs that are given: a reader's file or a public data set, read, audited, and split by prompt, ready to train on."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.audit import audit_pairs
from dpo_kit.preferences.audit.inputs import load_tokenizer
from dpo_kit.preferences.audit.report import AuditReport
from dpo_kit.preferences.importers import Imported, import_pairs
from dpo_kit.profiles import DataSettings, Profile
from dpo_kit.records import PreferencePair, split_by_prompt


def load_external_pairs(
    profile: Profile, quarantine: Path, seed: int, log: Callable[[str], None] = print
) -> tuple[list[PreferencePair], list[PreferencePair], AuditReport]:
    """(pairs to train on, pairs of held-out prompts, the audit), of what `profile.data` names.

    Rows that cannot be read go to `quarantine`. Raises DpoKitError where the audit finds a blocking fault and
    `data.on_blocking` is "stop", and where nothing is left to train on.
    """
    data = profile.data
    imported = read_external(data, quarantine)
    for note in imported.notes:
        log(f"pairs: {note}")
    pairs = imported.pairs[: data.limit]
    report = audit_pairs(pairs, load_tokenizer(profile.model_path), max_length=profile.model.max_length)
    faults = "; ".join(f"{found.name} {found.count}" for found in report.findings if found.drops)
    if report.blocking and data.on_blocking == "stop":
        raise DpoKitError(
            f"{data.pairs}: the audit found faults that training would not show ({faults}); look with "
            f"`python -m dpo_kit audit`, and put them right or train on the {len(report.kept)} other pairs with "
            "--set data.on_blocking=drop"
        )
    log(f"pairs: {len(report.kept)} of {len(pairs)} kept{f', dropped for {faults}' if faults else ''}")
    trained, held_out = split_by_prompt(report.kept, data.heldout, seed)
    if not trained:
        raise DpoKitError(f"{data.pairs}: no pair is left to train on ({faults or 'all prompts are held out'})")
    return trained, held_out, report


def read_external(data: DataSettings, quarantine: Path) -> Imported:
    """The pairs of a file in any known format, or of a folder or Hub id that `datasets.load_dataset` reads.

    Raises DpoKitError where there is neither.
    """
    if Path(data.pairs).is_file():
        return import_pairs(Path(data.pairs), quarantine=quarantine)
    if Path(data.pairs).suffix in (".jsonl", ".json", ".csv", ".parquet"):
        raise DpoKitError(f"{data.pairs}: no such file")
    from datasets import load_dataset

    part = data.split if data.limit is None else f"{data.split}[:{data.limit}]"
    try:
        rows = load_dataset(data.pairs, split=part)
    except (OSError, ValueError) as error:
        raise DpoKitError(
            f"{data.pairs}: no data set there with a split {data.split!r} ({str(error).splitlines()[0]}); "
            "data.pairs is a file, or a folder or Hub id with data.split"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.parquet"
        rows.to_parquet(path)
        return import_pairs(path, quarantine=quarantine)
