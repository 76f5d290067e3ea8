"""Language models as judges of two answers and as scorers of one, and what they would cost before they are asked.

Whatever keeps a model from a usable reply - a refusal, a cut, a malformed reply, a server that gives up, the budget -
leaves the answers unjudged with that reason. Nothing defaults to a winner.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.judges import Judge, both_orders, reward_judge
from dpo_kit.preferences.judges.calls import OVERHEAD, JudgeClient, Unanswered, dollars
from dpo_kit.preferences.judges.prompt import (
    CRITERIA,
    Question,
    compare_question,
    parse_reply,
    parse_score,
    score_question,
)
from dpo_kit.profiles import JudgeSettings
from dpo_kit.records import Prompt, Verdict

TOKEN = "0" * 32  # stands for the random token where a question is named or measured, not asked
BYTES_PER_TOKEN = 3.5  # of English in today's tokenizers; other languages take more tokens
TYPICAL_REPLY = 250  # tokens; a model that reasons at length writes more


def make_judge(settings: JudgeSettings, cache: Path) -> Judge:
    """The reward model or the language model that a profile names; `cache` is a folder for what the latter said.

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
    return CostEstimate(questions, *typical, dollars(settings, *typical), dollars(settings, *most))


def _comparison(settings: JudgeSettings, prompt: Prompt, a: str, b: str, token: str | None) -> Question:
    return compare_question(prompt, a, b, settings.criteria or CRITERIA, token)


def _check_length(settings: JudgeSettings, *answers: str) -> None:
    longest = max(map(len, answers))
    if longest > settings.max_answer_characters:
        # Shown in part, it would be another answer.
        raise Unanswered(f"an answer has {longest} characters; at most {settings.max_answer_characters} are sent")
