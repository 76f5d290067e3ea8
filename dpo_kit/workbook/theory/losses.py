"""DPO and related losses. Each is a pure function of log-probs that returns one loss per example, without a mean.

A paired loss takes four tensors of shape (B,): the summed log-probs of the chosen answer y_w and the rejected answer
y_l under the policy and under the reference. With the log-ratios

    h_w = log pi(y_w|x) - log pi_ref(y_w|x),    h_l likewise,    margin m = beta (h_w - h_l)

it returns `(losses, chosen_rewards, rejected_rewards)`, each (B,). Rewards are detached: they are for the log.
Losses that count tokens also take `chosen_lengths` and `rejected_lengths`, (B,), in completion tokens.

Everything is computed in float32 at least, so that bf16 log-probs of a long answer do not swallow the difference that
the loss is about. Values stay finite at log-probs of -10,000. All but `hinge_loss` (a kink) and the two `aot` losses
(a sort) are differentiable twice.

`LOSSES` lists them by name.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_kit.workbook.theory.divergences import F_DIVERGENCES, alpha_divergence

Paired = tuple[Tensor, Tensor, Tensor]


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Paired:
    """-log sigmoid(m): Eq. 7 of DPO, arXiv 2305.18290. With `label_smoothing` it is cDPO, see `cdpo_loss`.

    Misleads when it falls: that says only that the margin grew. The chosen log-prob may have fallen too.
    """
    h_w, h_l = _log_ratios(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    losses = _logistic(beta * (h_w - h_l), label_smoothing)
    return _with_rewards(losses, h_w, h_l, beta)


def cdpo_loss(*logps: Tensor, beta: float = 0.1, label_smoothing: float = 0.1) -> Paired:
    """-(1 - eps) log sigmoid(m) - eps log sigmoid(-m): labels are wrong with probability eps (Mitchell, 2023).

    Bounded: the minimum is at m = logit(1 - eps). Misleads when eps is a guess: it fixes the margin asked for.
    """
    return dpo_loss(*logps, beta=beta, label_smoothing=label_smoothing)


def robust_dpo_loss(*logps: Tensor, beta: float = 0.1, label_smoothing: float = 0.1) -> Paired:
    """(-(1 - eps) log sigmoid(m) + eps log sigmoid(-m)) / (1 - 2 eps): arXiv 2403.00409.

    Its mean over labels flipped with probability eps is the clean DPO loss. Misleads per example: it may be negative,
    and its variance grows as eps nears 1/2. Raises ValueError unless 0 <= eps < 1/2.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing}: a flip rate must lie in [0, 0.5)")
    h_w, h_l = _log_ratios(*logps)
    margin = beta * (h_w - h_l)
    kept, flipped = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    losses = ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return _with_rewards(losses, h_w, h_l, beta)


def f_dpo_loss(*logps: Tensor, beta: float = 0.1, divergence: str = "reverse_kl", alpha: float = 0.5) -> Paired:
    """-log sigmoid(beta (f'(e^h_w) - f'(e^h_l))): DPO under another divergence, arXiv 2309.16240.

    `divergence` is a name in `F_DIVERGENCES`; `alpha` matters to 'alpha_divergence' alone. The rewards returned are
    beta f'(e^h). Misleads when beta is carried over from the KL: the divergences have different scales.
    """
    link = (alpha_divergence(alpha) if divergence == "alpha_divergence" else F_DIVERGENCES[divergence]).link
    h_w, h_l = map(link, _log_ratios(*logps))
    return _with_rewards(-F.logsigmoid(beta * (h_w - h_l)), h_w, h_l, beta)


def ipo_loss(
    *logps: Tensor, beta: float = 0.1, chosen_lengths: Tensor | None = None, rejected_lengths: Tensor | None = None
) -> Paired:
    """(h_w - h_l - 1/(2 beta))^2: Eq. 17 of IPO, arXiv 2310.12036, where beta is called tau.

    Without lengths this is the paper's loss on summed log-probs. With lengths each h is divided by its number of
    tokens, which is what TRL's `ipo` does. The two ask for very different margins, 1/(2 beta) for the whole answer or
    for the average token: never carry beta from one to the other.
    """
    h_w, h_l = _log_ratios(*logps)
    gap = _per_token(h_w, chosen_lengths) - _per_token(h_l, rejected_lengths)
    return _with_rewards((gap - 1 / (2 * beta)).square(), h_w, h_l, beta)


