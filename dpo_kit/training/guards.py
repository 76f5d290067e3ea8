"""Checks of a trainer before its first step, for errors that no later metric would show.

Rows are checked as the loss will see them: cut, padded and masked by the trainer's own collator. So one check finds a
chat template without EOS, an answer cut off by `max_length`, and a mask that drops EOS as padding. The gradient that
training computes is compared with an independent computation of the same gradient.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpo_kit.errors import DpoKitError
from dpo_kit.models.quantization import plain_products
from dpo_kit.models.tokens import must_stop, stop_ids
from dpo_kit.profiles import DpoSettings, SftSettings
from dpo_kit.training.fast import compare_gradients, computes_exactly, select_rows, trained_gradients
from dpo_kit.training.trainers import GuardedDPOTrainer, GuardedSFTTrainer, GuardedTrainer

AT_ONCE = 256  # rows collated together
SHOWN = 40  # tokens of a bad row that its message shows
PROBED = 128  # columns on which gradients are compared; few, so that the check needs less memory than training
# The highest learning rates for models of a billion parameters. Above them training was seen to diverge. Smaller models
# allow higher rates, in proportion to one over the square root of their size, as published rates for models of 100
# million to 70 billion parameters show.
HIGHEST_RATE = {("dpo", "LoRA"): 5e-5, ("dpo", "full"): 5e-6, ("sft", "LoRA"): 1e-3, ("sft", "full"): 1e-4}


class BadRow(DpoKitError):
    """A row that would be trained wrongly. `tokens` and `mask`, of length T each, let a notebook show it in colours.

    The message shows the row's last tokens, with the tokens that the mask selects in brackets.
    """

    def __init__(self, message: str, tokens: Sequence[str], mask: Sequence[int]):
        self.tokens, self.mask = list(tokens), list(mask)
        shown = "".join(f"[{t}]" if m else t for t, m in list(zip(tokens, mask, strict=True))[-SHOWN:])
        super().__init__(f"{message}\nits last tokens, those that bear loss in brackets: {shown!r}")


@dataclass(frozen=True)
class Side:
    """One sequence as the loss will see it: its token ids, and a mask of those that bear loss."""

    row: str
    name: str
    ids: list[int]
    mask: list[int]

    @property
    def trained(self) -> list[int]:
        """The ids that bear loss."""
        return [token for token, selected in zip(self.ids, self.mask, strict=True) if selected]


def check_rows(trainer: GuardedTrainer) -> None:
    """Check that every row has a gradient, teaches the model to stop, and begins with at most one BOS.

    Raises BadRow for the first row in which EOS bears no loss, chosen equals rejected, or BOS stands twice.
    Raises DpoKitError where the trainer dropped rows because their prompt fills `max_length`.
    """
    rows, wanted = len(trainer.train_dataset), len(trainer.row_names)
    if rows != wanted:
        raise DpoKitError(
            f"{wanted - rows} of {wanted} rows have a prompt of at least max_length = {trainer.args.max_length} tokens "
            "and would be dropped without a word; raise model.max_length or remove them"
        )
    for sides in loss_rows(trainer):
        for side in sides:
            _check_borders(side, trainer.processing_class, trainer.args.max_length)
        if len(sides) == 2 and sides[0].trained == sides[1].trained:
            longest = trainer.args.max_length
            cut = f" after max_length = {longest} cuts them" if len(sides[0].ids) >= longest else ""
            why = f"chosen and rejected are the same tokens{cut}, so the row has no gradient; remove it"
            advice = "(`python -m dpo_kit audit` finds all such rows) or raise model.max_length"
            _refuse(f"row {sides[0].row}: {why} {advice}", sides[0], trainer.processing_class)


def loss_rows(trainer: GuardedTrainer) -> Iterator[tuple[Side, ...]]:
    """Every row of the data as the collator makes it: one sequence for SFT, chosen and rejected for DPO."""
    names = ("chosen", "rejected") if trainer.sides == 2 else ("answer",)
    for start in range(0, len(trainer.train_dataset), AT_ONCE):
        rows = range(start, min(start + AT_ONCE, len(trainer.train_dataset)))
        batch = trainer.data_collator([trainer.train_dataset[i] for i in rows])
        selected = batch["completion_mask"] if "completion_mask" in batch else batch["labels"] != -100
        sequences = zip(batch["input_ids"], selected, batch["attention_mask"], strict=True)
        flat = [(ids[real.bool()].tolist(), mask[real.bool()].int().tolist()) for ids, mask, real in sequences]
        for n, i in enumerate(rows):
            of_row = zip(names, flat[n :: len(rows)], strict=True)  # a batch holds all chosen, then all rejected
            yield tuple(Side(trainer.row_names[i], name, ids, mask) for name, (ids, mask) in of_row)


def _check_borders(side: Side, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    stops = stop_ids(tokenizer)
    where = f"row {side.row}, {side.name}"
    if must_stop(tokenizer) and not set(stops) & set(side.trained):
        _refuse(f"{where}: {_why_no_eos(side, tokenizer, max_length)}", side, tokenizer)
    if bos is not None and bos != eos and side.ids[:2] == [bos, bos]:
        twice = f"begins with {tokenizer.bos_token!r} twice, which the model never saw"
        advice = "the chat template writes it and the tokenizer adds it: remove it from one of them"
        _refuse(f"{where}: {twice}; {advice}", side, tokenizer)


def _why_no_eos(side: Side, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    eos, start = tokenizer.eos_token, side.mask.index(1) if 1 in side.mask else 0
    effect = f"no loss on EOS ({eos!r}), so the model would not learn to stop"
    if not set(stop_ids(tokenizer)).isdisjoint(side.ids[start:]):
        same = tokenizer.eos_token_id == tokenizer.pad_token_id
        why = ", because padding is the same token: give the tokenizer a pad token of its own" if same else ""
        return f"{effect}: the mask leaves EOS out{why}"
    if len(side.ids) >= max_length:
        return f"{effect}: max_length = {max_length} cuts the answer off; raise model.max_length or remove the row"
    return f"{effect}: the chat template does not write it after an answer; use a template that does"


def _refuse(message: str, side: Side, tokenizer: PreTrainedTokenizerBase) -> None:
    raise BadRow(message, [tokenizer.decode([token]) for token in side.ids], side.mask)


def check_trainable(model: PreTrainedModel | PeftModel) -> None:
    """Check that at least one weight is trained, and that every trained weight is held in fp32.

    The 16-bit types have 8 or 11 bits of precision, so a small update of a weight may be rounded away.
    Raises DpoKitError where no weight is trained, or one that is trained is not in fp32.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise DpoKitError("no weight is trained; load the adapter with trainable=True before training")
    coarse = [f"{name} ({p.dtype})" for name, p in trained.items() if p.dtype not in (torch.float32, torch.float64)]
    if coarse:
        raise DpoKitError(
            f"{len(coarse)} trained weights are too coarse for small updates, such as {coarse[0]}; "
            "keep adapters in fp32 (`adapters_to_fp32`)"
        )


