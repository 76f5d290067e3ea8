"""DPO without a trainer, as notebook 02 writes it: from pairs to a batch, log-probs, and the training loop.

A real trainer also has checkpoints, logging, several devices and mixed precision. They are left out here. The rest is
the whole method, and each step agrees with TRL's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpo_kit.models.tokens import pad_completions, prompt_ids
from dpo_kit.records import PreferencePair
from dpo_kit.workbook.theory.losses import dpo_loss


@dataclass(frozen=True)
class Batch:
    """B pairs as 2B rows of token ids, the chosen half first, padded on the right; three tensors `(2B, T)`."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        """Completion tokens of the chosen and of the rejected answers, EOS included: `(B,)` each."""
        return self.completion_mask.sum(dim=1).chunk(2)


def encode(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> tuple[list[int], list[int], list[int]]:
    """Ids of the prompt, the chosen and the rejected answer; both answers end in EOS, so that stopping is learnt too.

    Prompt and answer are tokenised separately, so the border between them is exact by construction.
    """
    answers = (tokenizer(side.text)["input_ids"] + [tokenizer.eos_token_id] for side in (pair.chosen, pair.rejected))
    return prompt_ids(tokenizer, pair.prompt), *answers


def collate(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> Batch:
    """B pairs as one batch of 2B rows.

    A pair with prompt [5, 6], chosen [8, 1] and rejected [1], pad 0:

        input_ids        [[5, 6, 8, 1], [5, 6, 1, 0]]
        completion_mask  [[0, 0, 1, 1], [0, 0, 1, 0]]
    """
    prompts, chosen, rejected = zip(*(encode(tokenizer, pair) for pair in pairs), strict=True)
    # all chosen rows first, so that `chunk(2)` splits every result into chosen and rejected
    inputs, completion_mask = pad_completions(tokenizer, [*prompts, *prompts], [*chosen, *rejected])
    return Batch(inputs["input_ids"], inputs["attention_mask"], completion_mask)


def token_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """log pi(y_t | x, y_<t) at each completion token, zero elsewhere: `(B, T - 1)` from `(B, T, V)` and `(B, T)`.

    The logits at position t - 1 predict the token at t, so the result has one position less.
    """
    logps = logits[:, :-1].log_softmax(dim=-1)  # (B, T - 1, V)
    return logps.gather(-1, input_ids[:, 1:].unsqueeze(-1)).squeeze(-1) * completion_mask[:, 1:]


def completion_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """log pi(y | x), the sum of the completion's token log-probs: `(B,)`."""
    return token_logps(logits, input_ids, completion_mask).sum(dim=1)


def pair_logps(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """log pi(y_w | x) and log pi(y_l | x) of a batch, `(B,)` each, in one forward pass."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits  # (2B, T, V)
    return completion_logps(logits, batch.input_ids, batch.completion_mask).chunk(2)


def score(model: nn.Module, batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
    """`pair_logps` of every batch, without gradients. This is how a reference is precomputed."""
    with torch.no_grad():
        return [pair_logps(model, batch) for batch in batches]


def train(
    model: nn.Module,
    batches: Sequence[Batch],
    reference: Sequence[tuple[Tensor, Tensor]],
    loss: Callable[..., Tensor] = lambda logps, batch: dpo_loss(*logps)[0],
    *,
    lr: float,
) -> Iterator[dict[str, float]]:
    """One step per batch; yields the step's loss and mean log-ratios, `h_chosen` and `h_rejected`.

    `loss(logps, batch)` takes the four log-prob tensors of a paired loss and returns one loss per pair, `(B,)`;
    `reference` holds the reference's log-probs of every batch, as from `score`. AdamW without weight decay, gradients
    clipped at norm 1, the learning rate falling linearly to zero: TRL's defaults but for the rate itself.
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / len(batches))
    for batch, ref in zip(batches, reference, strict=True):
        policy = pair_logps(model, batch)  # two tensors (B,)
        value = loss((*policy, *ref), batch).mean()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        h_chosen, h_rejected = ((now - then).mean().item() for now, then in zip(policy, ref, strict=True))
        yield {"loss": value.item(), "h_chosen": h_chosen, "h_rejected": h_rejected}
