"""`python -m dpo_kit train`: SFT and DPO on your own pairs, to an adapter with its card; run again, it goes on.

The stages are those that the notebooks walk through. `--plan` reads the pairs' file and the model's configuration, and
says what the training would need; it loads no weights and trains nothing.
"""

import argparse
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo_kit.profiles import Profile, load_profile, parse_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--profile", help="which profile (default: DPO_KIT_PROFILE, else tiny)")
    parser.add_argument("--model", help="the base: a local folder or a Hub id (default: the profile's)")
    parser.add_argument("--pairs", help="your pairs: a file, or the folder or Hub id of a data set")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="TABLE.KEY=VALUE",
                        help="any setting of the profile, such as dpo.beta=0.05")  # fmt: skip
    parser.add_argument("--workdir", type=Path, help="where results go (default: runs/PROFILE)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", action="store_true", help="also write whole models with the adapter merged in")
    parser.add_argument("--fresh", action="store_true", help="build every stage again")
    parser.add_argument("--plan", action="store_true", help="read the pairs, say what memory and time it takes, stop")


def profile_of(arguments: argparse.Namespace) -> Profile:
    """The profile with what the command line sets in it. Raises DpoKitError for an unknown key or a bad value."""
    overrides = parse_overrides(arguments.set)
    for table, key, value in (("model", "path", arguments.model), ("data", "pairs", arguments.pairs)):
        if value is not None:
            overrides.setdefault(table, {}).setdefault(key, value)
    return load_profile(arguments.profile, **overrides)


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, or plan where `--plan` asks for it. Raises DpoKitError.

    Returns the plan's data, or `workdir`, `adapter` (the released adapter's folder) and `proof` (how far the rewards of
    the adapter, loaded again, are from those at the end of training).
    """
    profile = profile_of(arguments)
    if arguments.plan:
        found = plan_pairs(profile)
        return {"profile": profile.name, **found, **plan_memory(profile), "hours": plan_hours(profile, found["pairs"])}
    from dpo_kit.files import json_object
    from dpo_kit.pipeline import train as train_stages
    from dpo_kit.workspace import default_workdir

    _show_memory(plan_memory(profile))
    workdir = arguments.workdir or default_workdir(profile.name)
    released = train_stages(profile, workdir, seed=arguments.seed, fresh=arguments.fresh, merge=arguments.merge)
    return {
        "workdir": str(workdir),
        "adapter": str(released / "adapter"),
        "proof": json_object(released / "proof.json"),
    }


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the plan, or where the adapter is."""
    if not arguments.plan:
        print(f"\nadapter, with its card: {result['adapter']}")
        return
    for note in result["notes"]:
        print(f"pairs: {note}")
    _show_memory(result)
    for stage, hours in result["hours"].items():
        print(f"time: {stage} at most about {hours:.2g} hours on this machine, if every row has the greatest length")


def plan_pairs(profile: Profile) -> dict[str, Any]:
    """The `source` of the profile's pairs, how many `rows` and usable `pairs` it has, and `notes` on them in words.

    A data set on the Hub is not downloaded for a plan: `rows` is None then, and `pairs` the profile's limit, or None.
    Raises DpoKitError where a file or folder is not there or holds no pairs.
    """
    data = profile.data
    if not data.external:
        most = profile.pairs.prompts
        note = f"at most {most}, sampled from the SFT arm and judged"
        return {"source": data.pairs, "rows": None, "pairs": most, "notes": [note]}
    if not Path(data.pairs).exists() and _may_be_hub_id(data.pairs):
        note = f"{data.pairs}: taken for a data set on the Hub, since no such folder is here; not read for a plan"
        return {"source": data.pairs, "rows": None, "pairs": data.limit, "notes": [note]}
    from dpo_kit.preferences.importers import read_external

    with tempfile.TemporaryDirectory() as folder:  # bad rows are counted here, and put aside by the training itself
        imported = read_external(data, Path(folder) / "quarantine.jsonl")
    used = len(imported.pairs[: data.limit])
    notes = [f"{data.pairs}: {note}" for note in imported.notes]
    notes += [f"data.limit = {data.limit}: the first {used} pairs are used"] if used < len(imported.pairs) else []
    return {"source": data.pairs, "rows": imported.rows, "pairs": used, "notes": notes}


def _may_be_hub_id(source: str) -> bool:
    """Whether a text can be a Hub id, as `owner/name` or `name`, and does not end as the name of a file does."""
    known = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".pq")
    return bool(re.fullmatch(r"[\w-]+(/[\w-][\w.-]*)?", source)) and not source.endswith(known)


def plan_memory(profile: Profile) -> dict[str, Any]:
    """Bytes at each stage's peak by part, bytes that are free on a GPU (None without one), and profiles that fit there.

    Raises DpoKitError where a GPU is there and too small.
    """
    import torch

    from dpo_kit.models.memory import check_fits, fitting_profiles

    stages = {stage: asdict(peak) for stage, peak in check_fits(profile).items()}
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    fitting = [] if free is None else fitting_profiles(free)
    return {"model": profile.model.path, "memory": stages, "free_bytes": free, "fitting_profiles": fitting}


def _show_memory(planned: dict[str, Any]) -> None:
    """The larger of the two stages, part by part, and what fits the card at hand."""
    stage, parts = max(planned["memory"].items(), key=lambda item: sum(item[1].values()))
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    total = sum(parts.values()) / 1e9
    print(f"memory: {planned['model']} needs about {total:.2f} GB on a GPU, for {stage} ({listed})")
    if planned["free_bytes"] is not None:
        fitting = ", ".join(planned["fitting_profiles"]) or "none"
        print(f"card: {planned['free_bytes'] / 1e9:.1f} GB free; profiles that fit: {fitting}")


def plan_hours(profile: Profile, pairs: int | None) -> dict[str, float]:
    """Hours of each stage on this machine, if every row has the greatest length; {} where `pairs` is not known.

    The speed is measured on one layer with random weights, which takes some seconds.
    """
    from dpo_kit.models.memory import calibrate

    if pairs is None:
        return {}
    speed = calibrate(profile)
    rows = {"sft": min(profile.sft.demonstrations, pairs) if profile.data.external else profile.sft.demonstrations,
            "dpo": 2 * pairs}  # fmt: skip
    longest = profile.model.max_length
    return {stage: speed.seconds(profile, stage, count * longest) / 3600 for stage, count in rows.items()}
