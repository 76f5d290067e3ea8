"""`python -m dpo_kit run`: the workbook's experiment from end to end: SFT, pairs, DPO, three arms compared."""

import argparse
from pathlib import Path
from typing import Any

from dpo_kit.profiles import load_profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--profile", help="which profile (default: DPO_KIT_PROFILE, else tiny)")
    parser.add_argument("--workdir", type=Path, help="where results go (default: runs/PROFILE)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="build every stage again")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Walk the stages; returns the report as plain data and the path of its page as `html`. Raises DpoKitError."""
    from dpo_kit.pipeline import run as run_stages
    from dpo_kit.workspace import default_workdir

    profile = load_profile(arguments.profile)
    workdir = arguments.workdir or default_workdir(profile.name)
    report = run_stages(profile, workdir, seed=arguments.seed, fresh=arguments.fresh)
    return {"html": str(workdir / "report.html"), **report.to_data()}


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the report's table and where the page is."""
    from dpo_kit.evaluation.results import from_data
    from dpo_kit.views.tables import print_report

    page = result.pop("html")  # the rest is the report alone, as `from_data` takes it
    print_report(from_data(result))
    print(f"\nreport: {page}")
