"""`python -m dpo_kit train`: SFT, DPO and a released adapter, on a profile's pairs or on your own, without a notebook.

The same stages as the notebooks walk through. The same command run again goes on where the last one was stopped.
"""

import argparse
from pathlib import Path

from dpo_kit.profiles import Profile, load_profile, parse_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--profile", help="which profile (default: DPO_KIT_PROFILE, else tiny)")
    parser.add_argument("--model", help="the base: a local folder or a Hub id (default: the profile's)")
    parser.add_argument("--pairs", help="your pairs: a file, or the folder or Hub id of a data set")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="TABLE.KEY=VALUE",
                        help="any setting of the profile, such as dpo.beta=0.05")  # fmt: skip
    parser.add_argument("--workdir", type=Path, help="where artefacts go (default: runs/PROFILE)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", action="store_true", help="also write whole models with the adapter merged in")
    parser.add_argument("--fresh", action="store_true", help="build every stage again")
    parser.add_argument("--plan", action="store_true", help="say what it would need, in memory and time, and stop")


def profile_of(arguments: argparse.Namespace) -> Profile:
    """The profile with what the command line sets in it. Raises DpoKitError for an unknown key or a bad value."""
    overrides = parse_overrides(arguments.set)
    for table, key, value in (("model", "path", arguments.model), ("data", "pairs", arguments.pairs)):
        if value is not None:
            overrides.setdefault(table, {}).setdefault(key, value)
    return load_profile(arguments.profile, **overrides)


def train(arguments: argparse.Namespace) -> Path | None:
    """Plan, then train; returns the released folder, or None where only a plan was asked for. Raises DpoKitError."""
    from dpo_kit.models.memory import check_fits

    profile = profile_of(arguments)
    stages = check_fits(profile)
    _say_memory(profile, stages)
    if arguments.plan:
        _say_time(profile)
        return None
    from dpo_kit.pipeline import train as train_stages
    from dpo_kit.workspace import default_workdir

    workdir = arguments.workdir or default_workdir(profile.name)
    return train_stages(profile, workdir, seed=arguments.seed, fresh=arguments.fresh, merge=arguments.merge)


def _say_memory(profile: Profile, stages: dict) -> None:
    """The larger of the two stages, part by part, and what fits the card at hand."""
    from dataclasses import asdict

    import torch

    from dpo_kit.models.memory import GB, fitting_profiles

    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    stage, most = max(stages.items(), key=lambda item: item[1].total)
    parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in asdict(most).items())
    print(f"memory: {profile.model.path} needs about {most.total / GB:.2f} GB on a GPU, for {stage} ({parts})")
    if free is not None:
        print(f"card: {free / GB:.1f} GB free; profiles that fit: {', '.join(fitting_profiles(free)) or 'none'}")


def _say_time(profile: Profile) -> None:
    """What a calibration of this machine gives for as many pairs as the profile reads, each as long as it may be."""
    from dpo_kit.models.memory import calibrate

    speed, rows = calibrate(profile), profile.data.limit or profile.pairs.prompts
    for stage, count, sides in (("sft", min(profile.sft.demonstrations, rows), 1), ("dpo", rows, 2)):
        hours = speed.seconds(profile, stage, count * sides * profile.model.max_length) / 3600
        print(f"time: {stage} at most about {hours:.2g} hours on this machine, for {count} rows of the longest kind")
