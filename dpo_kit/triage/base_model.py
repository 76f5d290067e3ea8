"""How the tiny base model in `data/` and its card are made. The training text comes from this project only.

    python -m dpo_kit pretrain          rebuilds data/tiny-base

A Llama-shaped model with about two million parameters: small enough to train in minutes on two CPU cores, large
enough to copy facts from a report it has never seen and to follow a rule. Its tokenizer is a byte-level BPE with one
token per digit, so that numbers are spelled and no string is out of vocabulary.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from dpo_kit.files import hashes, write_atomically
from dpo_kit.triage.corpus import Chat, documents

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """All that decides the base model's weights."""

    seed: int = 0
    vocabulary: int = 1024
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    intermediate: int = 576
    context: int = 512
    row_tokens: int = 256
    rows_per_step: int = 4
    steps: int = 5000
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    init_std: float = 0.07
    weight_decay: float = 0.1


def build(folder: Path, recipe: Recipe = Recipe()) -> dict:
    """Train tokenizer and model by `recipe`; save them, bf16 and safetensors, with a manifest and a card.

    Returns the manifest.
    """
    tokenizer = train_tokenizer(recipe)
    model = new_model(recipe, tokenizer)
    curve = pretrain(model, tokenizer, recipe, folder)
    model.config.use_cache = True  # it was off in training, and generation needs it
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    manifest = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss_curve": curve,
        "files": hashes(folder, skip=("manifest.json", "README.md")),
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    write_atomically(folder / "README.md", model_card(manifest))
    return manifest


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE from the first 5,000 documents, digits apart, the chat markers as special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ("\n".join(_contents(d)) for d in islice(documents(recipe.seed), 5000))
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, model_max_length=recipe.context,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights, in fp32."""
    torch.manual_seed(recipe.seed)  # the weights are drawn in the next lines
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.hidden, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, intermediate_size=recipe.intermediate,
        max_position_embeddings=recipe.context, tie_word_embeddings=True,
        initializer_range=recipe.init_std, use_cache=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def packed_rows(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[list[list[int]]]:
    """Rows of whole documents, each ending in EOS, that together hold at most `row_tokens` ids."""
    row: list[list[int]] = []
    room = recipe.row_tokens
    for document in documents(recipe.seed):
        ids = encode(document, tokenizer)[: recipe.row_tokens]  # a document that is longer than a row is cut off
        if len(ids) > room:  # the row is full: a document never continues in the next one
            yield row
            row, room = [], recipe.row_tokens
        row, room = [*row, ids], room - len(ids)


def encode(document: str | Chat, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids of a document, ending in EOS; chats go through the chat template."""
    if isinstance(document, str):
        return tokenizer(document)["input_ids"] + [tokenizer.eos_token_id]
    return tokenizer.apply_chat_template(document, return_dict=True)["input_ids"]


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, folder: Path) -> list:
    """Next-token training on `steps * rows_per_step` packed rows; returns [[step, loss], ...]."""
    rows = list(islice(packed_rows(tokenizer, recipe), recipe.steps * recipe.rows_per_step))
    arguments = TrainingArguments(
        output_dir=str(folder), seed=recipe.seed, max_steps=recipe.steps,
        per_device_train_batch_size=recipe.rows_per_step, learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay, adam_beta2=0.95, lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps, logging_steps=max(1, recipe.steps // 40), save_strategy="no",
        report_to="none", use_cpu=True, remove_unused_columns=False, logging_nan_inf_filter=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=lambda batch: _collate(batch, tokenizer))
    trainer.train()
    return [[row["step"], round(row["loss"], 4)] for row in trainer.state.log_history if "loss" in row]


def _collate(rows: list[list[list[int]]], tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Pad rows on the right to `(B, T)`; the loss ignores the padding.

    Positions begin again with each document. From this transformers finds the borders in a row, so that no document
    attends to its neighbour, whose facts are about another incident.
    """
    width = max(sum(map(len, row)) for row in rows)
    ids, positions = [], []
    for row in rows:
        padding = width - sum(map(len, row))
        ids.append([i for document in row for i in document] + [tokenizer.pad_token_id] * padding)
        # begins at 0 with each document
        positions.append([i for document in row for i in range(len(document))] + [0] * padding)
    ids, positions = torch.tensor(ids), torch.tensor(positions)
    # the first token of a document follows from nothing before it
    labels = ids.masked_fill((ids == tokenizer.pad_token_id) | (positions == 0), -100)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def _contents(document: str | Chat) -> list[str]:
    return [document] if isinstance(document, str) else [turn["content"] for turn in document]


# ---- the card ----------------------------------------------------------------------------------------------------


CARD = """\
# tiny-base

A Llama-shaped language model with {parameters:,} parameters that has read only this project's own text: an invented
company's archive of incident reports, logs, a handbook, questions and answers, and careless triage. It exists so that
the workbook's experiments are real and run on a laptop. It knows nothing else and is of no other use.

- **Made by** `python -m dpo_kit pretrain`, from the recipe in `dpo_kit/triage/base_model.py` and the text of
  `dpo_kit/triage/corpus.py`; nothing was downloaded. On two CPU cores it takes about eight minutes.
- **Format**: bf16 safetensors, byte-level BPE tokenizer with one token a digit, chat template with `<|user|>`,
  `<|assistant|>` and `<|system|>` whose turns end in the EOS token `<|end|>`; `<|pad|>` is another token.
- **Licence**: that of the project.
- **Never seen in training**: the held-out phrasings and the held-out service-region combinations.

## Recipe

| setting | value |
| --- | ---: |
{recipe}

## Loss

Mean next-token loss in nats since the row before. Most of what remains is chance: which service, what time.

| step | loss |
| ---: | ---: |
{curve}

## Hashes

| file | SHA-256 |
| --- | --- |
{files}
"""


def model_card(manifest: dict) -> str:
    """The card in Markdown. It is made from the manifest, so that the two always agree."""
    return CARD.format(
        parameters=manifest["parameters"],
        recipe=_rows(manifest["recipe"].items()),
        curve=_rows(_thinned(manifest["loss_curve"])),
        files=_rows(manifest["files"].items()),
    )


def _rows(cells) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in cells)


def _thinned(curve: list) -> list:
    """Every fourth point, and the last."""
    return curve[::4] + ([curve[-1]] if (len(curve) - 1) % 4 else [])
