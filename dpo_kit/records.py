"""The nouns: a prompt, responses to it, a verdict on two of them, and the preference pair that follows.

A record is frozen and becomes one line of JSON. Pairs are written in TRL's conversational format with an explicit
prompt, so any TRL trainer reads `pairs.jsonl` as it is.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dpo_kit.errors import DpoKitError

Role = Literal["system", "user", "assistant"]
Winner = Literal["a", "b", "tie", "unjudged"]


class Record(BaseModel):
    """A frozen value that rejects fields it does not know."""

    # A misspelt field would otherwise be dropped, and its default would stand in its place.
    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a chat."""

    role: Role
    content: str


class Prompt(Record):
    """What the model is asked.

    `id` never changes: samples are seeded by it, and statistics are by it.
    `facts` holds what the asker knows and the model is not told, such as the truth of a simulated world.
    """

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    facts: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, messages: Iterable[Message], facts: dict[str, Any] | None = None) -> "Prompt":
        """A prompt named by what it asks: the same messages always get the same id."""
        messages = tuple(messages)
        # 64 bits: among a million prompts two share an id with a probability of 3 in 100 million.
        return cls(id=f"{_hash(messages, 'prompt'):064x}"[:16], messages=messages, facts=facts or {})

    @classmethod
    def from_text(cls, text: str, system: str | None = None) -> "Prompt":
        """A single user turn, with a system prompt before it where there is one."""
        before = [Message(role="system", content=system)] if system else []
        return cls.of([*before, Message(role="user", content=text)])

    @property
    def text(self) -> str:
        """The last user turn, for people to read."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    def chat(self) -> list[dict[str, str]]:
        """The messages as chat templates want them."""
        return [message.model_dump() for message in self.messages]


class Response(Record):
    """One answer and how it was made: by which model or person, and how it was sampled.

    `stopped` is False where the length limit cut it off before EOS. None means that nobody knows, as in imported data.
    """

    prompt_id: str
    text: str
    arm: str = "unknown"
    temperature: float | None = None
    seed: int | None = None
    stopped: bool | None = None


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
    """A prompt, the answer that was preferred, the one that was not, and the verdict between them."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    verdict: Verdict

    def to_trl(self) -> dict[str, Any]:
        """The row as TRL's trainers read it: conversational, explicit prompt."""
        return {
            "prompt": self.prompt.chat(),
            "chosen": [{"role": "assistant", "content": self.chosen.text}],
            "rejected": [{"role": "assistant", "content": self.rejected.text}],
        }

    def to_json(self) -> dict[str, Any]:
        """`to_trl`, and beside it the verdict and how both answers were made, so that nothing is lost on the disk."""
        not_how = {"text", "prompt_id"}  # what does not tell how an answer was made
        return {
            **self.to_trl(),
            "prompt_id": self.prompt.id,
            "facts": self.prompt.facts,
            "verdict": self.verdict.model_dump(),
            "chosen_made": self.chosen.model_dump(exclude=not_how),
            "rejected_made": self.rejected.model_dump(exclude=not_how),
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "PreferencePair":
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        known = {"prompt", "chosen", "rejected", "prompt_id", "facts", "verdict", "chosen_made", "rejected_made"}
        if unknown := row.keys() - known:  # it would be lost when the pair is written again
            raise ValueError(f"unknown field {min(unknown)!r}")
        prompt = Prompt(id=row["prompt_id"], messages=row["prompt"], facts=row["facts"])
        if fault := role_fault(prompt.messages):
            raise ValueError(f"prompt: {fault}")

        def side(name: str) -> Response:
            if len(row[name]) != 1:
                raise ValueError(f"{name}: one message was expected, found {len(row[name])}")
            message = Message.model_validate(row[name][0])
            if message.role != "assistant":
                raise ValueError(f"{name}: the role is {message.role}, not assistant")
            return Response(prompt_id=prompt.id, text=message.content, **row[f"{name}_made"])

        return cls(prompt=prompt, chosen=side("chosen"), rejected=side("rejected"), verdict=row["verdict"])


def role_fault(messages: Sequence[Message]) -> str | None:
    """What is wrong with a prompt's roles, if anything: [system,] user, assistant, ..., user is right."""
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) % 2 and all(role == ("user", "assistant")[i % 2] for i, role in enumerate(turns)):
        return None
    return f"wrong role order ({', '.join(roles)}); user and assistant take turns, and the user has the last word"


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
        sides[_hash(pair.prompt.messages, str(seed)) / 2**256 < holdout].append(pair)
    return sides


def _hash(messages: Sequence[Message], salt: str) -> int:
    """A hash of what is asked, below 2^256."""
    content = json.dumps([salt, *((m.role, m.content) for m in messages)])
    return int.from_bytes(hashlib.sha256(content.encode("utf-8")).digest())
