"""Train on preference pairs, audit them, compare the models, or walk the workbook's whole experiment.

Each command has a module with three functions: `add_arguments` declares its options, the function with the
command's own name does the work and returns plain data, and `show` prints that data for people.
"""

import argparse
import json
import sys
from contextlib import nullcontext, redirect_stdout
from types import ModuleType

from dpo_kit.cli import audit, evaluate, pairs, run, train
from dpo_kit.errors import DpoKitError
from dpo_kit.triage import pretrain

COMMANDS: dict[str, ModuleType] = {
    "run": run, "audit": audit, "pairs": pairs, "train": train, "evaluate": evaluate, "pretrain": pretrain,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    0: done. 1: the audit found a fault that blocks, or a control of the evaluation failed, so that there is no verdict.
    2: something that the reader can put right; one line on standard error says what. 130: stopped by Ctrl-C. With
    `--json`, standard output holds one JSON object and nothing else: the result, or `{"error": ...}`. Progress then
    goes to standard error.
    """
    arguments = parser().parse_args(argv)
    command = COMMANDS[arguments.command]
    try:
        # a library may print, and standard output belongs to the JSON object alone
        with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
            result = getattr(command, arguments.command)(arguments)
        if not arguments.json:
            command.show(result, arguments)
        code = 1 if result.get("blocking") else 0  # only the audit says "blocking"
    except DpoKitError as error:
        print(f"error: {error}", file=sys.stderr)
        result, code = {"error": str(error)}, 2
    except KeyboardInterrupt:
        stopped = "stopped; what was finished is kept, run the same command again to go on"
        print(f"\n{stopped}", file=sys.stderr)
        result, code = {"error": stopped}, 130
    if arguments.json:
        # JSON has no NaN: better to fail than to write what no other program reads
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    return code


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. The help of a command is the first line of its file."""
    whole = argparse.ArgumentParser(prog="dpo_kit", description=__doc__.split("\n")[0])
    commands = whole.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, module in COMMANDS.items():
        said = (module.__doc__ or "").split("\n")[0].partition(": ")[2]
        command = commands.add_parser(name, help=said, description=said)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return whole
