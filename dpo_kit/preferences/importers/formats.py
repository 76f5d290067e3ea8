"""Other people's preference rows: which format a row is in, and what judgements it holds.

Every format is a function from one row to what was judged in it: a preference pair, an answer that still has to find
its counterpart (KTO), or a few words that say why a judgement made no pair (a tie, nothing annotated). A row that is
broken raises ValueError, KeyError or TypeError. Nothing here reads files.

Where the prompt is implicit, conversations are cut at the exact message and texts at the exact character at which they
part, a space going to the answers: as TRL's `extract_prompt` does, but also where one text begins with the other.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_kit.preferences.importers.annotation_exports import argilla, label_studio, lacks_argilla, lacks_label_studio
from dpo_kit.preferences.importers.columns import (
    NAMES,
    field,
    is_chat,
    messages_of,
    number,
    pair,
    plain_name,
    prompt_messages,
    text_of,
    with_system,
)
from dpo_kit.records import Message, PreferencePair

MOST_PAIRS = 100  # from one prompt, when every good answer meets every bad one
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


@dataclass(frozen=True)
class Unpaired:
    """One answer to a prompt and whether it is good, as KTO has it."""

    messages: tuple[Message, ...]
    text: str
    good: bool


Outcome = PreferencePair | Unpaired | str


@dataclass(frozen=True)
class Format:
    """A row format: `lacks` says in a few words why a row is not in it (None if it is), `judged` reads one.

    `reads` are the columns it reads beside those of `fields.NAMES`.
    """

    lacks: Callable[[dict[str, Any]], str | None]
    judged: Callable[[dict[str, Any]], Sequence[Outcome]]
    reads: tuple[str, ...] = ()


def as_transcript(messages: Iterable[Message]) -> str:
    """Messages as an Anthropic HH transcript; inverse of `from_transcript`."""
    return "".join(f"\n\n{'Human' if m.role == 'user' else 'Assistant'}: {m.content}" for m in messages)


def from_transcript(text: str) -> list[Message]:
    """The turns of a transcript in Anthropic's HH format."""
    _, *parts = TURN.split(text)
    speakers = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role=speakers[speaker], content=said.removeprefix(" ")) for speaker, said in turns]


def pair_up(answers: Iterable[Unpaired]) -> list[PreferencePair | str]:
    """Every good answer against every bad one of the same prompt.

    Beyond `MOST_PAIRS` a prompt's answers are paired in turn instead, each used at least once: a prompt with thousands
    of answers would otherwise outweigh all others. Answers without a counterpart are named.
    """
    by_prompt: dict[tuple[Message, ...], tuple[list[str], list[str]]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.messages, ([], []))[answer.good].append(answer.text)
    outcomes: list[PreferencePair | str] = []
    for messages, (bad, good) in by_prompt.items():
        if not (bad and good):
            outcomes += [f"no {'bad' if good else 'good'} answer to the same prompt"] * len(good + bad)
        elif len(good) * len(bad) <= MOST_PAIRS:
            outcomes += [pair(messages, texts, "kto") for texts in itertools.product(good, bad)]
        else:
            longest = range(max(len(good), len(bad)))
            outcomes += [pair(messages, (good[i % len(good)], bad[i % len(bad)]), "kto") for i in longest]
    return outcomes


def _ours(row: dict[str, Any]) -> list[Outcome]:
    return [PreferencePair.from_json(row)]


def _conversations(judge: str) -> Callable[[dict[str, Any]], list[Outcome]]:
    def judged(row: dict[str, Any]) -> list[Outcome]:
        chosen, rejected = messages_of(field(row, "chosen")), messages_of(field(row, "rejected"))
        return [_parted(row, field(row, "prompt"), chosen, rejected, judge)]

    return judged


def _transcripts(row: dict[str, Any]) -> list[Outcome]:
    before = row.get("prompt") or ""  # some copies of HH keep the shared part in a column of its own
    chosen, rejected = (from_transcript(before + text_of(field(row, side), side)) for side in ("chosen", "rejected"))
    return [_parted(row, None, chosen, rejected, "hh")]