def hinge_loss(*logps: Tensor, beta: float = 0.1) -> Paired:
    """max(0, 1 - m): SLiC-HF, arXiv 2305.10425, on log-ratios instead of log-probs as in RSO, arXiv 2309.06657.

    Misleads at exactly zero: a pair past margin 1 teaches nothing at all, however wrong the rest of it becomes.
    """
    h_w, h_l = _log_ratios(*logps)
    return _with_rewards(F.relu(1 - beta * (h_w - h_l)), h_w, h_l, beta)


def rpo_loss(*logps: Tensor, chosen_lengths: Tensor, beta: float = 0.1, alpha: float = 1.0) -> Paired:
    """DPO - alpha log pi(y_w|x) / |y_w|: an NLL anchor that keeps the chosen answer likely, arXiv 2404.19733.

    Misleads when the chosen answers are poor: the anchor imitates them whatever the rejected ones are.
    """
    losses, chosen_rewards, rejected_rewards = dpo_loss(*logps, beta=beta)
    return losses - alpha * _per_token(_widened(logps[0]), chosen_lengths), chosen_rewards, rejected_rewards


def length_normalised_dpo_loss(
    *logps: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, beta: float = 0.1
) -> Paired:
    """-log sigmoid(beta (h_w/|y_w| - h_l/|y_l|)): DPO on average log-ratios; TRL's `sigmoid_norm`, arXiv 2411.15124.

    Another loss, not another reading of DPO: its optimum is not pi*, and beta must grow with the length.
    """
    h_w, h_l = _log_ratios(*logps)
    gap = _per_token(h_w, chosen_lengths) - _per_token(h_l, rejected_lengths)
    return _with_rewards(-F.logsigmoid(beta * gap), h_w, h_l, beta)


def exo_loss(*logps: Tensor, beta: float = 0.1, label_smoothing: float = 1e-3) -> Paired:
    """KL(q || p) of q = (sigmoid(m), sigmoid(-m)) and labels p = (1 - eps, eps): EXO, Eq. 16 of arXiv 2402.00856.

    DPO's KL the other way round. Misleads where the policy is confidently wrong: the gradient vanishes at large -m.
    Raises ValueError unless 0 < eps < 1, since the KL to a certain label is infinite.
    """
    if not 0 < label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: EXO compares with labels that are never certain")
    h_w, h_l = _log_ratios(*logps)
    margin = beta * (h_w - h_l)
    labels = torch.tensor([1 - label_smoothing, label_smoothing], dtype=margin.dtype, device=margin.device)
    log_q = F.logsigmoid(torch.stack([margin, -margin], dim=-1))  # (B, 2)
    return _with_rewards((log_q.exp() * (log_q - labels.log())).sum(dim=-1), h_w, h_l, beta)


def nca_loss(*logps: Tensor, beta: float = 0.1) -> Paired:
    """-log sigmoid(beta h_w) - (log sigmoid(-beta h_w) + log sigmoid(-beta h_l)) / 2: NCA, arXiv 2402.05369.

    Weighs rewards absolutely, so the chosen likelihood is held. Misleads where no answer in a pair is good.
    """
    h_w, h_l = _log_ratios(*logps)
    losses = -F.logsigmoid(beta * h_w) - (F.logsigmoid(-beta * h_w) + F.logsigmoid(-beta * h_l)) / 2
    return _with_rewards(losses, h_w, h_l, beta)


def bco_loss(*logps: Tensor, beta: float = 0.1) -> Paired:
    """-log sigmoid(beta h_w) - log sigmoid(-beta h_l): BCO on pairs without its reward shift, arXiv 2404.04656.

    A classifier of good and bad. Misleads without the shift: zero is taken as the border, wherever rewards lie.
    """
    h_w, h_l = _log_ratios(*logps)
    return _with_rewards(-F.logsigmoid(beta * h_w) - F.logsigmoid(-beta * h_l), h_w, h_l, beta)


def sppo_loss(*logps: Tensor, beta: float = 0.1) -> Paired:
    """(h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2: SPPO with hard labels, Eq. 4.7 of arXiv 2405.00675.

    Misleads on fixed data: the paper's answers are sampled from the policy anew in each round.
    """
    h_w, h_l = _log_ratios(*logps)
    return _with_rewards((h_w - 0.5 / beta).square() + (h_l + 0.5 / beta).square(), h_w, h_l, beta)


