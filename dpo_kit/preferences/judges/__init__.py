"""Judges: callables that say which of two answers is better, or that neither is, or that they cannot tell.

A judge sees `a` first. Whoever wants both orders wraps it in `both_orders`; nothing else knows about order.
"""

import math
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Protocol

from dpo_kit.records import Prompt, Verdict, Winner

MIRROR: dict[Winner, Winner] = {"a": "b", "b": "a", "tie": "tie", "unjudged": "unjudged"}


class Judge(Protocol):
    """Anything that compares answer `a`, shown first, with answer `b` to one prompt."""

    def __call__(self, prompt: Prompt, a: str, b: str) -> Verdict: ...


class Unscorable(Exception):
    """What a score function raises for an answer that it cannot score; the message says why."""


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
        winner = "tie" if abs(difference) <= resolution else "a" if difference > 0 else "b"
        return Verdict(winner=winner, judge=name, reason=reason)

    return judge


def by_coin(judge: Judge, seed: int) -> Judge:
    """The control: where `judge` sees a difference, a coin decides the winner. Training on this must teach nothing."""

    def shuffled(prompt: Prompt, a: str, b: str) -> Verdict:
        verdict = judge(prompt, a, b)
        if verdict.winner not in ("a", "b"):
            return verdict
        winner = random.Random(f"coin/{seed}/{prompt.id}").choice(("a", "b"))
        return Verdict(winner=winner, judge=f"coin over {verdict.judge}", reason="shuffled label")

    return shuffled


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
    judge: Judge,
    prompts: Sequence[Prompt],
    a: Sequence[str],
    b: Sequence[str],
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Verdict]:
    """One verdict a prompt, in order, asked by `workers` threads; `progress` hears how many of how many are done.

    Raises ValueError where the three sequences differ in length, and at once whatever the judge raises: from then on
    no further question is begun.
    """
    rows = list(zip(prompts, a, b, strict=True))
    stopped = Event()

    def ask(row: tuple[Prompt, str, str]) -> Verdict | None:
        try:
            return None if stopped.is_set() else judge(*row)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            asked = [pool.submit(ask, row) for row in rows]
            for done, future in enumerate(as_completed(asked), start=1):
                future.result()
                progress(done, len(rows))
            return [future.result() for future in asked]
        finally:
            stopped.set()
