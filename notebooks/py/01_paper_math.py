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
# ([Rafailov et al., arXiv 2305.18290](https://arxiv.org/abs/2305.18290)) is then three things in a row: an equation,
# the code that computes it, and an assertion that it holds. Nothing is trained on text here, and nothing is sampled
# unless sampling is the point.
#
# **Needs.** High-school calculus, probabilities, a little PyTorch. No data, no model, no network.
#
# **Takes.** About ninety minutes to read. The cells run in under a minute on a CPU; a GPU would not help.

# %%
import math
from itertools import permutations

import torch
import torch.nn.functional as F

from dpo_kit.models.logprobs import exact_kl
from dpo_kit.workbook.exercises.paper_math import (
    check_dpo_loss,
    check_gap_at_optimum,
    check_optimal_policy,
    check_sequence_kl,
)
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
# nobody ever sees it; here we do, so that we can check what training finds.

# %%
PROMPTS = ["disk full", "checkout slow", "login errors"]
ANSWERS = ["wait", "restart", "roll back", "page"]
ref_probs = torch.tensor([[0.50, 0.30, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25], [0.10, 0.60, 0.20, 0.10]])
rewards = torch.tensor([[0.0, 1.0, 2.0, 1.5], [1.0, 0.5, -0.5, 0.0], [2.0, -1.0, 0.5, 1.0]])
assert torch.allclose(ref_probs.sum(dim=1), torch.ones(3))

# %% [markdown]
# How far is a policy from its reference? The **Kullback-Leibler divergence** counts it in nats:
#
# $$\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})
# = \sum_y \pi(y \mid x)\,\log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}$$
#
# It is an expectation under $\pi$, it is never negative, and it is zero only between equals.


# %%
def kl_by_hand(p, q):
    return (p * (p / q).log()).sum(dim=-1)


some_policy = torch.randn(3, 4).softmax(dim=-1)
assert torch.allclose(kl_by_hand(some_policy, ref_probs), exact.kl(some_policy, ref_probs))
kl_by_hand(some_policy, ref_probs)

# %% [markdown]
# ## 2. The null result first
#
# Before anything is trained, the policy *is* the reference. Then the KL is zero, the difference of log-ratios that DPO
# works with (the **margin**, defined in section 7) is zero, and its loss is $-\log \sigma(0) = \log 2$, with
# $\sigma(z) = 1/(1 + e^{-z})$ the sigmoid. A run whose first step shows anything else has its reference wrong.

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
# Reinforcement learning from human feedback (RLHF) asks for reward, at a price (Eq. 3 of the paper):
#
# $$J_\beta(\pi) = \mathbb{E}_{y \sim \pi(\cdot \mid x)}\,[\,r(x, y)\,]
# - \beta\,\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})$$
#
# $\beta > 0$ is the **price of one nat**: how much reward a policy must gain to be worth one nat of distance from the
# reference. A high $\beta$ is a high price.


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
# $Z(x)$, the **partition function**, makes the row add up to one. Mind where $\beta$ stands: it *divides* the reward.

# %%
beta = 0.5
weights = ref_probs * (rewards / beta).exp()
Z = weights.sum(dim=1, keepdim=True)
pi_star = weights / Z
assert torch.allclose(pi_star, exact.optimal_policy(ref_probs, rewards, beta))
pi_star

# %% [markdown]
# Why is it the best? Put $r = \beta \log(\pi^*/\pi_{\mathrm{ref}}) + \beta \log Z$ into $J_\beta$ and collect the
# logarithms. For *every* policy $\pi$,
#
# $$J_\beta(\pi) = \beta \log Z(x) - \beta\,\mathrm{KL}(\pi \,\|\, \pi^*).$$
#
# The first term knows nothing of $\pi$; the second is at most zero, and zero only at $\pi = \pi^*$. That is the whole
# proof. Here it is for a thousand random policies.