def aot_loss(*logps: Tensor, beta: float = 0.1, label_smoothing: float = 0.0) -> Paired:
    """DPO between sorted gaps: the policy's chosen-rejected gaps dominate the reference's, arXiv 2406.05882.

    Compares distributions over the batch: entry i belongs to the i-th smallest gap, no longer to pair i, and the
    result depends on the batch. Misleads at batch size 1, where it is exactly DPO.
    """
    h_w, h_l = _log_ratios(*logps)
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = map(_widened, logps)
    policy_gaps = (policy_chosen - policy_rejected).sort(dim=0).values
    ref_gaps = (ref_chosen - ref_rejected).sort(dim=0).values
    return _with_rewards(_logistic(beta * (policy_gaps - ref_gaps), label_smoothing), h_w, h_l, beta)


def aot_unpaired_loss(*logps: Tensor, beta: float = 0.1, label_smoothing: float = 0.0) -> Paired:
    """DPO between sorted log-ratios of chosen and of rejected answers, which need not be paired: arXiv 2406.05882.

    As with `aot_loss`, entry i is no longer pair i, and the batch size is part of the loss.
    """
    h_w, h_l = _log_ratios(*logps)
    gaps = h_w.sort(dim=0).values - h_l.sort(dim=0).values
    return _with_rewards(_logistic(beta * gaps, label_smoothing), h_w, h_l, beta)


def apo_zero_loss(*logps: Tensor, beta: float = 0.1) -> Paired:
    """1 - sigmoid(beta h_w) + sigmoid(beta h_l): chosen up, rejected down; APO, Eq. 7 of arXiv 2408.06266.

    For data better than the model. Misleads when it saturates: a pair far off on either side has no gradient.
    """
    h_w, h_l = _log_ratios(*logps)
    return _with_rewards(torch.sigmoid(-beta * h_w) + torch.sigmoid(beta * h_l), h_w, h_l, beta)


def apo_down_loss(*logps: Tensor, beta: float = 0.1) -> Paired:
    """sigmoid(beta h_w) + 1 - sigmoid(m): both down, rejected more; APO, Eq. 8 of arXiv 2408.06266.

    For data worse than the model. Misleads on good data, whose chosen answers it makes less likely.
    """
    h_w, h_l = _log_ratios(*logps)
    return _with_rewards(torch.sigmoid(beta * h_w) + torch.sigmoid(-beta * (h_w - h_l)), h_w, h_l, beta)


