"""Questions to a language model that judges: remembered on disk, retried within bounds, never beyond the budget.

Only replies that could be read are remembered, so a question that failed is asked again by the next run, and one that
was answered costs nothing.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from dpo_kit.errors import DpoKitError
from dpo_kit.files import write_atomically
from dpo_kit.preferences.judges.prompt import PARSER_VERSION, BadReply, Question
from dpo_kit.preferences.judges.servers import Completion, Failed, Server
from dpo_kit.profiles import JudgeSettings

LONGEST_WAIT = 120.0  # seconds; a server that asks for more is given up
OVERHEAD = 1000  # tokens that a server may add around a question: its chat template, its words on the schema
T = TypeVar("T")


class Unanswered(Exception):
    """A question without a usable reply; the message is the reason."""


class Budget:
    """Dollars that may be spent. What a request could cost at most is held before it is sent, so the cap is hard."""

    def __init__(self, limit: float) -> None:
        self.limit, self.spent = limit, 0.0
        self._held, self._in_flight = 0.0, 0
        self._changed = threading.Condition()

    def hold(self, dollars: float) -> bool:
        """Set `dollars` aside, waiting for requests in flight where their change may suffice; False where it cannot."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(dollars) or not self._in_flight)
            if not self._fits(dollars):
                return False
            self._held += dollars
            self._in_flight += 1
            return True

    def settle(self, held: float, spent: float) -> None:
        """Replace what was set aside by what was spent."""
        with self._changed:
            self._in_flight -= 1
            self._held = self._held - held if self._in_flight else 0.0
            self.spent += spent
            self._changed.notify_all()

    def _fits(self, dollars: float) -> bool:
        return self.spent + self._held + dollars <= self.limit


@dataclass(frozen=True)
class Reply:
    """The text of a reply and when it was given, in ISO 8601."""

    text: str
    at: str


class JudgeClient:
    """Asks a language model. `tally` counts requests, retries and cache hits; `budget.spent` is in dollars."""

    def __init__(self, settings: JudgeSettings, cache: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self.settings, self.cache, self.sleep = settings, cache, sleep
        self.server = Server(settings)
        self.budget = Budget(settings.max_dollars)
        self.tally: Counter[str] = Counter()
        self._structured = True
        self._reached = False
        self._being_asked: dict[str, threading.Lock] = {}
        self._counting = threading.Lock()

    def ask(self, question: Question, identity: Question, read: Callable[[str], T]) -> tuple[T, str]:
        """What `read` makes of the reply, and when it was given. `identity` is the question without its random token.

        Raises Unanswered with the reason, or DpoKitError where the settings are at fault.
        """
        key = self._key(identity)
        with self._being_asked.setdefault(key, threading.Lock()):  # the same question twice at once is paid once
            known = self._recall(key)
            answer = known or self._answer(question)
            try:
                value = read(answer.text)
            except BadReply as error:
                self._path(key).unlink(missing_ok=True)
                raise Unanswered(f"malformed reply: {error}") from None
            if known:
                self._count("cached")
            else:
                write_atomically(self._path(key), json.dumps(asdict(answer)))
            return value, answer.at

    def _answer(self, question: Question) -> Reply:
        """The whole text of a reply, after at most `attempts` requests."""
        attempt = 1
        while True:
            try:
                completion = self._request(question)
                break
            except Failed as failure:
                wait = 2.0 ** (attempt - 1) if failure.wait is None else failure.wait
                if not failure.again or wait > LONGEST_WAIT or attempt == self.settings.attempts:
                    raise self._given_up(failure, attempt) from None
                self._count("retries")
            attempt += 1
            self.sleep(wait)
        if completion.problem:
            raise Unanswered(completion.problem)
        return Reply(completion.text, datetime.now(UTC).isoformat(timespec="seconds"))

    def _given_up(self, failure: Failed, attempts: int) -> Exception:
        if not self._reached:
            return DpoKitError(f"no judge can be reached at {self.server.url}: {failure}; is the server running?")
        return Unanswered(f"{failure}, after {attempts} of {self.settings.attempts} attempts")

    def _request(self, question: Question) -> Completion:
        """One request, or two where the server does not know structured output: it is then asked for JSON in words."""
        structured = self._structured
        try:
            return self._paid_request(question, structured)
        except Failed as failure:
            if not (structured and failure.status in (400, 422)):
                raise
        completion = self._paid_request(question, False)
        self._structured = False
        return completion

    def _paid_request(self, question: Question, structured: bool) -> Completion:
        most = dollars(self.settings, question.size + OVERHEAD, self.settings.max_reply_tokens)
        if not self.budget.hold(most):
            raise Unanswered(f"budget: up to {most:.4f} dollars more could pass the cap of {self.budget.limit:g}")
        spent = most  # where nobody knows, the worst is assumed
        try:
            self._count("requests")
            completion = self.server.complete(question, structured)
            self._reached = True
            if completion.tokens:
                spent = dollars(self.settings, *completion.tokens)
            return completion
        except Failed as failure:
            self._reached = self._reached or failure.status != 0
            spent = most if failure.billed else 0.0
            raise
        finally:
            self.budget.settle(most, spent)

    def _key(self, identity: Question) -> str:
        """A hash of all that a reply depends on: server, model, limits, every word of the question, and its reading."""
        s = self.settings
        asked = [s.kind, self.server.url, s.model, s.temperature, s.max_reply_tokens, asdict(identity), PARSER_VERSION]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _path(self, key: str) -> Path:
        return self.cache / key[:2] / f"{key}.json"

    def _recall(self, key: str) -> Reply | None:
        try:
            saved = json.loads(self._path(key).read_text(encoding="utf-8"))
            return Reply(str(saved["text"]), str(saved["at"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None  # absent or damaged

    def _count(self, name: str) -> None:
        with self._counting:
            self.tally[name] += 1


def dollars(settings: JudgeSettings, read: float, written: float) -> float:
    """The price of tokens read and written."""
    return (read * settings.input_price + written * settings.output_price) / 1e6
