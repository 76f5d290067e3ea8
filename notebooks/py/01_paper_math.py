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
# # 01 · The paper, executable
#
# **Question.** Where does the DPO loss come from, and what does each of its symbols do to a policy?
#
# **Method.** We take a world so small that every sum can be written out. Each step of the paper
# ([Rafailov et al., arXiv 2305.18290](https://arxiv.org/abs/2305.18290)) then consists of three things: an equation,
# the code that computes it, and an assertion that the two agree. No model is trained on text here. We compute sums
# exactly, and draw samples only in the sections that are about samples.
#
# **Needs.** High-school calculus, probabilities, a little PyTorch. You need no data, no model and no network.
#
# **Core path.** Sections 1 to 9, read beside sections 3 to 5 of the paper. Sections 10 to 14 go deeper and can wait
# for a second reading; notebook 02 needs only the core path.
#
# **Takes.** About ninety minutes to read. The cells run in under a minute on a CPU; a GPU would not help.

# %%
import math
from itertools import permutations

import torch
import torch.nn.functional as F

from dpo_kit.models.logprobs import exact_kl
from dpo_kit.workbook.exercises import paper_math as exercises
from dpo_kit.workbook.figures.theory import Slider, explore, frontier, lines, loss_well, policies
from dpo_kit.workbook.show import show
from dpo_kit.workbook.theory import exact
from dpo_kit.workbook.theory.descent import descend, minimise
from dpo_kit.workbook.theory.divergences import k1, k2, k3
from dpo_kit.workbook.theory.losses import LOSSES, dpo_loss
from dpo_kit.workbook.theory.reinforce import reinforce
from dpo_kit.workbook.theory.sequences import SequenceWorld

torch.set_default_dtype(torch.float64)  # equalities then hold to about twelve digits
torch.manual_seed(0)

# %% [markdown]
# ## 1. A world that can be enumerated
#
# A **prompt** $x$ is one of three incidents. A **response** $y$ is one of four actions. A **policy** $\pi(y \mid x)$ is
# a table: the probability of each response to each prompt, rows adding up to one.
#
# Two tables are given. The **reference** $\pi_{\mathrm{ref}}(y \mid x)$ is the policy we start from; in practice it is
# a model after supervised fine-tuning (SFT). The **reward** $r(x, y)$ says how good a response truly is. In practice
# nobody ever sees the true reward. Here we know it, so we can check what training finds.

# %%
PROMPTS = ["disk full", "checkout slow", "login errors"]
ANSWERS = ["wait", "restart", "roll back", "page"]
ref_probs = torch.tensor([[0.50, 0.30, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25], [0.10, 0.60, 0.20, 0.10]])
rewards = torch.tensor([[0.0, 1.0, 2.0, 1.5], [1.0, 0.5, -0.5, 0.0], [2.0, -1.0, 0.5, 1.0]])
assert torch.allclose(ref_probs.sum(dim=1), torch.ones(3))

# %% [markdown]
# How far is a policy from its reference? The **Kullback-Leibler divergence** (KL) measures this distance in nats:
#
# $$\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})
# = \sum_y \pi(y \mid x)\,\log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}$$
#
# The KL is an expectation under $\pi$. It is never negative, and it is zero only where the two policies are equal.


# %%
def kl_by_hand(p, q):
    return (p * (p / q).log()).sum(dim=-1)


some_policy = torch.randn(3, 4).softmax(dim=-1)
assert torch.allclose(kl_by_hand(some_policy, ref_probs), exact.kl(some_policy, ref_probs))
kl_by_hand(some_policy, ref_probs)

# %% [markdown]
# ## 2. The untrained policy
#
# Before anything is trained, the policy *is* the reference. Then the KL is zero, the difference of log-ratios that DPO
# works with (the **margin**, defined in section 7) is zero, and its loss is $-\log \sigma(0) = \log 2$, with
# $\sigma(z) = 1/(1 + e^{-z})$ the sigmoid. Check this in every run whose policy starts as a copy of the reference: if
# its first step shows another loss, then policy and reference do not agree.

# %%
logps = ref_probs.log()
best, worst = logps.max(dim=1).values, logps.min(dim=1).values
losses, chosen_rewards, rejected_rewards = dpo_loss(best, worst, best, worst, beta=0.1)
assert not exact.kl(ref_probs, ref_probs).any()
assert torch.equal(chosen_rewards, rejected_rewards), "the margin of an untrained policy is zero"
assert torch.allclose(losses, torch.tensor(math.log(2)))
losses

# %% [markdown]
# ## 3. What RLHF asks for
#
# Reinforcement learning from human feedback (RLHF) maximises the expected reward minus a penalty for leaving the
# reference (Eq. 3 of the paper):
#
# $$J_\beta(\pi) = \mathbb{E}_{y \sim \pi(\cdot \mid x)}\,[\,r(x, y)\,]
# - \beta\,\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})$$
#
# $\beta > 0$ is the **price of one nat**. A policy that moves one nat away from the reference must gain at least
# $\beta$ in expected reward, or its objective falls. So a high $\beta$ makes distance expensive.


# %%
def objective_by_hand(probs, beta):
    expected_reward = (probs * rewards).sum(dim=-1)
    return expected_reward - beta * kl_by_hand(probs, ref_probs)


assert torch.allclose(objective_by_hand(some_policy, 0.5), exact.objective(some_policy, ref_probs, rewards, 0.5))
print("reference  ", objective_by_hand(ref_probs, 0.5))
print("some policy", objective_by_hand(some_policy, 0.5))

# %% [markdown]
# ## 4. Its maximiser, in closed form
#
# The best policy re-weights the reference by the exponential of the reward (Eq. 4):
#
# $$\pi^*(y \mid x) = \frac{1}{Z(x)}\,\pi_{\mathrm{ref}}(y \mid x)\,\exp\!\Big(\frac{r(x, y)}{\beta}\Big),
# \qquad Z(x) = \sum_y \pi_{\mathrm{ref}}(y \mid x)\,\exp\!\Big(\frac{r(x, y)}{\beta}\Big)$$
#
# $Z(x)$, the **partition function**, makes the probabilities of a row add up to one. Note where $\beta$ stands: it
# *divides* the reward.

# %%
beta = 0.5
weights = ref_probs * (rewards / beta).exp()
Z = weights.sum(dim=1, keepdim=True)
pi_star = weights / Z
assert torch.allclose(pi_star, exact.optimal_policy(ref_probs, rewards, beta))
pi_star

