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
# # 05 · QLoRA DPO, watched
#
# **Question.** What happens while DPO trains, how do you notice when it goes wrong, and how do you keep the result?
#
# **Needs.** The SFT model of notebook 03 and the pairs of notebook 04; they are made here if they are not there yet.
#
# **Takes.** Two minutes of computing on two CPU cores and fifty of reading. With a GPU profile the same cells train a
# 4B or 8B model; the first run then downloads it and trains its SFT adapter, which takes far longer than this page.
#
# The policy is the SFT adapter over a frozen base in 4 bits (QLoRA), the reference is a frozen copy of that adapter,
# and the loss is that of notebooks 01 and 02. None of it is new by now. What is new is everything around it: memory, a
# live view, guards, checkpoints, and proofs.

# %%
from dpo_kit.workbook import from_scratch  # isort: skip  (first: dpo_kit switches telemetry off before the libraries load)
import json
import shutil
import tempfile
import threading
from dataclasses import asdict
from math import ceil, log
from pathlib import Path
from textwrap import fill

import torch
from datasets import Dataset
from IPython.display import Markdown
from transformers import TrainerCallback, logging
from trl import DPOConfig, DPOTrainer

from dpo_kit import pipeline
from dpo_kit.files import hashes
from dpo_kit.jsonl import read_pairs, write_pairs
from dpo_kit.models import memory
from dpo_kit.models.generation import Sampling, generate
from dpo_kit.models.loading import adapters_to_fp32, add_adapter, load_arms, load_base
from dpo_kit.profiles import DATA, load_profile, profile_names
from dpo_kit.records import PreferencePair
from dpo_kit.training.branches import Branches
from dpo_kit.training.checkpoints import damage_in
from dpo_kit.training.dpo import train_dpo
from dpo_kit.training.fast import FastDPOTrainer
from dpo_kit.training.metrics_log import read_log
from dpo_kit.training.release import release_adapter
from dpo_kit.training.trainers import common_arguments
from dpo_kit.views.training import frontier
from dpo_kit.workbook.cells import refusal, without_timings
from dpo_kit.workbook.dashboard import Dashboard
from dpo_kit.workbook.exercises.qlora_dpo import check_merge, check_newest, check_saving
from dpo_kit.workbook.figures.fast import cells, gain, speeds, step_rates
from dpo_kit.workbook.figures.qlora import LOG_RATIOS, frontiers, memory_bars
from dpo_kit.workbook.show import show
from dpo_kit.workspace import Workspace, default_workdir

logging.set_verbosity_error()  # transformers says that dequantised weights are not the original ones: that is the point

# %% [markdown]
# ## 1. The dial
#
# This cell is the only one that knows about your machine. `None` takes `DPO_KIT_PROFILE` from the environment, and else
# `"tiny"`; the GPU profiles are `"gpu-8gb"`, `"gpu-12gb"`, `"gpu-16gb"` and `"gpu-24gb"`. Values are overridden by
# table: `load_profile("gpu-24gb", model={"path": "my/model"}, data={"pairs": "my_pairs.jsonl"})`.

# %%
PROFILE = None
profile = load_profile(PROFILE)
print(f"{profile.name}: {profile.model.path}, {profile.model.quantize}, LoRA rank {profile.model.lora_r}")
print(f"beta {profile.dpo.beta}, learning rate {profile.dpo.learning_rate:g}, {profile.dpo.batch_size} pairs a step")

# %% [markdown]
# ### Does it fit?
#
# Whether a card holds a training can be counted before a weight is loaded: from the model's configuration alone follow
# the bytes of the 4-bit weights, of what stays unquantised, of adapters, their gradients and the optimizer. What
# autograd keeps of each token follows from the layers. Look at what is large in the next figure: not the adapter.

# %%
cards = {name: load_profile(name) for name in profile_names() if name.startswith("gpu-")}
cards = dict(sorted(cards.items(), key=lambda item: int(item[0].removeprefix("gpu-").removesuffix("gb"))))
needs = {name: memory.estimate(card) for name, card in cards.items()}
totals = ", ".join(f"{name} {need.total / memory.GB:.1f} GB" for name, need in needs.items())
show(memory_bars({name: asdict(need) for name, need in needs.items()}), f"Memory at the peak by part: {totals}.")

# %%
parts = {name: {part: f"{size / memory.GB:.2f}" for part, size in asdict(need).items()} for name, need in needs.items()}
for name, need in needs.items():
    settings = cards[name].model
    parts[name] = {
        "model": settings.path.split("/")[-1],
        "tokens a pair": f"2 × {settings.max_length:,}",
        **parts[name],
        "**total, GB**": f"**{need.total / memory.GB:.1f}**",
    }
