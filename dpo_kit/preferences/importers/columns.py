"""What every importer needs: columns under their usual names, chat messages, labels, and what a row can give.

A row gives `Outcome`s: preference pairs, answers that still have to find their counterpart, or judgements that make no
pair. A row that is broken raises ValueError, KeyError or TypeError. Nothing here reads files.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dpo_kit.records import Message, PreferencePair, Prompt, Response, Verdict, role_fault

NAMES = {
    "prompt": ("prompt", "question", "instruction", "query", "input"),
    "system": ("system", "system_prompt"),
    "chosen": ("chosen", "chosen_response", "response_chosen", "preferred", "accepted"),
    "rejected": ("rejected", "rejected_response", "response_rejected", "dispreferred"),
    "completion": ("completion", "response", "answer", "output"),
    "label": ("label",),
    "score_chosen": ("score_chosen", "chosen_score"),
    "score_rejected": ("score_rejected", "rejected_score"),
    "model_chosen": ("chosen_model", "model_chosen", "generator_chosen"),
    "model_rejected": ("rejected_model", "model_rejected", "generator_rejected"),
}
TIES = {"tie", "ties", "tied", "draw"}
ALIKE = {"equal", "equally", "same", "both", "neither"}
SIDES = {"left": 0, "first": 0, "right": 1, "second": 1}
ANSWER = re.compile(r"(?:response|answer|completion|output|option|generation|text|reply)[ _-]?(?:\d+|[a-z])", re.I)


@dataclass(frozen=True)
class Unpaired:
    """One answer to a prompt and whether it is good, as in KTO's format."""

    prompt: Prompt
    text: str
    good: bool


@dataclass(frozen=True)
class NoPair:
    """A judgement that makes no pair, and why in a few words, such as "tie"."""

    prompt: Prompt
    reason: str


Outcome = PreferencePair | Unpaired | NoPair


@dataclass(frozen=True)
class Format:
    """A format of rows.

    `missing` says in a few words what a row lacks to be in this format, None where it is in it. `read` gives the
    outcomes of one row. `columns` are those that it reads beside the columns of `NAMES`.
    """

    missing: Callable[[dict[str, Any]], str | None]
    read: Callable[[dict[str, Any]], Sequence[Outcome]]
    columns: tuple[str, ...] = ()


@lru_cache(4096)
def plain_name(name: str) -> str:
    """A column's name without what people write differently: `Chosen Response` is `chosen_response`."""
    return re.sub(r"\W+", "_", name.strip().lower())


def column(row: dict[str, Any], name: str) -> Any:
    """What a row holds under the first usual name of a column; None where there is nothing."""
    plain = {plain_name(key): value for key, value in row.items()}
    return next((plain[n] for n in NAMES[name] if plain.get(n) is not None), None)


def text_of(value: Any, name: str) -> str:
    """The value, which must be a text. Raises ValueError that names the column."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: a text was expected, found {type(value).__name__}")
    return value


def number(value: Any) -> float | None:
    """A number, which may be written as text or as true and false; None for nothing, and for NaN as tables hold it."""
    if value is None or value == "":
        return None
    if str(value).strip().lower() in ("true", "false"):
        return float(str(value).strip().lower() == "true")
    found = float(value)
    return None if math.isnan(found) else found


def is_chat(value: Any) -> bool:
    """Whether a column holds chat messages rather than a text."""
    return isinstance(value, dict | list) and bool(value)


def messages_of(value: Any) -> list[Message]:
    """Messages from a list of them, or from one. Raises ValueError at a key that a message cannot keep."""
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("messages: a list of objects with role and content was expected")
    # Parquet gives every message every key that any message has, with None where it has none.
    return [Message.model_validate({key: v for key, v in turn.items() if v is not None}) for turn in turns]


def prompt_of(row: dict[str, Any], asked: Any = None) -> Prompt:
    """The prompt of a row: `asked`, or else its prompt column, which is a text or chat messages.

    A text is joined by what an Alpaca-style `input` or a `context` column adds, and the row's system prompt stands
    before it. The prompt is named by its messages. Raises ValueError where there is none, and for roles out of order.
    """
    asked = column(row, "prompt") if asked is None else asked
    if asked is None:
        raise ValueError(f"no prompt: none of the columns {', '.join(NAMES['prompt'])} is there")
    if is_chat(asked):
        return named(with_system(row, messages_of(asked)))
    more = [row[name] for name in ("input", "context") if isinstance(row.get(name), str) and row[name] != asked]
    content = "\n\n".join([text_of(asked, "prompt"), *filter(str.strip, more)])
    return named(with_system(row, [Message(role="user", content=content)]))


def with_system(row: dict[str, Any], messages: list[Message]) -> list[Message]:
    """The messages, after the row's system prompt where it has one and they do not."""
    system = column(row, "system")
    if not system or (messages and messages[0].role == "system"):
        return messages
    return [Message(role="system", content=text_of(system, "system")), *messages]


def named(messages: Sequence[Message]) -> Prompt:
    """The prompt of these messages, named by them. Raises ValueError for roles out of order."""
    if fault := role_fault(messages):
        raise ValueError(f"prompt: {fault}")
    return Prompt.of(messages)


def meant_by(label: str, names: Sequence[str]) -> int | None:
    """The index in `names` that a label means (by name, number, letter, left or right); None for a tie.

    Raises ValueError for a label that means none of them, or more than one.
    """
    words = re.findall(r"[a-z]+|\d+", label.lower())
    if TIES & set(words):
        return None
    plain = [re.findall(r"[a-z]+|\d+", name.lower()) for name in names]
    if words in plain:
        return plain.index(words)
    meant = {int(w) - 1 if w.isdigit() else SIDES.get(w, ord(w[0]) - ord("a") if len(w) == 1 else -1) for w in words}
    meant = {index for index in meant if 0 <= index < len(names)}
    if not meant and ALIKE & set(words):
        return None
    if len(meant) != 1 or ALIKE & set(words):
        raise ValueError(f"the label {label!r} does not say which of {', '.join(names)} is meant")
    return meant.pop()


def pair(
    prompt: Prompt,
    texts: tuple[str, str],
    judge: str,
    reason: str = "",
    *,
    winner: int = 0,
    arms: tuple[Any, Any] = (None, None),
    at: str | None = None,
) -> PreferencePair:
    """The pair that follows when of two answers, a and b, the one with index `winner` was preferred.

    `arms` are the models' names where the file has them.
    """
    # Tables hold NaN, which is no text, where a model's name is missing.
    answers = [
        Response(prompt_id=prompt.id, text=text, arm=arm if isinstance(arm, str) and arm else "imported")
        for text, arm in zip(texts, arms, strict=True)
    ]
    verdict = Verdict(winner=("a", "b")[winner], judge=judge, reason=reason, at=at)
    return PreferencePair(prompt=prompt, chosen=answers[winner], rejected=answers[1 - winner], verdict=verdict)
