"""The records that all rooms use: a prompt, responses to it, a verdict on two responses, and a preference pair.

A record is frozen and becomes one line of JSON. Pairs are written in TRL's conversational format with an explicit
prompt, so any TRL trainer reads `pairs.jsonl` as it is.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_serializer

from dpo_kit.errors import DpoKitError

Role = Literal["system", "developer", "user", "assistant", "tool"]
Winner = Literal["a", "b", "tie", "unjudged"]
# Roles by their first letters. An assistant may call tools before it answers; after the answer comes the user's turn.
PROMPT_ROLES = re.compile(r"[sd]*u(?:a(?:t+a)*u)*(?:at+)*")
SIDE_ROLES = re.compile(r"a(?:t+a)*(?:ua(?:t+a)*)*")
LATER = ("reasoning_content", "tool_calls", "tool_call_id", "name", "tools", "turns")
LATER_OF_PAIRS = ("weight", "strength", "scores", "annotator")


class Record(BaseModel):
    """A frozen value that rejects fields it does not know."""

    # Otherwise a misspelt field would be dropped, and its default would be used without an error.
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sparse(Record):
    """A record. Fields in `LATER` that are None are not written, so that older files and their hashes stay valid."""

    @model_serializer(mode="wrap")
    def _written(self, write: Any) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None or name not in LATER}


class Message(Sparse):
    """One turn of a chat, with the fields that chat templates read.

    `reasoning_content` is what the assistant thought before it answered. `tool_calls` are as chat templates want them:
    `{"type": "function", "function": {"name": ..., "arguments": {...}}}`. A tool's turn says in `tool_call_id` or
    `name` which call it answers.
    """

    role: Role
    content: str
    reasoning_content: str | None = None
    tool_calls: tuple[dict[str, Any], ...] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    def __hash__(self) -> int:
        return hash((self.role, self.content))  # tool calls are dicts, which have no hash

    @property
    def text(self) -> str:
        """The whole turn as text, for people and for checks: the reasoning, the content, the tool calls."""
        calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in self.tool_calls or ()]
        return "\n\n".join([part for part in (self.reasoning_content, self.content) if part] + calls)


class Prompt(Sparse):
    """What the model is asked.

    `id` never changes, because it seeds the sampling and is the unit of the statistics.
    `facts` holds what the model is not told, such as the truth of a simulated world.
    `tools` are the JSON schemas of the functions that the model may call; a chat template takes them as `tools`.
    """

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    facts: dict[str, Any] = Field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] | None = None

    @classmethod
    def of(
        cls,
        messages: Iterable[Message],
        facts: dict[str, Any] | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> "Prompt":
        """A prompt whose id is a hash of its messages and tools, so that the same ones always get the same id."""
        messages, tools = tuple(messages), tuple(tools) if tools else None
        # 64 bits: among a million prompts two share an id with a probability of 3 in 100 million.
        name = f"{_hash(messages, 'prompt', tools):064x}"[:16]
        return cls(id=name, messages=messages, facts=facts or {}, tools=tools)

    @classmethod
    def from_text(cls, text: str, system: str | None = None) -> "Prompt":
        """A single user turn, with a system prompt before it where there is one."""
        before = [Message(role="system", content=system)] if system else []
        return cls.of([*before, Message(role="user", content=text)])

    @property
    def text(self) -> str:
        """The last user turn, for people to read."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    def chat(self) -> list[dict[str, Any]]:
        """The messages as chat templates want them, beside `tools`."""
        return [message.model_dump() for message in self.messages]


class Response(Sparse):
    """One answer and how it was made: by which model or person, and how it was sampled.

    An answer that is more than one plain assistant turn has all its messages in `turns`: an agent's steps with the
    tools' results, a question back and what the user said, reasoning beside the content. `text` then says the same for
    people and checks to read; what a model is trained on is always `messages`.

    `stopped` is False where the length limit cut it off before EOS. None means that nobody knows, as in imported data.
    """

    prompt_id: str
    text: str
    arm: str = "unknown"
    temperature: float | None = None
    seed: int | None = None
    stopped: bool | None = None
    turns: tuple[Message, ...] | None = None

    @classmethod
    def of(cls, prompt_id: str, messages: Iterable[Message], **made: Any) -> "Response":
        """The answer that these messages are. Raises ValueError where they are no answer to a prompt."""
        messages = tuple(messages)
        if fault := side_fault(messages):
            raise ValueError(fault)
        if len(messages) == 1 and messages[0] == Message(role="assistant", content=messages[0].content):
            return cls(prompt_id=prompt_id, text=messages[0].content, **made)
        text = "\n\n".join(m.text if m.role == "assistant" else f"{m.role}: {m.text}" for m in messages)
        return cls(prompt_id=prompt_id, text=text, turns=messages, **made)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns that follow the prompt's: one assistant turn, or those of `turns`."""
        return self.turns or (Message(role="assistant", content=self.text),)

    def chat(self) -> list[dict[str, Any]]:
        """The messages as chat templates want them, to be placed after the prompt's."""
        return [message.model_dump() for message in self.messages]


