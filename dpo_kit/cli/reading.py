"""The options of commands that read other people's files: what columns mean, the encoding, how much may be unpacked."""

import argparse
from typing import Any


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that `reading` hands to the importers."""
    parser.add_argument("--map", nargs="+", action="extend", default=[], metavar="ROLE=COLUMN", help="columns of other "
                        "names, such as prompt=question, and what values mean: preference.0=first")  # fmt: skip
    parser.add_argument("--encoding", help="of text files that are neither in UTF-8 nor marked, such as cp1252")
    parser.add_argument("--max-bytes", type=int, default=8 * 2**30, help="what a compressed file may unpack to")
    parser.add_argument("--split", default="train", help="which split of a folder or of a data set on the Hub")


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as `import_pairs`, `read_prompts` and `read_answers` take them."""
    given = {"mapped": tuple(arguments.map), "encoding": arguments.encoding}
    return {**given, "max_bytes": arguments.max_bytes, "split": arguments.split}
