"""`python -m dpo_kit train`: SFT and DPO on your own pairs, to an adapter with its card; run again, it goes on.

The stages are those that the notebooks walk through. `--plan` reads the pairs' file and the model's configuration, and
says what the training would need; it loads no weights and trains nothing.
"""

import argparse
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from dpo_kit.errors import DpoKitError
from dpo_kit.profiles import Profile, load_profile, parse_overrides

SHOWN = {  # the metrics that the end of a training prints, and what they are called there
    "loss": "loss", "rewards/margins": "margin", "eval_rewards/margins": "margin on held-out pairs",
    "eval_rewards/accuracies": "accuracy on held-out pairs", "kl/sequence": "KL in nats an answer",
    "answers/stop_rate": "share of answers that end by themselves", "answers/length": "tokens an answer",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--profile", help="a profile's name or a .toml file (default: DPO_KIT_PROFILE, else tiny)")
    parser.add_argument("--model", help="the base: a local folder or a Hub id (default: the profile's)")
    parser.add_argument("--pairs", help="your pairs: a file, or the folder or Hub id of a data set")
    parser.add_argument("--chat-template", metavar="FILE|chatml|none", help="in place of the tokenizer's own template")
    parser.add_argument("--map", nargs="+", action="extend", default=[], metavar="ROLE=COLUMN",
                        help="columns of the pairs without a usual name, and what values mean")  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="TABLE.KEY=VALUE",
                        help="any setting of the profile, such as dpo.beta=0.05")  # fmt: skip
    parser.add_argument("--workdir", type=Path, help="where results go (default: a new folder runs/PROFILE-PAIRS-DATE, "
                        "or the one where the same training was begun)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", action="store_true", help="also write whole models with the adapter merged in")
    parser.add_argument("--fresh", action="store_true", help="begin again: in a new folder, or in --workdir, whose "
                        "stages are removed")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="train a profile for a GPU on a machine without one")
    parser.add_argument("--plan", action="store_true", help="read the pairs, say what memory and time it takes, stop")


def profile_of(arguments: argparse.Namespace) -> Profile:
    """The profile with what the command line sets in it. Raises DpoKitError for an unknown key or a bad value."""
    overrides = parse_overrides(arguments.set)
    if arguments.map:
        overrides.setdefault("data", {}).setdefault("map", arguments.map)
    given = ("model", "path", arguments.model), ("model", "chat_template", arguments.chat_template), (
        "data", "pairs", arguments.pairs)  # fmt: skip
    for table, key, value in given:
        if value is not None:
            overrides.setdefault(table, {}).setdefault(key, value)
    return load_profile(arguments.profile, **overrides)


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, or plan where `--plan` asks for it. Raises DpoKitError.

    Returns the plan's data, or `workdir`, `adapter` (the released adapter's folder), `proof` (how far the rewards of
    the adapter, loaded again, are from those at the end of training), and `ended`, the last value of each metric.
    """
    profile = profile_of(arguments)
    if arguments.plan:
        found = plan_pairs(profile)
        return {"profile": profile.name, **found, **plan_memory(profile), "hours": plan_hours(profile, found["pairs"])}
    from dpo_kit.files import json_object
    from dpo_kit.pipeline import train as train_stages
    from dpo_kit.training.metrics_log import last_values, read_log

    planned = plan_memory(profile)
    if profile.name.startswith("gpu-") and planned["free_bytes"] is None and not arguments.force:
        raise DpoKitError(
            f"profile {profile.name} is for a CUDA card, and no card is visible here: on this CPU it would train for "
            "days; choose --profile tiny or another machine, look with --plan, or insist with --force"
        )
    _show_memory(planned)
    workdir = arguments.workdir or _own_folder(profile, arguments)
    fresh = arguments.fresh and arguments.workdir is not None
    released = train_stages(profile, workdir, seed=arguments.seed, fresh=fresh, merge=arguments.merge)
    return {
        "workdir": str(workdir),
        "adapter": str(released / "adapter"),
        "proof": json_object(released / "proof.json"),
        "ended": last_values(read_log(workdir / "dpo" / "log.jsonl")),
    }


def _own_folder(profile: Profile, arguments: argparse.Namespace) -> Path:
    """The folder of this training: the same command finds the same one, and another command another."""
    from dpo_kit.pipeline import source_identity
    from dpo_kit.workspace import named_run

    made_from = {"profile": profile.model_dump(), "seed": arguments.seed, "pairs": source_identity(profile)}
    name = re.sub(r"[^\w.-]+", "-", f"{profile.name}-{Path(profile.data.pairs).name.split('.')[0]}")
    return named_run(made_from, name, fresh=arguments.fresh)


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the plan, or where the adapter is."""
    if not arguments.plan:
        shown = {name: result["ended"][name] for name in SHOWN if name in result["ended"]}
        print("\nat the end of training: " + ", ".join(f"{SHOWN[name]} {value:.3g}" for name, value in shown.items()))
        print(f"adapter, with its card: {result['adapter']}")
        arms = f"base=base sft={result['workdir']}/sft/adapter dpo={result['adapter']}"
        print(f"next: python -m dpo_kit evaluate --arms {arms} --prompts YOUR_PROMPTS.jsonl")
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
    from dpo_kit.preferences.importers import HUB_ID, import_external

    data, rows = profile.data, None
    count: int | None
    if not data.external:
        count, notes = profile.pairs.prompts, [f"at most {profile.pairs.prompts}, sampled from the SFT arm and judged"]
    elif not Path(data.pairs).exists() and HUB_ID.fullmatch(data.pairs):
        count, notes = data.limit, [f"{data.pairs}: no such folder here, so taken for a data set on the Hub; not read"]
    else:
        with tempfile.TemporaryDirectory() as folder:  # bad rows are only counted here; the training puts them aside
            imported = import_external(data, Path(folder) / "quarantine.jsonl")
        rows, count, notes = imported.rows, len(imported.pairs[: data.limit]), imported.notes
        notes += [f"the first {count} are used (data.limit)"] if count < len(imported.pairs) else []
    return {"source": data.pairs, "rows": rows, "pairs": count, "notes": notes}


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
    """Print the larger of the two stages, part by part, and what fits the card at hand."""
    stage, parts = max(planned["memory"].items(), key=lambda item: sum(item[1].values()))
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    total = sum(parts.values()) / 1e9  # GB of 10^9 bytes
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
    # measured here and now, because the load of a machine changes its speed
    speed, demonstrations = calibrate(profile), profile.sft.demonstrations
    shown = min(demonstrations, pairs) if profile.data.external else demonstrations
    rows: dict[Literal["sft", "dpo"], int] = {"sft": shown, "dpo": 2 * pairs}
    tokens = {stage: count * profile.model.max_length for stage, count in rows.items()}
    return {stage: speed.seconds(profile, stage, count) / 3600 for stage, count in tokens.items()}
