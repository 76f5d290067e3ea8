"""Judges: callables that say which of two answers is better, or that neither is, or that they cannot tell."""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from dpo_kit.records import Prompt, Verdict


class Judge(Protocol):
    """Anything that compares answer `a` with answer `b` to one prompt."""

    def __call__(self, prompt: Prompt, a: str, b: str) -> Verdict: ...


def by_score(score: Callable[[Prompt, str], float], name: str, resolution: float = 1e-9) -> Judge:
    """The judge that prefers the answer with the higher score; scores closer than `resolution` are a tie."""

    def judge(prompt: Prompt, a: str, b: str) -> Verdict:
        score_a, score_b = score(prompt, a), score(prompt, b)
        difference = score_a - score_b
        winner = "tie" if abs(difference) < resolution else "a" if difference > 0 else "b"
        return Verdict(winner=winner, judge=name, reason=f"{score_a:.3f} against {score_b:.3f}")

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


def judge_all(judge: Judge, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> list[Verdict]:
    """One verdict a prompt, in order. Raises ValueError where the three sequences differ in length."""
    return [judge(*row) for row in zip(prompts, a, b, strict=True)]
