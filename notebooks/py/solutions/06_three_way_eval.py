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
# # 06 · Three arms, honest statistics: solutions

# %%
import math
from itertools import accumulate
from statistics import variance

from dpo_kit.workbook.exercises.three_way_eval import check_holm, check_pairing, check_prompts_needed, check_sign_test

# %% [markdown]
# **1.** What pairing saves. Where the scores of the two arms go up and down together the ratio is above 1; where they
# have nothing to do with each other it is about 1, and pairing costs nothing either.


# %%
def my_pairing(treated, control):
    differences = [t - c for t, c in zip(treated, control, strict=True)]
    return (variance(treated) + variance(control)) / variance(differences)


check_pairing(my_pairing)

# %% [markdown]
# **2.** The sign test. Where wins and losses are equal, both tails hold the middle, and twice the sum is above 1.


# %%
def my_sign_test(wins, losses):
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


check_sign_test(my_sign_test)

# %% [markdown]
# **3.** Holm: multiply in ascending order, keep the greatest so far, and put each back where it came from.


# %%
def my_holm(p_values):
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    multiplied = [(len(order) - place) * p_values[i] for place, i in enumerate(order)]
    adjusted = dict(zip(order, accumulate(multiplied, max), strict=True))
    return [min(1.0, adjusted[i]) for i in range(len(p_values))]


check_holm(my_holm)

# %% [markdown]
# **4.** From $\delta = 2.8\, s/\sqrt{n}$ follows $n = (2.8\, s/\delta)^2$. Half the effect needs four times as
# many prompts.


# %%
def my_prompts_needed(effect, sd):
    return math.ceil((2.8 * sd / effect) ** 2)


check_prompts_needed(my_prompts_needed)
