"""What every importer needs: a row's columns under their usual names, chat messages, and what a row can give.

A row gives `Outcome`s: preference pairs, answers that still have to find their counterpart, or judgements that make no
pair. A row that is broken, or that holds what a pair cannot hold, raises ValueError, KeyError or TypeError. A row
remembers which of its columns were read, so that the others can be reported. Nothing here reads files.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.importers.reprs import messages_in, structure_in
from dpo_kit.records import Message, PreferencePair, Prompt, Response, Verdict, role_fault

NAMES = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "user_prompt", "problem"),
    "system": ("system", "system_prompt", "system_instruction", "system_message"),
    "history": ("history", "chat_history", "conversation_history", "previous_turns"),
    "context": ("input", "context", "passage", "document"),
    "tools": ("tools", "functions", "available_tools"),
    "chosen": ("chosen", "chosen_response", "response_chosen", "chosen_answer", "preferred", "preferred_output",
               "preferred_response", "accepted", "preferred_answer", "win", "winning_response"),
    "rejected": ("rejected", "rejected_response", "response_rejected", "rejected_answer", "dispreferred",
                 "non_preferred_output", "non_preferred", "dispreferred_response", "rejected_messages", "lose",
                 "losing_response"),
    "completion": ("completion", "response", "answer", "output", "reply", "assistant_response", "model_response"),
    "label": ("label",),
    "score_chosen": ("score_chosen", "chosen_score", "rating_chosen", "chosen_rating", "reward_chosen",
                     "chosen_reward", "chosen_avg_rating", "rm_score_chosen"),
    "score_rejected": ("score_rejected", "rejected_score", "rating_rejected", "rejected_rating", "reward_rejected",
                       "rejected_reward", "rejected_avg_rating", "rm_score_rejected"),
    "model_chosen": ("chosen_model", "model_chosen", "generator_chosen"),
    "model_rejected": ("rejected_model", "model_rejected", "generator_rejected"),
    "weight": ("weight", "sample_weight", "example_weight", "importance_weight"),
    "strength": ("strength", "preference_strength", "margin", "score_margin", "score_diff"),
    "annotator": ("annotator", "annotator_id", "annotated_by", "labeler", "labeller", "rater", "rater_id", "worker_id"),
}  # fmt: skip
"""By role, the names that a column may have, as `plain_name` writes them. The first that holds something is read."""

MAPPED_TOO = ("preference", "a", "b", "rating")  # roles of columns that only some formats have
CHATS = ("messages", "conversations", "conversation", "contents", "context", "dialogue", "dialog", "chat")
MEDIA = re.compile(r"(?:.*_)?(?:images?|audios?|videos?|pixel_values|attachments?)(?:_(?:urls?|paths?|bytes|files?))?")
STRUCTURES = {
    *CHATS, *NAMES["history"], *NAMES["tools"], "input", "completions", "answers", "responses", "generations", "turns",
    "candidates", "ratings", "scores", "conversation_a", "conversation_b", "images", "annotations", "outputs", "data",
    "ranks", "rating", "fields", "preferred_output", "non_preferred_output",
}  # fmt: skip
ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "ai": "assistant", "function": "tool", "observation": "tool", "ipython": "tool",
    "tool_response": "tool", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
TIES = {"tie", "ties", "tied", "draw", "bothbad"}
ALIKE = {"equal", "equally", "same", "both", "neither"}
SIDES = {"left": 0, "first": 0, "right": 1, "second": 1}
ANSWER = re.compile(
    r"(?:response|answer|completion|output|option|generation|text|reply|model|candidate|assistant|solution|summary)"
    r"[ _-]?(?:\d+|[a-z])", re.I)  # fmt: skip


@dataclass(frozen=True)
class Mapped:
    """What the user says of columns: by column, the role that it has; by column and value, what the value means."""

    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Sequence[str]) -> "Mapped":
        """From texts such as `prompt=question` and `preference.0=first`. Raises DpoKitError for any other text."""
        names: dict[str, str] = {}
        values: dict[str, dict[str, str]] = {}
        for text in said:
            left, sign, right = text.partition("=")
            column_name, dot, value = left.rpartition(".")
            if not (left and sign and right):
                raise DpoKitError(f"--map {text}: ROLE=COLUMN was expected, or COLUMN.VALUE=MEANING")
            if left in NAMES or left in MAPPED_TOO:
                names[right] = left
            elif dot and column_name:
                values.setdefault(plain_name(column_name), {})[value.lower()] = right
            else:
                roles = ", ".join((*NAMES, *MAPPED_TOO))
                raise DpoKitError(f"--map {text}: {left!r} is no role; there are {roles}; or COLUMN.VALUE=MEANING")
        return cls(names, values)


class Fields(dict):
    """One row by plain column names, with messages that were written as text already read.

    It remembers which columns were read, what a reader wants said of the row, and the labels it met. Messages that
    cannot be read raise ValueError, or stay texts where it is `lenient`.
    """

    def __init__(
        self, row: Mapping[str, Any], mapped: "Mapped | None" = None, within: str = "", lenient: bool = False
    ) -> None:
        super().__init__()
        self.mapped = mapped or Mapped()
        self.within, self.prefill = within, ""
        self.used: set[str] = set()
        self.inner: list[Fields] = []
        self.remarks: list[str] = []
        self.labels: list[tuple[str, tuple[str, ...], float]] = []
        self.written: dict[str, str] = {}
        for name, value in sorted(row.items(), key=lambda item: item[0] not in self.mapped.names):
            plain = self.mapped.names.get(name) or plain_name(name)
            plain = name if plain in self else plain
            self.written[plain] = name
            try:
                self[plain] = _cell(plain, value)
            except ValueError as error:
                if not lenient:
                    raise ValueError(f"{name}: {error}") from None
                self[plain] = value

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value under a name, which counts as read from now on."""
        self.used.add(name)
        return super().get(name, default)

    def first(self, names: Sequence[str]) -> Any:
        """The value under the first of these names that holds something, else None."""
        name = next((name for name in names if not empty(super(Fields, self).get(name))), None)
        return None if name is None else self[name]

    def label(self, name: str) -> tuple[Any, bool]:
        """(the label in a column, whether the user said what it means). Raises ValueError where he left it out."""
        value, meanings = (
            self[name],
            self.mapped.values.get(name) or self.mapped.values.get(plain_name(self.written[name])),
        )
        if not meanings or empty(value):
            return value, False
        whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) and str(value).lower() in meanings:
            return meanings[str(value).lower()], True
        key = str(int(value) if whole else value).strip().lower()
        if key not in meanings:
            raise ValueError(f"{name}: --map does not say what the value {key!r} means")
        return meanings[key], True

    def rename(self, name: str, role: str) -> None:
        """Give a column the name of its role."""
        self[role], self.written[role] = self.pop(name), self.written.pop(name)

    def opened(self, name: str) -> "Fields":
        """The object that a column holds, as fields of their own. Raises ValueError where it holds none."""
        if not isinstance(self[name], Mapping):
            raise ValueError(f"{name}: an object was expected, found {type(self[name]).__name__}")
        fields = Fields(self[name], within=f"{self.within}{name}.")
        self.inner.append(fields)
        return fields

    def unread(self) -> Iterator[str]:
        """The columns that hold something and were not read, with their path."""
        yield from (self.within + self.written[n] for n in self if n not in self.used and not empty(dict.get(self, n)))
        for fields in self.inner:
            yield from fields.unread()


