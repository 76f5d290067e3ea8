"""The command line: `python -m dpo_kit run` walks the whole path, `pretrain` rebuilds the tiny base model."""

import argparse
import sys
from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.profiles import ROOT, load_profile


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 something to put right (one line says what), 130 Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except DpoKitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    from dpo_kit.pipeline import run
    from dpo_kit.views.tables import print_report
    from dpo_kit.workspace import default_workdir

    profile = load_profile(arguments.profile)
    workdir = arguments.workdir or default_workdir(profile.name)
    data = run(profile, workdir, seed=arguments.seed, fresh=arguments.fresh)
    print_report(data)
    print(f"\nreport: {workdir / 'report.html'}")


def _pretrain(arguments: argparse.Namespace) -> None:
    from dpo_kit.triage.base_model import build

    manifest = build(arguments.out)
    step, loss = manifest["loss_curve"][-1]
    print(f"{arguments.out}: {manifest['parameters']:,} parameters, loss {loss} after {step} steps")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dpo_kit", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="SFT, pairs, DPO, three-way comparison, report")
    run.add_argument("--profile", help="which profile (default: DPO_KIT_PROFILE, else tiny)")
    run.add_argument("--workdir", type=Path, help="where artefacts go (default: runs/PROFILE)")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--fresh", action="store_true", help="build every stage again")
    run.set_defaults(command=_run)
    pretrain = commands.add_parser("pretrain", help="rebuild the tiny base model from this project's own text")
    pretrain.add_argument("--out", type=Path, default=ROOT / "data" / "tiny-base", help="default: data/tiny-base")
    pretrain.set_defaults(command=_pretrain)
    return parser


if __name__ == "__main__":
    sys.exit(main())