# %%
random_policies = torch.randn(1000, 3, 4).softmax(dim=-1)
left = objective_by_hand(random_policies, beta)
right = beta * Z.log().squeeze(1) - beta * kl_by_hand(random_policies, pi_star)
assert torch.allclose(left, right)
assert (left <= objective_by_hand(pi_star, beta)).all(), "no policy beats pi*"

# %% [markdown]
# And independently of any algebra: a numerical optimiser that sees only $J_\beta$ and its gradient arrives at the same
# table. We measure the distance of two policies as **total variation**, the most that the probability of any event can
# differ; it lies between 0 and 1.

# %%
found = minimise(lambda logits: -objective_by_hand(logits.softmax(dim=-1), beta).sum(), start=ref_probs.log())
distance = exact.total_variation(found.softmax(dim=-1), pi_star)
assert distance.max() < 1e-6
distance


# %% [markdown]
# The next figure should make you see two forces. At a high price the optimum hugs the reference; at a low one the best
# response takes nearly everything. (If you run this yourself, there is a slider.)


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
# At ten times $\beta$ the striped bars stay near the grey ones. At $\beta$ the dotted bars give most of the
# probability to the best response of each prompt, even where the reference hardly gave it. In numbers:

# %%
for price in (0.1, 0.5, 2.0, 20.0):
    optimum = exact.optimal_policy(ref_probs, rewards, price)
    nats, reward = exact.kl(optimum, ref_probs).mean(), (optimum * rewards).sum(dim=1).mean()
    print(f"beta {price:5.1f}   KL {nats:.4f}   expected reward {reward:.3f}")

# %% [markdown]
# A higher $\beta$ means *closer to the reference*. Many texts have it the other way round; section 9 shows why one may
# come to believe that.
#
# ## 5. The inversion: a policy is a reward
#
# Take logarithms of Eq. 4 and solve for the reward (Eq. 5):
#
# $$r(x, y) = \beta \log \frac{\pi^*(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)} + \beta \log Z(x)$$
#
# The first term is the **implicit reward** of a policy. The second is a number per prompt.

# %%
log_ratio = (pi_star / ref_probs).log()
recovered = beta * log_ratio + beta * Z.log()
assert torch.allclose(recovered, rewards)
assert torch.allclose(beta * log_ratio, exact.implicit_reward(pi_star, ref_probs, beta))
(recovered - rewards).abs().max()

# %% [markdown]
# What is lost is exactly one number per prompt: rewards that differ by a constant have the same optimum. So an implicit
# reward can rank the responses to one prompt. It cannot say which *prompt* was answered better.

# %%
shifted = rewards + torch.tensor([[5.0], [-3.0], [0.0]])
assert torch.allclose(exact.optimal_policy(ref_probs, shifted, beta), pi_star)
exact.implicit_reward(pi_star, ref_probs, beta)

# %% [markdown]
# ## 6. Preferences: Z cancels
#
# Nobody tells us rewards. People compare: of two responses, which is better? The **Bradley-Terry** model (Eq. 1) says
# that response $y_1$ is preferred to $y_2$ with probability
#
# $$p(y_1 \succ y_2 \mid x) = \sigma\big(r(x, y_1) - r(x, y_2)\big).$$
#
# Only a *difference* of rewards for the same prompt appears. Put in Eq. 5, and $\beta \log Z(x)$ is there twice with
# opposite signs.

# %%
implied = exact.implicit_reward(pi_star, ref_probs, beta)
from_rewards = torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])  # (X, Y, Y): row preferred to column
from_policy = torch.sigmoid(implied[:, :, None] - implied[:, None, :])  # no Z anywhere
assert torch.allclose(from_rewards, exact.bradley_terry(rewards))
assert torch.allclose(from_rewards, from_policy)
from_policy[0]

