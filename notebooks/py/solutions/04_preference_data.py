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
# # 04 · Preference data that deserves to be trained on: solutions

# %%
from collections import Counter

from dpo_kit.workbook.exercises.preference_data import check_collapse, check_error_rate, check_kappa, check_split

# %% [markdown]
# **1.** Two orders, one verdict. Half a question is no question: an order without an answer leaves the pair unjudged.


# %%
def my_collapse(forward, backward):
    if "unjudged" in (forward, backward):
        return "unjudged"
    return forward if forward == backward else "tie"


check_collapse(my_collapse)

# %% [markdown]
# **2.** Three moods, each with its own chance to be wrong. With `position_bias=1` it is wrong on half of the pairs, and
# no training set of any size will show more than a coin knows.


# %%
def my_error_rate(accuracy, position_bias, length_bias, longer):
    reads = 1 - position_bias - length_bias
    return position_bias / 2 + length_bias * (1 - longer) + reads * (1 - accuracy)


check_error_rate(my_error_rate)

# %% [markdown]
# **3.** Agreement beyond chance: chance is what two raters with these shares of labels would agree on, blindly.


# %%
def my_kappa(x, y):
    n = len(x)
    observed = sum(a == b for a, b in zip(x, y, strict=True)) / n
    shares = Counter(x), Counter(y)
    chance = sum(shares[0][label] * shares[1][label] for label in shares[0]) / n**2
    return (observed - chance) / (1 - chance)


check_kappa(my_kappa)

# %% [markdown]
# **4.** Number the prompts, not the pairs.


# %%
def my_split(prompts, every):
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return [places[prompt] % every == 0 for prompt in prompts]


check_split(my_split)
