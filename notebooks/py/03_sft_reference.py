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
# # 03 · The model DPO starts from
#
# **Question.** What does supervised fine-tuning teach, faults included, and why is its result the reference of DPO?
#
# **Needs.** Log-probs and masks, notebook 02. The SFT model and its pairs are made here if they are not there yet.
#
# **Takes.** A minute of computing on two CPU cores, two more if nothing was made before, and forty of reading. On a GPU
# the cells are the same; the faults are counted by an exact rubric, so the data stays the workbook's own.
#
# Supervised fine-tuning (SFT) imitates. It has no notion of better or worse: what was demonstrated becomes likelier.
# That makes it good at form, and a faithful copyist of every habit of those who wrote the demonstrations.

# %%
from dpo_kit.workbook import from_scratch  # isort: skip  (first: dpo_kit switches telemetry off before the libraries load)
import shutil
import tempfile
from pathlib import Path
from textwrap import fill

import bitsandbytes as bnb
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from dpo_kit import pipeline
from dpo_kit.evaluation.statistics import mean_interval
from dpo_kit.jsonl import read_pairs, read_records
from dpo_kit.models.generation import Sampling, count_stops, generate
from dpo_kit.models.loading import Arms, load_arms, load_base, lora
from dpo_kit.models.logprobs import on_policy_kl
from dpo_kit.models.memory import nf4_bytes
from dpo_kit.models.quantization import quantized_layers
from dpo_kit.models.tokens import pad_completions, prompt_ids
from dpo_kit.profiles import DATA, load_profile
from dpo_kit.records import Prompt, Response
from dpo_kit.training.guards import BadRow
from dpo_kit.training.metrics_log import read_log
from dpo_kit.training.sft import train_sft
from dpo_kit.triage import rubric
from dpo_kit.triage.incidents import Incident
from dpo_kit.triage.reports import draw_prompts
from dpo_kit.workbook.cells import refusal
from dpo_kit.workbook.exercises.sft_reference import LEVELS, check_adapter_size, check_rounding, check_sft_loss
from dpo_kit.workbook.figures.sft import fault_rates, margins_at_start, moved, rounding
from dpo_kit.workbook.figures.theory import lines
from dpo_kit.workbook.show import show
from dpo_kit.workbook.theory.losses import dpo_loss
from dpo_kit.workbook.token_view import show_mask
from dpo_kit.workspace import Workspace, default_workdir

# %% [markdown]
# ## 1. Train
#
# One call: demonstrations are drawn, a LoRA adapter is trained on them over the frozen 4-bit base, and the result is
# kept. A stage that was done before is verified and skipped. Everything below takes apart what this call did.

# %%
profile = load_profile()
work = Workspace(default_workdir(profile.name), profile.name)
folder = pipeline.sft(work, profile, seed=0)
log = [row for row in read_log(folder / "log.jsonl") if "loss" in row]

# %% [markdown]
# Watch how early it is over. The loss is the mean over trained tokens of $-\log p$; the model had read the company's
# archive before, so most of what there is to learn is the form of an answer.

# %%
steps = [row["step"] for row in log]
curves = {"loss of a token, nats": [row["loss"] for row in log], "entropy of a token": [row["entropy"] for row in log]}
show(
    lines(steps, curves, title="supervised fine-tuning", x_title="step", y_title="nats"),
    f"Loss a token over {len(log)} steps, from {log[0]['loss']:.3f} to {log[-1]['loss']:.3f} nats, and the entropy.",
)

# %% [markdown]
# The loss does not go to zero, and should not. Where two people would write two different things, the best a model can
# do is to be as undecided as they are. So the loss of a well-trained model wanders about its entropy, the dashed line.
#
# ## 2. What was demonstrated
#
# The demonstrations were written by people in a hurry. The profile says how often each kind of mistake is made:

# %%
prompts = read_records(folder / "prompts.jsonl", Prompt)
demonstrations = read_records(folder / "demonstrations.jsonl", Response)
for fault in ("wrong_severity", "invented_fact", "wrong_action", "broken_format", "rambling"):
    print(f"{fault:16} {getattr(profile.sft, fault):.0%}")
print(f"\n{fill(prompts[1].text, 96)}\n\n{demonstrations[1].text}")

