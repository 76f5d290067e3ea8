"""How fast answers are drawn: by the package, one prompt at a time, and by transformers alone in the same batches.

    python -m benchmarks.generation [--profile tiny] [--prompts 64] [--rounds 5]

Building pairs and evaluating are mostly generation. The package batches prompts by length and seeds every prompt, so
that an answer does not depend on its batch; `transformers` is its own sampler on the prompts as they come. Rounds are
interleaved ABBA in one process, tokens are counted up to the end of each answer. Prints medians and, within rounds, the
ratio to `transformers` with its range.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

from dpo_kit.profiles import Profile, load_profile
from dpo_kit.records import Prompt

EXPLAINED = {
    "transformers": "its sampler, prompts as they come",
    "package": "batched by length, a seed a prompt",
    "one by one": "the same with batches of one",
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(table(measure(load_profile(arguments.profile), arguments.prompts, arguments.rounds)))


def measure(profile: Profile, count: int, rounds: int) -> list[dict[str, tuple[float, float]]]:
    """For every round each way's answers and tokens a second."""
    from dpo_kit.models.generation import Sampling, sample_ids
    from dpo_kit.models.loading import load_arms
    from dpo_kit.triage.reports import draw_prompts

    settings = profile.evaluation
    arms, prompts = load_arms(profile, {}), draw_prompts(count, "heldout", "evaluation", 0)

    def package(seed: int, batch_size: int) -> list[list[int]]:
        how = Sampling(settings.temperature, seed, settings.max_new_tokens, batch_size)
        return sample_ids(arms, "base", prompts, how)

    ways = {
        "transformers": lambda seed: stock(arms, prompts, profile, seed),
        "package": lambda seed: package(seed, settings.batch_size),
        "one by one": lambda seed: package(seed, 1),
    }
    found = []
    for number in range(rounds):
        row = {}
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            started = time.perf_counter()
            answers = ways[name](number)
            seconds = time.perf_counter() - started
            row[name] = (len(answers) / seconds, sum(map(len, answers)) / seconds)
        found.append(row)
    return found


def stock(arms, prompts: Sequence[Prompt], profile: Profile, seed: int) -> list[list[int]]:
    """Token ids of answers as transformers draws them, batch by batch."""
    import torch

    from dpo_kit.models.generation import answers_in
    from dpo_kit.models.tokens import prompt_ids

    settings, tokenizer, answers = profile.evaluation, arms.tokenizer, []
    torch.manual_seed(seed)
    for start in range(0, len(prompts), settings.batch_size):
        heads = [prompt_ids(tokenizer, prompt) for prompt in prompts[start : start + settings.batch_size]]
        with arms.use("base") as model, torch.inference_mode():
            inputs = tokenizer.pad({"input_ids": heads}, padding_side="left", return_tensors="pt").to(model.device)
            ids = model.generate(
                **inputs, max_new_tokens=settings.max_new_tokens, do_sample=True, top_k=0, use_cache=True,
                temperature=settings.temperature, pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        answers += answers_in(ids, inputs["input_ids"].shape[1], [tokenizer.eos_token_id])
    return answers


def table(rounds: Sequence[dict[str, tuple[float, float]]]) -> str:
    """One line a way: medians, and the ratio of tokens a second to transformers' as median and range."""
    lines = ["| way | answers/s | tokens/s | to transformers |", "| --- | ---: | ---: | ---: |"]
    for way, meaning in EXPLAINED.items():
        answers, tokens = (statistics.median(row[way][i] for row in rounds) for i in (0, 1))
        ratios = sorted(row[way][1] / row["transformers"][1] for row in rounds)
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        lines.append(f"| {way}: {meaning} | {answers:.1f} | {tokens:.0f} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
