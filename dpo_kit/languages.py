"""The language of a text, where it can be told: for the audit of pairs and for the evaluation of answers."""

from functools import cache
from typing import Any

LETTERS = 40  # with fewer letters the guess says too little
CONFIDENT = 0.95


def language(text: str) -> str | None:
    """The ISO 639-1 code of a text; None where it is too short or the guess is not confident."""
    if sum(map(str.isalpha, text)) < LETTERS:
        return None
    code, confidence = _identifier().classify(text)
    return code if confidence >= CONFIDENT else None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # reading its model takes a moment

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