@dataclass(frozen=True)
class Unpaired:
    """One answer to a prompt and how good it is: 1 or 0 as in KTO's format, or a rating."""

    prompt: Prompt
    answer: Response
    score: float
    judge: str = "kto"


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
    outcomes of one row.
    """

    missing: Callable[[Fields], str | None]
    read: Callable[[Fields], Sequence[Outcome]]


@lru_cache(4096)
def plain_name(name: str) -> str:
    """A column's name without what people write differently: `Chosen Response` and `chosenResponse` are one."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^\w.]+", "_", apart.lower())


def empty(value: Any) -> bool:
    """Whether a cell holds nothing: tables write NaN, Parquet an empty list, where there is none."""
    return value is None or value in ("", [], {}) or (isinstance(value, float) and math.isnan(value))


def _cell(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return None if isinstance(value, float) and math.isnan(value) else value
    if (name in STRUCTURES and value.lstrip()[:1] in ("[", "{")) or value.startswith("array(["):
        try:
            return structure_in(value)
        except ValueError:
            return messages_in(value)
    return messages_in(value)


def column(row: Fields, name: str) -> Any:
    """What a row holds under the first usual name of a column; None where there is nothing."""
    there = [n for n in NAMES[name] if dict.get(row, n) is not None]
    return row[there[0]] if there else None


def text_of(value: Any, name: str) -> str:
    """The value, which must be a text. Raises ValueError that names the column."""
    if isinstance(value, Mapping) and isinstance(value.get("full_text"), str):  # WebGPT's questions
        return value["full_text"]
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


# Messages.


def messages_of(value: Any, row: Fields, name: str = "messages") -> list[Message]:
    """Messages from a list of them, or from one, in OpenAI's, ShareGPT's or Gemini's keys.

    Raises ValueError for what is no message and for media. A key that no template reads is reported as not read.
    """
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{name}: a list of objects with role and content was expected")
    return [_message(turn, row, name) for turn in turns]


def _message(turn: dict[str, Any], row: Fields, name: str) -> Message:
    turn = {key: value for key, value in turn.items() if not empty(value)}
    said = turn.pop("role", None) or turn.pop("from", None)
    if said is None:
        raise ValueError(f"{name}: a message without a role")
    if not isinstance(said, str):
        raise ValueError(f"{name}: the role {said!r} is no text")
    content = next((turn.pop(key) for key in ("content", "value", "parts", "text") if key in turn), "")
    reasoning = next((turn.pop(key) for key in ("reasoning_content", "reasoning", "thinking") if key in turn), None)
    calls = turn.pop("tool_calls", None) or ([turn.pop("function_call")] if "function_call" in turn else None)
    if said in ("function_call", "tool_call"):
        content, calls = "", [structure_in(text_of(content, name))]
    known = {key: turn.pop(key) for key in ("tool_call_id", "name") if key in turn}
    turn.pop("prefix", turn.pop("partial", turn.pop("prefill", None)))  # `prefilled` has read it
    if any(MEDIA.fullmatch(plain_name(key)) or key == "refusal" for key in turn):
        raise ValueError(f"{name}: a message holds {', '.join(turn)}, which is not text; only text can be read")
    row.inner.append(Fields(turn, within=f"{row.within}{name}."))
    return Message(
        role=ROLES.get(said.lower(), said.lower()), content=content_of(content, name), reasoning_content=reasoning,
        tool_calls=None if calls is None else tuple(_call(call) for call in calls), **known,
    )  # fmt: skip


def content_of(content: Any, name: str) -> str:
    """The text of a message's content, which may come in parts. Raises ValueError for a part that is not text."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) and set(part) <= {"type", "text"} else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        kinds = {str(part.get("type", "/".join(part))) if isinstance(part, dict) else type(part).__name__
                 for part, text in zip(parts, texts, strict=True) if not isinstance(text, str)}  # fmt: skip
        raise ValueError(f"{name}: content of type {', '.join(sorted(kinds))}; only text can be read")
    return "".join(texts)


def _call(call: Any) -> dict[str, Any]:
    """A tool call with its arguments as an object, which is how chat templates want them."""
    if not isinstance(call, dict) or not isinstance(call.get("function", call), dict):
        raise ValueError("tool_calls: an object with function was expected")
    function = {key: value for key, value in call.get("function", call).items() if value is not None}
    if "name" not in function:
        raise ValueError("tool_calls: a function without a name")
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = structure_in(function["arguments"])
        except ValueError:
            raise ValueError(f"tool_calls: the arguments of {function['name']} are not JSON") from None
    more = {key: value for key, value in call.items() if value is not None} if "function" in call else {}
    return {"type": "function", **more, "function": function}


def transcript(text: str) -> list[Message]:
    """The turns of a text in Anthropic's form, which begins with a Human turn; a last empty turn is left out."""
    _, *parts = TURN.split(text)
    spoken = [(who, said.removeprefix(" ")) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return [Message(role="user" if who == "Human" else "assistant", content=said) for who, said in spoken]


def history_of(value: Any, row: Fields) -> list[Message]:
    """The turns before the last question: messages, or pairs of what the user and the assistant said."""
    if is_chat(value) and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in value):
        return messages_of(value, row, "history")
    said = [list(turn.values()) if isinstance(turn, dict) else turn for turn in value] if is_chat(value) else [None]
    if not all(isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn) for turn in said):
        raise ValueError("history: messages, or pairs of a question and its answer were expected; it cannot be read")
    roles = ("user", "assistant")
    return [Message(role=role, content=text) for turn in said for role, text in zip(roles, turn, strict=True)]