# %% [markdown]
# This is the step that makes DPO possible. $Z(x)$ is a sum over all responses, which for text nobody can compute, and
# it never has to be computed.
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
# Mind the minus sign: it is a negative log-likelihood, to be minimised.


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
# In an enumerable world the expectation is a sum over all pairs of responses, weighted by how often the first wins. So
# this is the loss on *infinitely many* preference pairs, with none drawn:


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
# Note that even the perfect policy has a loss well above zero: people who follow Bradley-Terry disagree, and no policy
# can be right about both of two contradicting verdicts.
#
# ## 8. Gradient descent on the DPO loss arrives at the optimum of RLHF
#
# Neither the reward nor $Z$ is given to the next cell. It sees comparisons and the reference, and walks downhill.


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
# The figure should show a straight fall on a logarithmic axis, down to where float64 ends.

# %%
shown = range(0, 2001, 20)
figure = lines(
    shown, {"worst prompt": distances[shown]}, log="y",
    title="DPO by gradient descent, infinitely many pairs", x_title="step", y_title="total variation to π*",
)  # fmt: skip
show(figure, "Distance to the optimal policy falls exponentially with the step and ends at rounding error.")

# %% [markdown]
# It does: the distance falls by a constant factor per step until only rounding is left. The optimum of the DPO loss
# *is* the optimum of RLHF, exactly, when preferences follow Bradley-Terry and there are enough of them.
#
# ### How many are enough?
#
# Now draw a finite number of pairs, and find the best policy for those. We repeat each size with sixteen draws.


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
# The figure should show what one more pair is worth: compare the points with the dashed line, which falls like one over
# the square root of the number of pairs.

# %%
rate = [by_size[-1] * math.sqrt(sizes[-1] / pairs) for pairs in sizes]
figure = lines(
    sizes, {"fitted to n pairs": by_size, "1/√n": rate}, log="xy", markers=True,
    title="Finite data", x_title="pairs per prompt", y_title="mean total variation to π*",
)  # fmt: skip
show(figure, "Mean distance to the optimal policy against pairs per prompt, close to a line of slope minus one half.")

# %% [markdown]
# Statistics, not optimisation, sets the distance: ten times closer costs a hundred times the pairs. And this is a world
# of four responses.
#
# ### Preferences that are always the same
#
# Suppose the first of two responses *always* wins. Then the loss has no minimum: it falls for ever as the gap
# $h(y_w) - h(y_l)$ grows, whatever $\beta$ is. The KL term of RLHF, which would have held the policy, is gone: it was
# used up in the derivation and acts only through preferences that are sometimes lost. Finite data does this all the
# time: a pair that was labelled once is a preference that is always the same.


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
# The figure should show three curves none of which levels off. The step axis is logarithmic.

# %%
steps = torch.logspace(0, 4, 60).round().long().unique()
figure = lines(
    steps, {f"β = {b}": gaps[steps] for b, gaps in runs.items()}, log="x",
    title="A preference that never fails: the gap grows without end", x_title="step", y_title="log-ratio gap",
)  # fmt: skip
show(figure, "The log-ratio gap grows with the logarithm of the step for each of three values of beta.")

# %% [markdown]
# Each tenfold of steps adds about $\log(10)/\beta$ once a curve has bent: slower for a high $\beta$, but without end.
# What stops a real run is the number of steps, the learning rate, and that one network serves all prompts.
#
# IPO (arXiv 2310.12036) was made for this case. Its loss is $(h(y_w) - h(y_l) - \tfrac{1}{2\beta})^2$, a well with a
# floor, so that even a preference that never fails asks for a finite gap.

# %%
for b in BETAS:
    gap = minimise(two_answers(1.0, b, "ipo"), START).item()
    assert math.isclose(gap, 1 / (2 * b), rel_tol=1e-6)
    print(f"beta {b}   gap at IPO's optimum {gap:.3f}")

# %% [markdown]
# ## 9. What beta does, exactly
#
# Two responses, the first preferred with probability $p$. Set the derivative of the expected loss to zero: the margin
# at the optimum is $\mathrm{logit}(p) = \log \tfrac{p}{1-p}$, so
#
# $$h(y_1) - h(y_2) = \frac{\mathrm{logit}(p)}{\beta}.$$

