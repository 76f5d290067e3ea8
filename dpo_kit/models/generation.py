"""Sampling answers, seeded by prompt: the same prompt and seed give the same answer whatever else is in the batch.

This holds up to rounding. The length to which a row is padded changes the last digit of its logits, and once in many
thousand tokens this changes the token that is drawn. So batches are always formed from the full list of prompts, even
where some answers are stored already.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from dpo_kit.files import sha256
from dpo_kit.models.loading import Arms
from dpo_kit.models.store import Store
from dpo_kit.models.tokens import prompt_ids, stop_ids
from dpo_kit.records import Prompt, Response


class Answer(NamedTuple):
    """The text of an answer, and whether it ended by itself; None where this is unknown."""

    text: str
    stopped: bool | None


class Missing(NamedTuple):
    """An answer that was requested and not received, and the reason."""

    prompt_id: str
    reason: str


def answer_key(prompt: Prompt, **depends_on: Any) -> str:
    """A hash of the prompt (its id, which seeds the sampling, and its messages) and of all else that it depends on."""
    content = json.dumps([prompt.id, prompt.chat(), depends_on], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. Temperature 0 is greedy decoding."""

    temperature: float
    seed: int
    max_new_tokens: int
    batch_size: int


@dataclass(frozen=True)
class StopCounts:
    """How answers ended: by themselves, cut off at the length limit, or unknown (None), as in imported data."""

    answers: int
    stopped: int
    cut_off: int

    @property
    def stop_rate(self) -> float | None:
        """The share that ended by itself, among the answers whose end is known."""
        known = self.stopped + self.cut_off
        return self.stopped / known if known else None

    @property
    def truncation_rate(self) -> float | None:
        """The share that was cut off, among the answers whose end is known."""
        return None if self.stop_rate is None else 1 - self.stop_rate

    def __str__(self) -> str:
        if self.stop_rate is None:
            return f"{self.answers:,} answers; how they ended is unknown"
        ended = f"{self.stop_rate:.1%} ended by themselves, {self.truncation_rate:.1%} were cut off"
        unknown = self.answers - self.stopped - self.cut_off
        return f"{self.answers:,} answers: {ended}" + (f", {unknown:,} unknown" if unknown else "")


def count_stops(responses: Sequence[Response]) -> StopCounts:
    """Count how responses ended."""
    ends = [response.stopped for response in responses]
    return StopCounts(len(ends), ends.count(True), ends.count(False))


def generate(
    arms: Arms, arm: str, prompts: Sequence[Prompt], sampling: Sampling, store: Store[Answer] | None = None
) -> list[Response]:
    """Answer every prompt once with one arm, in the order given.

    With a store, answers found there are not made again, and each batch is stored as soon as it is done.
    """
    keys = _keys(arms, arm, prompts, sampling) if store else []
    answers = store.find(keys) if store else [None] * len(prompts)
    stops, decode = set(stop_ids(arms.tokenizer, arms.model)), arms.tokenizer.decode
    for rows, batch in _batches(arms, arm, prompts, sampling, [answer is None for answer in answers]):
        made = [Answer(decode(ids, skip_special_tokens=True), not stops.isdisjoint(ids)) for ids in batch]
        if store:
            made = store.add([keys[i] for i in rows], made)
        for i, answer in zip(rows, made, strict=True):
            answers[i] = answer
    return [respond(prompt, answer, arm, sampling) for prompt, answer in zip(prompts, answers, strict=True)]


def respond(prompt: Prompt, answer: Answer, arm: str, sampling: Sampling) -> Response:
    """The record of an answer that `arm` gave to `prompt`."""
    made = {"arm": arm, "temperature": sampling.temperature, "seed": sampling.seed}
    return Response(prompt_id=prompt.id, text=answer.text, stopped=answer.stopped, **made)


