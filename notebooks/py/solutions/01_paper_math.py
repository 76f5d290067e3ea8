# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · The paper, executable: solutions
#
# The exercises of `01_paper_math.ipynb`, each with one way to solve it. Yours may differ and be right: the check
# decides.

# %%
import math

import torch.nn.functional as F

from dpo_kit.workbook.exercises.paper_math import (
    check_dpo_loss,
    check_gap_at_optimum,
    check_optimal_policy,
    check_sequence_kl,
)

# %% [markdown]
# **1.** The optimal policy, Eq. 4. Rewards are divided by $\beta$; $Z(x)$ is summed over the responses to one prompt.
# In logarithms it is `(ref_probs.log() + rewards / beta).softmax(-1)`, which cannot overflow.


# %%
def my_optimal_policy(ref_probs, rewards, beta):
    weights = ref_probs * (rewards / beta).exp()
    return weights / weights.sum(dim=-1, keepdim=True)


check_optimal_policy(my_optimal_policy)


# %% [markdown]
# **2.** The DPO loss, Eq. 7. `F.logsigmoid` is finite where `sigmoid(...).log()` is not.


# %%
def my_dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    h_w = policy_chosen_logps - ref_chosen_logps
    h_l = policy_rejected_logps - ref_rejected_logps
    return -F.logsigmoid(beta * (h_w - h_l))


check_dpo_loss(my_dpo_loss)


# %% [markdown]
# **3.** The KL of sequences: weighted by the policy over the vocabulary, plainly summed over the completion.


# %%
def my_sequence_kl(policy_logits, ref_logits, mask):
    log_p, log_q = policy_logits.log_softmax(dim=-1), ref_logits.log_softmax(dim=-1)
    token_kls = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return (token_kls * mask).sum(dim=-1)


check_sequence_kl(my_sequence_kl)


# %% [markdown]
# **4.** The gap at the optimum: the margin is $\mathrm{logit}(p)$, and the margin is $\beta$ times the gap.


# %%
def my_gap_at_optimum(p, beta):
    return math.log(p / (1 - p)) / beta


check_gap_at_optimum(my_gap_at_optimum)