# %%
p = 0.8
for b in BETAS:
    gap = minimise(two_answers(p, b), START).item()
    assert math.isclose(gap, math.log(p / (1 - p)) / b, rel_tol=1e-4)
    print(f"beta {b:3.1f}   gap at the optimum {gap:.4f}")


# %% [markdown]
# Labels are noisy, too. If a verdict is turned round with probability $\varepsilon$, the first response is seen to win
# with probability $p' = (1-\varepsilon)\,p + \varepsilon\,(1-p)$, and the optimum moves to $\mathrm{logit}(p')/\beta$.
#
# The figure should make you see the well, and how its floor moves: towards zero with noise and with $\beta$, away from
# zero with a stronger preference.


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
# The well is wide and asymmetric: beyond the floor the loss rises slowly, so an optimiser that overshoots is hardly
# told so. Noise pulls the optimum in. That is not a defect of the fit but what the labels say.
#
# ### The other half of the story
#
# Why do people believe that a high $\beta$ moves the policy *further*? Look at the first step. The gradient of the loss
# with respect to the gap is $-\beta\,(p - \sigma(\beta \cdot \text{gap}))$; at the start it is
# $-\beta\,(p - \tfrac12)$, *proportional* to $\beta$. With plain gradient descent and a fixed learning rate a higher
# $\beta$ sets off faster, towards a nearer goal.

# %%
lr = 0.2
runs = {b: descend(two_answers(p, b), START, lr=lr, steps=10_000).flatten() for b in BETAS}
for b, gaps in runs.items():
    assert math.isclose(gaps[1], lr * b * (p - 0.5), rel_tol=1e-9), "the first step grows with beta"
    print(f"beta {b:3.1f}   first step {gaps[1]:.4f}   after all steps {gaps[-1]:.4f}")

# %% [markdown]
# The figure should show the curves crossing: the order at the left is the reverse of the order at the right.

# %%
figure = lines(
    steps, {f"β = {b}": gaps[steps] for b, gaps in runs.items()}, log="xy",
    title="Early, a high β is ahead; at the end it has gone least far", x_title="step", y_title="log-ratio gap",
)  # fmt: skip
show(figure, "Log-ratio gap over steps for three betas: the highest beta starts fastest and ends lowest.")

# %% [markdown]
# Whoever stops early sees "higher beta moves further"; whoever waits sees the truth of the optimum. Adam, which
# everybody uses, divides the gradient by its own size, so at first $\beta$ hardly matters at all:

# %%
for b in BETAS:
    gaps = descend(two_answers(p, b), START, lr=lr, steps=1, optimiser="adam").flatten()
    assert math.isclose(gaps[1], lr, rel_tol=1e-5)
    print(f"beta {b}   first step of Adam {gaps[1]:.4f}")

# %% [markdown]
# ## 10. KL: two directions, three estimators
#
# $\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})$, with the policy in front, is called the **reverse** KL, and
# $\mathrm{KL}(\pi_{\mathrm{ref}} \,\|\, \pi)$ the **forward** one. They differ in what they forgive. Take a target with
# two humps and a policy that can only make one: `hump` has two numbers, its centre and the logarithm of its width.

# %%
grid = torch.linspace(-6, 6, 241)


def hump(theta):
    centre, log_width = theta
    return (-0.5 * ((grid - centre) / log_width.exp()).square()).softmax(dim=-1)


# %%
target = 0.6 * hump(torch.tensor([-2.0, -0.5])) + 0.4 * hump(torch.tensor([2.5, -0.5]))
start = torch.tensor([-1.0, 0.5])
reverse = hump(minimise(lambda theta: exact.kl(hump(theta), target), start))
forward = hump(minimise(lambda theta: exact.kl(target, hump(theta)), start))
for name, probs in {"target": target, "reverse": reverse, "forward": forward}.items():
    print(f"{name:7s}   probability right of zero {probs[grid > 0].sum():.2f}")