def _parted(row: dict[str, Any], given: Any, chosen: list[Message], rejected: list[Message], judge: str) -> Outcome:
    """A pair from two conversations: what they share from the start is the prompt, then each has one answer."""
    before = messages_of(given) if is_chat(given) else []
    if before and chosen[: len(before)] == before == rejected[: len(before)]:
        before = []  # the conversations repeat the prompt
    shared = _shared(chosen[:-1], rejected[:-1])
    prompt, answers = before + chosen[:shared], (chosen[shared:], rejected[shared:])
    if any(len(side) != 1 or side[0].role != "assistant" for side in answers):
        raise ValueError("chosen and rejected must part at one last assistant answer each")
    if not (given is None or is_chat(given)):
        if prompt and text_of(given, "prompt").strip() not in (m.content.strip() for m in prompt):
            raise ValueError("prompt: not the text that the conversations begin with")
        prompt = prompt or prompt_messages(row)
    texts = (answers[0][0].content, answers[1][0].content)
    return _scored_pair(row, with_system(row, prompt), texts, judge)


def _texts(row: dict[str, Any]) -> list[Outcome]:
    chosen, rejected = (text_of(field(row, side), side) for side in ("chosen", "rejected"))
    if field(row, "prompt") is not None:
        return [_scored_pair(row, prompt_messages(row), (chosen, rejected), "trl-standard")]
    shared = _shared(chosen, rejected)
    shared -= shared > 0 and chosen[shared - 1] == " "  # the space belongs to the answer, as in TRL
    if shared < 1:
        raise ValueError("there is no prompt, and chosen and rejected begin differently")
    messages = prompt_messages(row, chosen[:shared])
    return [_scored_pair(row, messages, (chosen[shared:], rejected[shared:]), "trl-standard")]


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences have in common from the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _scored_pair(row: dict[str, Any], messages: list[Message], texts: tuple[str, str], judge: str) -> Outcome:
    scores = [number(field(row, f"score_{side}")) for side in ("chosen", "rejected")]
    if None not in scores and scores[0] == scores[1]:
        return "tie"  # who is called chosen is then an accident, whatever the columns say
    arms = (field(row, "model_chosen"), field(row, "model_rejected"))
    reason = "" if None in scores else f"scores {scores[0]:g} against {scores[1]:g}"
    return pair(messages, texts, judge, reason, arms=arms)


def _stanford(row: dict[str, Any]) -> list[Outcome]:
    texts = (text_of(row["human_ref_A"], "human_ref_A"), text_of(row["human_ref_B"], "human_ref_B"))
    label, scores = number(row.get("labels")), [number(row.get(f"score_{side}")) for side in "AB"]
    if label not in (None, 0, 1):
        raise ValueError(f"labels: 1 (A is preferred) or 0 (B) was expected, found {label:g}")
    if label is None and None in scores:
        return ["not annotated"]
    if label is None and scores[0] == scores[1]:
        return ["tie"]
    winner = int(scores[0] < scores[1]) if label is None else int(label == 0)
    reason = "" if None in scores else f"scores {scores[winner]:g} against {scores[1 - winner]:g}"
    return [pair(prompt_messages(row, row["history"]), texts, "shp", reason, winner=winner)]


def _comparison(row: dict[str, Any]) -> list[Outcome]:
    texts = (text_of(row["output_1"], "output_1"), text_of(row["output_2"], "output_2"))
    stated = row["preference"] if "preference" in row else row["label"]
    label = number(stated)
    if label is None:
        return ["not annotated"]
    if label == 1.5 or (label == 0 and "preference" in row):  # 0 is a draw in AlpacaEval 1, but no label of LLMBar
        return ["tie"]
    if not 1 <= label <= 2:
        raise ValueError(f"label: between 1 (output_1 is better) and 2 (output_2) was expected, found {label:g}")
    arms = (row.get("generator_1"), row.get("generator_2"))
    judge = row.get("annotator") if isinstance(row.get("annotator"), str) else None
    messages = prompt_messages(row)
    return [pair(messages, texts, judge or "comparison", f"label {stated}", winner=int(label > 1.5), arms=arms)]


