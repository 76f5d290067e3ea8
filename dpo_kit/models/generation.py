"""Sampling answers, seeded by prompt: the same prompt and seed give the same answer whatever else is in the batch.

Up to rounding, that is: what a row is padded to moves its logits in the last digit, and once in many thousand tokens
that decides a draw. So batches are formed from the full list of prompts, also where some answers are stored already.
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
    """The text of an answer, and whether it ended by itself; None where nobody knows."""

    text: str
    stopped: bool | None


class Missing(NamedTuple):
    """An answer that was asked for and did not come, and why."""

    prompt_id: str
    reason: str


def answer_key(prompt: Prompt, **depends_on: Any) -> str:
    """A hash of the prompt (its id, which seeds the draw, and its messages) and of what else the answer depends on."""
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
        """The share that ended by itself, of the answers of which it is known."""
        known = self.stopped + self.cut_off
        return self.stopped / known if known else None

    @property
    def truncation_rate(self) -> float | None:
        """The share that was cut off, of the answers of which it is known."""
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
    """The token ids of one answer a prompt, in order, each up to and with its stop token if it reached one."""
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
    """The rows of each batch that are wanted, as numbers of prompts, and the token ids of their answers.

    Prompts are batched by length, longest first, so that little is padded and a lack of memory shows at once.
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
    """The keys of answers in a store. The batch size stays out: who ran out of memory goes on with smaller batches."""
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

    Each row draws its noise from a generator of its own, seeded by prompt, which is what makes a sample independent
    of its batch (up to rounding in the logits). At temperature 0 nothing is added.
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
    """Prompts are padded on the left, where generation needs it; what follows a stop token is cut off."""
    inputs = tokenizer.pad({"input_ids": heads}, padding_side="left", return_tensors="pt").to(model.device)  # (B, P)
    stops = stop_ids(tokenizer, model)
    with torch.inference_mode():
        ids = model.generate(  # (B, P + at most max_new_tokens)
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the noise draws, so that a row's draw does not depend on the batch
            use_cache=True,  # the model's own setting is off, for training
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=stops,
            logits_processor=LogitsProcessorList([noise]),
        )
    return answers_in(ids, inputs["input_ids"].shape[1], stops)


def answers_in(ids: Tensor, prompt_width: int, stops: Collection[int]) -> list[list[int]]:
    """The token ids after the prompts in `(batch, T)`, each up to and with its stop token if it reached one."""
    rows = ids[:, prompt_width:].tolist()
    return [row[: next((i + 1 for i, token in enumerate(row) if token in stops), len(row))] for row in rows]