# %% [markdown]
# The figure should show the reverse fit sitting on one hump and the forward fit stretched over both.

# %%
figure = lines(
    grid, {"target": target, "best reverse KL": reverse, "best forward KL": forward},
    title="Reverse KL picks, forward KL covers", x_title="y", y_title="probability",
)  # fmt: skip
show(figure, "A two-humped target, a reverse-KL fit on its larger hump, and a wide forward-KL fit over both.")

# %% [markdown]
# The reverse KL ignores what the policy never does; the forward KL punishes every response of the target that the
# policy cannot give. SFT minimises a forward KL to its data; RLHF and DPO are priced in the reverse one. Variants of
# DPO for other divergences are `f_dpo_loss` in `dpo_kit.workbook.theory.losses`.
#
# ### Estimating it
#
# For text the KL cannot be summed over responses, only sampled. With $y \sim \pi$ and
# $\rho = \pi_{\mathrm{ref}}(y \mid x)/\pi(y \mid x)$ three estimators are in use
# ([Schulman, 2020](http://joschu.net/blog/kl-approx.html)):
#
# $$k_1 = -\log \rho, \qquad k_2 = \tfrac12 (\log \rho)^2, \qquad k_3 = \rho - 1 - \log \rho.$$
#
# Because our policies can be enumerated, bias and spread of one sample are sums, too. The policy is a bell curve, the
# reference the same curve moved sideways; moving it further makes the KL larger.

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
# $k_1$ and $k_3$ are unbiased everywhere, $k_2$ only near zero. The figure should show where the spread of $k_3$, small
# at the left, overtakes that of $k_1$.

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
# Near the reference $k_2$ and $k_3$ are equally quiet, and $k_3$ is the one without bias. Far away $k_3$ is by far
# the loudest, because $\rho$ is enormous on rare samples. In a measurement that looks deceptively harmless: the rare
# samples are mostly not in it. Here are two thousand estimates from 256 samples each, at the largest KL of the
# figure.

# %%
shift = shifts[-1]
drawn = torch.multinomial(bell(0.0).exp(), 2000 * 256, replacement=True).reshape(2000, 256)
for k in (k1, k2, k3):
    estimates = k(bell(0.0)[drawn], bell(shift)[drawn]).mean(dim=1)
    exact_sd = exact_statistics(k, shift)[1] / math.sqrt(256)
    print(f"{k.__name__}   mean {estimates.mean():6.3f}   median {estimates.median():6.3f}", end="   ")
    print(f"standard deviation {estimates.std():.3f}, exactly {exact_sd:.3f}")

# %% [markdown]
# $k_3$ is unbiased, and yet its median lies below the truth and its measured spread below the exact one: an average
# that is right only thanks to draws that one hardly ever sees. The rest of this workbook therefore sums over the
# vocabulary instead (`exact_kl`), as the next section does.
#
# ## 11. Sequences
#
# A response is not one symbol but a sequence of **tokens** $y = (y_1, \dots, y_T)$, and the policy is
# **autoregressive**: it gives the probability of each token after the ones before it. Then
#
# $$\log \pi(y \mid x) = \sum_{t=1}^{T} \log \pi(y_t \mid x, y_{<t}).$$
#
# Our sequences use two letters and a stop symbol, written as a full stop. The policy is a table with one row of
# **logits** (unnormalised log-probs) per prefix, and one column per symbol.

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
# The log-probs are *summed*. Their exponentials are then probabilities of whole responses and add up to one. With the
# *average* per token they do not: it belongs to no distribution, and the derivation above does not hold for it.

# %%
summed = world.logps(ref_table)
averaged = summed / world.lengths
assert torch.isclose(summed.exp().sum(), torch.tensor(1.0))
print(f"adding up all responses: {summed.exp().sum():.3f} if summed, {averaged.exp().sum():.3f} if averaged")

