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
# # 03 · The model DPO starts from: solutions
#
# The exercises of `03_sft_reference.ipynb`, each with one way to solve it. Yours may differ and be right: the check
# decides.

# %%
from dpo_kit.workbook.exercises.sft_reference import check_adapter_size, check_rounding, check_sft_loss

# %% [markdown]
# **1.** One block. The largest *size* and not the largest value, or negative weights would fall off the grid.


# %%
def my_rounding(block, levels):
    scale = block.abs().max()
    nearest = (block[:, None] / scale - levels).abs().argmin(dim=1)
    return levels[nearest] * scale


check_rounding(my_rounding)

# %% [markdown]
# **2.** Two thin matrices for each layer: $A$ has $r \times$ inputs, $B$ has outputs $\times r$.


# %%
def my_adapter_size(layers, r):
    return sum(r * (inputs + outputs) for inputs, outputs in layers)


check_adapter_size(my_adapter_size)

# %% [markdown]
# **3.** Log-probs are gathered and shifted as in notebook 02. The mean is over tokens, so long answers weigh more than
# short ones.


# %%
def my_sft_loss(logits, input_ids, mask):
    logps = logits[:, :-1].log_softmax(dim=-1)
    picked = logps.gather(2, input_ids[:, 1:, None]).squeeze(2)
    return -picked[mask[:, 1:].bool()].mean()


check_sft_loss(my_sft_loss)
