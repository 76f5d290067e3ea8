"""Preference rows as data sets hold them: which format a row is in, and which outcomes it gives.

Where the prompt is implicit, conversations are cut at the message at which they part, and texts at the character, a
space there going to the answers. That is what TRL's `extract_prompt` does; here it also holds where one text begins
with the other.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dpo_kit.preferences.importers.columns import (
    NAMES,
    Format,
    NoPair,
    Outcome,
    Unpaired,
    column,
    is_chat,
    messages_of,
    named,
    number,
    pair,
    plain_name,
    prompt_of,
    text_of,
    with_system,
)
from dpo_kit.records import Message, PreferencePair, Prompt

MOST_PAIRS = 100  # from one prompt, when every good answer meets every bad one
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def pair_up(answers: Iterable[Unpaired]) -> list[PreferencePair | NoPair]:
    """Pair every good answer with every bad one to the same prompt.

    Where these were more than `MOST_PAIRS`, the prompt's answers are paired in turn instead, each used at least once:
    a prompt with thousands of answers would otherwise outweigh all others.
    """
    groups: dict[str, tuple[Prompt, list[str], list[str]]] = {}
    for answer in answers:
        groups.setdefault(answer.prompt.id, (answer.prompt, [], []))[1 + answer.good].append(answer.text)
    outcomes: list[PreferencePair | NoPair] = []
    for prompt, bad, good in groups.values():
        if not (bad and good):
            outcomes += [NoPair(prompt, f"no {'bad' if good else 'good'} answer to the same prompt")] * len(good + bad)
        elif len(good) * len(bad) <= MOST_PAIRS:
            outcomes += [pair(prompt, texts, "kto") for texts in itertools.product(good, bad)]
        else:
            longest = range(max(len(good), len(bad)))
            outcomes += [pair(prompt, (good[i % len(good)], bad[i % len(bad)]), "kto") for i in longest]
    return outcomes


def _conversations(judge: str) -> Callable[[dict[str, Any]], list[Outcome]]:
    def read(row: dict[str, Any]) -> list[Outcome]:
        chosen, rejected = messages_of(column(row, "chosen")), messages_of(column(row, "rejected"))
        return [_parted(row, column(row, "prompt"), chosen, rejected, judge)]

    return read


def _transcripts(row: dict[str, Any]) -> list[Outcome]:
    """Anthropic's HH: each side is one text of Human and Assistant turns."""

    def turns(side: str) -> list[Message]:
        before = row.get("prompt") or ""  # some copies of HH keep the shared part in a column of its own
        _, *parts = TURN.split(before + text_of(column(row, side), side))
        spoken = zip(parts[::2], parts[1::2], strict=True)
        return [Message(role=SPEAKERS[speaker], content=said.removeprefix(" ")) for speaker, said in spoken]

    return [_parted(row, None, turns("chosen"), turns("rejected"), "hh")]


def _parted(row: dict[str, Any], asked: Any, chosen: list[Message], rejected: list[Message], judge: str) -> Outcome:
    """A pair from two conversations: what they share from the start is the prompt, then each has one answer."""
    before = messages_of(asked) if is_chat(asked) else []
    if before and chosen[: len(before)] == before == rejected[: len(before)]:
        before = []  # the conversations repeat the prompt
    shared = _common(chosen[:-1], rejected[:-1])
    messages, answers = before + chosen[:shared], (chosen[shared:], rejected[shared:])
    if any(len(side) != 1 or side[0].role != "assistant" for side in answers):
        raise ValueError("chosen and rejected must part at one last assistant answer each")
    texts = (answers[0][0].content, answers[1][0].content)
    if asked is not None and not is_chat(asked):
        if not messages:
            return _scored_pair(row, prompt_of(row), texts, judge)
        if text_of(asked, "prompt").strip() not in (message.content.strip() for message in messages):
            raise ValueError("prompt: not the text that the conversations begin with")
    return _scored_pair(row, named(with_system(row, messages)), texts, judge)


def _texts(row: dict[str, Any]) -> list[Outcome]:
    chosen, rejected = (text_of(column(row, side), side) for side in ("chosen", "rejected"))
    if column(row, "prompt") is not None:
        return [_scored_pair(row, prompt_of(row), (chosen, rejected), "trl-standard")]
    shared = _common(chosen, rejected)
    shared -= shared > 0 and chosen[shared - 1] == " "  # the space belongs to the answer, as in TRL
    if shared < 1:
        raise ValueError("there is no prompt, and chosen and rejected begin differently")
    return [_scored_pair(row, prompt_of(row, chosen[:shared]), (chosen[shared:], rejected[shared:]), "trl-standard")]


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences have in common from the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _scored_pair(row: dict[str, Any], prompt: Prompt, texts: tuple[str, str], judge: str) -> Outcome:
    scores = [number(column(row, f"score_{side}")) for side in ("chosen", "rejected")]
    if None not in scores and scores[0] == scores[1]:
        return NoPair(prompt, "tie")  # who is called chosen is then an accident, whatever the columns say
    arms = (column(row, "model_chosen"), column(row, "model_rejected"))
    reason = "" if None in scores else f"scores {scores[0]:g} against {scores[1]:g}"
    return pair(prompt, texts, judge, reason, arms=arms)