# %% [markdown]
# Reward the letter a and charge for length. The optimum of section 4 is a distribution over whole sequences, and it,
# too, is a table of next-token probabilities. DPO trained token by token finds it.

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
# The condition "that the policy itself has reached" matters. Log-ratios on the chosen and rejected responses of a data
# set, which every DPO run logs, are no KL: those responses came from elsewhere. Here they come from the reference, as
# they mostly do in practice: two samples, of which the better one is chosen.

# %%
h, ref = world.logps(table) - seq_ref, seq_ref.exp()
pairs = 2 * ref[:, None] * ref[None, :] * seq_wins  # probability that (row, column) is (chosen, rejected)
pairs = pairs / pairs.sum()
chosen, rejected = (pairs.sum(dim=1) * h).sum(), (pairs.sum(dim=0) * h).sum()
assert torch.isclose((chosen + rejected) / 2, -exact.kl(ref, probs))
print(f"mean log-ratio: chosen {chosen:+.3f}, rejected {rejected:+.3f}; the KL is {on_policy:.3f}")

# %% [markdown]
# Not only is neither number the KL: over both halves the mean log-ratio is *minus the forward* KL, so it is never
# positive. Here even the chosen responses have become less likely on average, at the exact optimum, because probability
# has moved to responses that are rare in the data. A falling chosen log-prob is not by itself a sign of failure.

# %% [markdown]
# ## 12. The road that DPO replaces
#
# **InstructGPT** ([arXiv 2203.02155](https://arxiv.org/abs/2203.02155)) made the three-stage road standard: fine-tune
# on demonstrations (SFT); fit a **reward model** to comparisons under Bradley-Terry; then optimise the policy against
# that model with reinforcement learning (proximal policy optimisation, PPO) and a KL penalty to the SFT model.
#
# **Constitutional AI** ([arXiv 2212.08073](https://arxiv.org/abs/2212.08073)) keeps the road and changes who judges:
# a model criticises and revises its own answers by written principles, and a model, not a person, picks the better of
# two. DPO does not care: it needs pairs, whoever made them.
#
# We walk both roads on the same data. Stage one: SFT is maximum likelihood on demonstrations, which in a table means
# counting.

# %%
generator = torch.Generator().manual_seed(5)
demonstrations = torch.multinomial(ref_probs, 5000, replacement=True, generator=generator)
shares = F.one_hot(demonstrations).double().mean(dim=1)
sft_logits = minimise(lambda logits: -(shares * logits.log_softmax(-1)).sum(), torch.zeros(3, 4))
sft_probs = sft_logits.softmax(dim=-1)
assert torch.allclose(sft_probs, shares, atol=1e-6)
sft_probs

# %% [markdown]
# Stage two: comparisons, and a reward model $\hat r$ fitted to them by maximum likelihood (Eq. 2). Its zero is
# arbitrary, one constant per prompt, so we centre it before comparing with the truth.

# %%
wins = exact.sample_wins(preferences, 1000, generator)
reward_model = minimise(lambda r: exact.expected_reward_loss(r, wins).sum(), torch.zeros(3, 4))
error = (reward_model - rewards) - (reward_model - rewards).mean(dim=1, keepdim=True)
print(f"largest error of the reward model: {error.abs().max():.3f}")

# %% [markdown]
# Stage three: maximise $J_\beta$ with $\hat r$ in the place of $r$. DPO skips stages two and three as separate steps
# and fits the policy to the same comparisons directly. Do both roads meet?


# %%
def minus_objective(logits):
    return -exact.objective(logits.softmax(-1), sft_probs, reward_model, beta).sum()


rlhf = minimise(minus_objective, sft_probs.log()).softmax(dim=-1)
dpo = minimise(dpo_on(wins, beta, sft_probs), sft_probs.log()).softmax(dim=-1)
assert exact.total_variation(rlhf, dpo).max() < 1e-4
print("between the roads:", exact.total_variation(rlhf, dpo))
print("to the true pi*:  ", exact.total_variation(dpo, pi_star))