# %% [markdown]
# Settings are a claim; we measure. The rubric gives each answer five scores between 0 and 1, and a **fault** is a score
# below 1.

# %%
FAULTS = {
    "severity": "severity_match", "a fact": "faithfulness", "action": "action_match",
    "form": "format_conformance", "length": "length",
}  # fmt: skip


def rates(prompts, texts):
    """For each fault its rate with a 95% interval."""
    scores = [rubric.score(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    found = {fault: mean_interval([row[metric] < 1 for row in scores]) for fault, metric in FAULTS.items()}
    return {fault: (interval.mean, interval.low, interval.high) for fault, interval in found.items()}


demonstrated = rates(prompts, [answer.text for answer in demonstrations])
for fault, (rate, low, high) in demonstrated.items():
    print(f"{fault:9} {rate:.1%}, interval {low:.1%} to {high:.1%}")

# %% [markdown]
# They are near the settings, and where they are above there is a reason. A broken form may leave the severity out (two
# of the five broken forms do), and a ramble after the answer breaks the form, too. So:

# %%
s = profile.sft
wanted = {
    "severity": 1 - (1 - s.wrong_severity) * (1 - s.broken_format * 2 / 5),
    "action": s.wrong_action,
    "form": 1 - (1 - s.broken_format) * (1 - s.rambling),
}
for fault, rate in wanted.items():
    _, low, high = demonstrated[fault]
    print(f"{fault:9} set up for {rate:.1%}")
    assert low - 0.01 < rate < high + 0.01, fault

# %% [markdown]
# ## 3. Which tokens are trained
#
# A **chat template** turns messages into one text, with markers that say who speaks. SFT must learn the answer and not
# the question, so only the answer's tokens bear loss: the **loss mask**. Blue tokens are trained.

# %%
base, tokenizer = load_base(profile)


def as_trained(prompt, answer):
    """Token ids and loss mask of a demonstration, as the chat template writes it."""
    head = prompt_ids(tokenizer, prompt)
    chat = [*prompt.chat(), {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert whole[: len(head)] == head, "the border between prompt and answer is exact"
    return whole, [0] * len(head) + [1] * (len(whole) - len(head))


ids, mask = as_trained(prompts[1], demonstrations[1].text)
assert (ids[-1], mask[-1]) == (tokenizer.eos_token_id, 1), "EOS is trained"
show_mask([tokenizer.decode([token]) for token in ids], mask)

# %% [markdown]
# The last blue token is **EOS**, "I have finished". The loss, written out: with $C$ the trained positions of a batch,
#
# $$L = -\frac{1}{|C|} \sum_{t \in C} \log \pi_\theta(y_t \mid x, y_{<t}).$$


# %%
def sft_loss(model, prompts, answers, end):
    """The mean loss of a trained token; each answer is followed by the token ids `end`."""
    heads = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    tails = [[*tokenizer(answer.text)["input_ids"], *end] for answer in answers]
    inputs, mask = pad_completions(tokenizer, heads, tails)
    inputs, mask = {name: tensor.to(model.device) for name, tensor in inputs.items()}, mask.to(model.device)
    logps = model(**inputs).logits[:, :-1].log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
    return -logps[mask[:, 1:]].mean()


EOS = [tokenizer.eos_token_id]
labels = torch.tensor([[token if trained else -100 for token, trained in zip(ids, mask, strict=True)]])
with torch.no_grad():
    by_hand = sft_loss(base, prompts[1:2], demonstrations[1:2], EOS)
    of_the_library = base(input_ids=torch.tensor([ids]).to(base.device), labels=labels.to(base.device)).loss
assert torch.allclose(by_hand, of_the_library, atol=1e-5)
print(f"{by_hand:.6f} by hand, {of_the_library:.6f} by the library")

# %% [markdown]
# ### And without EOS?
#
# A template that does not write EOS after an answer, or a length limit that cuts it off, is a common accident. Nothing
# fails: the loss falls as it should. We train a short while without EOS and see what becomes of the answers. (This
# loop is all there is to fine-tuning.)


# %%
def fine_tune(end, steps=25, batch_size=16):
    """A fresh adapter after a few steps on the demonstrations."""
    torch.manual_seed(0)
    model = get_peft_model(load_base(profile)[0], lora(profile)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=profile.sft.learning_rate)
    for start in range(0, steps * batch_size, batch_size):
        rows = slice(start, start + batch_size)
        sft_loss(model, prompts[rows], demonstrations[rows], end).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


without = Arms(fine_tune(end=[]), tokenizer)
arms = load_arms(profile, {"sft": folder / "adapter"})

# %% [markdown]
# How likely is EOS directly after an answer that is complete and right? And how do sampled answers end?

# %%
new = draw_prompts(48, "train", "without-eos", seed=0)
complete = [Incident.from_facts(prompt.facts).answer for prompt in new]


def chance_to_stop(arms, arm):
    """The mean probability of EOS after a complete answer."""
    tails = [tokenizer(text)["input_ids"] for text in complete]
    inputs, _ = pad_completions(tokenizer, [prompt_ids(tokenizer, prompt) for prompt in new], tails)
    inputs = {name: tensor.to(arms.model.device) for name, tensor in inputs.items()}
    with arms.use(arm) as model, torch.no_grad():
        logits = model(**inputs).logits
    last = inputs["attention_mask"].sum(dim=1) - 1
    return logits[range(len(new)), last].softmax(-1)[:, EOS[0]].mean().item()


limits = {"max_new_tokens": profile.pairs.max_new_tokens, "batch_size": profile.pairs.batch_size}
how = Sampling(1.0, 0, **limits)
chances = {}
for name, model, arm in (("base", arms, "base"), ("SFT", arms, "sft"), ("SFT without EOS", without, "default")):
    answers = generate(model, arm, new, how)
    chances[name] = chance_to_stop(model, arm)
    length = sum(len(answer.text) for answer in answers) / len(answers)
    print(
        f"{name:16} P(EOS) {chances[name]:.4f}, {length:.0f} characters, {count_stops(answers).stop_rate:.0%} stopped"
    )
print(f"\n{answers[0].text}")
assert chances["SFT without EOS"] < chances["base"] / 2

# %% [markdown]
# Nobody taught the last model to go on, and yet it does: among the demonstrations that it saw, the only thing that ever
# followed a complete answer was a ramble. Whoever takes the end out of the data leaves only those who had not
# ended. Answers may still end by themselves, so a stop rate alone would not have told.
#
# The training of this package looks at each row as the loss will see it, and refuses. Here a copy of the tiny base
# whose template writes no EOS:

# %%
scratch = Path(tempfile.mkdtemp())
endless = shutil.copytree(DATA / "tiny-base", scratch / "endless-base")
(endless / "manifest.json").unlink()
template = endless / "chat_template.jinja"
template.write_text(template.read_text().replace("<|end|>", ""))
spoiled = load_profile("tiny", model={"path": str(endless)})
try:
    train_sft(spoiled, prompts[:16], demonstrations[:16], scratch / "refused", seed=0)
except BadRow as refused:
    print(fill(str(refused).splitlines()[0], 96))
    show_mask(refused.tokens[-24:], refused.mask[-24:])

# %% [markdown]
# ## 4. Four bits a weight
#
# The base is frozen, so its weights need only be read, and can be stored coarsely: that is the Q of **QLoRA**
# ([arXiv 2305.14314](https://arxiv.org/abs/2305.14314)). **NF4** cuts a matrix into blocks of 64 weights, divides each
# block by its largest size, and rounds to the nearest of 16 levels. The levels are quantiles of a normal distribution,
# so they lie close together where most weights are. One matrix of the tiny base, by hand:

# %%
full, _ = load_base(load_profile("tiny", model={"quantize": "none"}))
weight = full.model.layers[0].self_attn.q_proj.weight.data.float().cpu()
packed, state = bnb.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
levels = state.code.cpu()


def rounded(weight, levels):
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)  # the absmax, one a block
    nearest = ((blocks / scale)[..., None] - levels).abs().argmin(dim=-1)
    return (levels[nearest] * scale).view_as(weight)


assert torch.allclose(levels, LEVELS, atol=1e-4)
assert torch.allclose(rounded(weight, levels), bnb.functional.dequantize_4bit(packed, state).cpu(), atol=1e-6)

# %% [markdown]
# Look at two things: where the levels lie on the left, and on the right which errors are rarer than with 16 levels that
# are spaced evenly.

# %%
even = torch.linspace(-1, 1, 16)
errors = {name: (rounded(weight, grid) - weight).flatten() for name, grid in {"NF4": levels, "even": even}.items()}
scaled = (weight.reshape(-1, 64) / weight.reshape(-1, 64).abs().amax(dim=1, keepdim=True)).flatten()
relative = {name: (error.norm() / weight.norm()).item() for name, error in errors.items()}
told = ", ".join(f"{name} {value:.1%}" for name, value in relative.items())
show(
    rounding(scaled.tolist(), levels.tolist(), {name: error.tolist() for name, error in errors.items()}),
    f"Scaled weights are bell-shaped and the 16 levels of NF4 are densest at zero. Error against the matrix: {told}.",
)
print(f"size of the error, relative to the matrix: {told}")

# %% [markdown]
# An error of that size in every matrix sounds like much. What counts is what the model says. The scales cost something
# as well; **double quantisation** stores them in 8 bits, with a scale of their own for each 256.

# %%
n = weight.numel()
print(f"bytes a weight: fp32 4, bf16 2, NF4 {0.5 + 4 / 64:.4f}, with double quantisation {nf4_bytes(n) / n:.4f}")
tiny, _ = load_base(load_profile("tiny"))
with torch.no_grad():
    said = {
        name: torch.stack([sft_loss(model, [prompts[i]], [demonstrations[i]], EOS) for i in range(64)])
        for name, model in {"fp32": full, "NF4": tiny}.items()
    }
for name, losses in said.items():
    print(f"{name}: {losses.mean():.4f} nats a token on demonstrations, before fine-tuning")
print(f"one demonstration differs by {(said['fp32'] - said['NF4']).abs().mean():.4f} on average")
print(f"SFT moved the mean to {log[-1]['loss']:.4f}, over the NF4 base")

# %% [markdown]
# The errors of many weights cancel in a sum, so the model says nearly what it said. And what is off stays off in the
# same way: the adapter is trained on top of it and fits the rounded weights. (That is why merging an adapter into the
# *unrounded* base changes the model, which notebook 05 measures.)
#
# ## 5. Which weights move
#
# **LoRA** ([arXiv 2106.09685](https://arxiv.org/abs/2106.09685)) leaves $W$ alone and adds a product of two thin
# matrices, of rank $r$:
#
# $$y = W x + \frac{\alpha}{r}\, B A x, \qquad A \in \mathbb{R}^{r \times \text{in}},\; B \in \mathbb{R}^{\text{out}
# \times r}.$$
#
# So a linear layer trains $r\,(\text{in} + \text{out})$ weights instead of $\text{in} \times \text{out}$.

# %%
shapes = [(layer.in_features, layer.out_features) for layer in quantized_layers(base)]
trained = sum(profile.model.lora_r * (inputs + outputs) for inputs, outputs in shapes)
fresh = get_peft_model(base, lora(profile))
assert trained == fresh.get_nb_trainable_parameters()[0]
frozen = sum(inputs * outputs for inputs, outputs in shapes)
print(
    f"r = {profile.model.lora_r}: {trained:,} trained weights beside {frozen:,} frozen ones in {len(shapes)} matrices"
)

# %% [markdown]
# The tiny model has matrices so small that the adapter is no longer small beside them. The share shrinks with the size
# of a matrix: this is the same rank on a matrix of an 8B model.

# %%
for inputs, outputs in (shapes[0], (4096, 12288)):
    print(f"{inputs} x {outputs}: {profile.model.lora_r * (inputs + outputs) / (inputs * outputs):.1%} of its weights")

# %% [markdown]
# $B$ starts at zero, so a fresh adapter changes nothing. After training, how far did each matrix move? The equation is
# checked on one layer first.

# %%
adapted = {name: layer for name, layer in arms.model.named_modules() if "sft" in getattr(layer, "lora_A", {})}


def change(layer):
    """(alpha / r) B A, the size of the frozen matrix."""
    return layer.scaling["sft"] * layer.lora_B["sft"].weight.data @ layer.lora_A["sft"].weight.data


layer = next(iter(adapted.values()))
x = torch.randn(2, layer.in_features, device=change(layer).device)
with arms.use("sft"), torch.no_grad():
    assert torch.allclose(layer(x), layer.base_layer(x) + x @ change(layer).T, atol=1e-4)

# %%
frozen_weights = {
    name: bnb.functional.dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    for name, layer in adapted.items()
}
sizes = {name: (change(layer).norm() / frozen_weights[name].norm()).item() for name, layer in adapted.items()}
kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in sizes))
rows = [list(sizes.values())[i : i + len(kinds)] for i in range(0, len(sizes), len(kinds))]
layers = [f"layer {i}" for i in range(len(rows))]
low, high = min(sizes.values()), max(sizes.values())
show(moved(rows, layers, kinds), f"Relative change of each matrix by SFT: between {low:.1%} and {high:.1%}.")

# %% [markdown]
# Every matrix moved, and by a small part of its size. The frozen weights did not move at all, which a hash can say: the
# base under the trained adapter is the base as it was loaded.

# %%
assert arms.identity("base") == Arms(*load_base(profile)).identity("base")

# %% [markdown]
# ## 6. Before and after
#
# The base is the same model with the adapter off. Two new reports, answered by both at temperature 1:

# %%
for prompt in new[:2]:
    print(fill(f"--- {prompt.text}", 96))
    for arm in ("base", "sft"):
        print(f"[{arm}]\n{generate(arms, arm, [prompt], how)[0].text}")

# %% [markdown]
# ## 7. The faults were copied
#
# Now the point of the chapter. The SFT model answers 200 new reports of the same kind, once by sampling at temperature
# 1 and once greedily, always taking the likeliest token. Compare the fault rates with those of the demonstrations.

# %%
asked = draw_prompts(200, "train", "copies", seed=0)
of_sft = {
    f"SFT, {name}": rates(asked, [r.text for r in generate(arms, "sft", asked, Sampling(temperature, 0, **limits))])
    for name, temperature in {"sampled": 1.0, "greedy": 0.0}.items()
}
compared = {"demonstrations": demonstrated, **of_sft}
told = "; ".join(f"{name} {found['severity'][0]:.0%}" for name, found in compared.items())
show(fault_rates(compared), f"Fault rates with 95% intervals. Wrong severity: {told}.")

# %%
for fault in FAULTS:
    (_, low, high), (rate, *_), (greedy, *_) = (found[fault] for found in compared.values())
    print(f"{fault:9} demonstrated {low:.0%} to {high:.0%}, sampled {rate:.0%}, greedy {greedy:.0%}")
assert of_sft["SFT, greedy"]["severity"][2] < of_sft["SFT, sampled"]["severity"][1], "the intervals do not even touch"

# %% [markdown]
# Sampled answers make the demonstrations' mistakes at about the demonstrations' rates: a distribution was copied. Where
# a sampled rate lies above the interval, the model adds mistakes of its own, such as a digit of a fact miscopied at
# temperature 1. Greedy answers have far fewer faults, because most demonstrations are right on any one point, and the
# likeliest token is a vote. That is no way out: pairs for DPO need two different answers, and an evaluation at
# temperature 0 would hide what the model believes.
#
# What SFT cannot learn from is a *bad* example: it can be shown answers, never told to avoid one. DPO can.
#
# ## 8. Why this is the reference
#
# DPO asks how much likelier the policy has made an answer than the **reference** has it, and starts the policy at the
# SFT model. Take some of its pairs, and compute the margin of each before any training, once against the SFT model and
# once against the base.

# %%
pairs = read_pairs(pipeline.pairs(work, profile, seed=0) / "pairs.jsonl")[:64]
batches = [from_scratch.collate(tokenizer, pairs[i : i + 16]) for i in range(0, len(pairs), 16)]


def logps(arm):
    """Log-probs of chosen and rejected answers, two tensors (B,)."""
    with arms.use(arm) as model:
        scored = from_scratch.score(model, batches)
    return [torch.cat(side) for side in zip(*scored, strict=True)]


by_arm = {arm: logps(arm) for arm in ("base", "sft")}
margins = {}
for reference in ("sft", "base"):
    losses, chosen, rejected = dpo_loss(*by_arm["sft"], *by_arm[reference], beta=profile.dpo.beta)
    margins[reference] = chosen - rejected
    accuracy = (margins[reference] > 0).float().mean()
    print(
        f"reference {reference:4}: loss {losses.mean():.4f}, mean margin {margins[reference].mean():+.4f}, "
        f"from {margins[reference].min():+.2f} to {margins[reference].max():+.2f}, accuracy {accuracy:.2f}"
    )
assert not margins["sft"].any()
assert margins["base"].any()

# %% [markdown]
# Against its own start every margin is zero and the loss is $\ln 2$: nothing has been learnt, nothing is claimed. (The
# accuracy is 0 and not a half, because a margin of 0 is not above 0.) Against the base the same untrained policy has
# margins already:

# %%
told = {
    f"against {name}": sorted(values.tolist())
    for name, values in zip(("SFT", "the base"), margins.values(), strict=True)
}
spread = margins["base"].std().item()
show(margins_at_start(told), f"Margins at step 0: all zero against SFT, against the base spread by {spread:.2f}.")

# %% [markdown]
# Those margins are not about preference. They say what SFT liked more than the base did, form above all. What follows
# from them:
#
# 1. The weight of a pair in the gradient is $\sigma(-m)$. Pairs where SFT happens to have moved the right way count
#    less, others more, before anyone has learnt anything from a verdict.
# 2. The KL that $\beta$ prices is counted from the base. The policy starts with a debt, and going *back* towards a
#    model that answers carelessly is rewarded.
# 3. Step 0 proves nothing any more. A loss of $\ln 2$ is the cheapest test that policy, reference, masks and template
#    agree; with another reference it is lost.

# %%
weights = torch.sigmoid(-margins["base"])
debt = on_policy_kl(arms, "sft", "base", new, how)
print(f"weight of a pair between {weights.min():.2f} and {weights.max():.2f}, where 0.50 is due")
print(f"KL(SFT || base) {debt.sequence:.1f} nats an answer, standard error {debt.standard_error:.1f}")

# %% [markdown]
# The paper says the same in section 4: the data are samples from the SFT model, so it is the reference; where it is not
# at hand, one is made by fine-tuning on the chosen answers. (The GPU profiles do that.)
#
# ### An adapter is only half a model
#
# Everything above holds for one base. The same adapter file on another one, a newer upload under the same name for
# instance, loads without a word in PEFT. So hashes of the base's weights, tokenizer and template are stored
# beside the adapter, and compared when it is loaded. Here the base has been trained on by somebody:

# %%
other = shutil.copytree(DATA / "tiny-base", scratch / "tiny-base-v2")
(other / "manifest.json").unlink()
tensors = load_file(other / "model.safetensors")
name = next(name for name in tensors if "q_proj" in name)
tensors[name] = tensors[name] * 1.01
save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
with refusal():
    load_arms(load_profile("tiny", model={"path": str(other)}), {"sft": folder / "adapter"})
shutil.rmtree(scratch)

# %% [markdown]
# ## What we saw
#
# - SFT copies a distribution, faults in proportion. Sampling shows them, greedy decoding hides them.
# - EOS must bear loss. Without it nothing fails, and the model learns to go on from those who went on.
# - NF4 rounds each weight to one of 16 levels; the frozen base stays that way, and the adapter fits itself to it.
# - LoRA trains two thin matrices beside each frozen one. A hash says which frozen ones they belong to.
# - DPO's reference is the SFT model, because the policy starts there: margins 0, loss $\ln 2$, nothing owed.
#
# ## Exercises
#
# Solutions are in `solutions/03_sft_reference.ipynb`; try first.
#
# **1.** Round one block to NF4: scale it by its largest size, take the nearest of the levels, scale back. About three
# lines.


# %%
def my_rounding(block, levels):
    """Weights (N,) and the 16 levels (16,) in; the weights as NF4 stores them, (N,), out."""
    ...


check_rounding(my_rounding)

# %% [markdown]
# **2.** Count the trained weights of a LoRA adapter. About one line.


# %%
def my_adapter_size(layers, r):
    """A list of (inputs, outputs), one a linear layer, and the rank in; how many weights are trained out."""
    ...


check_adapter_size(my_adapter_size)

# %% [markdown]
# **3.** Write the loss of supervised fine-tuning, one mean over all trained tokens of the batch. About three lines.


# %%
def my_sft_loss(logits, input_ids, mask):
    """(N, T, V), (N, T) and (N, T), true on trained tokens, in; one number out."""
    ...


check_sft_loss(my_sft_loss)

# %% [markdown]
# **Next:** [04 · Preference data](04_preference_data.ipynb). The SFT model now answers each prompt twice, and somebody
# has to say which answer is better.
