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
# # 02 · The loss and its gradient: solutions
#
# The exercises of `02_loss_and_gradient.ipynb`, each with one way to solve it. Yours may differ and be right: the check
# decides.

# %%
import torch
import torch.nn.functional as F

from dpo_kit.workbook.exercises.loss_and_gradient import (
    check_completion_logps,
    check_completion_mask,
    check_dpo_gradient,
    check_simpo_loss,
)

# %% [markdown]
# **1.** The completion mask. Positions are counted from zero, so the prompt ends before `prompt_lengths`, and the row,
# EOS included, before `lengths`.


# %%
def my_completion_mask(prompt_lengths, lengths, width):
    positions = torch.arange(width)
    return (positions >= prompt_lengths[:, None]) & (positions < lengths[:, None])


check_completion_mask(my_completion_mask)

# %% [markdown]
# **2.** Log-probs of completions. The logits lose their last position, the ids and the mask their first.


# %%
def my_completion_logps(logits, input_ids, mask):
    logps = logits[:, :-1].log_softmax(dim=-1)
    picked = logps.gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    return (picked * mask[:, 1:]).sum(dim=1)


check_completion_logps(my_completion_logps)

# %% [markdown]
# **3.** The gradient. With $L = -\log \sigma(m)$, $dL/dm = -\sigma(-m)$ and $dm/d\log\pi(y_w) = \beta$.


# %%
def my_dpo_gradient(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    margin = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    return -beta * torch.sigmoid(-margin)


check_dpo_gradient(my_dpo_gradient)

# %% [markdown]
# **4.** SimPO. Averages instead of sums, a margin $\gamma$ that has to be reached, no reference.


# %%
def my_simpo_loss(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths, beta, gamma):
    gap = chosen_logps / chosen_lengths - rejected_logps / rejected_lengths
    return -F.logsigmoid(beta * gap - gamma)


check_simpo_loss(my_simpo_loss)
