"""Answers to each prompt from one arm; from two answers and a verdict, a pair. For more than two see `ranking`."""

from collections.abc import Sequence

from dpo_kit.models.generation import Answer, Sampling, generate
from dpo_kit.models.loading import Arms
from dpo_kit.models.store import Store
from dpo_kit.preferences.judges import Judge, judge_all
from dpo_kit.profiles import EvaluationSettings, PairSettings
from dpo_kit.records import PreferencePair, Prompt, Response


def sample(
    arms: Arms,
    arm: str,
    prompts: Sequence[Prompt],
    temperatures: Sequence[float],
    settings: PairSettings | EvaluationSettings,
    seed: int,
    store: Store[Answer] | None = None,
) -> list[list[Response]]:
    """For each prompt in order, one response a temperature, each drawn with a seed of its own.

    Name a temperature n times for n draws at it. A prompt gets the same responses in any batch, up to rounding, and
    `count_stops` counts how they ended. With a store, answers that a killed call had made are not made again.
    """
    limits = settings.max_new_tokens, settings.batch_size
    draws = []
    for i, temperature in enumerate(temperatures):
        # n seeds for n draws: no draw of this seed is one of the next seed.
        sampling = Sampling(temperature, len(temperatures) * seed + i, *limits)
        draws.append(generate(arms, arm, prompts, sampling, store))
    return [list(responses) for responses in zip(*draws, strict=True)]


def sample_twice(
    arms: Arms,
    arm: str,
    prompts: Sequence[Prompt],
    settings: PairSettings,
    seed: int,
    store: Store[Answer] | None = None,
) -> tuple[list[Response], list[Response]]:
    """Two answers a prompt from one arm, at the two temperatures of a profile's `pairs` table."""
    twos = sample(arms, arm, prompts, settings.temperatures, settings, seed, store)
    return [first for first, _ in twos], [second for _, second in twos]


def make_pairs(
    prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response], judge: Judge, workers: int = 1
) -> list[PreferencePair]:
    """Pairs from verdicts: the winner is chosen, the other rejected; ties and unjudged prompts make no pair.

    The same text twice makes none either, and nobody is asked: a judge that prefers the first would find a winner.
    `workers` threads ask the judge, which matters where it is a server.
    """
    differ = [row for row in zip(prompts, a, b, strict=True) if row[1].text != row[2].text]
    asked = [prompt for prompt, *_ in differ]
    verdicts = judge_all(judge, asked, [a.text for _, a, _ in differ], [b.text for *_, b in differ], workers)
    pairs = []
    for (prompt, answer_a, answer_b), verdict in zip(differ, verdicts, strict=True):
        if verdict.winner in ("a", "b"):
            chosen, rejected = (answer_a, answer_b)[:: 1 if verdict.winner == "a" else -1]
            pairs.append(PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, verdict=verdict))
    return pairs
