"""What the audit needs besides the pairs, from the paths that a command line names."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dpo_kit.errors import DpoKitError
from dpo_kit.jsonl import read_records
from dpo_kit.preferences.importers import import_pairs
from dpo_kit.records import Prompt


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a Hub id. Raises DpoKitError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DpoKitError(f"{name}: no tokenizer there ({str(error).splitlines()[0]})") from None


def prompts_of(path: Path) -> list[Prompt]:
    """The prompts of a file of prompts, or of pairs in any known format. Raises DpoKitError where it is neither."""
    try:
        return read_records(path, Prompt)
    except DpoKitError:
        return [pair.prompt for pair in import_pairs(path).pairs]