# %% [markdown]
# Why is $\pi^*$ the best policy? The proof has four lines. Write $J_\beta$ as one expectation under $\pi$; replace
# $r$ by $\beta \log(\pi^*/\pi_{\mathrm{ref}}) + \beta \log Z$, which is Eq. 4 solved for $r$; cancel
# $\log \pi_{\mathrm{ref}}$; and recognise the KL.
#
# $$\begin{aligned}
# J_\beta(\pi) &= \mathbb{E}_{y \sim \pi}\Big[r(x, y)
# - \beta \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}\Big] \\
# &= \mathbb{E}_{y \sim \pi}\Big[\beta \log \frac{\pi^*(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)} + \beta \log Z(x)
# - \beta \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}\Big] \\
# &= \beta \log Z(x) - \beta\, \mathbb{E}_{y \sim \pi}\Big[\log \frac{\pi(y \mid x)}{\pi^*(y \mid x)}\Big] \\
# &= \beta \log Z(x) - \beta\,\mathrm{KL}(\pi \,\|\, \pi^*).
# \end{aligned}$$
#
# This holds for *every* policy $\pi$. The first term does not depend on $\pi$. The second term is at most zero, and it
# is zero only at $\pi = \pi^*$. So no policy is better than $\pi^*$. The next cell checks the last line for a
# thousand random policies.

# %%
random_policies = torch.randn(1000, 3, 4).softmax(dim=-1)
left = objective_by_hand(random_policies, beta)
right = beta * Z.log().squeeze(1) - beta * kl_by_hand(random_policies, pi_star)
assert torch.allclose(left, right)
assert (left <= objective_by_hand(pi_star, beta)).all(), "no policy beats pi*"

# %% [markdown]
# The next cell checks the same without any algebra: a numerical optimiser that sees only $J_\beta$ and its gradient
# arrives at the same table. We measure the distance of two policies as **total variation**, the most that the
# probability of any event can differ; it lies between 0 and 1.

# %%
found = minimise(lambda logits: -objective_by_hand(logits.softmax(dim=-1), beta).sum(), start=ref_probs.log())
distance = exact.total_variation(found.softmax(dim=-1), pi_star)
assert distance.max() < 1e-6
distance


# %% [markdown]
# **Before you look at the next figure:** which of the two optima will be closer to the reference, the one at $\beta$ or
# the one at ten times $\beta$? And which response will gain most for each prompt? (If you run this yourself, a slider
# sets $\beta$.)


# %%
def draw_optimum(beta):
    cheap, dear = (exact.optimal_policy(ref_probs, rewards, price) for price in (beta, 10 * beta))
    nats = exact.kl(cheap, ref_probs).mean().item()
    title = f"The optimum at β = {beta:.2f} is {nats:.2f} nats from the reference"
    rows = {"reference": ref_probs, "optimum at ten times β": dear, "optimum at β": cheap}
    return policies(PROMPTS, ANSWERS, rows, title)


explore(
    draw_optimum,
    "Bars of the reference and of two optima for three prompts; at the lower beta the best response dominates.",
    beta=Slider(0.1, 0.5, 5.0, log=True),
)

# %% [markdown]
# At ten times $\beta$ the striped bars stay near the grey ones, because distance is expensive. At $\beta$ the dotted
# bars give most of the probability to the response with the highest reward, even where the reference rarely gives that
# response. The same in numbers:

# %%
for price in (0.1, 0.5, 2.0, 20.0):
    optimum = exact.optimal_policy(ref_probs, rewards, price)
    nats, reward = exact.kl(optimum, ref_probs).mean(), (optimum * rewards).sum(dim=1).mean()
    print(f"beta {price:5.1f}   KL {nats:.4f}   expected reward {reward:.3f}")

# %% [markdown]
# A higher $\beta$ means *closer to the reference*. It is often written the other way round. Section 9 shows an
# experiment that can lead to this belief.
#
# ## 5. The inversion: a policy is a reward
#
# Take logarithms of Eq. 4 and solve for the reward (Eq. 5):
#
# $$r(x, y) = \beta \log \frac{\pi^*(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)} + \beta \log Z(x)$$
#
# The first term is the **implicit reward** of a policy. The second term is one number per prompt.

# %%
log_ratio = (pi_star / ref_probs).log()
recovered = beta * log_ratio + beta * Z.log()
assert torch.allclose(recovered, rewards)
assert torch.allclose(beta * log_ratio, exact.implicit_reward(pi_star, ref_probs, beta))
(recovered - rewards).abs().max()

# %% [markdown]
# The implicit reward lacks exactly one number per prompt, because rewards that differ by a constant have the same
# optimum. So an implicit reward can rank the responses to one prompt. It cannot compare responses to different prompts.

# %%
shifted = rewards + torch.tensor([[5.0], [-3.0], [0.0]])
assert torch.allclose(exact.optimal_policy(ref_probs, shifted, beta), pi_star)
exact.implicit_reward(pi_star, ref_probs, beta)

# %% [markdown]
# ## 6. Preferences: Z cancels
#
# In practice nobody gives us rewards. People compare two responses and say which one is better. The **Bradley-Terry**
# model (Eq. 1) says that response $y_1$ is preferred to $y_2$ with probability
#
# $$p(y_1 \succ y_2 \mid x) = \sigma\big(r(x, y_1) - r(x, y_2)\big).$$
#
# Only a *difference* of rewards for the same prompt appears. When we insert Eq. 5 for both rewards, the term
# $\beta \log Z(x)$ appears twice with opposite signs, so it cancels.

# %%
implied = exact.implicit_reward(pi_star, ref_probs, beta)
from_rewards = torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])  # (X, Y, Y): row preferred to column
from_policy = torch.sigmoid(implied[:, :, None] - implied[:, None, :])  # no Z anywhere
assert torch.allclose(from_rewards, exact.bradley_terry(rewards))
assert torch.allclose(from_rewards, from_policy)
from_policy[0]

# %% [markdown]
# This step makes DPO possible. $Z(x)$ is a sum over all responses. For text nobody can compute that sum, and DPO never
# needs it.
#
# ## 7. The loss
#
# We have pairs: a **chosen** response $y_w$ and a **rejected** one $y_l$. For the policy $\pi_\theta$ being trained,
# with parameters $\theta$, write the **log-ratio** $h(y) = \log \pi_\theta(y \mid x) - \log \pi_{\mathrm{ref}}(y \mid
# x)$. The **margin** is $m = \beta\,(h(y_w) - h(y_l))$. Maximum likelihood under Bradley-Terry is (Eq. 7)
#
# $$L_{\mathrm{DPO}}(\theta) = -\,\mathbb{E}_{(x, y_w, y_l)}
# \Big[ \log \sigma\big(\beta\,h(y_w) - \beta\,h(y_l)\big) \Big].$$
#
# Note the minus sign: the loss is a negative log-likelihood, and training minimises it.


