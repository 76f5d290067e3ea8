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
# # 00 · Start here: solutions

# %%
from dpo_kit.workbook.exercises.start_here import check_decisive_win_rate, check_severity

# %% [markdown]
# **1.** The severity rule. `True` counts as 1, so the spread is a sum of two comparisons.


# %%
def my_severity(impact, share):
    spread = (share >= 10) + (share >= 40)
    return {5: "SEV1", 4: "SEV1", 3: "SEV2", 2: "SEV3"}.get(impact + spread, "SEV4")


check_severity(my_severity)

# %% [markdown]
# **2.** The decisive win rate. Ties say that the judge saw no difference; they are reported beside it, not in it.


# %%
def my_decisive_win_rate(wins, ties, losses):
    return wins / (wins + losses)


check_decisive_win_rate(my_decisive_win_rate)