def check_gradients(trainer: GuardedSFTTrainer | GuardedDPOTrainer) -> float:
    """Compare the gradient that training computes with an independent one, on a few tokens of a training batch.

    The first comes from the trainer's own forward, in train mode and under its autocast. The second comes from TRL's
    forward and PEFT's own adapter layers, with 4-bit weights dequantised and multiplied by torch. For SFT both are
    gradients of an answer's log-prob, for DPO of chosen minus rejected: at step 0 the DPO loss has -beta / 2 times it.

    Returns the lowest cosine of all adapted layers, which is 1 up to rounding. Weights, mode and `grad` stay as they
    were. Raises DpoKitError where direction or length differ in any layer.
    """
    model, was_training = trainer.model, trainer.model.training
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    row = _few_tokens(select_rows(batch, [0], trainer.sides))
    signs = torch.tensor([1.0, -1.0], device=row["input_ids"].device)[: trainer.sides]

    def gradients() -> dict[str, Tensor]:
        model.train()
        return trained_gradients(model, (signs * trainer.sequence_logps(row)).sum())

    with trainer.stock_forward(), plain_products(model):
        expected = gradients()
    with torch.no_grad():  # one token in eval mode, as answers are sampled: here bitsandbytes would repack its weights
        model.eval()(input_ids=row["input_ids"][:1, :1])
    found = gradients()
    model.train(was_training)
    with trainer.accelerator.autocast():
        exact = computes_exactly(model)
    cosine, wrong = compare_gradients(found, expected, exact)
    if not any(gradient.any() for gradient in expected.values()):
        wrong = "all gradients are zero"
    if wrong:
        raise DpoKitError(
            f"training does not compute the gradient that dequantised weights give: {wrong}; 4-bit layers drop it "
            "unless keep_gradients(model) is called after loading; if it was, please report this as a bug"
        )
    return cosine


def _few_tokens(row: dict[str, Tensor]) -> dict[str, Tensor]:
    """At most `PROBED` columns of a row `(sides, T)`, around the first one that has a gradient.

    That is where the answer begins, or where the two answers of a pair first differ: before it their gradients cancel.
    """
    ids = row["input_ids"]
    wanted = ids[0] != ids[1] if len(ids) == 2 else row["labels"][0] != -100  # (T,)
    start = max(0, int(wanted.int().argmax()) - PROBED // 2)
    return {name: tensor[:, start : start + PROBED] for name, tensor in row.items() if tensor.ndim == 2}


def check_learning_rate(model: PreTrainedModel | PeftModel, stage: str, settings: SftSettings | DpoSettings) -> None:
    """Refuse a learning rate above what is known to work for the kind of training (LoRA or full) and the model's size.

    `stage` is "sft" or "dpo". Raises DpoKitError, unless the profile's table says `any_learning_rate = true`.
    """
    kind = "LoRA" if isinstance(model, PeftModel) else "full"
    size = model.get_nb_trainable_parameters()[1] if isinstance(model, PeftModel) else model.num_parameters()
    highest = HIGHEST_RATE[stage, kind] * max(1.0, 1e9 / size) ** 0.5
    if settings.learning_rate > highest and not settings.any_learning_rate:
        raise DpoKitError(
            f"{stage}.learning_rate = {settings.learning_rate:g} is above {highest:.1g}, the highest that is known to "
            f"work for {kind} training of {size / 1e6:,.1f} million parameters; lower it, or set "
            f"{stage}.any_learning_rate = true to see what happens"
        )
