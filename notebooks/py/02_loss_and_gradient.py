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
# # 02 · The loss and its gradient
#
# **Question.** What exactly is computed between a pair of texts and a changed weight, and what does it do to the model?
#
# **Method.** A real language model, so small that everything can be looked at. We write the whole of DPO ourselves,
# compare it with TRL's `DPOTrainer` step by step, and then ask what the loss rewards and what it does not see.
#
# **Needs.** The loss and the reward of chapter 01, a little PyTorch. The model is shipped; nothing is downloaded.
#
# **Takes.** About ninety minutes to read. The cells run in a minute and a half on two CPU cores; all of them use the
# CPU, so a GPU changes nothing.

# %%
from dpo_kit.workbook import from_scratch  # isort: skip  (first: dpo_kit switches telemetry off before the libraries load)
import inspect
import math
import tempfile

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import get_peft_model
from transformers import PrinterCallback, logging
from trl import DPOConfig, DPOTrainer

from dpo_kit.models.generation import Sampling, generate
from dpo_kit.models.loading import Arms, load_base, lora
from dpo_kit.models.logprobs import on_policy_kl
from dpo_kit.models.tokens import pad_completions, prompt_ids
from dpo_kit.preferences.judges import by_score
from dpo_kit.preferences.sampling import make_pairs, sample_twice
from dpo_kit.profiles import load_profile
from dpo_kit.training.trainers import common_arguments
from dpo_kit.triage import reports, rubric
from dpo_kit.workbook.exercises import loss_and_gradient as exercises
from dpo_kit.workbook.figures.loss import before_and_after, loss_and_pull, loss_with_pull, pulls_on_pairs
from dpo_kit.workbook.figures.theory import Slider, explore, lines
from dpo_kit.workbook.show import show
from dpo_kit.workbook.theory import descent, exact
from dpo_kit.workbook.theory.losses import LOSSES, dpo_loss, ipo_loss, kto_loss, orpo_loss, simpo_loss
from dpo_kit.workbook.token_view import show_mask, show_values

# %% [markdown]
# ## 1. A model and pairs
#
# The model has about two million weights and was trained on the archive of a made-up company, whose people triage
# incidents carelessly. On it sits a fresh **LoRA adapter**: small matrices beside the frozen ones, the only weights
# that will be trained. One matrix of each pair starts at zero, so at first the adapter changes nothing.
#
# $\beta$ and the rest are set here. Everything is in 32-bit floats and not quantised, so that equalities can be tested.

# %%
logging.disable_progress_bar()
BETA, LEARNING_RATE, STEPS, BATCH_SIZE = 0.1, 1e-3, 30, 8
profile = load_profile(
    "tiny",
    model={"quantize": "none"},
    pairs={"max_new_tokens": 80, "batch_size": 138},
    dpo={"beta": BETA, "learning_rate": LEARNING_RATE, "batch_size": BATCH_SIZE},
)


# %%
def fresh_policy():
    """The base model with an adapter that does nothing yet; the same one each time."""
    base, tokenizer = load_base(profile)
    torch.manual_seed(0)
    return get_peft_model(base.to("cpu"), lora(profile)), tokenizer


policy, tokenizer = fresh_policy()
trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
print(f"{trainable:,} trainable weights of {sum(p.numel() for p in policy.parameters()):,}")

# %% [markdown]
# The base model answers each prompt twice, at random, and an exact rubric judges which answer is better. In this world
# the truth can be computed, so the verdicts are right.

# %%
prompts = reports.draw_prompts(276, "train", "loss", seed=0)
judge = by_score(rubric.overall, "rubric")
answers = sample_twice(Arms(policy, tokenizer), "base", prompts, profile.pairs, seed=0)
decided = make_pairs(prompts, *answers, judge)
decided = [pair for pair in decided if pair.chosen.stopped and pair.rejected.stopped]  # one cut off has no EOS
pairs = decided[: STEPS * BATCH_SIZE]
assert len(pairs) == STEPS * BATCH_SIZE
print(f"{len(decided)} of {len(prompts)} prompts gave a pair, {len(pairs)} are used")

# %%
pair = pairs[1]
print(pair.prompt.text)
print(f"\nchosen:   {pair.chosen.text}\n\nrejected: {pair.rejected.text}\n\nscores {pair.verdict.reason}")

# %% [markdown]
# ## 2. From text to tokens
#
# A model reads **tokens**, numbered pieces of text. The prompt is wrapped in markers that say who speaks; what follows
# the last marker is the answer, the **completion**. Each completion must end in the end-of-sequence token **EOS**, here
# `<|end|>`: a model that never sees it in training never learns to stop.


# %%
def encode(pair):
    prompt = prompt_ids(tokenizer, pair.prompt)
    chosen, rejected = (tokenizer(side.text)["input_ids"] for side in (pair.chosen, pair.rejected))
    return prompt, [*chosen, tokenizer.eos_token_id], [*rejected, tokenizer.eos_token_id]


prompt, chosen, rejected = encode(pair)
assert (prompt, chosen, rejected) == from_scratch.encode(tokenizer, pair)
print(f"{len(prompt)} prompt tokens, {len(chosen)} chosen, {len(rejected)} rejected\n\n{chosen}")

# %% [markdown]
# ### The mask
#
# A batch of $B$ pairs is one tensor of $2B$ rows, the chosen half first. Rows are padded on the right to the common
# length $T$. The **completion mask** is one on completion tokens, EOS included, and zero on the prompt and the padding.

# %%
rows = [prompt + chosen, prompt + rejected]
width = max(map(len, rows))
by_hand = torch.tensor([[0] * len(prompt) + [1] * (len(r) - len(prompt)) + [0] * (width - len(r)) for r in rows])
batch = from_scratch.collate(tokenizer, [pair])
assert torch.equal(by_hand.bool(), batch.completion_mask)
batch.input_ids.shape

# %% [markdown]
# What a mask selects should be seen once with one's own eyes. Selected tokens are blue, bold and underlined; the
# shorter row shows its padding at the end.


# %%
def words(ids):
    return [tokenizer.decode([i]) for i in ids]


for ids, mask in zip(batch.input_ids, batch.completion_mask, strict=True):
    show_mask(words(ids), mask)

# %% [markdown]
# The border is exact: no token of the prompt is selected, each answer is whole, and EOS is in.
#
# ## 3. Log-probs
#
# The **policy** $\pi_\theta$, with weights $\theta$, gives at each position a score for each of the $V$ tokens of its
# vocabulary, the **logits**. The log-prob of the answer $y$ to the prompt $x$ is the sum of its tokens' log-probs:
#
# $$\log \pi_\theta(y \mid x) = \sum_{t \in \text{completion}} \log \pi_\theta(y_t \mid x, y_{<t})$$
#
# In code: normalise with `log_softmax`, **gather** the entry of the token that is there, mask, sum. The logits at a
# position predict the *next* token, so they are used one position earlier.