def discopop_loss(*logps: Tensor, beta: float = 0.1, tau: float = 0.05) -> Paired:
    """(1 - s) (-log sigmoid(m)) + s e^-m with s = sigmoid(m / tau): found by a model, Eq. 5 of arXiv 2406.08414.

    Not convex: between two valleys it rises, so a wrongly ordered pair may be pushed further off. Written as
    e^(log s - m), which stays finite where s e^-m would be 0 times infinity. Raises ValueError unless 0 < tau <= 1.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau={tau}: above 1 the exponential term is unbounded, and 0 leaves no blend")
    h_w, h_l = _log_ratios(*logps)
    margin = beta * (h_w - h_l)
    exponential = torch.exp(F.logsigmoid(margin / tau) - margin)
    return _with_rewards(torch.sigmoid(-margin / tau) * -F.logsigmoid(margin) + exponential, h_w, h_l, beta)


def sft_loss(*logps: Tensor, chosen_lengths: Tensor, beta: float = 0.1) -> Paired:
    """-log pi(y_w|x) over the batch's mean chosen length, so that the mean over examples is the mean over tokens.

    TRL's `sft`. Imitates the chosen answer and never looks at the rejected one; `beta` scales only the rewards.
    """
    mean_length = chosen_lengths.to(_widened(logps[0]).dtype).mean().clamp(min=1)
    return _with_rewards(-_widened(logps[0]) / mean_length, *_log_ratios(*logps), beta)


def negative_preference_loss(*logps: Tensor, beta: float = 0.1, weight: float = 1.0) -> Paired:
    """-log pi(y_w|x) + weight log pi(y_l|x): seen in tutorials, and unbounded below. Shown in order to be avoided.

    Pushing the rejected answer towards probability 0 earns without limit, so training has nowhere to stop.
    """
    h_w, h_l = _log_ratios(*logps)
    return _with_rewards(weight * _widened(logps[1]) - _widened(logps[0]), h_w, h_l, beta)


def kto_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    *,
    kl: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """w (1 - sigmoid(beta (h - kl))) where `desirable` is true, w (1 - sigmoid(beta (kl - h))) elsewhere.

    KTO, Eq. 7 of arXiv 2402.01306: answers judged one by one, no pairs; the reference is still needed. `kl` is the
    batch's estimate of KL(pi || pi_ref), a constant to the gradient and never below 0. Returns `(losses, rewards)`,
    both (B,). Misleads when kl is estimated on mismatched prompts, as usual: that is a lower bound at best.
    """
    ratios = _widened(policy_logps) - _widened(ref_logps)
    baseline = torch.as_tensor(kl, dtype=ratios.dtype, device=ratios.device).detach().clamp(min=0)
    good = desirable.bool()
    gain = torch.where(good, ratios - baseline, baseline - ratios)
    weights = torch.where(good, desirable_weight, undesirable_weight)
    return weights * torch.sigmoid(-beta * gain), (beta * ratios).detach()


def orpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float = 0.1,
) -> Paired:
    """-a_w - beta log sigmoid(logit e^a_w - logit e^a_l) with a the average log-prob: ORPO, arXiv 2403.07691.

    No reference: SFT and preference in one. Misleads as a preference loss: most of its size is the SFT term. TRL's
    SFT term also counts the prompt's tokens; this one, like the paper's, does not.
    """
    chosen, rejected = (
        _per_token(_widened(policy_chosen_logps), chosen_lengths),
        _per_token(_widened(policy_rejected_logps), rejected_lengths),
    )
    odds_ratio = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return _with_rewards(-chosen - beta * F.logsigmoid(odds_ratio), chosen, rejected, beta)


def simpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Paired:
    """-log sigmoid(beta (a_w - a_l) - gamma) with a the average log-prob: SimPO, arXiv 2405.14734.

    No reference, so nothing says how far the policy has gone. Misleads when its beta is compared with DPO's.
    """
    chosen = _per_token(_widened(policy_chosen_logps), chosen_lengths)
    rejected = _per_token(_widened(policy_rejected_logps), rejected_lengths)
    return _with_rewards(-F.logsigmoid(beta * (chosen - rejected) - gamma), chosen, rejected, beta)


LOSSES: dict[str, Callable] = {
    "dpo": dpo_loss,
    "cdpo": cdpo_loss,
    "robust_dpo": robust_dpo_loss,
    "f_dpo": f_dpo_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
    "rpo": rpo_loss,
    "length_normalised_dpo": length_normalised_dpo_loss,
    "exo": exo_loss,
    "nca": nca_loss,
    "bco": bco_loss,
    "sppo": sppo_loss,
    "aot": aot_loss,
    "aot_unpaired": aot_unpaired_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "discopop": discopop_loss,
    "sft": sft_loss,
    "negative_preference": negative_preference_loss,
    "kto": kto_loss,  # unpaired: (policy_logps, ref_logps, desirable)
    "orpo": orpo_loss,  # reference-free: the two policy log-probs
    "simpo": simpo_loss,  # reference-free: the two policy log-probs
}


def _log_ratios(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor):
    """h_w and h_l, both (B,)."""
    return _widened(policy_chosen) - _widened(ref_chosen), _widened(policy_rejected) - _widened(ref_rejected)


def _widened(logps: Tensor) -> Tensor:
    # near -10,000 two neighbouring bf16 numbers lie 64 nats apart
    return logps.to(torch.promote_types(logps.dtype, torch.float32))


def _logistic(margin: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def _per_token(logps: Tensor, lengths: Tensor | None) -> Tensor:
    return logps if lengths is None else logps / lengths.clamp(min=1)


def _log1mexp(logps: Tensor) -> Tensor:
    """log(1 - e^a) for a < 0; finite at a = 0, where the odds would be infinite."""
    below = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    far = below.clamp(max=-math.log(2))  # log1p loses its digits near 0, and its gradient there would be nan
    return torch.where(below > -math.log(2), (-torch.expm1(below)).log(), torch.log1p(-far.exp()))


def _with_rewards(losses: Tensor, chosen: Tensor, rejected: Tensor, beta: float) -> Paired:
    return losses, (beta * chosen).detach(), (beta * rejected).detach()