def sample_ids(arms: Arms, arm: str, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
    """The token ids of one answer for each prompt, in order; a stop token, if reached, is the last id."""
    answers: list[list[int]] = [[] for _ in prompts]
    for rows, batch in _batches(arms, arm, prompts, sampling, [True] * len(prompts)):
        for i, ids in zip(rows, batch, strict=True):
            answers[i] = ids
    return answers


def row_seed(prompt_id: str, seed: int) -> int:
    """The 63-bit seed of one prompt's draw."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _batches(
    arms: Arms, arm: str, prompts: Sequence[Prompt], sampling: Sampling, wanted: Sequence[bool]
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """For each batch: the wanted rows as indices of prompts, and the token ids of their answers.

    Prompts are batched by length, longest first, so that there is little padding and a lack of memory shows at once.
    """
    heads = [prompt_ids(arms.tokenizer, prompt) for prompt in prompts]
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(heads[i]))
    bar = tqdm(
        total=len(prompts),
        initial=len(prompts) - sum(wanted),
        desc=f"{arm} answers, temperature {sampling.temperature:g}",
        unit="prompt",
    )
    with bar:
        for start in range(0, len(prompts), sampling.batch_size):
            rows = [i for i in longest_first[start : start + sampling.batch_size] if wanted[i]]
            if not rows:
                continue
            with arms.use(arm) as model:
                noise = GumbelNoise([prompts[i].id for i in rows], sampling.temperature, sampling.seed, model.device)
                batch = _generate_batch(model, arms.tokenizer, [heads[i] for i in rows], noise, sampling.max_new_tokens)
            yield rows, batch
            bar.update(len(rows))


def _keys(arms: Arms, arm: str, prompts: Sequence[Prompt], sampling: Sampling) -> list[str]:
    """The keys of answers in a store. The batch size is not part of them, so that it can be lowered to save memory."""
    depends_on = {
        "arm": arms.identity(arm),
        "code": sha256(Path(__file__)),
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "max_new_tokens": sampling.max_new_tokens,
    }
    return [answer_key(prompt, **depends_on) for prompt in prompts]


class GumbelNoise(LogitsProcessor):
    """Turns greedy decoding into sampling: argmax(logits / T + Gumbel noise) is a draw from softmax(logits / T).

    Each row draws its noise from its own generator, seeded by prompt. So a sample does not depend on its batch (up to
    rounding in the logits). At temperature 0 nothing is added.
    """

    def __init__(self, prompt_ids: Sequence[str], temperature: float, seed: int, device: torch.device | str = "cpu"):
        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(row_seed(name, seed)) for name in prompt_ids]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits `(B, V)` in, perturbed logits `(B, V)` out."""
        if self.temperature == 0:
            return scores
        noise = torch.empty_like(scores, dtype=torch.float32)  # (B, V); -log of an exponential draw is Gumbel
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log()


def _generate_batch(
    model: PreTrainedModel, tokenizer, heads: list[list[int]], noise: GumbelNoise, max_new_tokens: int
) -> list[list[int]]:
    """Answers for one batch. Prompts are padded on the left, as generation needs; ids after a stop token are cut."""
    inputs = tokenizer.pad({"input_ids": heads}, padding_side="left", return_tensors="pt").to(model.device)  # (B, P)
    stops = stop_ids(tokenizer, model)
    with torch.inference_mode():
        ids = model.generate(  # (B, P + at most max_new_tokens)
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the noise does the sampling, so that a row's draw does not depend on the batch
            use_cache=True,  # the model's own setting is off, because training needs no cache
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=stops,
            logits_processor=LogitsProcessorList([noise]),
        )
    return answers_in(ids, inputs["input_ids"].shape[1], stops)


def answers_in(ids: Tensor, prompt_width: int, stops: Collection[int]) -> list[list[int]]:
    """The token ids after the prompts in `(batch, T)`; a stop token, if reached, is the last id."""
    rows = ids[:, prompt_width:].tolist()
    return [row[: next((i + 1 for i, token in enumerate(row) if token in stops), len(row))] for row in rows]
