"""`python -m dpo_kit pretrain`: rebuild the tiny base model from this project's own text."""

import argparse
from pathlib import Path
from typing import Any

from dpo_kit.profiles import DATA, IN_CHECKOUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    # an installed package is never written to
    default = DATA / "tiny-base" if IN_CHECKOUT else Path("tiny-base")
    parser.add_argument("--out", type=Path, default=default, help="the model's folder (default: data/tiny-base in a "
                                                                  "checkout, else tiny-base)")  # fmt: skip


def pretrain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the model; returns its manifest and its folder as `out`."""
    from dpo_kit.triage.base_model import build

    return {"out": str(arguments.out), **build(arguments.out)}


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print how large the model is and where its loss ended."""
    step, loss = result["loss_curve"][-1]
    print(f"{result['out']}: {result['parameters']:,} parameters, loss {loss} after {step} steps")