def _stanford(row: dict[str, Any]) -> list[Outcome]:
    """SHP: two comments on a post, of which the one with more votes is preferred."""
    prompt = prompt_of(row, row["history"])
    texts = (text_of(row["human_ref_A"], "human_ref_A"), text_of(row["human_ref_B"], "human_ref_B"))
    label, scores = number(row.get("labels")), [number(row.get(f"score_{side}")) for side in "AB"]
    if label not in (None, 0, 1):
        raise ValueError(f"labels: 1 (A is preferred) or 0 (B) was expected, found {label:g}")
    if label is None and None in scores:
        return [NoPair(prompt, "not annotated")]
    if label is None and scores[0] == scores[1]:
        return [NoPair(prompt, "tie")]
    winner = int(scores[0] < scores[1]) if label is None else int(label == 0)
    reason = "" if None in scores else f"scores {scores[winner]:g} against {scores[1 - winner]:g}"
    return [pair(prompt, texts, "shp", reason, winner=winner)]


def _comparison(row: dict[str, Any]) -> list[Outcome]:
    """LLMBar's and AlpacaEval's: two outputs, and a label from 1 (the first is better) to 2 (the second)."""
    prompt = prompt_of(row)
    texts = (text_of(row["output_1"], "output_1"), text_of(row["output_2"], "output_2"))
    stated = row["preference"] if "preference" in row else row["label"]
    label = number(stated)
    if label is None:
        return [NoPair(prompt, "not annotated")]
    if label == 1.5 or (label == 0 and "preference" in row):  # 0 is a draw in AlpacaEval 1, but no label of LLMBar
        return [NoPair(prompt, "tie")]
    if not 1 <= label <= 2:
        raise ValueError(f"label: between 1 (output_1 is better) and 2 (output_2) was expected, found {label:g}")
    arms = (row.get("generator_1"), row.get("generator_2"))
    judge = row.get("annotator") if isinstance(row.get("annotator"), str) else None
    return [pair(prompt, texts, judge or "comparison", f"label {stated}", winner=int(label > 1.5), arms=arms)]


def _unpaired(row: dict[str, Any]) -> list[Outcome]:
    prompt, label, completion = prompt_of(row), number(column(row, "label")), column(row, "completion")
    if label is None:
        return [NoPair(prompt, "not annotated")]
    if label not in (0, 1):
        raise ValueError(f"label: true or false was expected, found {label:g}")
    if is_chat(completion):
        (answer,) = messages_of(completion)
        if answer.role != "assistant":
            raise ValueError(f"completion: the role is {answer.role}, not assistant")
        completion = answer.content
    return [Unpaired(prompt, text_of(completion, "completion"), bool(label))]


def _needs(*names: str) -> Callable[[dict[str, Any]], str | None]:
    """What a row lacks of these columns, by their exact names."""
    return lambda row: next((f"no column {name}" for name in names if name not in row), None)


def _comparison_missing(row: dict[str, Any]) -> str | None:
    without_label = None if "label" in row or "preference" in row else "no column label or preference"
    return _needs("output_1", "output_2")(row) or without_label


def _needs_sides(holds: Callable[[Any], bool], what: str, *more: str) -> Callable[[dict[str, Any]], str | None]:
    """What a row lacks to have a chosen and a rejected side of one kind, and `more` columns, by any usual name."""

    def missing(row: dict[str, Any]) -> str | None:
        sides = [column(row, side) for side in ("chosen", "rejected")]
        if any(side is None for side in sides):
            return "no columns chosen and rejected"
        if not all(holds(side) for side in sides):
            return f"chosen and rejected are not {what}"
        return next((f"no column {name}" for name in more if column(row, name) is None), None)

    return missing


def _unpaired_missing(row: dict[str, Any]) -> str | None:
    there = set(map(plain_name, row))
    missing = (name for name in ("prompt", "completion", "label") if not there & set(NAMES[name]))
    return next((f"no column {name}" for name in missing), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _transcripts_missing(row: dict[str, Any]) -> str | None:
    if missing := _needs_sides(_is_text, "texts")(row):
        return missing
    starts = [row.get("prompt") or column(row, side) for side in ("chosen", "rejected")]
    begin = all(_is_text(text) and text.startswith(("\n\nHuman:", "Human:")) for text in starts)
    return None if begin else "the texts do not begin with a Human turn"


OURS = ("prompt_id", "verdict", "chosen_made", "rejected_made", "facts")
STANFORD = ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B")
COMPARISON = ("output_1", "output_2", "preference", "generator_1", "generator_2", "annotator")
CHAT = "chat messages"
ROWS = {
    "dpo-kit": Format(_needs(*OURS[:4]), lambda row: [PreferencePair.from_json(row)], OURS),
    "ultrafeedback": Format(_needs_sides(is_chat, CHAT, "score_chosen"), _conversations("ultrafeedback")),
    "trl-conversational": Format(_needs_sides(is_chat, CHAT), _conversations("trl-conversational")),
    "hh": Format(_transcripts_missing, _transcripts),
    "trl-standard": Format(_needs_sides(_is_text, "texts"), _texts),
    "shp": Format(_needs(*STANFORD[:3]), _stanford, STANFORD),
    "comparison": Format(_comparison_missing, _comparison, COMPARISON),
    "kto": Format(_unpaired_missing, _unpaired),
}