# %% [markdown]
# They meet, and not only in the limit: on the *same finite data*, in the same wrong place. The distance to the true
# optimum is what the data leaves open, and both roads inherit it. (Both policies here are tables that can express any
# reward. With networks the roads part, since a reward model and a policy generalise differently.)
#
# ### What each costs
#
# Stage three was solved above with exact gradients. With text the expectation under the policy must be sampled,
# afresh at every step, since the policy moves. REINFORCE, the plainest policy gradient, does that. All runs below use
# one learning rate; we count the responses that must be sampled, and scored by the reward model, until the mean
# distance is below one percent.

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
# The figure should show that sampling costs samples, not necessarily steps.

# %%
shown = range(0, rl_steps + 1, 3)
figure = lines(
    shown, {name: distances[shown] for name, distances in by_step.items()}, log="y",
    title="Two roads to one policy", x_title="step", y_title="distance to the meeting point",
)  # fmt: skip
show(figure, "Distance to the common optimum over steps, for DPO and for REINFORCE with few and many samples.")

# %% [markdown]
# REINFORCE is not slower here: step for step it is ahead of DPO at this learning rate, with few samples only more
# ragged. Its price is in the last column, responses that a language model would have to write one token at a time, and
# in the reward model that must score them. In exchange it tries responses of its own, while DPO learns only about the
# pairs it was given. (The noise fades near the optimum because there every response scores the same: reward minus
# $\beta$ log-ratio is $\beta \log Z$.)
#
# ## 13. The frontier
#
# How much reward can be had at a given distance from the reference? The optima for all $\beta$ trace the best possible
# curve. We place four ways of training on it: **DPO** on a finite number of pairs; **policy gradient** on the true
# reward, which no one has in practice, run until it stops; **SFT on chosen**, which imitates the winners; and
# **unlikelihood**, which raises $\log \pi(y_w)$ and lowers $\log \pi(y_l)$, with no reference at all.


# %%
def place(probs):
    """KL and true reward of policies (..., X, Y), averaged over prompts."""
    return exact.kl(probs, ref_probs).mean(-1), (probs * rewards).sum(-1).mean(-1)


prices = torch.logspace(-1.7, 1.3, 200)
curve = place(torch.stack([exact.optimal_policy(ref_probs, rewards, price) for price in prices]))

# %% [markdown]
# All methods but policy gradient see the same data, drawn thirty-two times over, so that no reading hangs on one lucky
# draw.

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
# $J_\beta$ gives a ceiling for every policy: at its KL, no more reward is possible than the lowest of the lines
# $\beta\,\mathrm{KL} + J_\beta(\pi^*_\beta)$. What a method leaves below it, it wastes.


# %%
def shortfall(nats, reward):
    ceiling = (prices * nats.unsqueeze(-1) + curve[1] - prices * curve[0]).amin(dim=-1)
    return ceiling - reward


for name, (nats, reward) in places.items():
    wasted = shortfall(nats, reward)
    assert (wasted > -1e-6).all(), "no method is above the frontier"
    print(f"{name}\n   KL    ", nats.mean(dim=1), "\n   wasted", wasted.mean(dim=1))

# %%
for name, (nats, reward) in list(places.items())[1:]:
    wasted = shortfall(nats, reward)
    error = wasted.std(dim=1) / math.sqrt(DRAWS)
    print(f"{name:14s} largest waste {wasted.mean(dim=1).max():.3f}, standard error at most {error.max():.3f}")

# %% [markdown]
# The figure should make you see who wastes distance: at equal KL, how far below the grey curve does a method lie?
# Points of the first two methods are different $\beta$, those of the last two are steps of training; all are means
# over draws.

# %%
means = {name: (nats.mean(dim=1), reward.mean(dim=1)) for name, (nats, reward) in places.items()}
show(
    frontier(curve, means),
    "Expected reward over KL: policy gradient on the best curve, DPO and unlikelihood close below, SFT lower.",
)