# Prompts.


def prompt_of(row: Fields, asked: Any = None) -> Prompt:
    """The prompt of a row: `asked`, or else its prompt column, which is a text or chat messages.

    A text is joined by what an Alpaca-style `input` or a `context` column adds. The history and the row's system
    prompt stand before it, and its tools go with it. The prompt is named by its messages and tools. Raises ValueError
    where there is none, for roles out of order, and for media.
    """
    if media := [name for name in row if MEDIA.fullmatch(name) and not empty(dict.get(row, name))]:
        raise ValueError(f"column {row.written[media[0]]}: images, audio and video cannot be read, only text")
    if asked is None:
        asked = column(row, "prompt")
    if asked is None:
        asked = row.first([name for name in CHATS if is_chat(dict.get(row, name))])
    if asked is None:
        raise ValueError(f"no prompt: none of the columns {', '.join(NAMES['prompt'])}, messages is there")
    if isinstance(asked, dict) and "messages" in asked:  # OpenAI's: the request is one object
        fields = Fields(asked, within=f"{row.within}input.")
        row.inner.append(fields)
        return named(row, messages_of(fields["messages"], row), column(fields, "tools"))
    if column(row, "prompt") is asked and isinstance(asked, list) and [type(item) for item in asked] == [str]:
        asked = asked[0]
    if is_chat(asked) and not (isinstance(asked, dict) and "full_text" in asked):
        return named(row, prefilled(asked, row))
    text = text_of(asked, "prompt")
    if TURN.match(text) and "\n\nAssistant:" in text:
        turns = transcript(text)
        return named(row, turns[:-1] if not turns[-1].content.strip() else turns)
    more = [text_of(row[n], n) for n in NAMES["context"] if not empty(dict.get(row, n)) and dict.get(row, n) != asked]
    content = "\n\n".join([text, *filter(str.strip, more)])
    return named(row, [Message(role="user", content=content)])