def _unpaired(row: dict[str, Any]) -> list[Outcome]:
    label = number(field(row, "label"))
    if label is None:
        return ["not annotated"]
    if label not in (0, 1):
        raise ValueError(f"label: true or false was expected, found {label:g}")
    completion = field(row, "completion")
    if is_chat(completion):
        (answer,) = messages_of(completion)
        if answer.role != "assistant":
            raise ValueError(f"completion: the role is {answer.role}, not assistant")
        completion = answer.content
    messages = prompt_messages(row)
    pair(messages, ("", ""), "kto")  # a broken prompt is this row's fault, not that of the row it would be paired with
    return [Unpaired(tuple(messages), text_of(completion, "completion"), bool(label))]


def _needs(*names: str) -> Callable[[dict[str, Any]], str | None]:
    def lacks(row: dict[str, Any]) -> str | None:
        return next((f"no column {name}" for name in names if name not in row), None)

    return lacks


def _lacks_comparison(row: dict[str, Any]) -> str | None:
    without_label = None if "label" in row or "preference" in row else "no column label or preference"
    return _needs("output_1", "output_2")(row) or without_label


def _needs_sides(holds: Callable[[Any], bool], what: str, *more: str) -> Callable[[dict[str, Any]], str | None]:
    def lacks(row: dict[str, Any]) -> str | None:
        sides = [field(row, side) for side in ("chosen", "rejected")]
        if any(side is None for side in sides):
            return "no columns chosen and rejected"
        if not all(holds(side) for side in sides):
            return f"chosen and rejected are not {what}"
        return next((f"no column {name}" for name in more if field(row, name) is None), None)

    return lacks


def _lacks_unpaired(row: dict[str, Any]) -> str | None:
    there = set(map(plain_name, row))
    missing = (name for name in ("prompt", "completion", "label") if not there & set(NAMES[name]))
    return next((f"no column {name}" for name in missing), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _lacks_transcripts(row: dict[str, Any]) -> str | None:
    if lacks := _needs_sides(_is_text, "texts")(row):
        return lacks
    starts = [row.get("prompt") or field(row, side) for side in ("chosen", "rejected")]
    begin = all(_is_text(text) and text.startswith(("\n\nHuman:", "Human:")) for text in starts)
    return None if begin else "the texts do not begin with a Human turn"


OURS = ("prompt_id", "facts", "verdict", "chosen_made", "rejected_made")
STANFORD = ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B")
COMPARISON = ("output_1", "output_2", "preference", "generator_1", "generator_2", "annotator")
FORMATS = {
    "dpo-kit": Format(_needs("prompt_id", "verdict", "chosen_made", "rejected_made"), _ours, OURS),
    "argilla": Format(lacks_argilla, argilla, ("fields", "responses")),
    "label-studio": Format(lacks_label_studio, label_studio, ("data", "annotations")),
    "ultrafeedback": Format(_needs_sides(is_chat, "chat messages", "score_chosen"), _conversations("ultrafeedback")),
    "trl-conversational": Format(_needs_sides(is_chat, "chat messages"), _conversations("trl-conversational")),
    "hh": Format(_lacks_transcripts, _transcripts),
    "trl-standard": Format(_needs_sides(_is_text, "texts"), _texts),
    "shp": Format(_needs("history", "human_ref_A", "human_ref_B"), _stanford, STANFORD),
    "comparison": Format(_lacks_comparison, _comparison, COMPARISON),
    "kto": Format(_lacks_unpaired, _unpaired),
}
"""By name, the more particular before the more general. `comparison` is LLMBar's and AlpacaEval's."""


def is_read(column: str, format: str) -> bool:
    """Whether a format reads a column."""
    usual = plain_name(column) in {name for names in NAMES.values() for name in names} | {"input", "context"}
    return usual or column in FORMATS[format].reads or (format == "argilla" and ".responses" in column)