# %%
def dpo_loss_by_hand(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    h_w = chosen_logps - ref_chosen_logps
    h_l = rejected_logps - ref_rejected_logps
    return -F.logsigmoid(beta * (h_w - h_l))


logps = -20 * torch.rand(4, 6)  # six made-up pairs
by_hand = dpo_loss_by_hand(*logps, beta=0.1)
assert torch.allclose(by_hand, dpo_loss(*logps, beta=0.1)[0])
by_hand

# %% [markdown]
# In a world that can be enumerated, the expectation is a sum over all pairs of responses, weighted by how often the
# first one wins. So the next cell computes the loss on *infinitely many* preference pairs, without drawing any:


# %%
def expected_loss_by_hand(logps, preferences, beta):
    h = logps - ref_probs.log()
    losses = -F.logsigmoid(beta * (h[:, :, None] - h[:, None, :]))
    different = ~torch.eye(4, dtype=torch.bool)
    return (preferences * losses)[:, different].sum(dim=1) / preferences[:, different].sum(dim=1)


preferences = exact.bradley_terry(rewards)
by_hand = expected_loss_by_hand(pi_star.log(), preferences, beta)
assert torch.allclose(by_hand, exact.expected_dpo_loss(pi_star.log(), ref_probs.log(), preferences, beta))
by_hand

# %% [markdown]
# Even the optimal policy has a loss well above zero. Under Bradley-Terry the same two responses are judged differently
# from time to time, and no policy can agree with both of two contradicting verdicts.
#
# ## 8. Gradient descent on the DPO loss arrives at the optimum of RLHF
#
# The next cell knows neither the reward nor $Z$. It uses the comparisons and the reference, and takes steps of gradient
# descent on the DPO loss. **Predict:** how close does it come to $\pi^*$, the optimum of RLHF?


# %%
def dpo_on(wins, beta, ref_probs=ref_probs):
    """The loss to minimise, as a function of a table of logits."""
    ref_logps = ref_probs.log()
    return lambda logits: exact.expected_dpo_loss(logits.log_softmax(-1), ref_logps, wins, beta).sum()


path = descend(dpo_on(preferences, beta), start=ref_probs.log(), lr=2.0, steps=2000).softmax(dim=-1)
distances = exact.total_variation(path, pi_star).max(dim=1).values
assert distances[-1] < 1e-12
distances[[0, 10, 100, 1000, 2000]]

# %% [markdown]
# The vertical axis of the next figure is logarithmic. What does a straight line on it mean, and where must it end?

# %%
shown = range(0, 2001, 20)
figure = lines(
    shown, {"worst prompt": distances[shown]}, log="y",
    title="DPO by gradient descent, infinitely many pairs", x_title="step", y_title="total variation to π*",
)  # fmt: skip
show(figure, "Distance to the optimal policy falls exponentially with the step and ends at rounding error.")

# %% [markdown]
# The line is straight: the distance falls by a nearly constant factor per step, until only the rounding error of
# float64 is left. So where preferences follow Bradley-Terry and are known exactly, the optimum of the DPO loss *is* the
# optimum of RLHF.
#
# ### How many are enough?
#
# Now we draw a finite number of pairs and find the policy that fits them best. We repeat this sixteen times for each
# number of pairs. **Predict:** how many times more pairs does it take to halve the distance?


# %%
def distance_with(pairs, draws=16):
    """Mean distance to pi* of policies fitted to `pairs` comparisons per prompt, over several draws of them."""
    random = torch.Generator().manual_seed(pairs)
    wins = exact.sample_wins(preferences.repeat(draws, 1, 1, 1), pairs, random)  # (draws, X, Y, Y)
    fitted = minimise(dpo_on(wins, beta), ref_probs.log().repeat(draws, 1, 1)).softmax(dim=-1)
    return exact.total_variation(fitted, pi_star).mean().item()


# %%
sizes = [100, 300, 1_000, 3_000, 10_000, 100_000, 1_000_000]
by_size = [distance_with(pairs) for pairs in sizes]
assert by_size[-1] < by_size[0] / 50
for pairs, distance in zip(sizes, by_size, strict=True):
    print(f"{pairs:9,d} pairs   distance {distance:.4f}")

# %% [markdown]
# The dashed line of the next figure falls like one over the square root of the number of pairs. Do the points follow
# it?

# %%
rate = [by_size[-1] * math.sqrt(sizes[-1] / pairs) for pairs in sizes]
figure = lines(
    sizes, {"fitted to n pairs": by_size, "1/√n": rate}, log="xy", markers=True,
    title="Finite data", x_title="pairs per prompt", y_title="mean total variation to π*",
)  # fmt: skip
show(figure, "Mean distance to the optimal policy against pairs per prompt, close to a line of slope minus one half.")

# %% [markdown]
# They do, more closely the more pairs there are. Here the number of pairs limits how close we come to $\pi^*$, not the
# optimiser: to come ten times closer we need about a hundred times as many pairs. To halve the distance takes about
# four times as many.
#
# ### Preferences that are always the same
#
# Suppose the first of two responses *always* wins. Then the loss has no minimum: it keeps falling as the gap
# $h(y_w) - h(y_l)$ grows, whatever $\beta$ is. Finite data contains many such preferences, because a pair that was
# labelled once has only one label.


# %%
def two_answers(p, beta, name="dpo"):
    """Expected loss over the log-ratio gap of two responses, the first of which wins with probability p."""
    loss, zero = LOSSES[name], torch.zeros(1)

    def expected(gap):
        first_wins, first_loses = loss(gap, zero, zero, zero, beta=beta), loss(zero, gap, zero, zero, beta=beta)
        return (p * first_wins[0] + (1 - p) * first_loses[0]).sum()

    return expected


# %%
BETAS, START = (0.2, 1.0, 5.0), torch.zeros(1)
runs = {b: descend(two_answers(1.0, b), START, lr=0.2, steps=10_000).flatten() for b in BETAS}
for b, gaps in runs.items():
    growth = gaps[10_000] - gaps[1_000]
    assert growth > 0.9 * math.log(10) / b, "no beta bounds the ratio"
    print(f"beta {b}   gap {gaps[10_000]:6.3f}   of which in the last nine tenths of the steps {growth:.3f}")

# %% [markdown]
# The step axis of the next figure is logarithmic. Does any of the three curves level off?

# %%
steps = torch.logspace(0, 4, 60).round().long().unique()
figure = lines(
    steps, {f"β = {b}": gaps[steps] for b, gaps in runs.items()}, log="x",
    title="A preference that never fails: the gap grows without end", x_title="step", y_title="log-ratio gap",
)  # fmt: skip
show(figure, "The log-ratio gap grows with the logarithm of the step for each of three values of beta.")

# %% [markdown]
# None does. Once a curve is past its bend, each tenfold of steps adds about $\log(10)/\beta$. A high $\beta$ makes the
# growth slower, but does not end it. In a real run other things end it: the number of steps, the learning rate, and
# the fact that one network serves all prompts.
#
# **Is this a fault of DPO alone?** It is often written that the KL term of RLHF would have held the policy here. That
# is not so when the reward model is fitted by plain maximum likelihood: its reward difference grows without end as
# well, and the optimum of RLHF for that reward has the gap $(r(y_w) - r(y_l))/\beta$, from Eq. 4. What does hold the
# policy is a reward model that is *regularised*, which reward models in practice are, if only because their training
# stops early. [Azar et al. (arXiv 2310.12036)](https://arxiv.org/abs/2310.12036) make this point. We run both reward
# models with the learning rate and the steps that DPO had, and compare the gaps at the smallest $\beta$.

# %%
REWARD_PENALTY = 0.01  # times the square of the reward difference


def certain_reward(penalty):
    """The reward model's loss over its reward difference, when the first of two responses always wins."""
    return lambda difference: (-F.logsigmoid(difference) + penalty * difference.square()).sum()


fits = {p: descend(certain_reward(p), START, lr=0.2, steps=10_000).flatten() for p in (0.0, REWARD_PENALTY)}
policy_gaps = {
    "DPO": runs[BETAS[0]],
    "RLHF, reward by maximum likelihood": fits[0.0] / BETAS[0],
    "RLHF, regularised reward": fits[REWARD_PENALTY] / BETAS[0],
}
for name, gaps in policy_gaps.items():
    print(f"{name:35s} gap {gaps[1_000]:6.3f} after 1,000 steps, {gaps[10_000]:6.3f} after 10,000")
plain, held = fits[0.0], fits[REWARD_PENALTY]
assert plain[10_000] - plain[1_000] > 0.9 * math.log(10), "the plain reward model diverges too"
assert abs(held[10_000] - held[1_000]) < 1e-3, "the regularised one has arrived"

# %% [markdown]
# With the plain reward model RLHF's gap grows as DPO's does, and after the same steps it is even the larger of the two.
# With the regularised one it stands still. So DPO leaves out the separate reward model, and with it the place where
# that regularisation was.
#
# **IPO**, from the same paper, puts the limit into the loss: $(h(y_w) - h(y_l) - \tfrac{1}{2\beta})^2$ has a minimum at
# a finite gap. When the first response wins with probability $p$, the minimum of its expectation is at $\frac{2p -
# 1}{2\beta}$. For a preference that never fails, $p = 1$, this is $\frac{1}{2\beta}$.

# %%
for b in BETAS:
    gaps = {q: minimise(two_answers(q, b, "ipo"), START).item() for q in (0.6, 0.8, 1.0)}
    assert all(math.isclose(gap, (2 * q - 1) / (2 * b), rel_tol=1e-6) for q, gap in gaps.items())
    print(f"beta {b}   gap at IPO's optimum:", ", ".join(f"{gap:.3f} at p = {q}" for q, gap in gaps.items()))

# %% [markdown]
# ## 9. What beta does, exactly
#
# Take two responses, the first of which is preferred with probability $p$. Where the derivative of the expected DPO
# loss is zero, the margin is $\mathrm{logit}(p) = \log \tfrac{p}{1-p}$, so the optimum has the gap
#
# $$h(y_1) - h(y_2) = \frac{\mathrm{logit}(p)}{\beta}.$$

# %%
p = 0.8
for b in BETAS:
    gap = minimise(two_answers(p, b), START).item()
    assert math.isclose(gap, math.log(p / (1 - p)) / b, rel_tol=1e-4)
    print(f"beta {b:3.1f}   gap at the optimum {gap:.4f}")


# %% [markdown]
# Labels are noisy, too. If a label is flipped with probability $\varepsilon$, the first response is seen to win
# with probability $p' = (1-\varepsilon)\,p + \varepsilon\,(1-p)$, and the optimum moves to $\mathrm{logit}(p')/\beta$.
#
# The next figure draws the expected loss over the gap. **Predict:** in which direction does its minimum move when the
# noise grows, when $\beta$ grows, and when the preference becomes stronger?


# %%
def draw_well(beta, preference, noise):
    seen = (1 - noise) * preference + noise * (1 - preference)
    floor, clean = (math.log(q / (1 - q)) / beta for q in (seen, preference))
    title = f"β = {beta:.2f}, preference {preference:.2f}, noise {noise:.2f}: optimum at {floor:.2f}"
    marks = {"optimum": floor, "optimum without noise": clean}
    return loss_well(two_answers(seen, beta), marks, title)


explore(
    draw_well,
    "Expected DPO loss over the log-ratio gap, with the minimum marked, and the minimum without label noise.",
    beta=Slider(0.1, 0.3, 5.0, log=True), preference=Slider(0.5, 0.9, 0.99), noise=Slider(0.0, 0.1, 0.49),
)  # fmt: skip

# %% [markdown]
# More noise and a higher $\beta$ move the minimum towards zero; a stronger preference moves it away from zero. The
# curve is not symmetric: to the right of the minimum the loss rises slowly, so the gradient that corrects a gap that is
# too large is weak. Noise lowers the optimal gap because the noisy labels themselves win less often.
#
# ### The other half of the story
#
# Why do people believe that a high $\beta$ moves the policy *further*? Look at the first step of training. The gradient
# of the loss with respect to the gap is $-\beta\,(p - \sigma(\beta \cdot \text{gap}))$; at the start it is $-\beta\,(p
# - \tfrac12)$, *proportional* to $\beta$. So with plain gradient descent and a fixed learning rate, a higher $\beta$
# takes larger first steps, although its optimum is closer to the start.

# %%
lr = 0.2
runs = {b: descend(two_answers(p, b), START, lr=lr, steps=10_000).flatten() for b in BETAS}
for b, gaps in runs.items():
    assert math.isclose(gaps[1], lr * b * (p - 0.5), rel_tol=1e-9), "the first step grows with beta"
    print(f"beta {b:3.1f}   first step {gaps[1]:.4f}   after all steps {gaps[-1]:.4f}")

# %% [markdown]
# **Predict:** in the next figure, which of the three curves is highest at the left, and which at the right?

# %%
figure = lines(
    steps, {f"β = {b}": gaps[steps] for b, gaps in runs.items()}, log="xy",
    title="Early, a high β is ahead; at the end it has gone least far", x_title="step", y_title="log-ratio gap",
)  # fmt: skip
show(figure, "Log-ratio gap over steps for three betas: the highest beta starts fastest and ends lowest.")

# %% [markdown]
# The order at the left is the reverse of the order at the right. A run that stops early therefore shows that a higher
# $\beta$ moves further, and a run that converges shows the opposite. Adam, the usual optimiser, divides the gradient by
# its own size. So the size of its first step does not depend on $\beta$:

# %%
for b in BETAS:
    gaps = descend(two_answers(p, b), START, lr=lr, steps=1, optimiser="adam").flatten()
    assert math.isclose(gaps[1], lr, rel_tol=1e-5)
    print(f"beta {b}   first step of Adam {gaps[1]:.4f}")

# %% [markdown]
# ## 10. KL: two directions, three estimators
#
# $\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})$, with the policy in front, is called the **reverse** KL, and
# $\mathrm{KL}(\pi_{\mathrm{ref}} \,\|\, \pi)$ the **forward** one. They penalise different errors. To see this, take a
# target with two humps and a policy that can have only one. The function `hump` takes two numbers: the centre of the
# hump and the logarithm of its width. The fit by the reverse KL is started twice, once at the left and once at the
# right.

# %%
grid = torch.linspace(-6, 6, 241)


def hump(theta):
    centre, log_width = theta
    return (-0.5 * ((grid - centre) / log_width.exp()).square()).softmax(dim=-1)


# %%
target = 0.6 * hump(torch.tensor([-2.0, -0.5])) + 0.4 * hump(torch.tensor([2.5, -0.5]))
left, right = torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 0.5])
fits = {
    "reverse KL, started left": hump(minimise(lambda theta: exact.kl(hump(theta), target), left)),
    "reverse KL, started right": hump(minimise(lambda theta: exact.kl(hump(theta), target), right)),
    "forward KL, started left": hump(minimise(lambda theta: exact.kl(target, hump(theta)), left)),
    "forward KL, started right": hump(minimise(lambda theta: exact.kl(target, hump(theta)), right)),
}
for name, probs in fits.items():
    print(f"{name:25s}   probability right of zero {probs[grid > 0].sum():.2f}", end="   ")
    print(f"reverse KL {exact.kl(probs, target):.2f}, forward KL {exact.kl(target, probs):.2f}")
