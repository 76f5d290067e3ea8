"""Two answers to each prompt, a verdict on them, and the pairs that follow."""

from collections.abc import Sequence

from dpo_kit.models.generation import Sampling, generate
from dpo_kit.models.loading import Arms
from dpo_kit.preferences.judging import Judge
from dpo_kit.profiles import PairSettings
from dpo_kit.records import PreferencePair, Prompt, Response


def sample_twice(
    arms: Arms, arm: str, prompts: Sequence[Prompt], settings: PairSettings, seed: int
) -> tuple[list[Response], list[Response]]:
    """Two answers a prompt from one arm, at the profile's two temperatures and with different seeds."""
    first, second = (
        generate(arms, arm, prompts, Sampling(temperature, 2 * seed + i, settings.max_new_tokens, settings.batch_size))
        for i, temperature in enumerate(settings.temperatures)
    )
    return first, second


def make_pairs(
    prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response], judge: Judge
) -> list[PreferencePair]:
    """Pairs from verdicts: the winner is chosen, the other rejected; ties and unjudged prompts make no pair."""
    pairs = []
    for prompt, answer_a, answer_b in zip(prompts, a, b, strict=True):
        verdict = judge(prompt, answer_a.text, answer_b.text)
        if verdict.winner == "a":
            pairs.append(PreferencePair(prompt=prompt, chosen=answer_a, rejected=answer_b, verdict=verdict))
        elif verdict.winner == "b":
            pairs.append(PreferencePair(prompt=prompt, chosen=answer_b, rejected=answer_a, verdict=verdict))
    return pairs
