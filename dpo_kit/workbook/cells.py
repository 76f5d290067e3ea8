"""Small functions for notebook cells: show the error of a check, describe this machine, compare two runs."""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from textwrap import fill

import psutil

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.results import Metric
from dpo_kit.profiles import Profile
from dpo_kit.views.tables import header, table_rows

TIMINGS = ("runtime", "per_second", "per_s", "preparation_time", "memory_mb")  # these differ between equal runs


def without_timings(rows: list[dict]) -> list[dict]:
    """Rows without speed, time and memory: what is left is the same in every run with the same seed."""
    return [{name: value for name, value in row.items() if not name.endswith(TIMINGS)} for row in rows]


@contextmanager
def refusal() -> Iterator[None]:
    """Show in a notebook that a check refuses something: print the first line of the block's DpoKitError.

    The folders of paths are left out, because they differ by machine. Raises AssertionError where the block raises no
    DpoKitError, so that a notebook cannot show a check that no longer works.
    """
    try:
        yield
    except DpoKitError as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        print(fill(re.sub(r"/(?:[^/ ]+/)+", "", said), 96))
    else:
        raise AssertionError("this block was to be refused, and was not")


def in_one_line(error: DpoKitError) -> DpoKitError:
    """The same error; a notebook shows its message alone, without a traceback. It still ends Run All."""
    error._render_traceback_ = lambda: [f"{type(error).__name__}: {error}"]  # IPython asks for this name
    return error


def only_incidents(profile: Profile, instead: str) -> None:
    """Refuse pairs from outside in a notebook whose prompts and scores are those of the workbook's own world.

    Raises DpoKitError, shown in one line, with the command to use `instead`.
    """
    if profile.data.external:
        raise in_one_line(
            DpoKitError(
                f"data.pairs = {profile.data.pairs!r}: this notebook draws incident reports and scores answers with "
                f"the rubric of that world, which says nothing about other pairs; use `{instead}`"
            )
        )


def describe_machine() -> dict[str, str]:
    """What decides whether a profile fits: Python, the model stack, cores, memory, GPU."""
    import torch

    gpu = "none: the tiny profile needs none"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        gpu = f"{card.name}, {card.total_memory / 2**30:.0f} GB"
    return {
        "Python": platform.python_version(),
        **{name: version(name).split("+")[0] for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")},
        "CPU cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GB",
        "GPU": gpu,
    }


def markdown_table(metrics: Mapping[str, Metric], refusal: str | None = None) -> str:
    """The table of metrics as Markdown."""
    columns = header(metrics)
    lines = [columns, ("---", *["---:"] * (len(columns) - 2), "---"), *table_rows(metrics, refusal)]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"No verdict: {refusal}.\n\n{table}" if refusal else table
