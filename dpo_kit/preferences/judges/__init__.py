"""Judges: callables that say which of two answers is better, or that neither is, or that they cannot tell.

Here are the judges that need no server: by a score, and by a reward model. A judge sees `a` first. Whoever wants both
orders wraps it in `both_orders`; nothing else knows about the order.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Protocol

from dpo_kit.errors import DpoKitError
from dpo_kit.records import Prompt, Verdict, Winner

MIRROR: dict[Winner, Winner] = {"a": "b", "b": "a", "tie": "tie", "unjudged": "unjudged"}


class Judge(Protocol):
    """Anything that compares answer `a`, shown first, with answer `b` to one prompt."""

    def __call__(self, prompt: Prompt, a: str, b: str) -> Verdict: ...


class Unscorable(Exception):
    """A score function raises it for an answer that it cannot score; the message says why."""


def by_score(score: Callable[[Prompt, str], float], name: str, resolution: float = 1e-9) -> Judge:
    """The judge that prefers the answer with the higher score; scores no further apart than `resolution` are a tie.

    A score that is not a finite number, or an `Unscorable` answer, leaves the two unjudged.
    """

    def judge(prompt: Prompt, a: str, b: str) -> Verdict:
        try:
            score_a, score_b = score(prompt, a), score(prompt, b)
        except Unscorable as error:
            return Verdict(winner="unjudged", judge=name, reason=str(error))
        reason = f"{score_a:.3f} against {score_b:.3f}"
        difference = score_a - score_b
        if not (math.isfinite(score_a) and math.isfinite(score_b)):
            return Verdict(winner="unjudged", judge=name, reason=f"{reason}: not finite")
        winner: Winner = "tie" if abs(difference) <= resolution else "a" if difference > 0 else "b"
        return Verdict(winner=winner, judge=name, reason=reason)

    return judge


def reward_judge(path: str, margin: float = 0.0) -> Judge:
    """The judge that prefers the answer of higher reward by the model at `path`; up to `margin` apart is a tie.

    Raises DpoKitError as `load_reward` does.
    """
    return by_score(load_reward(path), f"reward model {path}", resolution=margin)


def load_reward(path: str) -> Callable[[Prompt, str], float]:
    """The reward r(x, y) of an answer by a sequence-classification model with one output, read through its template.

    `path` is a local folder or a Hub id; weights are read from safetensors only. An answer that does not fit into the
    model with its prompt is `Unscorable`, because half an answer is another answer.
    Raises DpoKitError where the model cannot be loaded, has not exactly one output, or has no chat template.
    """
    # Imported here, so that the other judges do not wait for them.
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path, use_safetensors=True, dtype="auto").eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DpoKitError(f"judge.model = {path!r}: the reward model cannot be loaded: {reason}") from error
    if model.config.num_labels != 1:
        raise DpoKitError(f"{path}: a reward model has one output, this one has {model.config.num_labels}")
    if not tokenizer.chat_template:
        raise DpoKitError(f"{path}: the tokenizer has no chat template, so the model cannot be shown a chat")
    longest = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def reward(prompt: Prompt, answer: str) -> float:
        chat = [*prompt.chat(), {"role": "assistant", "content": answer}]
        inputs = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt").to(model.device)
        tokens = inputs["input_ids"].shape[1]  # of (1, T)
        if tokens > longest:
            raise Unscorable(f"{tokens} tokens of prompt and answer; the reward model reads {longest}")
        return model(**inputs).logits[0, 0].item()  # logits are (1, 1)

    return reward


def both_orders(judge: Judge) -> Judge:
    """Ask `judge` twice, once in each order. Two different winners are a tie; one order unjudged is unjudged.

    `in_orders` keeps both winners, so that the share of prompts where order alone decided can be counted.
    """

    def ask_twice(prompt: Prompt, a: str, b: str) -> Verdict:
        forward, backward = judge(prompt, a, b), judge(prompt, b, a)
        winners = forward.winner, MIRROR[backward.winner]
        agreed = winners[0] if winners[0] == winners[1] else "tie"
        return Verdict(
            winner="unjudged" if "unjudged" in winners else agreed,
            judge=forward.judge,
            reason=f"first shown first: {forward.reason}; second shown first: {backward.reason}",
            order="both",
            in_orders=winners,
            at=backward.at,
        )

    return ask_twice


def judge_all(
    judge: Judge, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str], workers: int = 1
) -> list[Verdict]:
    """One verdict a prompt, in order, asked by `workers` threads.

    Raises ValueError where the three sequences differ in length, and whatever the judge raises: from then on no further
    question is begun.
    """
    rows = list(zip(prompts, a, b, strict=True))
    stopped = Event()

    def ask(row: tuple[Prompt, str, str]) -> Verdict:
        try:
            # None is seen by nobody: the exception that stopped the others is raised instead
            return None if stopped.is_set() else judge(*row)  # type: ignore[return-value]
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(ask, rows))
        finally:
            stopped.set()  # leaving the pool waits for the questions that are queued: let them end unasked