lines = [["", *parts], ["---", *["---:"] * len(parts)]]
lines += [[row, *(of_card[row] for of_card in parts.values())] for row in next(iter(parts.values()))]
Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))

# %% [markdown]
# These are estimates, and the last part of each is an allowance for what only a running kernel knows. With a card
# present, `memory.check_fits(profile)` compares with what is free and says what to change where it does not fit.
#
# ## 2. The pairs
#
# A part of the pairs is enough to see everything. Pairs of other prompts are held out: margins are measured on them,
# and they are never trained on.

# %%
work = Workspace(default_workdir(profile.name), profile.name)
sft = pipeline.sft(work, profile, seed=0) / "adapter"
made = pipeline.pairs(work, profile, seed=0)
pairs = read_pairs(made / "pairs.jsonl")[:416]
held_out = read_pairs(made / "heldout.jsonl")
asked = list({pair.prompt.id: pair.prompt for pair in held_out}.values())
print(f"{len(pairs)} pairs to train on, {len(held_out)} held out")
print(f"\n{fill(pairs[0].prompt.text, 96)}\n\nchosen\n{pairs[0].chosen.text}\n\nrejected\n{pairs[0].rejected.text}")

# %% [markdown]
# ## 3. Train, and watch
#
# In JupyterLab the next cell draws while it trains, says in words when something looks wrong, and has a **Stop** button
# that saves. Run without a person, it leaves the figure alone. Before you look: the margin on trained pairs should
# grow, the one on held-out pairs with it, and the KL is what that costs.

# %%
scratch = Path(tempfile.mkdtemp())
run = scratch / "run"
(run / "dpo").mkdir(parents=True)
references = scratch / "references.sqlite"  # log-probs of the reference, computed once for all that follows
steps = ceil(len(pairs) / profile.dpo.batch_size)
dashboard = Dashboard(steps, batch_size=profile.dpo.batch_size)
await dashboard.watch(  # noqa: F704
    train_dpo,
    profile,
    pairs,
    sft,
    asked[: profile.dpo.kl_prompts],
    run / "dpo",
    seed=0,
    held_out=held_out,
    references=references,
)

# %% [markdown]
# ### How to read it
#
# - **Margin** is $\beta$ times the difference of log-ratios: it has $\beta$ in it, so margins of different $\beta$ are
#   not comparable. Log-ratios, in nats, are.
# - **Rewards.** The loss asks for a difference. Where the chosen reward falls as well, only more slowly than the
#   rejected one, both kinds of answers became less likely (notebook 02, section 11).
# - **Accuracy** is the share of pairs with a margin above zero. It says nothing of how far.
# - **KL** is measured on the policy's own answers, exact over the vocabulary at each token. The log-ratios on the pairs
#   of the data are *not* a KL.
#
# ### Step 0
#
# Before the first step three things were asserted, and written down: the loss is $\ln 2$, the margin is 0, and every
# adapter's gradient is the one that stock TRL computes through dequantised weights in plain matrix products. The
# cosine below is that of the adapter that agrees least.

# %%
start = json.loads((run / "dpo" / "start.json").read_text())
assert abs(start["loss"] - log(2)) < 1e-3
print(f"loss {start['loss']:.6f}, ln 2 = {log(2):.6f}; margin {start['margin']:.1g}")
print(f"cosine between the gradients {start['gradient_cosine']:.6f}")

# %% [markdown]
# ### The price of a margin
#
# The same run without its clock: the gap between chosen and rejected on held-out pairs, over the KL that was paid for
# it. A policy is well trained while this curve climbs. Where it goes right and no longer up, it is only getting further
# from the reference.

# %%
rows = read_log(run / "dpo" / "log.jsonl")
way = frontier(rows, LOG_RATIOS)
show(
    frontiers({"this run": rows}),
    f"Held-out gap over KL: from 0 to a gap of {way[-1][2]:.1f} nats at a KL of {way[-1][1]:.1f} nats.",
)

# %% [markdown]
# ## 4. What is refused
#
# None of the following raises an error in stock TRL. Each is caught here before the first step or at the step where it
# happens, with a line that says what to do.


# %%
def train(name, pairs, with_profile=profile, **options):
    """Train quietly in a folder of its own and return it."""
    folder = scratch / name
    folder.mkdir(exist_ok=True)
    options = {"kl_prompts": (), "references": references, "log": lambda line: None, **options}
    train_dpo(with_profile, pairs, sft, folder=folder, seed=0, **options)
    return folder