assert torch.allclose(fits["forward KL, started left"], fits["forward KL, started right"], atol=1e-4)

# %% [markdown]
# **Before you look:** which of the fits covers both humps?

# %%
figure = lines(
    grid, {"target": target, **{name: fits[name] for name in list(fits)[:3]}},
    title="Fits of one hump to a target with two", x_title="y", y_title="probability",
)  # fmt: skip
show(figure, "A two-humped target, two reverse-KL fits, one on each hump, and a wide forward-KL fit over both.")

# %% [markdown]
# The fit by the forward KL covers both humps, from either start. A fit by the reverse KL sits on one hump, and the
# start decides which one: both are local minima. The printed values say which of them is the better one. The reason is
# in the two sums. The reverse KL weights each response by the policy's own probability, so a response that the policy
# never gives costs nothing. The forward KL weights by the target's probability, so every response of the target that
# the policy rarely gives is expensive. SFT minimises a forward KL from its data to the policy. RLHF, and with it DPO,
# charges for the reverse KL. `f_dpo_loss` in `dpo_kit.workbook.theory.losses` has variants of DPO for other
# divergences.
#
# ### Estimating it
#
# For text the KL cannot be summed over responses, only sampled. With $y \sim \pi$ and
# $\rho = \pi_{\mathrm{ref}}(y \mid x)/\pi(y \mid x)$ three estimators are in use
# ([Schulman, 2020](http://joschu.net/blog/kl-approx.html)):
#
# $$k_1 = -\log \rho, \qquad k_2 = \tfrac12 (\log \rho)^2, \qquad k_3 = \rho - 1 - \log \rho.$$
#
# Because our policies can be enumerated, the bias and the standard deviation of one sample are sums as well. The policy
# is a bell curve. The reference is the same curve moved sideways; the further it is moved, the larger is the KL.

