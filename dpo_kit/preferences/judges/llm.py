"""Language models as judges of two answers and as scorers of one, and what they would cost before they are asked.

Whatever keeps a model from a usable reply - a refusal, a cut, a malformed reply, a server that gives up, the budget -
leaves the answers unjudged with that reason. Nothing defaults to a winner.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from dpo_kit.errors import DpoKitError
from dpo_kit.models.servers import OVERHEAD, Server, Unanswered, dollars
from dpo_kit.models.store import Store
from dpo_kit.preferences.judges import Judge, both_orders, reward_judge
from dpo_kit.preferences.judges.prompt import (
    CRITERIA,
    PARSER_VERSION,
    BadReply,
    Question,
    compare_question,
    parse_reply,
    parse_score,
    score_question,
)
from dpo_kit.profiles import JudgeSettings
from dpo_kit.records import Prompt, Verdict

TOKEN = "0" * 32  # stands for the random token where a question is named or measured, not asked
OTHERS_KEY = "DPO_KIT_JUDGE_KEY"  # where the key for a server that is no vendor's is kept
BYTES_PER_TOKEN = 3.5  # of English in today's tokenizers; other languages take more tokens
TYPICAL_REPLY = 250  # tokens; a model that reasons at length writes more
T = TypeVar("T")


class Reply(NamedTuple):
    """The text of a reply and when it was given, in ISO 8601."""

    text: str
    at: str


class JudgeClient:
    """Asks a language model, and remembers its replies in the SQLite file `cache`.

    Only replies that could be read are remembered: a question that failed is asked again by the next run, and one that
    was answered costs nothing. `tally` counts requests, retries and cache hits; `budget.spent` is in dollars.
    """

    def __init__(self, settings: JudgeSettings, cache: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        s = self.settings = settings
        if not s.model:
            raise DpoKitError("judge.model is empty: name a model that the server knows")
        if not s.base_url and not (s.input_price and s.output_price):
            raise DpoKitError("judge.input_price and output_price are 0: without prices judge.max_dollars cannot hold")
        self.server = Server(
            "judge", s.kind, s.base_url, s.model, OTHERS_KEY, timeout=s.timeout_seconds, attempts=s.attempts,
            prices=_prices(s), max_dollars=s.max_dollars, sleep=sleep,
        )  # fmt: skip
        self.tally, self.budget = self.server.tally, self.server.budget
        self.store = Store(cache, Reply)
        self._being_asked: dict[str, threading.Lock] = {}

    def ask(self, question: Question, identity: Question, read: Callable[[str], T]) -> tuple[T, str]:
        """What `read` makes of the reply, and when it was given. `identity` is the question without its random token.

        Raises Unanswered with the reason, or DpoKitError where the settings are at fault.
        """
        key = self._key(identity)
        with self._being_asked.setdefault(key, threading.Lock()):  # the same question twice at once is paid once
            (known,) = self.store.find([key])
            reply = known or self._answer(question)
            try:
                value = read(reply.text)
            except BadReply as error:
                raise Unanswered(f"malformed reply: {error}") from None
            if known:
                self.server.count("cached")
            else:
                self.store.add([key], [reply])
            return value, reply.at

    def _answer(self, question: Question) -> Reply:
        s = self.settings
        reply = self.server.ask(
            question.messages, s.max_reply_tokens, temperature=s.temperature, schema=question.schema
        )
        if reply.end in ("refused", "length"):
            refused = reply.end == "refused"
            raise Unanswered("the judge refused" if refused else "the reply was cut off at the token limit")
        return Reply(reply.text, datetime.now(UTC).isoformat(timespec="seconds"))

    def _key(self, identity: Question) -> str:
        """A hash of all that a reply depends on: server, model, limits, every word of the question, and its reading."""
        s = self.settings
        asked = [s.kind, self.server.url, s.model, s.temperature, s.max_reply_tokens, asdict(identity), PARSER_VERSION]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def make_judge(settings: JudgeSettings, cache: Path) -> Judge:
    """The reward model or the language model that a profile names; `cache` is an SQLite file for what the latter said.

    Raises DpoKitError where a model cannot be loaded, a server has no key, or the judge exists only in the workbook's
    world.
    """
    if settings.kind in ("rubric", "simulated"):
        other = "choose openai, anthropic or reward"
        raise DpoKitError(f"judge.kind = {settings.kind!r} needs the facts of incidents; {other}")
    if settings.kind == "reward":
        return reward_judge(settings.model, settings.margin)  # it reads one answer at a time, so it knows no order
    judge = llm_judge(JudgeClient(settings, cache))
    return both_orders(judge) if settings.both_orders else judge


def llm_judge(client: JudgeClient) -> Judge:
    """A language model that compares two answers, `a` shown first. Thread-safe."""
    settings, name = client.settings, judge_name(client.settings)

    def judge(prompt: Prompt, a: str, b: str) -> Verdict:
        try:
            _check_length(settings, a, b)
            question, identity = (_comparison(settings, prompt, a, b, token) for token in (None, TOKEN))
            (winner, reason), at = client.ask(question, identity, parse_reply)
        except Unanswered as failure:
            return Verdict(winner="unjudged", judge=name, reason=str(failure))
        return Verdict(winner=winner, judge=name, reason=reason, at=at)

    return judge


def llm_score(client: JudgeClient) -> Callable[[Prompt, str], tuple[int | None, str]]:
    """A language model that scores one answer from 1 to 5: the score, None where there is none, and the reason."""
    settings = client.settings

    def score(prompt: Prompt, answer: str) -> tuple[int | None, str]:
        criteria = settings.criteria or CRITERIA
        try:
            _check_length(settings, answer)
            question, identity = (score_question(prompt, answer, criteria, token) for token in (None, TOKEN))
            return client.ask(question, identity, parse_score)[0]
        except Unanswered as failure:
            return None, str(failure)

    return score


def judge_name(settings: JudgeSettings) -> str:
    """What verdicts call the judge: the API and the model."""
    return f"{settings.kind}: {settings.model}"


@dataclass(frozen=True)
class CostEstimate:
    """What judging would take: questions, tokens in and out as they are typical, and dollars, typical and at most.

    `at_most` is for one request a question; a retry after a timeout can add to it, the budget's cap cannot be passed.
    """

    questions: int
    input_tokens: int
    output_tokens: int
    dollars: float
    at_most: float


def estimate_cost(
    prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str], settings: JudgeSettings
) -> CostEstimate:
    """The cost of judging these answers with nothing in the cache, from the questions as they would be asked.

    Nothing is asked and no key is needed. Answers too long to be sent cost nothing.
    """
    rows = [row for row in zip(prompts, a, b, strict=True) if max(map(len, row[1:])) <= settings.max_answer_characters]
    orders = 2 if settings.both_orders else 1
    sizes = [_comparison(settings, *row, TOKEN).size for row in rows]  # the same in both orders
    questions, read = orders * len(rows), orders * sum(sizes)
    typical = round(read / BYTES_PER_TOKEN), questions * TYPICAL_REPLY
    most = read + questions * OVERHEAD, questions * settings.max_reply_tokens
    return CostEstimate(questions, *typical, dollars(_prices(settings), *typical), dollars(_prices(settings), *most))


def _prices(settings: JudgeSettings) -> tuple[float, float]:
    return settings.input_price, settings.output_price


def _comparison(settings: JudgeSettings, prompt: Prompt, a: str, b: str, token: str | None) -> Question:
    return compare_question(prompt, a, b, settings.criteria or CRITERIA, token)


def _check_length(settings: JudgeSettings, *answers: str) -> None:
    longest = max(map(len, answers))
    if longest > settings.max_answer_characters:
        # Shown in part, it would be another answer.
        raise Unanswered(f"an answer has {longest} characters; at most {settings.max_answer_characters} are sent")
