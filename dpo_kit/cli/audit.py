"""`python -m dpo_kit audit`: what is wrong with a file of preference pairs, and which of them to keep."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_kit.cli.reading import add_reading_arguments, reading
from dpo_kit.errors import DpoKitError

if TYPE_CHECKING:
    from dpo_kit.preferences.importers import Imported
    from dpo_kit.profiles import Profile
    from dpo_kit.records import PreferencePair

MEASURED = 200  # pairs whose chosen answers are scored by the model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "file", type=Path, help="pairs in any format: a file, a folder, a Hub id, or - (standard input)"
    )
    parser.add_argument("--holdout", type=Path, help="the evaluation's prompts, or pairs with them")
    parser.add_argument("--max-length", type=int, help="tokens of prompt and answer that training will keep")
    parser.add_argument("--tokenizer", help="folder or Hub id of the tokenizer with its chat template")
    parser.add_argument("--model", help="folder or Hub id of the model to be trained: its tokenizer is used, and how "
                        "likely it finds the chosen answers is measured")  # fmt: skip
    parser.add_argument("--chat-template", default="", metavar="FILE|chatml|none", help="in place of the tokenizer's")
    parser.add_argument("--scored-turns", choices=("all", "last"), default="all", help="turns of an answer that count")
    parser.add_argument("--thinking", choices=("scored", "masked"), help="whether spans of thought are learnt")
    parser.add_argument("--keep", nargs="+", action="extend", default=[], metavar="FINDING",
                        help="findings whose rows are not dropped, such as near-duplicates")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenise")
    parser.add_argument("--out", type=Path, help="where the kept pairs go; bad lines go beside it")
    add_reading_arguments(parser)


def audit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Import the pairs, run every check, write what is kept. Raises DpoKitError, also where `--out` is a file it reads.

    Returns `AuditReport.to_json()` with `blocking` (whether a fault is beyond doubt) and `notes` (what became of the
    file's rows). Lines that cannot be read are a finding of their own, and the other lines are audited.
    """
    # imported here, so that the help of a command does not wait for its libraries
    from dpo_kit.jsonl import write_pairs
    from dpo_kit.preferences.audit import audit_pairs
    from dpo_kit.preferences.importers import read_prompts

    quarantine = arguments.out and arguments.out.with_suffix(".quarantine.jsonl")
    read = {file.resolve() for file in (arguments.file, arguments.holdout) if file}
    for written in (arguments.out, quarantine):
        if written and written.resolve() in read:
            raise DpoKitError(f"--out {arguments.out}: {written} would be written over, and it is read; name another")
    imported, unreadable = _imported(arguments, quarantine)
    settings, tokenizer, scoring = None, None, None
    if name := arguments.tokenizer or arguments.model:
        from dpo_kit.models.tokens import Scoring, load_tokenizer
        from dpo_kit.profiles import load_profile

        chosen = {"chat_template": arguments.chat_template, "scored_turns": arguments.scored_turns}
        settings = load_profile(model={**chosen, "thinking": arguments.thinking, "path": name})
        tokenizer, scoring = load_tokenizer(name, settings.model), Scoring.of(settings.model)
    report = audit_pairs(
        imported.pairs, tokenizer, read_prompts(arguments.holdout) if arguments.holdout else None,
        arguments.max_length, arguments.workers, scoring=scoring, keep=arguments.keep, unreadable=unreadable,
        logps=_mean_logps(settings, arguments.model, imported.pairs) if settings and arguments.model else None,
    )  # fmt: skip
    if arguments.out:
        write_pairs(arguments.out, report.kept)
    return {**report.to_json(), "blocking": bool(report.blocking), "notes": imported.notes}


def _imported(arguments: argparse.Namespace, quarantine: Path | None) -> "tuple[Imported, dict[int, str]]":
    """The pairs of a file, and by number what is wrong with the lines that cannot be read."""
    from dpo_kit.jsonl import read_jsonl
    from dpo_kit.preferences.importers import import_any

    with tempfile.TemporaryDirectory() as folder:
        aside = quarantine or Path(folder) / "quarantine.jsonl"
        imported = import_any(str(arguments.file), aside, **reading(arguments))
        rows = read_jsonl(aside) if aside.is_file() else []
    # a bad line's number stands under what it counts: a line, a row or an item of a list
    return imported, {next(v for v in row.values() if isinstance(v, int)): row["reason"] for row in rows}


def _mean_logps(profile: "Profile", model: str, pairs: "Sequence[PreferencePair]") -> list[float]:
    """The mean log-prob, in nats, of a token of each chosen answer under the model, of at most `MEASURED` pairs."""
    from dpo_kit.models.loading import Arms, load_base
    from dpo_kit.models.logprobs import mean_logps
    from dpo_kit.models.tokens import Scoring

    chosen = profile.model.model_copy(update={"path": model})
    arms = Arms(*load_base(profile.model_copy(update={"model": chosen})))
    return mean_logps(arms, "base", pairs[:: max(1, len(pairs) // MEASURED)], Scoring.of(profile.model))


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the table of findings and what became of the file's rows."""
    from rich.console import Console

    from dpo_kit.views.tables import audit_table

    console = Console()
    console.print(audit_table(result))
    for note in result["notes"]:
        # a note may quote the data, and brackets in it are no markup
        console.print(note, markup=False, highlight=False)