def changed(table, **values):
    """The profile with some values of one table changed."""
    return profile.model_copy(update={table: getattr(profile, table).model_copy(update=values)})


few = pairs[: 2 * profile.dpo.batch_size]

# %% [markdown]
# **A row without signal.** Chosen and rejected are the same; the loss is $\ln 2$ for ever, and its gradient zero.

# %%
same = PreferencePair(**{**dict(few[3]), "rejected": few[3].chosen})
with refusal():
    train("same", [*few[:3], same, *few[4:]])

# %% [markdown]
# **An answer that is cut off.** `max_length` is one token too small for the longest row, so its EOS is not trained.

# %%
tokenizer = load_base(profile)[1]
encoded = [from_scratch.encode(tokenizer, pair) for pair in few]
longest = max(len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in encoded)
with refusal():
    train("cut-off", few, changed("model", max_length=longest - 1))

# %% [markdown]
# **A learning rate of another world.** What is right for one kind of tuning wrecks another; the guard knows the kind
# and the size of the model. It can be told to look away, and then the run stops where a number is no longer finite,
# before the optimizer has written it into a weight:

# %%
with refusal():
    train("too-fast", few, changed("dpo", learning_rate=0.1))
with refusal():
    train("far-too-fast", few, changed("dpo", learning_rate=1e30, warmup_share=0.0, any_learning_rate=True))

# %% [markdown]
# ## 5. Stop, and go on
#
# A stopped run should go on as if nothing had been: the same losses, the same weights, to the last bit. That takes more
# than the weights: the optimizer's moments, the schedule, the order of the data, the random numbers. One run here is
# never interrupted; the other is asked to stop during its second step, as the button asks.


# %%
class StopAt(TrainerCallback):
    """Asks for a stop while a step is under way."""

    def __init__(self, step, stop):
        self.step, self.stop = step, stop

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.stop.set()


some = pairs[: 4 * profile.dpo.batch_size]
whole = train("whole", some)
stop = threading.Event()
with refusal():
    train("stopped", some, stop=stop, callbacks=[StopAt(2, stop)])

# %% [markdown]
# A checkpoint counts only when its manifest was written last, with the size and hash of every file. So a kill in the
# middle of a save leaves a folder that is passed over, and the one before it is used.

# %%
for checkpoint in (scratch / "stopped" / "checkpoints").glob("checkpoint-*"):
    print(checkpoint.name, "is", damage_in(checkpoint) or "whole")
resumed = train("stopped", some, log=print)
assert hashes(resumed / "adapter") == hashes(whole / "adapter"), "the weights are the same, bit for bit"
logs = [without_timings(read_log(folder / "log.jsonl")) for folder in (resumed, whole)]
assert logs[0] == logs[1], "and so is the log"
for row in read_log(resumed / "log.jsonl"):
    if "loss" in row:
        print(f"step {row['step']}: learning rate {row['learning_rate']:.1e}, loss {row['loss']:.6f}")

# %% [markdown]
# (The first step of a warm-up has a learning rate of zero, so the second loss is the first again.)
#
# ## 6. Beta, three ways
#
# $\beta$ is the price of a nat (notebook 01): the higher it is, the closer the *optimum* is to the reference. Three
# short runs on the same pairs at the same learning rate, a higher one than above and in smaller batches, so that they
# get somewhere. Their references come from the cache. Margins have $\beta$ in them, so compare the unscaled gap. A KL
# that is measured on two dozen answers is noisy: a point may lie to the left of the one before it.

# %%
fast_steps = {"batch_size": 8, "learning_rate": 2.5 * profile.dpo.learning_rate, "warmup_share": 0.0, "kl_every": 8}
sweep = {}
for beta in (0.01, 0.1, 1.0):
    tried = changed("dpo", beta=beta, **fast_steps)
    folder = train(f"beta-{beta:g}", pairs[: 24 * 8], tried, held_out=held_out, kl_prompts=asked[:24])
    sweep[f"beta {beta:g}"] = read_log(folder / "log.jsonl")

# %%
ends = {name: frontier(rows, LOG_RATIOS)[-1] for name, rows in sweep.items()}
told = "; ".join(f"{name}: gap {gap:.1f} at KL {kl:.1f}" for name, (_, kl, gap) in ends.items())
show(frontiers(sweep), f"Held-out gap over KL for three betas, in nats. At the end {told}.")

