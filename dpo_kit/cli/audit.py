"""`python -m dpo_kit audit`: what is wrong with a file of preference pairs, and which of them to keep."""

import argparse
from pathlib import Path
from typing import Any

from dpo_kit.cli.reading import add_reading_arguments, reading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "file", type=Path, help="pairs in any format: a file, a folder, a Hub id, or - (standard input)"
    )
    parser.add_argument("--holdout", type=Path, help="the evaluation's prompts, or pairs with them")
    parser.add_argument("--max-length", type=int, help="tokens of prompt and answer that training will keep")
    parser.add_argument("--tokenizer", help="folder or Hub id of the tokenizer with its chat template")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenise")
    parser.add_argument("--out", type=Path, help="where the kept pairs go; bad lines go beside it")
    add_reading_arguments(parser)


def audit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Import the pairs, run every check, write what is kept. Raises DpoKitError.

    Returns `AuditReport.to_json()` with `blocking` (whether a fault is beyond doubt) and `notes` (what became of the
    file's rows).
    """
    # imported here, so that the help of a command does not wait for its libraries
    from dpo_kit.jsonl import write_pairs
    from dpo_kit.preferences.audit import audit_pairs
    from dpo_kit.preferences.audit.tokens import load_tokenizer
    from dpo_kit.preferences.importers import import_any, read_prompts

    quarantine = arguments.out and arguments.out.with_suffix(".quarantine.jsonl")
    imported = import_any(str(arguments.file), quarantine, **reading(arguments))
    tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    holdout = read_prompts(arguments.holdout) if arguments.holdout else None
    report = audit_pairs(imported.pairs, tokenizer, holdout, arguments.max_length, arguments.workers)
    if arguments.out:
        write_pairs(arguments.out, report.kept)
    return {**report.to_json(), "blocking": bool(report.blocking), "notes": imported.notes}


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the table of findings and what became of the file's rows."""
    from rich.console import Console

    from dpo_kit.views.tables import audit_table

    console = Console()
    console.print(audit_table(result))
    for note in result["notes"]:
        # a note may quote the data, and brackets in it are no markup
        console.print(note, markup=False, highlight=False)