# %% [markdown]
# Policy gradient on the true reward lies on the curve, as section 4 says it must. DPO lies below it by what so few
# pairs cannot tell. SFT on chosen wastes most once it has gone some way, and stops at the mixture of winners,
# wherever that is: it has no dial.
#
# Unlikelihood is a surprise, and worth being honest about: in this world it does as well as DPO, as far as the
# standard errors can tell. In a table its gradient is the same at every step, so it walks along $\pi_{\mathrm{ref}}
# \exp(t \cdot \text{net wins})$, with $t$ the time walked: a curve of the same form as $\pi^*$. What it lacks is an
# end. Its loss has no floor, and only the number of steps decides where it stands:

# %%
chosen_logp = torch.tensor([-1.0])
for rejected_logp in (-10.0, -100.0, -1000.0):
    logps = chosen_logp, torch.tensor([rejected_logp]), chosen_logp, chosen_logp
    print(f"log pi(rejected) {rejected_logp:7.0f}   loss {LOSSES['negative_preference'](*logps)[0].item():7.0f}")

# %% [markdown]
# This is the paper's reward-KL figure in miniature, and kinder than the original. In a table nothing generalises, so
# nothing goes wrong in one place because of training in another.
#
# ## 14. Rankings: Plackett-Luce
#
# The paper's appendix goes from pairs to rankings. **Plackett-Luce** draws the best response by a softmax over rewards,
# then the next best from those left, and so on (Eq. 18):
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
# The normaliser of each factor again contains only differences of rewards, so $Z(x)$ cancels again, and DPO on rankings
# (Eq. 20) has the same optimum.

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
# - Turned round, a policy is a reward up to a constant per prompt, and the constant cancels in every comparison.
# - So a policy can be fitted to comparisons directly. With enough of them it is $\pi^*$; with few, it is exactly as
#   wrong as a reward model would have been.
# - $\beta$ is the price of leaving the reference: the optimum's gap is $\mathrm{logit}(p)/\beta$. The first steps of
#   plain gradient descent say the opposite.
# - No $\beta$ bounds the policy where preferences never fail.
# - Log-probs are summed over tokens. The KL is an expectation under the policy, best summed over the vocabulary.
#
# ## Exercises
#
# Each is a specification, a stub and a check. The check tells what is wrong. Solutions are in
# `solutions/01_paper_math.ipynb`; try first.
#
# **1.** Write $\pi^*$ (Eq. 4) without looking back. About three lines.


# %%
def my_optimal_policy(ref_probs, rewards, beta):
    """(X, Y), (X, Y) and a positive number in; the optimal policy, (X, Y), rows adding up to one, out."""
    ...


check_optimal_policy(my_optimal_policy)


# %% [markdown]
# **2.** Write the DPO loss (Eq. 7), one value per pair, not their mean. It must stay finite where log-probs are very
# low. About three lines.


# %%
def my_dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    """Four tensors (B,) and a number in; the losses, (B,), out."""
    ...


check_dpo_loss(my_dpo_loss)


# %% [markdown]
# **3.** Write the KL of whole sequences from two models' logits, $\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})$: over the
# vocabulary it is a weighted sum, over the positions where the mask is 1 a plain one. About four lines.


# %%
def my_sequence_kl(policy_logits, ref_logits, mask):
    """(B, T, V), (B, T, V) and (B, T) in; one KL per sequence, (B,), out."""
    ...


check_sequence_kl(my_sequence_kl)


# %% [markdown]
# **4.** The first of two responses wins with probability $p$. Which log-ratio gap does DPO arrive at? One line.


# %%
def my_gap_at_optimum(p, beta):
    """Two numbers in; h(first) - h(second) at the optimum, a number, out."""
    ...


check_gap_at_optimum(my_gap_at_optimum)

# %% [markdown]
# **Next:** `02_loss_and_gradient` goes from text to tokens, masks and log-probs, takes the gradient of the loss apart,
# and meets its relatives.