# %%
wide = torch.linspace(-12, 18, 3001)


def bell(centre):
    return (-0.5 * (wide - centre).square()).log_softmax(dim=-1)


def exact_statistics(estimator, shift):
    """Mean and standard deviation of one sample of the estimator, by summation."""
    logps_p, logps_q = bell(0.0), bell(shift)
    p, value = logps_p.exp(), estimator(logps_p, logps_q)
    mean = (p * value).sum()
    return mean.item(), (p * (value - mean).square()).sum().sqrt().item()


# %%
shifts = torch.tensor([0.1, 0.3, 1.0, 2.0, 10**0.5])
true_kl = torch.stack([exact.kl(bell(0.0).exp(), bell(shift).exp()) for shift in shifts])
means = {k: torch.tensor([exact_statistics(k, shift)[0] for shift in shifts]) for k in (k1, k2, k3)}
assert torch.allclose(means[k1], true_kl)
assert torch.allclose(means[k3], true_kl)
print("true KL   ", true_kl, "\nbias of k2", means[k2] - true_kl)

# %% [markdown]
# $k_1$ and $k_3$ are unbiased everywhere. $k_2$ is biased, and its bias is small only near zero. **Before you look at
# the next figure:** which of the two unbiased estimators would you use? At which KL does the standard deviation of
# $k_3$ become larger than that of $k_1$?

# %%
spreads = {k.__name__: [exact_statistics(k, shift)[1] for shift in shifts] for k in (k1, k2, k3)}
figure = lines(
    true_kl, spreads, log="xy", markers=True,
    title="Standard deviation of one sample", x_title="true KL, nats", y_title="standard deviation",
)  # fmt: skip
assert spreads["k3"][0] < spreads["k1"][0]
assert spreads["k3"][-1] > spreads["k1"][-1]
show(
    figure, "Standard deviation of k1, k2, k3 over the true KL: k3 is lowest near zero and by far highest at five nats."
)

# %% [markdown]
# Near the reference $k_2$ and $k_3$ have about the same small standard deviation, and of the two only $k_3$ is
# unbiased. At a large KL $k_3$ has by far the largest standard deviation, because $\rho$ is very large on a few rare
# samples. A single measurement does not show this, because most measurements contain none of the rare samples. Here are
# two thousand estimates from 256 samples each, at the largest KL of the figure.

# %%
shift = shifts[-1]
drawn = torch.multinomial(bell(0.0).exp(), 2000 * 256, replacement=True).reshape(2000, 256)
for k in (k1, k2, k3):
    estimates = k(bell(0.0)[drawn], bell(shift)[drawn]).mean(dim=1)
    exact_sd = exact_statistics(k, shift)[1] / math.sqrt(256)
    print(f"{k.__name__}   mean {estimates.mean():6.3f}   median {estimates.median():6.3f}", end="   ")
    print(f"standard deviation {estimates.std():.3f}, exactly {exact_sd:.3f}")

# %% [markdown]
# $k_3$ is unbiased, and yet its median lies below the true KL, and its measured standard deviation below the exact one.
# Its average is right only because of samples that are hardly ever drawn. The rest of this workbook therefore sums over
# the vocabulary instead (`exact_kl`), as the next section does.
#
# ## 11. Sequences
#
# A response is not one symbol but a sequence of **tokens** $y = (y_1, \dots, y_T)$, and the policy is
# **autoregressive**: it gives the probability of each token after the ones before it. Then
#
# $$\log \pi(y \mid x) = \sum_{t=1}^{T} \log \pi(y_t \mid x, y_{<t}).$$
#
# Our sequences use two letters and a stop symbol, written as a full stop. The policy is a table of **logits**
# (unnormalised log-probs) with one row per prefix and one column per symbol.