# %%
for name, rows in sweep.items():
    kl = next(row for row in reversed(rows) if "kl/sequence" in row)
    last = next(row for row in reversed(rows) if "eval_rewards/margins" in row)
    print(
        f"{name:9} margin {last['eval_rewards/margins']:6.3f}, gap {last['eval_log_ratios/margins']:5.2f} nats, "
        f"KL {kl['kl/sequence']:.2f} ± {kl['kl/standard_error']:.2f} nats, weight of a pair at such a margin "
        f"{torch.sigmoid(torch.tensor(-last['eval_rewards/margins'])):.2f}"
    )

# %% [markdown]
# Read it with care: these are two dozen steps, not the optimum. Adam divides each gradient by its own size, so the
# factor $\beta$ in front of the gradient cancels, and all three set out at the same speed. They part when the weights
# $\sigma(-\beta h)$ of the pairs fall, and with $\beta = 1$ that happens after a nat or two: its pairs are settled
# early and stop pulling. With $\beta = 0.01$ nothing is ever settled within such a run; what ends it is the number of
# steps. So early stopping and the learning rate do part of the work that theory gives to $\beta$, and a sweep over
# $\beta$ at a fixed number of steps measures all of them together.
#
# To try: `7 *` in place of `2.5 *`, with `"any_learning_rate": True` beside it. One of the three runs away. Which one,
# and why not the one with the lowest price?
#
# ## 7. Keep it
#
# The adapter is saved with a **card**: base, data, settings, where the curves ended. Then nothing in memory is trusted.
# Base and adapters are loaded afresh from the disk, some pairs are tokenised afresh, and their rewards must be those
# that training ended with. Merged models, with $W + \frac{\alpha}{r} B A$ in place of $W$, are written as well.

# %%
shutil.copytree(sft, run / "sft" / "adapter")
write_pairs(run / "pairs" / "pairs.jsonl", pairs)
proof = release_adapter(profile, run, run / "release", merge=True)
print(f"largest difference in a reward {proof.distance:.1g}, allowed {proof.allowed:.1g}, on {proof.pairs} pairs")

# %%
card = (run / "release" / "adapter" / "README.md").read_text()
Markdown(card.split("---\n", 2)[2].replace("\n# ", "\n#### ").replace("\n## ", "\n##### "))

# %% [markdown]
# The two merged models are not the same. The adapter learnt beside *rounded* weights; merged into the dequantised ones
# it says what it said, merged into the originals it meets a slightly different model. How different, in nats of the
# log-prob of a whole answer:

# %%
merged = json.loads((run / "release" / "merged.json").read_text())
lines = ["| merged into the base | mean | largest | a token |", "| --- | ---: | ---: | ---: |"]
for m in merged:
    lines.append(f"| {m['base']} | {m['mean_difference']:.2g} | {m['largest_difference']:.2g} | {m['per_token']:.2g} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## 8. Three arms
#
# One frozen base, two adapters, three models. A few held-out prompts, at temperature 1. These are the first, not the
# best, and three answers prove nothing: notebook 06 does that properly.

# %%
arms = load_arms(profile, {"sft": sft, "dpo": run / "release" / "adapter"})
how = Sampling(1.0, 0, profile.pairs.max_new_tokens, profile.pairs.batch_size)
answers = {arm: generate(arms, arm, asked[:3], how) for arm in ("base", "sft", "dpo")}
for i, prompt in enumerate(asked[:3]):
    print(fill(f"--- {prompt.text}", 96))
    for arm, given in answers.items():
        print(f"[{arm}]\n{given[i].text}")
    print()

# %% [markdown]
# ## 9. Where the time went
#
# Training used a **fast path** by default. A DPO step as it is usually written does work that nobody asked for:
#
# 1. **The prompt twice.** Chosen and rejected begin alike. Here their common beginning stands once, and the two answers
#    are branches that do not see each other.
# 2. **Padding.** Every row is as wide as the longest. Here all tokens stand in one row, without any.
# 3. **Positions that are not scored.** The head maps every position to the whole vocabulary. Only those that predict an
#    answer's token are needed.
# 4. **The reference, again.** It does not change, so its log-probs are computed once a pair and kept, across epochs,
#    restarts, and the three betas above.
# 5. **Copies for the adapters.** An adapter is kept in fp32, and every layer's activations are copied to fp32 to meet
#    it. Here the adapter, which is small, is cast to the activations, and added to the layer's own product.
#
# The first two can be counted. This is a batch of eight pairs:

# %%
eight = pairs[:8]
batch = from_scratch.collate(tokenizer, eight)
layout = Branches.of(batch.input_ids, batch.attention_mask.long())
padded, real = batch.input_ids.numel(), int(batch.attention_mask.sum())
print(f"{padded} positions in TRL's batch, {real} of them tokens; {len(layout.owner)} where prompts are shared")

# %% [markdown]
# Only how log-probs are computed may change, not what they are. The same eight pairs through stock TRL and through the
# fast path, on the same weights:


# %%
def per_token(kind):
    """The log-prob of each token of the batch, as a trainer's own forward computes it, and the trainer."""
    model, tokenizer = load_base(profile)
    arguments = common_arguments(profile, profile.dpo, scratch / "unused", seed=0)
    trainer = kind(
        add_adapter(model, "default", sft, trainable=True),
        args=DPOConfig(**arguments),
        train_dataset=Dataset.from_list([pair.to_trl() for pair in eight]),
        processing_class=tokenizer,
    )
    adapters_to_fp32(trainer.model)  # TRL puts those of a 4-bit model into bf16
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(len(eight))]))
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    with torch.no_grad(), trainer.accelerator.autocast():
        said = trainer.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels, use_cache=False,
            fused_lm_head=True,
        )  # fmt: skip
    return said.log_probs.float(), trainer