def prefilled(turns: Any, row: Fields) -> list[Message]:
    """The messages of a prompt, without a last one that is marked as the beginning of the answer.

    That beginning is put in front of both answers later, where it cancels out of the difference of their log-probs.
    """
    messages = messages_of(turns, row, "prompt")
    last = turns[-1] if isinstance(turns, list) else turns
    if messages[-1].role == "assistant" and any(last.get(key) is True for key in ("prefix", "partial", "prefill")):
        row.prefill = messages.pop().content
        row.remarks.append("the prompt gives the beginning of the answer, which was put in front of both answers")
    return messages


def named(row: Fields, messages: Sequence[Message], tools: Any = None) -> Prompt:
    """The prompt of these messages after the row's system prompt and history, named by them and the row's tools.

    Raises ValueError for roles out of order, and where the row has two system prompts.
    """
    before, messages = list(messages), list(messages)
    history, system, tools = column(row, "history"), column(row, "system"), tools or column(row, "tools")
    if not empty(history):
        turns = history_of(history, row)
        lead = [message for message in before if message.role in ("system", "developer")]
        messages = before if before[: len(turns)] == turns else [*lead, *turns, *before[len(lead) :]]
    if isinstance(system, dict):
        system = system.get("parts", system.get("content"))
    if system and (content := content_of(system, "system")):
        if not messages or messages[0].role not in ("system", "developer"):
            messages = [Message(role="system", content=content), *messages]
        elif messages[0].content != content:
            raise ValueError("system: the messages begin with another system prompt")
    if fault := role_fault(messages):
        ends = messages and messages[-1].role == "assistant" and not role_fault(messages[:-1])
        hint = '; mark a last turn that is the beginning of the answer with "prefix": true' if ends else ""
        raise ValueError(f"prompt: {fault}{hint}")
    return Prompt.of(messages, tools=tools_of(tools))


