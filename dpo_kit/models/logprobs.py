"""How far a policy is from its reference: the KL, measured on the policy's own answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_kit.errors import DpoKitError
from dpo_kit.models.generation import Sampling, sample_ids
from dpo_kit.models.loading import Arms
from dpo_kit.models.tokens import Scoring, encode, pad_completions, prompt_ids
from dpo_kit.records import PreferencePair, Prompt

AT_ONCE = 1 << 28  # how many logits of one arm are held at once; few rows, where the vocabulary is 150,000


@dataclass(frozen=True)
class KlEstimate:
    """The mean over prompts of the sequence KL with its standard error, and the mean per token, all in nats."""

    sequence: float
    standard_error: float
    per_token: float


def on_policy_kl(arms: Arms, policy: str, reference: str, prompts: Sequence[Prompt], sampling: Sampling) -> KlEstimate:
    """KL(policy || reference) on sampled prompts and answers; at each token the sum over the vocabulary is exact.

    The sequence KL is the expectation, over the policy's own answers, of the sum of the per-token KLs
    (arXiv 2504.10637). Log-ratios on the answers of a fixed data set are not a KL.
    """
    answers = sample_ids(arms, policy, prompts, sampling)
    return kl_of_answers(arms, policy, reference, prompts, answers, sampling.batch_size)


def kl_of_answers(
    arms: Arms, policy: str, reference: str, prompts: Sequence[Prompt], tails: Sequence[list[int]], batch_size: int
) -> KlEstimate:
    """`on_policy_kl` on given answers: token ids that the policy itself sampled for `prompts` at temperature 1."""
    heads = [prompt_ids(arms.tokenizer, prompt) for prompt in prompts]
    longest = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
    batch_size = min(batch_size, max(1, AT_ONCE // (longest * arms.model.config.get_text_config().vocab_size)))
    sums = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        inputs, completion_mask = pad_completions(arms.tokenizer, heads[rows], tails[rows])
        logits_p, logits_q = (_logits(arms, arm, inputs) for arm in (policy, reference))  # (B, T - 1, V) each
        # the logits at one position are about the next token, so the mask moves by one
        sums.append(exact_kl(logits_p, logits_q, completion_mask[:, 1:].to(logits_p.device)).sum(dim=1))
    sequence = torch.cat(sums).double()  # one KL for each prompt
    return KlEstimate(
        sequence=sequence.mean().item(),
        standard_error=(sequence.std() / len(sequence) ** 0.5).item(),
        per_token=sequence.sum().item() / sum(map(len, tails)),
    )


def mean_logps(arms: Arms, arm: str, pairs: Sequence[PreferencePair], scoring: Scoring) -> list[float]:
    """The mean log-prob, in nats, of a scored token of each chosen answer under an arm; pairs that the template refuses
    are left out.
    """
    found = []
    for pair in pairs:
        try:
            ids, mask = encode(arms.tokenizer, pair.prompt, pair.chosen, scoring)
        except DpoKitError:
            continue
        tokens = torch.tensor([ids])
        kept = torch.tensor(mask[1:], dtype=torch.bool)
        logps = _logits(arms, arm, {"input_ids": tokens})[0, kept].float().log_softmax(dim=-1)  # (scored, V)
        if len(logps):
            found.append(logps.gather(1, tokens[0, 1:][kept][:, None].to(logps.device)).mean().item())
    return found


def exact_kl(logits_p: Tensor, logits_q: Tensor, mask: Tensor) -> Tensor:
    """Per-token KL(p || q) in nats, summed over the vocabulary.

    `logits_p` and `logits_q` are (B, T, V), `mask` is (B, T), bool or int. Returns (B, T), zero where the mask is 0,
    in float32 (float64 for float64 logits). With p the policy, q its reference and y sampled from p, the sum over
    a row is an unbiased and low-variance estimate of the sequence KL (arXiv 2504.10637).

    Positions outside the mask are never read: prompts take no time, and the values at padding do not matter.
    """
    kept = mask.bool()
    dtype = torch.promote_types(logits_p.dtype, torch.float32)
    log_p = F.log_softmax(logits_p[kept].to(dtype), dim=-1)  # (N, V)
    log_q = F.log_softmax(logits_q[kept].to(dtype), dim=-1)
    log_ratio = (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)  # 0 log 0 = 0
    kl = torch.zeros(mask.shape, dtype=dtype, device=logits_p.device)
    return kl.masked_scatter(kept, (log_p.exp() * log_ratio).sum(dim=-1))


def _logits(arms: Arms, arm: str, inputs: dict[str, Tensor]) -> Tensor:
    """Logits for the tokens at positions 1 to T-1, `(B, T - 1, V)`."""
    with arms.use(arm) as model, torch.no_grad():
        return model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits[:, :-1]