# %%
world = SequenceWorld("ab", length=4)
generator = torch.Generator().manual_seed(4)
ref_table = torch.randn(len(world.prefixes), len(world.symbols), generator=generator)
print(len(world.sequences), "sequences:", " ".join(world.sequences))

# %%
row = {prefix: ref_table[i].log_softmax(-1) for i, prefix in enumerate(world.prefixes)}
by_hand = row[""][0] + row["a"][1] + row["ab"][2]  # first a, then b, then the stop
assert torch.isclose(world.logps(ref_table)[world.sequences.index("ab.")], by_hand)
by_hand

# %% [markdown]
# The log-probs are *summed*. The exponentials of the sums are probabilities of whole responses and add up to one. The
# exponentials of *averages* per token do not add up to one. So averages are not log-probs of a distribution, and the
# derivation above does not hold for them. (Some losses use averages on purpose; notebook 02 shows them.)

# %%
summed = world.logps(ref_table)
averaged = summed / world.lengths
assert torch.isclose(summed.exp().sum(), torch.tensor(1.0))
print(f"adding up all responses: {summed.exp().sum():.3f} if summed, {averaged.exp().sum():.3f} if averaged")

# %% [markdown]
# Let the reward count the letter a and charge for length. The optimum of section 4 is a distribution over whole
# sequences. The next cell checks that it can also be written as a table of next-token probabilities, and the cell after
# it that DPO, trained on this table, finds it.

# %%
seq_rewards = torch.tensor([sequence.count("a") - 0.3 * len(sequence) for sequence in world.sequences])
seq_ref, seq_wins = world.logps(ref_table), exact.bradley_terry(seq_rewards)
seq_star = exact.optimal_policy(seq_ref.exp(), seq_rewards, beta)
assert torch.allclose(world.logps(world.table(seq_star.log())), seq_star.log()), "pi* is a table"


# %%
def seq_loss(table):
    return exact.expected_dpo_loss(world.logps(table), seq_ref, seq_wins, beta)


table = minimise(seq_loss, start=ref_table, steps=500)
distance = exact.total_variation(world.logps(table).exp(), seq_star)
assert distance < 1e-3
distance

# %% [markdown]
# ### The KL of a sequence, token by token
#
# The sequence KL is the expected sum of **per-token** KLs, each taken over the whole vocabulary at a position that the
# policy itself has reached:
#
# $$\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}}) = \mathbb{E}_{y \sim \pi} \sum_{t=1}^{T}
# \mathrm{KL}\big(\pi(\cdot \mid x, y_{<t}) \,\|\, \pi_{\mathrm{ref}}(\cdot \mid x, y_{<t})\big)$$
#
# `exact_kl` computes the inner KL from two models' logits $(B, T, V)$ and a mask that is 1 on completion tokens.

# %%
logits, mask = world.step_logits(table)
ref_logits, _ = world.step_logits(ref_table)
p, q = logits.softmax(-1), ref_logits.softmax(-1)
by_hand = (p * (p / q).log()).sum(dim=-1) * mask  # (B, T): weighted over the vocabulary, zero outside the mask
assert torch.allclose(by_hand, exact_kl(logits, ref_logits, mask))

# %%
probs, token_kls = world.logps(table).exp(), exact_kl(logits, ref_logits, mask)
on_policy = (probs * token_kls.sum(dim=1)).sum()
assert torch.isclose(on_policy, exact.kl(probs, seq_ref.exp()))
print(f"sequence KL {exact.kl(probs, seq_ref.exp()):.4f}, expected sum of token KLs {on_policy:.4f}")

# %% [markdown]
# The condition "that the policy itself has reached" matters. The log-ratios on the chosen and rejected responses of a
# data set, which every DPO run logs, are not a KL, because the policy did not sample those responses. Where the pairs
# come from is a choice. In this workbook the reference samples both responses, and the better one is chosen
# (**on-policy** pairs at the start of training). Public preference sets are mostly **off-policy**: other models wrote
# the responses. We compute the first case.

# %%
h, ref = world.logps(table) - seq_ref, seq_ref.exp()
pairs = 2 * ref[:, None] * ref[None, :] * seq_wins  # probability that (row, column) is (chosen, rejected)
pairs = pairs / pairs.sum()
chosen, rejected = (pairs.sum(dim=1) * h).sum(), (pairs.sum(dim=0) * h).sum()
assert torch.isclose((chosen + rejected) / 2, -exact.kl(ref, probs))
print(f"mean log-ratio: chosen {chosen:+.3f}, rejected {rejected:+.3f}; the KL is {on_policy:.3f}")

# %% [markdown]
# Neither number is the KL. Over chosen and rejected responses together the mean log-ratio is *minus the forward* KL, as
# the assertion checks, so with such pairs it is never positive. At this optimum even the chosen responses have become
# less likely on average, because probability has moved to responses that are rare in the data. So a falling chosen
# log-prob is not by itself a sign of failure.

# %% [markdown]
# ## 12. The method that DPO replaces
#
# **InstructGPT** ([arXiv 2203.02155](https://arxiv.org/abs/2203.02155)) made a method of three stages well known:
# fine-tune on demonstrations (SFT); fit a **reward model** to comparisons under Bradley-Terry; then optimise the policy
# against that model with reinforcement learning (proximal policy optimisation, PPO) and a KL penalty to the SFT model.
#
# **Constitutional AI** ([arXiv 2212.08073](https://arxiv.org/abs/2212.08073)) keeps these stages and changes the source
# of the labels. A model criticises and revises its own answers by written principles, and for harmlessness a model, not
# a person, picks the better of two answers. DPO can use pairs from either source.
#
# We now run both methods on the same data. Stage one is SFT, maximum likelihood on demonstrations. For a table this
# means counting.

# %%
generator = torch.Generator().manual_seed(5)
demonstrations = torch.multinomial(ref_probs, 5000, replacement=True, generator=generator)
shares = F.one_hot(demonstrations).double().mean(dim=1)
sft_logits = minimise(lambda logits: -(shares * logits.log_softmax(-1)).sum(), torch.zeros(3, 4))
sft_probs = sft_logits.softmax(dim=-1)
assert torch.allclose(sft_probs, shares, atol=1e-6)
sft_probs

# %% [markdown]
# Stage two draws comparisons and fits a reward model $\hat r$ to them by maximum likelihood (Eq. 2). The comparisons
# leave one constant per prompt undetermined, so we subtract the mean of each prompt before we compare with the truth.