def tools_of(tools: Any) -> list[dict[str, Any]] | None:
    """The schemas of functions, each as chat templates want it. Raises ValueError for anything else."""
    if empty(tools):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("tools: a list of JSON schemas was expected")
    return [tool if {"function", "type"} & tool.keys() else {"type": "function", "function": tool} for tool in tools]


# Answers, labels, pairs.


def answers_of(value: Any, row: Fields, name: str) -> list[list[Message]]:
    """The answers that a column holds: one text, one conversation, or a list of either."""
    if isinstance(value, list) and value and all(isinstance(item, str | list) for item in value):
        return [turns for item in value for turns in answers_of(item, row, name)]
    if isinstance(value, dict | list):
        if not value:
            raise ValueError(f"{name}: an empty list")
        return [messages_of(value, row, name)]
    return [[Message(role="assistant", content=text_of(value, name))]]


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
    if len(words) == 1 and [words[0] in name for name in plain].count(True) == 1:  # "0" of answer_0 and answer_1
        return [words[0] in name for name in plain].index(True)
    meant = {int(w) - 1 if w.isdigit() else SIDES.get(w, ord(w[0]) - ord("a") if len(w) == 1 else -1) for w in words}
    meant = {index for index in meant if 0 <= index < len(names)}
    if not meant and ALIKE & set(words):
        return None
    if len(meant) != 1 or ALIKE & set(words):
        raise ValueError(f"the label {label!r} does not say which of {', '.join(names)} is meant")
    return meant.pop()


def response(row: Fields, prompt: Prompt, answer: str | Sequence[Message], arm: Any = None) -> Response:
    """An answer to a prompt, after the beginning that the prompt gave it. `arm` is the model's name, where known."""
    turns = [Message(role="assistant", content=answer)] if isinstance(answer, str) else list(answer)
    if row.prefill and turns and not turns[0].content.startswith(row.prefill):
        turns[0] = turns[0].model_copy(update={"content": row.prefill + turns[0].content})
    # Tables hold NaN, which is no text, where a model's name is missing.
    return Response.of(prompt.id, turns, arm=arm if isinstance(arm, str) and arm else "imported")


def pair(
    row: Fields,
    prompt: Prompt,
    answers: Sequence[str | Sequence[Message]],
    judge: str,
    reason: str = "",
    *,
    winner: int = 0,
    arms: Sequence[Any] = (None, None),
    at: str | None = None,
    scores: Sequence[float | None] = (None, None),
    strength: float | None = None,
    annotator: str | None = None,
) -> PreferencePair:
    """The pair that follows when of two answers, a and b, the one with index `winner` was preferred.

    `arms` are the models' names and `scores` the answers' where the file has them.
    """
    a, b = (response(row, prompt, answer, arm) for answer, arm in zip(answers, arms, strict=True))
    given = annotator or column(row, "annotator")
    verdict = Verdict(winner=("a", "b")[winner], judge=judge, reason=reason, at=at)
    return PreferencePair(
        prompt=prompt, chosen=(a, b)[winner], rejected=(b, a)[winner], verdict=verdict,
        weight=number(column(row, "weight")),
        strength=number(column(row, "strength")) if strength is None else strength,
        scores=None if None in scores else (scores[winner], scores[1 - winner]),
        annotator=None if given is None else str(given),
    )  # fmt: skip