class Verdict(Record):
    """Which of two answers a judge prefers. `unjudged` is not a tie: the judge gave no usable answer.

    `order` says how the judge saw them: a first, b first, or both ways in two questions; then `in_orders` holds the
    two winners (asked a first, asked b first), both named as in this verdict. `at` is an ISO 8601 time, or None where
    the judge is a function and the time says nothing.
    """

    winner: Winner
    judge: str
    reason: str
    order: Literal["ab", "ba", "both"] = "ab"
    in_orders: tuple[Winner, Winner] | None = None
    at: str | None = None


class PreferencePair(Record):
    """A prompt, the answer that was preferred, the one that was not, and the verdict between them.

    Four things that a data set may say of a pair: its `weight` in training; the `strength` of the preference in the
    data set's own unit (at least 0 where it agrees with the label); the `scores` of (chosen, rejected); its
    `annotator`. They are None, and absent from the file, where nothing is said.
    """

    prompt: Prompt
    chosen: Response
    rejected: Response
    verdict: Verdict
    weight: FiniteFloat | None = None
    strength: FiniteFloat | None = None
    scores: tuple[FiniteFloat, FiniteFloat] | None = None
    annotator: str | None = None

    def to_trl(self) -> dict[str, Any]:
        """The row as TRL's trainers read it: conversational, explicit prompt, `tools` where the prompt has some."""
        tools = {"tools": list(self.prompt.tools)} if self.prompt.tools else {}
        return {"prompt": self.prompt.chat(), "chosen": self.chosen.chat(), "rejected": self.rejected.chat(), **tools}

    def to_json(self) -> dict[str, Any]:
        """`to_trl`, and beside it the verdict and how both answers were made, so that nothing is lost on the disk."""
        not_how = {"text", "prompt_id", "turns"}  # the fields that do not say how an answer was made
        known = {name: getattr(self, name) for name in LATER_OF_PAIRS}
        return {
            **self.to_trl(),
            "prompt_id": self.prompt.id,
            "facts": self.prompt.facts,
            "verdict": self.verdict.model_dump(),
            "chosen_made": self.chosen.model_dump(exclude=not_how),
            "rejected_made": self.rejected.model_dump(exclude=not_how),
            **{name: value for name, value in known.items() if value is not None},
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "PreferencePair":
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        known = {"prompt", "chosen", "rejected", "prompt_id", "facts", "verdict", "chosen_made", "rejected_made"}
        if unknown := row.keys() - known - {"tools", *LATER_OF_PAIRS}:  # it would be lost when it is written again
            raise ValueError(f"unknown field {min(unknown)!r}")
        prompt = Prompt(id=row["prompt_id"], messages=row["prompt"], facts=row["facts"], tools=row.get("tools"))
        if fault := role_fault(prompt.messages):
            raise ValueError(f"prompt: {fault}")

        def side(name: str) -> Response:
            try:
                turns = [Message.model_validate(message) for message in row[name]]
                return Response.of(prompt.id, turns, **row[f"{name}_made"])
            except ValueError as error:
                raise error if isinstance(error, ValidationError) else ValueError(f"{name}: {error}") from None

        later: dict[str, Any] = {name: row.get(name) for name in LATER_OF_PAIRS}
        return cls(prompt=prompt, chosen=side("chosen"), rejected=side("rejected"), verdict=row["verdict"], **later)


def role_fault(messages: Sequence[Message]) -> str | None:
    """What is wrong with a prompt's roles, if anything: [system,] user, assistant, ..., user is right.

    A developer's turn may stand where the system's does. An assistant's turn may be followed by turns of tools, and a
    prompt may end with them.
    """
    rule = "user and assistant take turns, and the user, or a tool that was called, has the last word"
    return _fault(messages, PROMPT_ROLES, rule)


def side_fault(messages: Sequence[Message]) -> str | None:
    """What is wrong with the roles of an answer, if anything: it begins and ends with an assistant's turn."""
    return _fault(messages, SIDE_ROLES, "an answer begins and ends with the assistant, and others take turns with it")


def _fault(messages: Sequence[Message], right: re.Pattern[str], rule: str) -> str | None:
    roles = [message.role for message in messages]
    if right.fullmatch("".join(role[0] for role in roles)):
        return None
    return f"wrong role order ({', '.join(roles)}); {rule}"


def split_by_prompt(
    pairs: Sequence[PreferencePair], holdout: float, seed: int = 0
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(train, held out), by prompt and never by pair; about the share `holdout` of the prompts is held out.

    The side follows from a hash of the prompt's messages and the seed alone. So all pairs of a prompt are on one side,
    also where it has two ids, and no prompt changes sides when the file grows. Raises DpoKitError unless
    0 <= holdout < 1.
    """
    if not 0 <= holdout < 1:
        raise DpoKitError(f"holdout must lie in [0, 1), found {holdout}")
    sides: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    for pair in pairs:
        # The hash is uniform below 2^256, so the condition holds for a share `holdout` of all prompts.
        sides[_hash(pair.prompt.messages, str(seed), pair.prompt.tools) / 2**256 < holdout].append(pair)
    return sides


def _hash(messages: Sequence[Message], salt: str, tools: Sequence[dict[str, Any]] | None = None) -> int:
    """A hash of messages and tools, below 2^256. Absent fields do not change it."""
    turns = [dump if len(dump) > 2 else list(dump.values()) for dump in (message.model_dump() for message in messages)]
    content = json.dumps([salt, *turns, *([{"tools": tools}] if tools else ())])
    return int.from_bytes(hashlib.sha256(content.encode("utf-8")).digest())