# %%
wins = exact.sample_wins(preferences, 1000, generator)
reward_model = minimise(lambda r: exact.expected_reward_loss(r, wins).sum(), torch.zeros(3, 4))
error = (reward_model - rewards) - (reward_model - rewards).mean(dim=1, keepdim=True)
print(f"largest error of the reward model: {error.abs().max():.3f}")

# %% [markdown]
# Stage three maximises $J_\beta$ with $\hat r$ in the place of $r$. DPO has no separate stages two and three; it fits
# the policy to the same comparisons directly. **Predict:** do both methods arrive at the same policy, and is it the
# true optimum $\pi^*$?


# %%
def minus_objective(logits):
    return -exact.objective(logits.softmax(-1), sft_probs, reward_model, beta).sum()


rlhf = minimise(minus_objective, sft_probs.log()).softmax(dim=-1)
dpo = minimise(dpo_on(wins, beta, sft_probs), sft_probs.log()).softmax(dim=-1)
assert exact.total_variation(rlhf, dpo).max() < 1e-4
print("RLHF to DPO:      ", exact.total_variation(rlhf, dpo))
print("DPO to true pi*:  ", exact.total_variation(dpo, pi_star))

# %% [markdown]
# They arrive at the same policy, and this holds for *finite data*, not only in the limit. Both differ from the true
# optimum by the same amount, because both are fitted to the same comparisons, and a finite number of comparisons does
# not determine the reward exactly. (The policies here are tables, which can express any reward. With networks the two
# methods can give different policies, because a reward model and a policy generalise differently.)
#
# ### What each costs
#
# Stage three was solved above with exact gradients. For text the expectation under the policy has to be estimated from
# samples, and because the policy changes, every step needs new samples. REINFORCE is the simplest policy gradient that
# works this way. All runs below use one learning rate. We count the responses that have to be sampled, and scored by
# the reward model, until the mean total variation is below 0.01.

# %%
random, lr, rl_steps = torch.Generator().manual_seed(6), 1.0, 300
runs = {"DPO, no samples": descend(dpo_on(wins, beta, sft_probs), sft_probs.log(), lr=lr, steps=rl_steps)}
for n in (4, 32):
    settings = {"lr": lr, "steps": rl_steps, "samples": n, "generator": random}
    runs[f"REINFORCE, {n} samples"] = reinforce(sft_probs.log(), sft_probs, reward_model, beta, **settings)

# %%
by_step = {name: exact.total_variation(path.softmax(-1), rlhf).mean(dim=1) for name, path in runs.items()}
for name, distances in by_step.items():
    needed = int((distances < 0.01).nonzero()[0])
    n = int(name.split()[1]) if "REINFORCE" in name else 0
    print(f"{name:23s} {needed:4d} steps, {3 * n * needed:6,d} responses sampled and scored")

# %% [markdown]
# **Before you look:** which of the runs needs the fewest steps?

# %%
shown = range(0, rl_steps + 1, 3)
figure = lines(
    shown, {name: distances[shown] for name, distances in by_step.items()}, log="y",
    title="Two methods, one policy", x_title="step", y_title="total variation to the common optimum",
)  # fmt: skip
show(figure, "Distance to the common optimum over steps, for DPO and for REINFORCE with few and many samples.")

# %% [markdown]
# At this learning rate REINFORCE needs fewer steps than DPO; with few samples its curve is only noisier. Its cost is in
# the last column of the table: a language model would have to write each of these responses token by token, and a
# reward model would have to score them. In return REINFORCE learns about responses that the policy samples itself,
# while DPO learns only from the pairs in its data. (The noise becomes small near the optimum, because there all
# responses have the same value: reward minus $\beta$ times log-ratio is $\beta \log Z$.)
#
# ## 13. The frontier
#
# How much reward is possible at a given distance from the reference? The optima for all $\beta$ form the best possible
# curve, the **frontier**. We compare four ways of training with it: **DPO** on a finite number of pairs; **policy
# gradient** on the true reward, which nobody has in practice, with exact gradients until it converges; **SFT on
# chosen**, which imitates the winners; and **unlikelihood**, which raises $\log \pi(y_w)$ and lowers
# $\log \pi(y_l)$, without a reference in the loss.


# %%
def place(probs):
    """KL and true reward of policies (..., X, Y), averaged over prompts."""
    return exact.kl(probs, ref_probs).mean(-1), (probs * rewards).sum(-1).mean(-1)


prices = torch.logspace(-1.7, 1.3, 200)
curve = place(torch.stack([exact.optimal_policy(ref_probs, rewards, price) for price in prices]))

# %% [markdown]
# All methods except policy gradient use the same pairs. We draw the pairs thirty-two times and average, so that the
# result does not depend on one draw.

# %%
DRAWS, PAIRS = 32, 60
wins = exact.sample_wins(preferences.repeat(DRAWS, 1, 1, 1), PAIRS, torch.Generator().manual_seed(1))
start = ref_probs.log().repeat(DRAWS, 1, 1)  # (draws, X, Y)
won, lost = wins.sum(dim=3) / PAIRS, wins.sum(dim=2) / PAIRS  # how often each response won, and lost

# %%
walk, some_betas = [2, 5, 10, 20, 40, 80, 160], [10.0, 3.0, 1.0, 0.5, 0.2, 0.1]
sft = descend(lambda z: -(won * z.log_softmax(-1)).sum(), start, lr=0.2, steps=160)[walk]
unlikelihood = descend(lambda z: -((won - lost) * z.log_softmax(-1)).sum(), start, lr=0.2, steps=160)[walk]
dpo = torch.stack([minimise(dpo_on(wins, b), start) for b in some_betas])


# %%
def rl_on(beta):
    return minimise(lambda z: -objective_by_hand(z.softmax(-1), beta).sum(), ref_probs.log())


reinforced = torch.stack([rl_on(b) for b in some_betas]).unsqueeze(1)  # one draw: it sees no data
methods = {"policy gradient, true reward": reinforced, "DPO": dpo, "SFT on chosen": sft, "unlikelihood": unlikelihood}
places = {name: place(logits.softmax(dim=-1)) for name, logits in methods.items()}  # (points, draws)

# %% [markdown]
# For every $\beta$, no policy has a larger $J_\beta$ than $\pi^*_\beta$. So at a given KL the reward is at most
# $\beta\,\mathrm{KL} + J_\beta(\pi^*_\beta)$, and the smallest of these bounds over all $\beta$ is a ceiling. The
# **shortfall** of a policy is this ceiling minus its reward.


# %%
def shortfall(nats, reward):
    ceiling = (prices * nats.unsqueeze(-1) + curve[1] - prices * curve[0]).amin(dim=-1)
    return ceiling - reward


for name, (nats, reward) in places.items():
    missing = shortfall(nats, reward)
    assert (missing > -1e-6).all(), "no method is above the frontier"
    print(f"{name}\n   KL       ", nats.mean(dim=1), "\n   shortfall", missing.mean(dim=1))

