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
# # 05 · QLoRA DPO, watched: solutions
#
# The exercises of `05_qlora_dpo.ipynb`, each with one way to solve it. Yours may differ and be right: the check
# decides.

# %%
from dpo_kit.workbook.exercises.qlora_dpo import check_merge, check_newest, check_saving

# %% [markdown]
# **1.** A merged layer. $A$ is $r$ by inputs, so its length is the rank.


# %%
def my_merge(weight, a, b, alpha):
    return weight + alpha / len(a) * b @ a


check_merge(my_merge)

# %% [markdown]
# **2.** What is found must be what was promised, file by file, no more and no less.


# %%
def my_newest(checkpoints):
    return max((step for step, promised, found in checkpoints if promised == found), default=0)


check_newest(my_newest)

# %% [markdown]
# **3.** Stock: two rows a pair, each as wide as the longest of the batch. Shared: every token once.


# %%
def my_saving(lengths):
    width = max(prompt + max(chosen, rejected) for prompt, chosen, rejected in lengths)
    return 2 * len(lengths) * width / sum(map(sum, lengths))


check_saving(my_saving)
