"""Sampling answers, seeded by prompt: the same prompt and seed give the same answer whatever else is in the batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from dpo_kit.models.loading import Arms
from dpo_kit.models.tokens import prompt_ids
from dpo_kit.records import Prompt, Response


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. Temperature 0 is greedy decoding."""

    temperature: float
    seed: int
    max_new_tokens: int
    batch_size: int


def generate(arms: Arms, arm: str, prompts: Sequence[Prompt], how: Sampling) -> list[Response]:
    """Answer every prompt once with one arm, in the order given."""
    made = {"arm": arm, "temperature": how.temperature, "seed": how.seed}
    eos, decode = arms.tokenizer.eos_token_id, arms.tokenizer.decode
    return [
        Response(prompt_id=prompt.id, text=decode(ids, skip_special_tokens=True), stopped=eos in ids, **made)
        for prompt, ids in zip(prompts, sample_ids(arms, arm, prompts, how), strict=True)
    ]


def sample_ids(arms: Arms, arm: str, prompts: Sequence[Prompt], how: Sampling) -> list[list[int]]:
    """The token ids of one answer a prompt, in the order given, each up to and with its EOS if it reached one.

    Prompts are batched by length, longest first, so that little is padded and a lack of memory shows at once.
    """
    heads = [prompt_ids(arms.tokenizer, prompt) for prompt in prompts]
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(heads[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    label = f"{arm} answers, temperature {how.temperature:g}"
    with arms.use(arm) as model, tqdm(total=len(prompts), desc=label, unit="prompt") as bar:
        for start in range(0, len(prompts), how.batch_size):
            rows = longest_first[start : start + how.batch_size]
            noise = GumbelNoise([prompts[i].id for i in rows], how.temperature, how.seed, model.device)
            batch = _generate_batch(model, arms.tokenizer, [heads[i] for i in rows], noise, how.max_new_tokens)
            for i, ids in zip(rows, batch, strict=True):
                answers[i] = ids
            bar.update(len(rows))
    return answers


class GumbelNoise(LogitsProcessor):
    """Turns greedy decoding into sampling: argmax(logits / T + Gumbel noise) is a draw from softmax(logits / T).

    Each row draws its noise from a generator of its own, seeded by prompt, which is what makes a sample independent
    of its batch (up to rounding in the logits). At temperature 0 nothing is added.
    """

    def __init__(self, prompt_ids: Sequence[str], temperature: float, seed: int, device: torch.device | str = "cpu"):
        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(_row_seed(name, seed)) for name in prompt_ids]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits `(B, V)` in, perturbed logits `(B, V)` out."""
        if self.temperature == 0:
            return scores
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log()


def _generate_batch(
    model: PreTrainedModel, tokenizer, heads: list[list[int]], noise: GumbelNoise, max_new_tokens: int
) -> list[list[int]]:
    """Prompts are padded on the left, where generation needs it; what follows an EOS is cut off."""
    inputs = tokenizer.pad({"input_ids": heads}, padding_side="left", return_tensors="pt").to(model.device)
    with torch.inference_mode():
        ids = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            logits_processor=LogitsProcessorList([noise]),
        )
    new = ids[:, inputs["input_ids"].shape[1] :].tolist()
    eos = tokenizer.eos_token_id
    return [row[: row.index(eos) + 1] if eos in row else row for row in new]


def _row_seed(prompt_id: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