stock, _ = per_token(DPOTrainer)
fast, trainer = per_token(FastDPOTrainer)
assert trainer.stock_reason is None, trainer.stock_reason
apart = (stock - fast).abs().max().item()
assert apart < (1e-3 if profile.model.compute_dtype == "float32" else 0.25)
print(f"{stock.shape[0]} sequences; the log-prob of no token differs by more than {apart:.1g} nats")

# %% [markdown]
# What it brings depends on lengths and vocabulary, and has to be measured: arms in turn, each in a fresh process. The
# figure is drawn from the committed log of the benchmark (`python -m benchmarks.dpo_step`), made on a shared machine:
# read ratios, not speeds. Compare the two stock arms with the fast path, and with the whole the arms that lack a part:

# %%
measured = json.loads((DATA / "runs" / "dpo_step.json").read_text())
shown = next((cell for cell in cells(measured) if cell == ("smollm2-135m", "ragged")), cells(measured)[0])
arm_speeds = speeds(measured, *shown)
told = ", ".join(f"{arm} {middle:.2f}" for arm, (middle, *_) in arm_speeds.items())
show(step_rates(measured, *shown), f"Pairs per second on {shown[0]}, lengths {shown[1]}: {told}.")

# %%
for cell in cells(measured):
    gains = {peer: gain(measured, *cell, peer) for peer in ("best_stock", "stock")}
    against = [f"{times:.2f} times {peer}" for peer, times in gains.items() if times]
    print(f"{cell[0]:14} {cell[1]:7} fast path: {', '.join(against)}")

# %% [markdown]
# Ratios are taken within a round, and their median is shown. It brings least where answers are long beside the
# prompt: there is less to share.

# %%
shutil.rmtree(scratch)

# %% [markdown]
# ## What we saw
#
# - What a training needs can be counted before it starts. Activations and the base fill a card; adapters do not.
# - Margin and KL belong in one picture, a gain and its price. Margins of different $\beta$ do not compare.
# - Rows without signal, lost EOS, wrong rates and numbers that are not finite are refused in words.
# - A stopped run goes on bit for bit, or says why it does not.
# - $\beta$, learning rate and number of steps act together in a short run.
# - What was saved is what was trained, and a merge changes it by an amount that can be said.
#
# ## Exercises
#
# Solutions are in `solutions/05_qlora_dpo.ipynb`; try first.
#
# **1.** Merge an adapter into a weight, $W + \frac{\alpha}{r} B A$. About one line.


# %%
def my_merge(weight, a, b, alpha):
    """W (out, in), A (r, in), B (out, r) and a number in; the merged weight (out, in) out."""
    ...


check_merge(my_merge)

# %% [markdown]
# **2.** Choose the checkpoint to go on from. Each is `(step, promised, found)`: what its manifest promises and what
# lies there, both as a dict from a file's name to its hash. Return the highest step whose files are exactly those
# promised, or 0. About one line.


# %%
def my_newest(checkpoints):
    """A list of (step, promised, found) in, in any order; a step out."""
    ...


check_newest(my_newest)

# %% [markdown]
# **3.** How many times fewer positions are computed when nothing is padded and each prompt stands once? A padded batch
# has two rows a pair, each as wide as the longest row of the batch. About two lines.


# %%
def my_saving(lengths):
    """A list of (prompt, chosen, rejected), in tokens, one a pair, in; padded positions over shared ones out."""
    ...


check_saving(my_saving)

# %% [markdown]
# **Next:** [06 · Three arms](06_three_way_eval.ipynb). A margin on pairs is not a better model; base, SFT and SFT+DPO
# answer the same prompts, and statistics decide.
