"""The command line: `python -m dpo_kit run` walks the whole path, `pretrain` rebuilds the tiny base model."""

import argparse
import sys
from pathlib import Path

from dpo_kit.cli.evaluate import add_arguments as add_evaluate_arguments
from dpo_kit.cli.train import add_arguments as add_train_arguments
from dpo_kit.errors import DpoKitError
from dpo_kit.profiles import ROOT, load_profile


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 a blocking finding of the audit, 2 something to put right (one
    line says what), 130 Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments) or 0
    except DpoKitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, run the same command again to go on", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> None:
    from dpo_kit.pipeline import run
    from dpo_kit.views.tables import print_report
    from dpo_kit.workspace import default_workdir

    profile = load_profile(arguments.profile)
    workdir = arguments.workdir or default_workdir(profile.name)
    data = run(profile, workdir, seed=arguments.seed, fresh=arguments.fresh)
    print_report(data)
    print(f"\nreport: {workdir / 'report.html'}")


def _train(arguments: argparse.Namespace) -> None:
    from dpo_kit.cli.train import train

    released = train(arguments)
    if released:
        print(f"\nadapter, with its card: {released / 'adapter'}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from dpo_kit.cli.evaluate import evaluate
    from dpo_kit.views.tables import print_report

    print_report(evaluate(arguments))
    print(f"\nreport: {arguments.out / 'report.html'}")


def _pretrain(arguments: argparse.Namespace) -> None:
    from dpo_kit.triage.base_model import build

    manifest = build(arguments.out)
    step, loss = manifest["loss_curve"][-1]
    print(f"{arguments.out}: {manifest['parameters']:,} parameters, loss {loss} after {step} steps")


def _audit(arguments: argparse.Namespace) -> int:
    import json

    from rich.console import Console

    from dpo_kit.files import write_atomically
    from dpo_kit.jsonl import write_pairs
    from dpo_kit.preferences.audit import audit_pairs
    from dpo_kit.preferences.audit.tokens import load_tokenizer
    from dpo_kit.preferences.importers import import_pairs, read_prompts
    from dpo_kit.views.audit_figures import audit_table

    quarantine = arguments.out and arguments.out.with_suffix(".quarantine.jsonl")
    imported = import_pairs(arguments.file, quarantine=quarantine)
    tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    holdout = read_prompts(arguments.holdout) if arguments.holdout else None
    report = audit_pairs(imported.pairs, tokenizer, holdout, arguments.max_length, arguments.workers)
    if arguments.json:
        write_atomically(arguments.json, json.dumps(report.to_json(), indent=1) + "\n")
    if arguments.out:
        write_pairs(arguments.out, report.kept)
    console = Console()
    console.print(audit_table(report.to_json()))
    for note in imported.notes:
        console.print(note, markup=False, highlight=False)
    return 1 if report.blocking else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dpo_kit", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="SFT, pairs, DPO, three-way comparison, report")
    run.add_argument("--profile", help="which profile (default: DPO_KIT_PROFILE, else tiny)")
    run.add_argument("--workdir", type=Path, help="where artefacts go (default: runs/PROFILE)")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--fresh", action="store_true", help="build every stage again")
    run.set_defaults(command=_run)
    train = commands.add_parser("train", help="SFT and DPO on your own pairs; run again, it goes on")
    add_train_arguments(train)
    train.set_defaults(command=_train)
    evaluate = commands.add_parser("evaluate", help="compare your own models on your own prompts")
    add_evaluate_arguments(evaluate)
    evaluate.set_defaults(command=_evaluate)
    pretrain = commands.add_parser("pretrain", help="rebuild the tiny base model from this project's own text")
    pretrain.add_argument("--out", type=Path, default=ROOT / "data" / "tiny-base", help="default: data/tiny-base")
    pretrain.set_defaults(command=_pretrain)
    audit = commands.add_parser("audit", help="what is wrong with a file of preference pairs, and what to keep")
    audit.add_argument("file", type=Path, help="pairs in any known format")
    audit.add_argument("--holdout", type=Path, help="the evaluation's prompts, or pairs with them")
    audit.add_argument("--max-length", type=int, help="tokens of prompt and answer that training will keep")
    audit.add_argument("--tokenizer", help="folder or Hub id of the tokenizer with its chat template")
    audit.add_argument("--workers", type=int, default=1, help="processes that tokenise")
    audit.add_argument("--out", type=Path, help="where the kept pairs go; bad lines go beside it")
    audit.add_argument("--json", type=Path, help="where the whole report goes")
    audit.set_defaults(command=_audit)
    return parser