# %%
for name, (nats, reward) in list(places.items())[1:]:
    missing = shortfall(nats, reward)
    error = missing.std(dim=1) / math.sqrt(DRAWS)
    print(f"{name:14s} largest shortfall {missing.mean(dim=1).max():.3f}, standard error at most {error.max():.3f}")

# %% [markdown]
# At equal KL, how far below the grey curve does each method lie? In the next figure the points of the first two methods
# differ in $\beta$, and those of the last two in the number of training steps. All points are means over the draws.

# %%
means = {name: (nats.mean(dim=1), reward.mean(dim=1)) for name, (nats, reward) in places.items()}
show(
    frontier(curve, means),
    "Expected reward over KL: policy gradient on the best curve, DPO and unlikelihood close below, SFT lower.",
)

# %% [markdown]
# Policy gradient on the true reward lies on the curve, as section 4 says it must. DPO lies below the curve, because so
# few pairs do not determine the reward. SFT on chosen has the largest shortfall once its KL is not small. It converges
# to the distribution of the winners, and it has no parameter like $\beta$ that sets how far it goes.
#
# Unlikelihood may be a surprise: in this world its largest shortfall is close to DPO's, as the printed standard errors
# show. The reason is that for a table, with as many wins as losses in total, its gradient is the same at every step.
# So it moves along $\pi_{\mathrm{ref}} \exp(t \cdot \text{net wins})$, where $t$ is the learning rate times the number
# of steps, and this has the same form as $\pi^*$. But its loss has no lower bound. Only the number of steps decides
# where it stops:

# %%
chosen_logp = torch.tensor([-1.0])
for rejected_logp in (-10.0, -100.0, -1000.0):
    logps = chosen_logp, torch.tensor([rejected_logp]), chosen_logp, chosen_logp
    print(f"log pi(rejected) {rejected_logp:7.0f}   loss {LOSSES['negative_preference'](*logps)[0].item():7.0f}")

# %% [markdown]
# The paper has a figure of reward over KL as well, for networks and text. Our world is easier: in a table, training on
# one prompt changes nothing for the others, so no method can do harm elsewhere.
#
# ## 14. Rankings: Plackett-Luce
#
# The paper's appendix generalises from pairs to rankings. The **Plackett-Luce** model draws the best response by a
# softmax over rewards, then the next best from those that are left, and so on (Eq. 18):
#
# $$p(\tau \mid r) = \prod_{k=1}^{K} \frac{\exp r(y_{\tau(k)})}{\sum_{j \ge k} \exp r(y_{\tau(j)})},$$
#
# with $\tau(k)$ the response at rank $k$ of $K$. With two responses it is Bradley-Terry.

# %%
r, ranking = rewards[0], torch.tensor([2, 3, 1, 0])
by_hand = sum(r[ranking[k]] - r[ranking[k:]].logsumexp(dim=0) for k in range(4))
assert torch.isclose(by_hand, exact.plackett_luce(r, ranking))
assert torch.isclose(exact.plackett_luce(r, torch.tensor([2, 3])).exp(), exact.bradley_terry(r)[2, 3])
print(f"this is the likeliest order, and has probability {by_hand.exp():.3f}")

# %% [markdown]
# Each factor depends only on differences of rewards, so $Z(x)$ cancels again, and DPO on rankings (Eq. 20) has the same
# optimum. The next cell checks this for the first prompt.

# %%
rankings = torch.tensor(list(permutations(range(4))))
frequencies = exact.plackett_luce(r, rankings).exp()
assert torch.isclose(frequencies.sum(), torch.tensor(1.0))


def ranked_loss(logits):
    implied = beta * (logits.log_softmax(dim=0) - ref_probs[0].log())
    return -(frequencies * exact.plackett_luce(implied, rankings)).sum()


found = minimise(ranked_loss, ref_probs[0].log()).softmax(dim=0)
assert exact.total_variation(found, pi_star[0]) < 1e-5
exact.total_variation(found, pi_star[0])

# %% [markdown]
# ## What we saw
#
# - RLHF's objective has a closed-form optimum, $\pi^* = \pi_{\mathrm{ref}} \exp(r/\beta)/Z$.
# - Solved for the reward, this says that a policy is a reward up to one constant per prompt. The constant cancels in
#   every comparison.
# - So a policy can be fitted to comparisons directly. With more and more comparisons it approaches $\pi^*$. With
#   few, it is the policy that RLHF finds from the same comparisons, error included.
# - $\beta$ is the price of leaving the reference: the optimum's gap is $\mathrm{logit}(p)/\beta$. In the first steps of
#   plain gradient descent, a higher $\beta$ moves further nevertheless.
# - Where a preference never fails, no $\beta$ bounds DPO's policy, and none bounds RLHF's with an unregularised reward
#   model. A regularised reward model, or IPO's loss, does.
# - Log-probs are summed over tokens. The KL is an expectation under the policy. We compute it by a sum over the
#   vocabulary at each position, because estimates from single samples are biased or noisy.
#
# ## Exercises
#
# Each exercise has a specification, a stub and a check. The check says what is wrong. Try first; the solutions are in
# `solutions/01_paper_math.ipynb`.
#
# **1.** Write $\pi^*$ (Eq. 4) without looking back. About three lines.


# %%
def my_optimal_policy(ref_probs, rewards, beta):
    """(X, Y), (X, Y) and a positive number in; the optimal policy, (X, Y), rows adding up to one, out."""
    ...


exercises.check_optimal_policy(my_optimal_policy)


# %% [markdown]
# **2.** Write the DPO loss (Eq. 7), one value per pair, not their mean. It must stay finite where log-probs are very
# low. About three lines.


# %%
def my_dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    """Four tensors (B,) and a number in; the losses, (B,), out."""
    ...


exercises.check_dpo_loss(my_dpo_loss)


# %% [markdown]
# **3.** Write the KL of whole sequences from two models' logits, $\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})$: over the
# vocabulary it is a weighted sum, over the positions where the mask is 1 a plain one. About four lines.


# %%
def my_sequence_kl(policy_logits, ref_logits, mask):
    """(B, T, V), (B, T, V) and (B, T) in; one KL per sequence, (B,), out."""
    ...


exercises.check_sequence_kl(my_sequence_kl)


# %% [markdown]
# **4.** The first of two responses wins with probability $p$. At which log-ratio gap is the DPO loss
# smallest? One line.


# %%
def my_gap_at_optimum(p, beta):
    """Two numbers in; h(first) - h(second) at the optimum, a number, out."""
    ...


exercises.check_gap_at_optimum(my_gap_at_optimum)

# %% [markdown]
# **Next:** [02 · The loss and its gradient](02_loss_and_gradient.ipynb) goes from text to tokens, masks and log-probs,
# takes the gradient of the loss apart, and compares DPO with related losses.
