"""What a good answer is, in words, for a language model or a person who judges: a text that the user names.

Some are shipped, with a card, under `data/criteria/`.
"""

from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.profiles import DATA

SHIPPED = DATA / "criteria"


def criteria_names() -> list[str]:
    """The names of the criteria that are shipped."""
    return sorted(path.stem for path in SHIPPED.glob("*.txt"))


def read_criteria(named: str) -> str:
    """The text of a file, or of shipped criteria by name. Raises DpoKitError where neither is there, or it is empty."""
    file = Path(named).expanduser()
    path = SHIPPED / f"{named}.txt" if named in criteria_names() and not file.is_file() else file
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        why = "not UTF-8" if isinstance(error, ValueError) else error.strerror
        names = ", ".join(criteria_names())
        raise DpoKitError(f"criteria {named}: {why}; give a file of text, or one of the names {names}") from None
    if not text:
        raise DpoKitError(f"criteria {named}: the file is empty; say in it what a good answer is")
    return text
