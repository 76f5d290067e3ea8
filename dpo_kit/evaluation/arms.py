"""Every arm answers the same held-out prompts, sampled and greedily."""

from collections.abc import Sequence

from dpo_kit.models.generation import Sampling, generate
from dpo_kit.models.loading import Arms
from dpo_kit.profiles import EvaluationSettings
from dpo_kit.records import Prompt, Response

ARMS = ("base", "sft", "dpo")


def answer_all(arms: Arms, prompts: Sequence[Prompt], settings: EvaluationSettings, seed: int) -> list[Response]:
    """One sampled and one greedy answer a prompt from each of the three arms.

    All arms share the seed of each prompt, so two arms with equal probabilities give equal answers.
    """
    ways = [
        Sampling(temperature, seed, settings.max_new_tokens, settings.batch_size)
        for temperature in (settings.temperature, 0.0)
    ]
    return [response for way in ways for arm in ARMS for response in generate(arms, arm, prompts, way)]