# %%
def completion_logps(logits, input_ids, mask):
    logps = logits[:, :-1].log_softmax(dim=-1)  # (N, T - 1, V): what each position says about the next token
    labels = input_ids[:, 1:].unsqueeze(-1)
    picked = logps.gather(-1, labels).squeeze(-1)  # (N, T - 1)
    return (picked * mask[:, 1:]).sum(dim=1)


# %%
batch = from_scratch.collate(tokenizer, pairs[:BATCH_SIZE])
with torch.no_grad():
    logits = policy(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
logps = completion_logps(logits, batch.input_ids, batch.completion_mask)
assert torch.equal(logps, from_scratch.completion_logps(logits, batch.input_ids, batch.completion_mask))
print(f"logits {tuple(logits.shape)}, log-probs {tuple(logps.shape)}\n{logps}")

# %% [markdown]
# An independent check: `cross_entropy`, which every language model is trained with, is minus the same number when the
# labels outside the mask are ignored.

# %%
labels = batch.input_ids.masked_fill(~batch.completion_mask, -100)
entropies = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
assert torch.allclose(-entropies.sum(dim=1), logps, atol=1e-4)

# %% [markdown]
# Two things must not matter: how much padding a row carries, and which rows stand beside it.

# %%
alone = from_scratch.collate(tokenizer, pairs[:1])
with torch.no_grad():
    together = torch.stack([side[0] for side in logps.chunk(2)])
    apart = torch.stack([side[0] for side in from_scratch.pair_logps(policy, alone)])
assert torch.allclose(together, apart, atol=1e-4)
print(
    f"width {batch.input_ids.shape[1]} and {alone.input_ids.shape[1]}, difference {(together - apart).abs().max():.1e}"
)

# %% [markdown]
# ## 4. The loss, and ln 2
#
# $\pi_{\mathrm{ref}}$ is the **reference**, the model we start from, frozen. Write $y_w$ for the chosen answer and
# $y_l$ for the rejected one. The **log-ratio** of an answer is $h(y) = \log \pi_\theta(y \mid x) - \log
# \pi_{\mathrm{ref}}(y \mid x)$, its **reward** $\beta\,h(y)$, and the **margin** $m = \beta\,(h(y_w) - h(y_l))$. With
# the sigmoid $\sigma(z) = 1/(1 + e^{-z})$ the loss of a pair is
#
# $$L = -\log \sigma(m).$$


# %%
def dpo_by_hand(chosen, rejected, ref_chosen, ref_rejected):
    margin = BETA * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -F.logsigmoid(margin)


some_logps = -40 * torch.rand(4, BATCH_SIZE, generator=torch.Generator().manual_seed(0))  # made up
assert torch.allclose(dpo_by_hand(*some_logps), dpo_loss(*some_logps, beta=BETA)[0])

# %% [markdown]
# The null result first. The adapter does nothing yet, so policy and reference agree: every margin is zero, every loss
# is $-\log \sigma(0) = \ln 2$. If a run begins anywhere else, its reference is wrong.

# %%
with policy.disable_adapter():
    reference_now = from_scratch.score(policy, [batch])[0]
losses = dpo_by_hand(*from_scratch.score(policy, [batch])[0], *reference_now)
assert torch.allclose(losses, torch.tensor(math.log(2)))
print(f"ln 2 = {math.log(2):.6f}\n{losses}")

# %% [markdown]
# ## 5. The gradient
#
# Since $\frac{d}{dz} \log \sigma(z) = \sigma(-z)$, the loss falls with the margin at the rate $\sigma(-m)$, and by the
# chain rule
#
# $$\nabla_\theta L = -\beta\, \underbrace{\sigma(-m)}_{\text{weight}}\,
# \big[\nabla_\theta \log \pi_\theta(y_w \mid x) - \nabla_\theta \log \pi_\theta(y_l \mid x)\big].$$
#
# (This is the gradient in section 4 of the paper.) The bracket says *where*: towards the chosen answer, away from the
# rejected one. The weight says *how much*: one for a pair in hopelessly wrong order, a half at the start, zero for one
# that is far on the right side. First on made-up log-probs, against automatic differentiation:

# %%
chosen, rejected, *ref = some_logps.double()
leaf = chosen.clone().requires_grad_()
(autograd,) = torch.autograd.grad(dpo_by_hand(leaf, rejected, *ref).sum(), leaf)
margins = BETA * ((chosen - ref[0]) - (rejected - ref[1]))
formula = -BETA * torch.sigmoid(-margins)
assert torch.allclose(formula, autograd, rtol=1e-12)

# %% [markdown]
# And against **finite differences**, which know nothing of the chain rule: move one log-prob a little up and a little
# down, and divide.

# %%
nudge = 1e-5
up, down = (dpo_by_hand(chosen + d, rejected, *ref) for d in (nudge, -nudge))
finite = (up - down) / (2 * nudge)
assert torch.allclose(formula, finite, atol=1e-10)
print(
    f"largest difference: autograd {(formula - autograd).abs().max():.1e}, finite {(formula - finite).abs().max():.1e}"
)

# %% [markdown]
# One floor below are the logits. With $e_{y_t}$ the vector that is one at the token and zero elsewhere,
# $\nabla_{\text{logits}} \log \pi(y_t) = e_{y_t} - \pi(\cdot)$: raise the token that is there, lower all others in
# proportion to their probability.

# %%
leaf = torch.randn(7, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
(autograd,) = torch.autograd.grad(leaf.log_softmax(0)[2], leaf)
by_hand = F.one_hot(torch.tensor(2), 7) - leaf.detach().softmax(0)
assert torch.allclose(by_hand, autograd)

# %% [markdown]
# ## 6. The training loop
#
# That is all of DPO. The loop below has what a real trainer has, AdamW, a learning rate that falls to zero, gradients
# clipped at norm one, and nothing else. The reference does not change, so its log-probs are computed once, beforehand.

# %%
batches = [from_scratch.collate(tokenizer, pairs[i : i + BATCH_SIZE]) for i in range(0, len(pairs), BATCH_SIZE)]
with policy.disable_adapter():
    reference = from_scratch.score(policy, batches)
start = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


# %%
def train_dpo(policy, batches, reference, lr):
    """DPO from scratch; yields loss and mean log-ratios of each step."""
    weights = [p for p in policy.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    for step, (batch, ref) in enumerate(zip(batches, reference, strict=True)):
        optimiser.param_groups[0]["lr"] = lr * (1 - step / len(batches))
        chosen, rejected = from_scratch.pair_logps(policy, batch)  # one forward pass for both halves
        loss = dpo_by_hand(chosen, rejected, *ref).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        h_chosen, h_rejected = (chosen - ref[0]).mean().item(), (rejected - ref[1]).mean().item()
        yield {"loss": loss.item(), "h_chosen": h_chosen, "h_rejected": h_rejected}


# %%
ours = list(train_dpo(policy, batches, reference, LEARNING_RATE))
print(f"{len(ours)} steps, loss {ours[0]['loss']:.4f} at the first and {ours[-1]['loss']:.4f} at the last")

# %% [markdown]
# ## 7. The same in TRL
#
# Now the library that everybody uses: the same base, the same start of the adapter, the same pairs in the same order.

# %%
scratch = tempfile.TemporaryDirectory()
settings = common_arguments(profile, profile.dpo, scratch.name, seed=0) | {
    "use_cpu": True,
    "train_sampling_strategy": "sequential",
    "lr_scheduler_type": "linear",
}
trainer = DPOTrainer(
    load_base(profile)[0].to("cpu"),
    args=DPOConfig(**settings, beta=BETA),
    train_dataset=Dataset.from_list([pair.to_trl() for pair in pairs]),
    processing_class=tokenizer,
    peft_config=lora(profile),
)
trainer.remove_callback(PrinterCallback)

# %% [markdown]
# Before a comparison, make sure that there is one: TRL's tokens are ours, its adapter starts where ours did.

# %%
row = trainer.train_dataset[1]
assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == encode(pairs[1])
theirs = dict(trainer.model.named_parameters())
assert all(torch.equal(weight, theirs[name]) for name, weight in start.items())

# %%
trainer.train()
log = [row for row in trainer.state.log_history if "rewards/margins" in row]
differences = [abs(mine["loss"] - row["loss"]) for mine, row in zip(ours, log, strict=True)]
assert len(log) >= 20
assert max(differences) < 1e-5, "step for step the same loss"
print(f"{len(log)} steps, largest difference of a loss {max(differences):.1e}")

# %% [markdown]
# The figure should show one curve, drawn twice.

# %%
steps = range(1, STEPS + 1)
show(
    lines(
        steps, {"from scratch": [row["loss"] for row in ours], "TRL": [row["loss"] for row in log]},
        title="The loss of each batch, before its step", x_title="step", y_title="loss",
    ),
    "The loss per step of the loop written here and of TRL; the two curves cannot be told apart.",
)  # fmt: skip

# %% [markdown]
# It does: not only the first loss agrees but each one after it, so gradients, clipping, optimiser and schedule agree as
# well. What the library adds is everything around the method, not the method. The ragged line is no instability: each
# batch is new, and its pairs are easier or harder.
#
# TRL also logs rewards and margins. They are ours:

# %%
margin = [BETA * (row["h_chosen"] - row["h_rejected"]) for row in ours]
assert all(abs(m - row["rewards/margins"]) < 1e-4 for m, row in zip(margin, log, strict=True))
print(f"margin of the last batch: ours {margin[-1]:.4f}, TRL's {log[-1]['rewards/margins']:.4f}")

# %% [markdown]
# ## 8. Which pairs pull hardest?
#
# Here are the margins of all pairs under the trained policy. The weight $\sigma(-m)$ is what each would pull with in
# the next step.


# %%
def joined(scores):
    """Chosen and rejected log-probs of all batches as two long tensors."""
    return [torch.cat(side) for side in zip(*scores, strict=True)]


def log_ratios(model):
    """h(y_w) and h(y_l) of every pair."""
    return [now - then for now, then in zip(joined(from_scratch.score(model, batches)), joined(reference), strict=True)]


h_w, h_l = log_ratios(policy)
m = BETA * (h_w - h_l)
weights = torch.sigmoid(-m)
print(f"{(m < 0).sum()} of {len(m)} pairs are in the wrong order")

# %% [markdown]
# The figure should show the sigmoid, and on its high side the wrongly ordered pairs.

# %%
show(
    pulls_on_pairs(m, weights, "The weight of each pair", "weight σ(−m)"),
    "Weight over margin for every pair: crosses for wrongly ordered pairs lie above one half, circles below.",
)

# %% [markdown]
# Every pair above one half is in the wrong order. This is the pair with the largest weight:

# %%
hardest = int(weights.argmax())
print(f"weight {weights[hardest]:.2f}, margin {m[hardest]:.2f}\n\nchosen:   {pairs[hardest].chosen.text}\n")
print(f"rejected: {pairs[hardest].rejected.text}\n\nscores {pairs[hardest].verdict.reason}")

# %% [markdown]
# The weight is one factor of the pull; the other is the length of the bracket, the difference of two gradients. Does
# the formula hold for all the adapter's weights at once, and do wrong pairs pull harder in the end? For one pair, both
# sides of the equation:


# %%
def gradient(value):
    """The gradient of a scalar with respect to all trained weights, as one long vector."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, trained, retain_graph=True)])


def pair_gradient(i):
    """The gradient of pair i's loss, by autograd."""
    logps = from_scratch.pair_logps(policy, from_scratch.collate(tokenizer, [pairs[i]]))
    return gradient(dpo_by_hand(*logps, *(side[i] for side in joined(reference))))


# %%
chosen, rejected = from_scratch.pair_logps(policy, from_scratch.collate(tokenizer, [pairs[hardest]]))
left, right = pair_gradient(hardest), -BETA * weights[hardest] * (gradient(chosen) - gradient(rejected))
assert torch.allclose(left, right, atol=1e-4 * left.norm().item())
print(f"{len(left):,} weights, gradient norm {left.norm():.3f}, norm of the difference {(left - right).norm():.1e}")

# %% [markdown]
# Finite differences on the model itself: take a small step along the gradient, forwards and backwards. The slope must
# be the gradient's norm.


# %%
def loss_after(direction, size):
    """The hardest pair's loss with the trained weights moved by `size` along `direction`; they are moved back."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    before = torch.nn.utils.parameters_to_vector(trained).detach()
    torch.nn.utils.vector_to_parameters(before + size * direction, trained)
    moved = from_scratch.score(policy, [from_scratch.collate(tokenizer, [pairs[hardest]])])[0]
    torch.nn.utils.vector_to_parameters(before, trained)
    return dpo_by_hand(*moved, *(side[hardest] for side in joined(reference))).item()


# %%
direction, size = left / left.norm(), 2e-3
slope = (loss_after(direction, size) - loss_after(direction, -size)) / (2 * size)
assert math.isclose(slope, left.norm().item(), rel_tol=0.02)
print(f"slope {slope:.4f}, norm of the gradient {left.norm():.4f}")

# %% [markdown]
# Now the norm of each pair's whole gradient, for a sample of pairs in wrong and in right order.

# %%
wrong, right = ((side * m > 0).nonzero().flatten()[:16].tolist() for side in (-1, 1))
sample = torch.tensor(wrong + right)
norms = torch.stack([pair_gradient(i).norm() for i in sample.tolist()])
for name, chosen_rows in (("wrong order", slice(0, len(wrong))), ("right order", slice(len(wrong), None))):
    print(f"{name}: mean weight {weights[sample][chosen_rows].mean():.2f}, mean norm {norms[chosen_rows].mean():.2f}")

# %% [markdown]
# The figure should show whether high weight means strong pull.

# %%
show(
    pulls_on_pairs(m[sample], norms, "The whole pull of a pair", "norm of the pair's gradient"),
    "Gradient norm over margin for sampled pairs: wrongly ordered pairs pull harder on average, with a wide spread.",
)

# %% [markdown]
# On average yes, pair by pair not always: two pairs of equal weight can differ a good deal, because some answers are
# easier to move than others. "Wrongly ordered pairs pull hardest" is a statement about the weight.
#
# And inside an answer? The log-ratio of each token says where the policy has changed its mind. First the chosen answer
# of that pair, then the rejected one; blue tokens have become more likely than under the reference, red ones less.


# %%
def token_log_ratios(i):
    """Tokens and log-ratios of the two completions of pair i."""
    one, values = from_scratch.collate(tokenizer, [pairs[i]]), []
    with torch.no_grad():
        now = policy(input_ids=one.input_ids).logits
        with policy.disable_adapter():
            then = policy(input_ids=one.input_ids).logits
    now, then = (from_scratch.token_logps(x, one.input_ids, one.completion_mask) for x in (now, then))
    for row in range(2):
        kept = one.completion_mask[row]
        values.append((words(one.input_ids[row][kept]), (now - then)[row][kept[1:]]))
    return values


for tokens, values in token_log_ratios(hardest):
    show_values(tokens, values, "nats")

# %% [markdown]
# One or two tokens carry nearly everything; the rest is as likely as before, given what precedes it. The sum does not
# care which token pays. What does the policy say now at the token that paid most?

# %%
tokens, values = token_log_ratios(hardest)[0]
t = int(values.abs().argmax())
prompt, chosen, _ = encode(pairs[hardest])
context = torch.tensor([prompt + chosen[:t]])
with torch.no_grad():
    now = policy(input_ids=context).logits[0, -1].softmax(-1)
    with policy.disable_adapter():
        then = policy(input_ids=context).logits[0, -1].softmax(-1)
print(f"after ...{tokenizer.decode(chosen[max(0, t - 3) : t])!r}")
for token in (now + then).topk(4).indices:
    print(f"   {tokenizer.decode([token])!r:10} before {then[token]:.3f}   now {now[token]:.3f}")

# %% [markdown]
# In the stored run this is a small disaster: the policy still begins a stock phrase as often as before, and has
# unlearnt its *second* word. The rejected answers are full of that phrase, and making it impossible halfway is as good
# for the margin as never beginning it. Section 11 comes back to this.
#
# ## 9. The reference, four ways
#
# DPO speaks of two models, policy and reference. That does not mean two models in memory. Four ways to the same
# numbers, now that the policy has moved away from its start:
#
# 1. a **second model**, loaded from disk;
# 2. the same model with the **adapter off**;
# 3. a frozen **copy of the adapter** as it was at the start, in TRL named `ref`;
# 4. **precomputed**, as above, before training.

# %%
second_model, _ = load_base(profile)
some = batches[:10]
by_second_model = joined(from_scratch.score(second_model.to("cpu"), some))
with policy.disable_adapter():
    by_adapter_off = joined(from_scratch.score(policy, some))

# %%
policy.add_adapter("ref", lora(profile))
for name, weight in start.items():
    policy.get_parameter(name.replace(".default.", ".ref.")).data.copy_(weight)
arms = Arms(policy, tokenizer)
with arms.use("ref") as frozen:
    by_ref_adapter = joined(from_scratch.score(frozen, some))

# %%
ways = {"second model": by_second_model, "adapter off": by_adapter_off, "ref adapter": by_ref_adapter}
for name, scores in ways.items():
    largest = max((a - b).abs().max().item() for a, b in zip(scores, joined(reference[:10]), strict=True))
    assert largest < 1e-4
    print(f"{name:13s} against precomputed: largest difference {largest:.1e} nats")

# %% [markdown]
# All four agree. What they cost differs:

# %%
size = sum(p.numel() for p in second_model.parameters())
print(f"a second model {size:,} weights, a copy of the adapter {trainable:,}, adapter off 0")
print(f"precomputed: {2 * len(pairs)} numbers, and no forward pass of the reference in training")

# %% [markdown]
# There is one trap. "Adapter off" is the *base*. In chapter 03 DPO starts from an adapter that was trained before, by
# supervised fine-tuning; the reference is then that adapter, and switching it off gives the wrong model. We play it
# through with the adapter just trained as the new start. Step zero tells:

# %%
new_start = from_scratch.score(policy, batches[:1])[0]
for name, ref in (("a copy of the adapter", new_start), ("adapter off", reference[0])):
    print(f"reference = {name:22s} loss at step zero {dpo_by_hand(*new_start, *ref).mean():.4f}")

# %% [markdown]
# Only the copy gives $\ln 2$.
#
# ## 10. The relatives
#
# Each is one function of log-probs in `dpo_kit.workbook.theory.losses`. We write each by hand and compare, on the
# log-probs of our real pairs. Let $|y|$ be the number of tokens of an answer.

# %%
policy_logps = [h + ref for h, ref in zip((h_w, h_l), joined(reference), strict=True)]
real = (*policy_logps, *joined(reference))  # four tensors, one entry a pair
lengths = dict(zip(("chosen_lengths", "rejected_lengths"), joined([b.lengths for b in batches]), strict=True))


def agrees(name, by_hand, **settings):
    losses = LOSSES[name](*real, beta=BETA, **settings)[0]
    assert torch.allclose(by_hand, losses, rtol=1e-4, atol=1e-5), name
    print(f"{name}: mean loss {losses.mean():.4f}")


agrees("dpo", -F.logsigmoid(m))

# %% [markdown]
# ### Labels that are sometimes wrong: cDPO and robust DPO
#
# Suppose a label is turned round with probability $\varepsilon$. **Conservative DPO**
# ([Mitchell, 2023](https://ericmitchell.ai/cdpo.pdf)) trains on both orders, with these weights. Its minimum is at the
# finite margin $\mathrm{logit}(1-\varepsilon)$:
#
# $$L_{\mathrm{cDPO}} = -(1-\varepsilon) \log \sigma(m) - \varepsilon \log \sigma(-m)$$

# %%
epsilon = 0.1
agrees("cdpo", -(1 - epsilon) * F.logsigmoid(m) - epsilon * F.logsigmoid(-m), label_smoothing=epsilon)

# %% [markdown]
# **Robust DPO** ([arXiv 2403.00409](https://arxiv.org/abs/2403.00409)) subtracts what the flips add, so that its mean
# over noisy labels is the DPO loss on clean ones:
#
# $$L_{\mathrm{robust}} = \frac{-(1-\varepsilon) \log \sigma(m) + \varepsilon \log \sigma(-m)}{1 - 2\varepsilon}$$

# %%
robust = (-(1 - epsilon) * F.logsigmoid(m) + epsilon * F.logsigmoid(-m)) / (1 - 2 * epsilon)
agrees("robust_dpo", robust, label_smoothing=epsilon)
flipped = (-(1 - epsilon) * F.logsigmoid(-m) + epsilon * F.logsigmoid(m)) / (1 - 2 * epsilon)
assert torch.allclose((1 - epsilon) * robust + epsilon * flipped, -F.logsigmoid(m), atol=1e-5)


# %% [markdown]
# To draw a loss over the margin we move the two answers apart, half a margin each, from a common start of eight tokens
# and minus twelve nats, at $\beta = 1$. For most losses only the margin matters; for those that see more, this is one
# cut through them.
#
# The figure should make you compare the right-hand panels, the **pull** $-dL/dm$: where is it zero, and where does it
# turn round?


# %%
EIGHT = {"chosen_lengths": torch.tensor(8.0), "rejected_lengths": torch.tensor(8.0)}


def along_the_margin(name, reference=True, **settings):
    """The named loss as a function of the margin at beta = 1, both answers moving half of it."""
    ref = (torch.tensor(-12.0), torch.tensor(-12.0)) if reference else ()
    return lambda m: LOSSES[name](-12 + m / 2, -12 - m / 2, *ref, **{"beta": 1.0} | settings)[0]


dpo_curve = along_the_margin("dpo")
show(
    loss_and_pull(
        {"DPO": dpo_curve, "cDPO": along_the_margin("cdpo"), "robust DPO": along_the_margin("robust_dpo")},
        "Losses for noisy labels, ε = 0.1",
    ),
    "Loss and pull over the margin for DPO, cDPO and robust DPO; cDPO's pull changes sign at a margin near two.",
)

# %% [markdown]
# DPO's pull fades towards zero and stays positive. That of cDPO turns round at $\mathrm{logit}(1-\varepsilon)$: a pair
# beyond it is pulled back. Robust DPO pulls harder than DPO everywhere, and far to the right its pull levels off at
# $\varepsilon/(1 - 2\varepsilon)$ instead of ending. Its loss has no floor: the price of being right on average.

# %%
far = torch.tensor([-4.0, math.log(0.9 / 0.1), 50.0])
for name in ("cdpo", "robust_dpo"):
    print(f"{name:10s} pull at margins -4, logit(0.9) and 50:", loss_with_pull(along_the_margin(name), far)[1])

# %% [markdown]
# ### A finite goal: IPO and hinge
#
# **IPO** ([arXiv 2310.12036](https://arxiv.org/abs/2310.12036)) asks for the gap $\tfrac{1}{2\beta}$ and for no more.
# **Hinge**, from SLiC-HF ([arXiv 2305.10425](https://arxiv.org/abs/2305.10425)), asks for a margin of at least one:
#
# $$L_{\mathrm{IPO}} = \Big(h(y_w) - h(y_l) - \frac{1}{2\beta}\Big)^2, \qquad L_{\mathrm{hinge}} = \max(0,\, 1 - m)$$

# %%
agrees("ipo", (h_w - h_l - 1 / (2 * BETA)).square())
agrees("hinge", (1 - m).clamp(min=0))

# %% [markdown]
# The figure should show one pull that is a straight line through zero, and one that is a step.

# %%
show(
    loss_and_pull(
        {"DPO": dpo_curve, "IPO": along_the_margin("ipo"), "hinge": along_the_margin("hinge")},
        "Losses with a finite goal", ceiling=8, strongest=2,
    ),
    "Loss and pull for DPO, IPO and hinge: IPO's pull is linear and changes sign, hinge's stops at one.",
)  # fmt: skip

# %% [markdown]
# IPO pulls back whatever has gone too far, and pulls without bound at what is far behind: one bad label weighs a lot.
# Hinge pulls with one strength until a pair is past the goal, and then forgets it.
#
# ### More than the margin: RPO, length-normalised DPO
#
# **RPO** ([arXiv 2404.19733](https://arxiv.org/abs/2404.19733)) adds an anchor: the negative log-likelihood (NLL) of
# the chosen answer per token, times $\alpha$. **Length-normalised DPO**
# ([Tülu 3, arXiv 2411.15124](https://arxiv.org/abs/2411.15124)) compares averages per token:
#
# $$L_{\mathrm{RPO}} = -\log \sigma(m) - \alpha\,\frac{\log \pi_\theta(y_w \mid x)}{|y_w|}, \qquad
# L_{\mathrm{norm}} = -\log \sigma\Big(\beta\,\frac{h(y_w)}{|y_w|} - \beta\,\frac{h(y_l)}{|y_l|}\Big)$$

# %%
n_w, n_l = lengths.values()
agrees("rpo", -F.logsigmoid(m) - policy_logps[0] / n_w, chosen_lengths=n_w, alpha=1.0)
agrees("length_normalised_dpo", -F.logsigmoid(BETA * (h_w / n_w - h_l / n_l)), **lengths)

# %% [markdown]
# The figure should show what the anchor adds and what the normalisation takes away.

# %%
show(
    loss_and_pull(
        {
            "DPO": dpo_curve,
            "RPO": along_the_margin("rpo", chosen_lengths=EIGHT["chosen_lengths"]),
            "length-normalised": along_the_margin("length_normalised_dpo", **EIGHT),
        },
        "Losses that see more than the margin",
    ),
    "Loss and pull for DPO, RPO and length-normalised DPO; RPO adds a constant pull, the other is nearly flat.",
)

# %% [markdown]
# The anchor is a constant pull on the chosen answer that no margin satisfies. Length-normalised at the same $\beta$ is
# nearly flat: $\beta$ now multiplies nats per *token*, so it must be many times larger, and no published $\beta$ of DPO
# can be carried over.
#
# ### No pairs: KTO
#
# **KTO** ([arXiv 2402.01306](https://arxiv.org/abs/2402.01306)) takes single answers with a thumb up or down. An answer
# is compared with a baseline $z$, the KL from policy to reference, estimated per batch and held constant:
#
# $$L_{\mathrm{KTO}} = \begin{cases} 1 - \sigma(\beta\,(h(y) - z)) & \text{desirable} \\
# 1 - \sigma(\beta\,(z - h(y))) & \text{undesirable} \end{cases}$$

# %%
kl = 3.0  # nats; in training estimated from the batch
up = kto_loss(real[0], real[2], torch.ones(len(h_w)), kl=kl, beta=BETA)[0]
down = kto_loss(real[1], real[3], torch.zeros(len(h_l)), kl=kl, beta=BETA)[0]
assert torch.allclose(up, 1 - torch.sigmoid(BETA * (h_w - kl)), atol=1e-6)
assert torch.allclose(down, 1 - torch.sigmoid(BETA * (kl - h_l)), atol=1e-6)
print(f"mean loss of the chosen answers {up.mean():.4f}, of the rejected {down.mean():.4f}")

# %% [markdown]
# ### No reference: ORPO and SimPO
#
# With $a = \log \pi_\theta(y \mid x) / |y|$, the average log-prob of a token, **ORPO**
# ([arXiv 2403.07691](https://arxiv.org/abs/2403.07691)) adds to the NLL a comparison of odds, $\mathrm{odds}(a) =
# e^a / (1 - e^a)$; **SimPO** ([arXiv 2405.14734](https://arxiv.org/abs/2405.14734)) compares averages and asks for a
# head start $\gamma$:
#
# $$L_{\mathrm{ORPO}} = -a_w - \beta \log \sigma\Big(\log \frac{\mathrm{odds}(a_w)}{\mathrm{odds}(a_l)}\Big), \qquad
# L_{\mathrm{SimPO}} = -\log \sigma\big(\beta\,(a_w - a_l) - \gamma\big)$$

# %%
a_w, a_l = policy_logps[0] / n_w, policy_logps[1] / n_l
log_odds = torch.logit(a_w.exp()) - torch.logit(a_l.exp())
orpo, simpo = (loss(*policy_logps, **lengths)[0] for loss in (orpo_loss, simpo_loss))
assert torch.allclose(orpo, -a_w - 0.1 * F.logsigmoid(log_odds), atol=1e-4)
assert torch.allclose(simpo, -F.logsigmoid(2.0 * (a_w - a_l) - 1.0), atol=1e-5)
print(f"mean loss: ORPO {orpo.mean():.4f}, SimPO {simpo.mean():.4f}")

# %% [markdown]
# The figure should show that a loss need not be convex, and that the horizontal axis means less and less: these three
# do not see the margin as such.


# %%
def kto_pair(m):
    """A chosen and a rejected answer, judged one by one, at z = 0."""
    ref, yes, no = torch.tensor(-12.0), torch.tensor(True), torch.tensor(False)
    good = kto_loss(-12 + m / 2, ref, yes, kl=0.0, beta=1.0)[0]
    bad = kto_loss(-12 - m / 2, ref, no, kl=0.0, beta=1.0)[0]
    return (good + bad) / 2


free = {
    "ORPO": along_the_margin("orpo", reference=False, **EIGHT),
    "SimPO": along_the_margin("simpo", reference=False, beta=2.0, **EIGHT),
}
show(
    loss_and_pull({"DPO": dpo_curve, "KTO": kto_pair, **free}, "Without pairs, without a reference"),
    "Loss and pull for DPO, KTO, ORPO and SimPO; KTO's pull is strongest in the middle, the others are gentle slopes.",
)

# %% [markdown]
# KTO's pull fades on *both* sides: it gives up on answers that are hopeless, DPO never does. ORPO and SimPO change
# slowly here because a margin is spread over all tokens.
#
# With the sliders (if you run this yourself) you can see how $\beta$ and $\varepsilon$ change four of the losses over
# the **gap** $h(y_w) - h(y_l)$, in nats, before $\beta$ multiplies it.


# %%
def draw_relatives(beta, epsilon):
    def over_the_gap(name, **settings):
        zero = torch.zeros(())
        return lambda gap: LOSSES[name](gap, zero, zero, zero, beta=beta, **settings)[0]

    smooth = {"label_smoothing": epsilon}
    curves = {"DPO": over_the_gap("dpo"), "cDPO": over_the_gap("cdpo", **smooth), "hinge": over_the_gap("hinge")}
    curves["robust DPO"] = over_the_gap("robust_dpo", **smooth)
    title = f"Loss and pull over the gap, β = {beta:.2f}, ε = {epsilon:.2f}"
    return loss_and_pull(curves, title, low=-20.0, high=20.0, x_title="gap h(y_w) − h(y_l), nats")


explore(
    draw_relatives,
    "Loss and pull over the log-ratio gap for DPO, cDPO, hinge and robust DPO at one beta and one noise rate.",
    beta=Slider(0.02, 0.3, 2.0, log=True), epsilon=Slider(0.0, 0.1, 0.4),
)  # fmt: skip

# %% [markdown]
# The pull at gap zero is proportional to $\beta$: a high $\beta$ starts fast. But its pull is also used up after a
# shorter way. Both halves of that story are in chapter 01.
#
# ## 11. What the loss does not see: likelihood displacement
#
# The loss sees only a *difference*. It is content when the chosen answer becomes less likely, as long as the rejected
# one falls further ([arXiv 2410.08847](https://arxiv.org/abs/2410.08847) calls this **likelihood displacement**). What
# happened in our run?


# %%
def widened(h_w, h_l):
    print(f"margin widened for {(h_w > h_l).float().mean():.0%} of the pairs")
    print(f"mean log-ratio: chosen {h_w.mean():+.2f} nats, rejected {h_l.mean():+.2f} nats")
    print(f"the chosen answer became less likely in {(h_w < 0).float().mean():.0%} of the pairs")


widened(h_w, h_l)

# %% [markdown]
# So it began. To see it plainly we train three fresh policies harder, at twice the learning rate, on the same pairs:
# with **DPO**; with **RPO**, whose anchor holds the chosen answers; and with a loss that is met in tutorials,
# $-\log \pi_\theta(y_w) + \log \pi_\theta(y_l)$, "raise the good, lower the bad", which has neither sigmoid nor
# reference. It is called the **negative preference** loss here.


# %%
def run_with(loss, lr=2 * LEARNING_RATE):
    """Train a fresh policy with another loss on the same batches: the policy and its log."""
    model, _ = fresh_policy()
    return model, list(from_scratch.train(model, batches, reference, loss, lr=lr))


pushed, pushed_log = run_with(lambda logps, b: dpo_loss(*logps, beta=BETA)[0])
anchored, _ = run_with(lambda logps, b: LOSSES["rpo"](*logps, beta=BETA, chosen_lengths=b.lengths[0])[0])
unbounded, negative_log = run_with(lambda logps, b: LOSSES["negative_preference"](*logps)[0])

# %%
pushed_w, pushed_l = log_ratios(pushed)
widened(pushed_w, pushed_l)
assert pushed_w.mean() < 0 < (pushed_w - pushed_l).mean(), "margins up, and the chosen answers down"

# %% [markdown]
# The figure should show the two curves falling apart: the gap opens because one falls faster.

# %%
show(
    lines(
        steps, {name: [row[f"h_{name}"] for row in pushed_log] for name in ("chosen", "rejected")},
        title="Mean log-ratio of each batch during DPO", x_title="step", y_title="log-ratio, nats",
    ),
    "Mean log-ratios per step: the rejected answers fall far, the chosen ones fall as well, but less.",
)  # fmt: skip

# %% [markdown]
# Each point is another batch, hence the raggedness. Both fall, the rejected answers further.
#
# ### Where did the mass go?
#
# The probabilities of all answers to a prompt add up to one, so what these answers lost is somewhere. The first token
# decides which form an answer takes, and there we can see the whole distribution, exactly. The figure should show a
# few bars shrinking, and who took their share. (`SEVERITY` opens the required format.)

# %%
heads = [prompt_ids(tokenizer, pair.prompt) for pair in pairs]
inputs = tokenizer.pad({"input_ids": heads}, padding_side="right", return_tensors="pt")
last = inputs["attention_mask"].sum(dim=1) - 1


def first_token_probs(model):
    """The distribution of an answer's first token, averaged over the prompts: (V,)."""
    with torch.no_grad():
        return model(**inputs).logits[torch.arange(len(last)), last].softmax(dim=-1).mean(dim=0)


# %%
with pushed.disable_adapter():
    before = first_token_probs(pushed)
after = first_token_probs(pushed)
top = (before + after).topk(9).indices
show(
    before_and_after(words(top), before[top], after[top], "The first token of an answer", "mean probability"),
    "Mean probability of the nine likeliest first tokens before and after training; two shrink, digits grow.",
)

# %% [markdown]
# The forms that open with `SEV` or `Well` lose most of their share, and in the stored run it goes to answers that open
# with a digit. Those are log lines, beginning with the time. Let us see by form which chosen answers rose and which
# fell:

# %%
opening = {side: [words([encode(pair)[i][0]])[0] for pair in pairs] for i, side in ((1, "chosen"), (2, "rejected"))}
for form in sorted(set(opening["chosen"]), key=opening["chosen"].count, reverse=True)[:6]:
    rows = torch.tensor([f == form for f in opening["chosen"]])
    print(f"{form:10s} chosen {rows.sum():3d} times, rejected {opening['rejected'].count(form):3d}", end=", ")
    print(f"mean log-ratio where chosen {pushed_w[rows].mean():+6.2f} nats")

# %% [markdown]
# That explains a good part. An answer in a form that is usually rejected is sometimes chosen, when the other one was
# worse still. The model learns the rule "not this form", and such chosen answers fall with it. Nothing is wrong with
# that. But the mass went away from the worst forms rather than to the best one: answers in the required format fell a
# little as well, although they are mostly chosen, and nobody had asked for log lines like this one:

# %%
print(next(pair.chosen.text for pair, form in zip(pairs, opening["chosen"], strict=True) if form in "012"))

# %% [markdown]
# ### Is it harm?
#
# In this world we can ask the rubric. All policies answer prompts that none of them was trained on, with the same
# randomness.


# %%
def score_samples(model, arm="default"):
    """One sampled answer to each unseen prompt, and its score by the rubric: texts and (N,)."""
    how = Sampling(temperature=1.0, seed=7, max_new_tokens=64, batch_size=96)
    texts = [answer.text for answer in generate(Arms(model, tokenizer), arm, unseen, how)]
    return texts, torch.tensor([rubric.overall(prompt, text) for prompt, text in zip(unseen, texts, strict=True)])


unseen = reports.draw_prompts(96, "heldout", "loss", seed=0)
base_texts, base_scores = score_samples(policy, "base")
print(f"base: mean score {base_scores.mean():.3f}")

# %%
print("chosen log-ratio: RPO", f"{log_ratios(anchored)[0].mean():+.2f}", end=", ")
print(f"negative preference {log_ratios(unbounded)[0].mean():+.2f} nats")
models = {"DPO as above": policy, "DPO harder": pushed, "RPO harder": anchored, "negative": unbounded}
samples = {}
for name, model in models.items():
    samples[name], scores = score_samples(model)
    change = scores - base_scores
    error = 1.96 * change.std() / len(change) ** 0.5
    print(f"{name:13s} mean score {scores.mean():.3f}, against the base {change.mean():+.3f} ± {error:.3f}")

# %%
for name, texts in samples.items():
    print(f"{name}:\n   {texts[0][:150]!r}")

# %% [markdown]
# The chosen answers of both DPO runs fell, and by the rubric both write *better* answers than the base, the intervals
# say. So displacement is not in itself a failure. RPO's chosen answers fell less; whether its answers are better than
# DPO's these few prompts cannot tell. The negative preference has ruined its model.
#
# And yet, read the samples. The broken phrase of section 8 is there, in runs that score well: the rubric looks at
# severity, facts, action and form, and not at whether a sentence is one. Neither does the loss. The mass that the
# second word lost went to a word that makes no sense there, because no pair said where it should go. A score that
# rises is no reason not to read.
#
# ### A loss without a floor
#
# The figure should show one loss that has a floor and one that has none.

# %%
show(
    lines(
        steps, {name: [row["loss"] for row in log] for name, log in (("DPO", pushed_log), ("negative", negative_log))},
        title="A loss without a floor", x_title="step", y_title="loss",
    ),
    "DPO's loss stays near zero; the negative-preference loss swings ever wider and falls far below zero.",
)  # fmt: skip

# %% [markdown]
# DPO's curve looks flat at this scale. The other swings from batch to batch, because nothing limits what one pair may
# contribute, and falls far below zero. It pays more to make a bad answer still less possible than to keep a good one
# possible, so everything sinks, and nothing stops it but the number of steps. In DPO the sigmoid stops it: a well
# ordered pair has a weight near zero, and what is not pulled is not torn.
#
# ## 12. What tutorials get wrong
#
# Each of these is common, and each costs one line to check. The wrong version is on the left.


# %%
def versus(wrong, right):
    """Print both numbers, and make sure that they differ."""
    assert not math.isclose(wrong, right, rel_tol=1e-3, abs_tol=1e-6)
    print(f"wrong {wrong:9.4f}   right {right:9.4f}")


# %% [markdown]
# **"A low $\beta$ is conservative."** The other way round: the gap at the optimum is $\mathrm{logit}(p)/\beta$, with
# $p$ the probability that the first of two answers wins. Found by minimising the loss, without the formula:

# %%
wins = torch.tensor([[0.0, 0.8], [0.2, 0.0]]).double()
even = torch.zeros(2).double().log_softmax(0)
for beta in (0.1, 0.5):
    found = descent.minimise(lambda x, b=beta: exact.expected_dpo_loss(x.log_softmax(0), even, wins, b), even)
    print(f"beta {beta}: gap {found[0] - found[1]:.3f}")

# %% [markdown]
# **"$L = \log \sigma(m)$."** The sign is missing. Minimising that lowers the margin: one small step on it, and one on
# the right loss.

# %%
leaf = torch.zeros(1, requires_grad=True)
slopes = [torch.autograd.grad(sign * F.logsigmoid(leaf).sum(), leaf)[0].item() for sign in (1, -1)]
versus(*(-0.1 * slope for slope in slopes))

# %% [markdown]
# **"$\pi^* \propto \pi_{\mathrm{ref}} \exp(r)$."** The reward is divided by $\beta$. Probability of the best of three
# answers with rewards 0, 1, 2 under a uniform reference, $\beta = 0.5$:

# %%
uniform, rewards = torch.full((3,), 1 / 3), torch.tensor([0.0, 1.0, 2.0])
without = uniform * rewards.exp()
versus((without / without.sum())[2].item(), exact.optimal_policy(uniform, rewards, 0.5)[2].item())

# %% [markdown]
# **`log_softmax(...).sum(-1)` under a mask.** That adds up the log-probs of *all* tokens of the vocabulary. It is a
# number of the same shape, and training on it runs without a complaint.

# %%
everything = (logits[:, :-1].log_softmax(-1).sum(-1) * batch.completion_mask[:, 1:]).sum(dim=1)
versus(everything[0].item(), logps[0].item())

# %% [markdown]
# **Averages instead of sums.** The margin with log-ratios per token, and how often it disagrees about which answer is
# ahead:

# %%
per_token = BETA * (h_w / n_w - h_l / n_l)
versus(per_token.mean().item(), m.mean().item())
print(f"other order in {((per_token > 0) != (m > 0)).sum()} of {len(m)} pairs")

# %% [markdown]
# **Scoring the answer without its prompt.** $\log \pi(y \mid x)$ needs $x$ in the context. Without it the model cannot
# know the facts it is supposed to repeat:

# %%
marker = heads[0][-1:]  # "the assistant speaks", and nothing before
tails = [encode(pair)[1] for pair in pairs[:BATCH_SIZE]]
alone, its_mask = pad_completions(tokenizer, [marker] * BATCH_SIZE, tails)
with torch.no_grad(), policy.disable_adapter():
    blind = completion_logps(policy(**alone).logits, alone["input_ids"], its_mask)
versus(blind.mean().item(), reference[0][0].mean().item())

# %% [markdown]
# **A mask that includes the prompt.** The treacherous one: the prompt's terms are the same in both rows and cancel in
# the margin, so loss and gradient are *right*. Rewards and log-probs are wrong, here the reward of a chosen answer.


# %%
def logps_with(mask, model):
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return completion_logps(logits, batch.input_ids, mask).chunk(2)


def loss_and_reward(mask):
    now = logps_with(mask, policy)
    with policy.disable_adapter():
        then = logps_with(mask, policy)
    losses, chosen_rewards, _ = dpo_loss(*now, *then, beta=BETA)
    return losses.mean().item(), chosen_rewards[0].item()


# %%
(wrong_loss, wrong_reward), (right_loss, right_reward) = map(
    loss_and_reward, (batch.attention_mask, batch.completion_mask)
)
assert math.isclose(wrong_loss, right_loss, rel_tol=1e-4), "the loss cannot tell"
print(f"loss {wrong_loss:.6f} and {right_loss:.6f}")
versus(wrong_reward, right_reward)

# %% [markdown]
# **"KTO needs no reference."** It needs no *pairs*. With another reference its loss is another. ORPO and SimPO are the
# ones that have none: their functions do not even take it.

# %%
elsewhere = kto_loss(real[0], real[2] - 5, torch.ones(len(h_w)), kl=kl, beta=BETA)[0]
versus(elsewhere.mean().item(), up.mean().item())
for loss in (orpo_loss, simpo_loss):
    assert not any("ref" in name for name in inspect.signature(loss).parameters)

# %% [markdown]
# **"IPO keeps the identity of the model."** The identity in *identity preference optimisation* is a function,
# $\Psi(p) = p$ instead of DPO's logit. If IPO kept the model as it is, its minimum would be at gap zero:

# %%
zero = torch.zeros(1)
wanted = descent.minimise(lambda gap: ipo_loss(gap, zero, zero, zero, beta=BETA)[0].sum(), zero)
versus(0.0, wanted.item())

# %% [markdown]
# **"The chosen log-prob rises during DPO."** In our run, as in many, it fell:

# %%
print(f"mean log-ratio of the chosen answers {pushed_w.mean():+.2f} nats, of the rejected {pushed_l.mean():+.2f}")

# %% [markdown]
# **"DPO is stable."** Its loss fell in both of our runs, its margins grew, even the score rose. In how many of the
# sampled answers is the stock phrase broken that section 8 found?

# %%
for name, texts in {"base": base_texts, **samples}.items():
    broken = sum("Thank" in text and "Thank you" not in text for text in texts)
    print(f"{name:13s} {broken:2d} of {len(texts)}")

# %% [markdown]
# **"The log-ratios in the training log are the KL."** The KL is an expectation over the *policy's own* answers, never
# negative. The log-ratio on the chosen answers of the data:

# %%
how = Sampling(temperature=1.0, seed=1, max_new_tokens=80, batch_size=64)
estimate = on_policy_kl(arms, "default", "ref", unseen[:64], how)
versus(h_w.mean().item(), estimate.sequence)

# %% [markdown]
# **"DPO needs two models in memory."** Two *logical* models. With a LoRA adapter the weights in memory are these, in
# millions:

# %%
versus(2 * size / 1e6, (size + trainable) / 1e6)

# %% [markdown]
# **"Raise the good, lower the bad" as a loss.** Unbounded below, as section 11 shows. Its last batch, and DPO's:

# %%
versus(negative_log[-1]["loss"], pushed_log[-1]["loss"])

# %% [markdown]
# ## What we saw
#
# - A mask decides which tokens count. Look at it once; the loss does not notice when it is wrong.
# - Log-probs are gathered, shifted by one, and summed. A run starts at $\ln 2$, or its reference is wrong.
# - The gradient is a direction times a weight, and the weight is large for pairs in the wrong order.
# - A loop of a dozen lines is DPO: it follows TRL step by step.
# - The reference can be a second model, the adapter switched off, a copy of the adapter, or a list of numbers. Which of
#   them is right depends on where training starts.
# - The relatives differ in where their pull ends, and in what they see besides the margin.
# - A growing margin does not mean that good answers became likelier. Ask where the mass went, and measure answers.
#
# ## Exercises
#
# Each is a specification, a stub and a check. The check tells what is wrong. Solutions are in
# `solutions/02_loss_and_gradient.ipynb`; try first.
#
# **1.** Write the completion mask. Row $i$ has `prompt_lengths[i]` prompt tokens and `lengths[i]` tokens in all, EOS
# included; after that comes padding up to `width`. About two lines.


# %%
def my_completion_mask(prompt_lengths, lengths, width):
    """Two tensors (N,) and a number in; a mask (N, width), one on the tokens of the answer, out."""
    ...


exercises.check_completion_mask(my_completion_mask)

# %% [markdown]
# **2.** Write the log-probs of completions, $\log \pi(y \mid x)$, from raw logits. About three lines.


# %%
def my_completion_logps(logits, input_ids, mask):
    """(N, T, V), (N, T) and (N, T) in; one number per row, (N,), out."""
    ...


exercises.check_completion_logps(my_completion_logps)

# %% [markdown]
# **3.** Write the gradient of a pair's DPO loss with respect to $\log \pi_\theta(y_w \mid x)$, without autograd. About
# two lines.


# %%
def my_dpo_gradient(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """Four tensors (B,) of log-probs and a number in; dL / d policy_chosen of each pair, (B,), out."""
    ...


exercises.check_dpo_gradient(my_dpo_gradient)

# %% [markdown]
# **4.** Write the SimPO loss. About two lines.


# %%
def my_simpo_loss(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths, beta, gamma):
    """Four tensors (B,) and two numbers in; the losses, (B,), out."""
    ...


exercises.check_simpo_loss(my_simpo_loss)

# %% [markdown]
# **Next:** all of this started from a base model that answers carelessly and in any form. `03_sft_reference` gives DPO
# a better place to start, and the reference it deserves.
