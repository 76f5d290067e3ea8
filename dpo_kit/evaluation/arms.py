"""Every arm answers the same held-out prompts, sampled and greedily."""

from collections.abc import Sequence

from dpo_kit.models.generation import Sampling, generate
from dpo_kit.models.loading import Arms
from dpo_kit.profiles import EvaluationSettings
from dpo_kit.records import Prompt, Response

ARMS = ("base", "sft", "dpo")


def answer_all(arms: Arms, prompts: Sequence[Prompt], settings: EvaluationSettings, seed: int) -> list[Response]:
    """One sampled and one greedy answer a prompt from each of the three arms.

    Each arm draws with a seed of its own. With common noise two similar arms would mostly give the same answer, and
    the win rate would be one between coupled samples, not the chance that one model's answer beats the other's.
    """
    responses = []
    for temperature in (settings.temperature, 0.0):
        for number, arm in enumerate(ARMS):
            own = len(ARMS) * seed + number
            how = Sampling(temperature, own, settings.max_new_tokens, settings.batch_size)
            responses += generate(arms, arm, prompts, how)
    return responses
