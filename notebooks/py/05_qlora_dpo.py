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
# **Question.** What happens while DPO trains, how do you notice that something goes wrong, and how do you keep the
# result?
#
# **Needs.** The SFT model of notebook 03 and the pairs of notebook 04. If they are not there yet, they are made here.
#
# **Takes.** Three minutes of computing on two CPU cores, and fifty minutes of reading. With a GPU profile the same
# cells train a 4B or 8B model. The first run then downloads the model and trains its SFT adapter, which takes far
# longer than reading this page.
#
# The policy is the SFT adapter on a frozen base in 4 bits; this combination is called QLoRA. The reference is a frozen
# copy of the same adapter. The loss is that of notebooks 01 and 02, so the mathematics is known by now. This notebook
# is about everything around it: memory, a live view of the training, checks that refuse bad input, checkpoints, and a
# proof that the saved adapter is the trained one.

# %%
from dpo_kit.workbook import cells, from_scratch, lesson_runs  # isort: skip  (first: switches telemetry off)
import json
import shutil
import tempfile
import threading
from dataclasses import asdict
from math import ceil, log
from pathlib import Path
from textwrap import fill

import torch
import transformers
import trl
from datasets import Dataset
from IPython.display import Markdown

from dpo_kit import pipeline, profiles, records, workspace
from dpo_kit.evaluation.statistics import mean_interval
from dpo_kit.files import hashes
from dpo_kit.jsonl import write_pairs
from dpo_kit.models import generation, loading, memory
from dpo_kit.training import branches, checkpoints, dpo, fast, release, trainers
from dpo_kit.training.metrics_log import read_log
from dpo_kit.triage import rubric
from dpo_kit.views.tables import interval
from dpo_kit.views.training import frontier
from dpo_kit.workbook.dashboard import Dashboard
from dpo_kit.workbook.exercises import qlora_dpo as exercises
from dpo_kit.workbook.figures import fast as benchmark
from dpo_kit.workbook.figures.qlora import LOG_RATIOS, frontiers, memory_bars
from dpo_kit.workbook.show import show

transformers.logging.set_verbosity_error()  # section 7 says what it would warn of

# %% [markdown]
# ## 1. The dial
#
# Only the next cell depends on your machine. With `None`, the profile is the one that `DPO_KIT_PROFILE` names in the
# environment, or `"tiny"` if it is not set. The GPU profiles are `"gpu-8gb"`, `"gpu-12gb"`, `"gpu-16gb"` and
# `"gpu-24gb"`. Single values can be changed table by table, for example
# `load_profile("gpu-24gb", model={"path": "my/model"}, data={"pairs": "my_pairs.jsonl"})`.

# %%
PROFILE = None
profile = profiles.load_profile(PROFILE)
print(f"{profile.name}: {profile.model.path}, {profile.model.quantize}, LoRA rank {profile.model.lora_r}")
print(f"beta {profile.dpo.beta}, learning rate {profile.dpo.learning_rate:g}, {profile.dpo.batch_size} pairs a step")

# %% [markdown]
# ### Does it fit?
#
# You can count whether a training fits on a card before you load a single weight. The model's configuration gives the
# bytes of the 4-bit weights, of the parts that stay unquantised, of the adapters, of their gradients and of the
# optimizer. The layers also tell how many activations autograd keeps for each token.
#
# A question before the figure: which part do you expect to be the largest, and how large is the adapter?

# %%
cards = {name: profiles.load_profile(name) for name in profiles.profile_names() if name.startswith("gpu-")}
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

# %%
share = {name: (need.total, max(asdict(need), key=asdict(need).get)) for name, need in needs.items()}
for name, (total, largest) in share.items():
    print(f"{name:9} the largest part is {largest}: {asdict(needs[name])[largest] / total:.0%} of the total")

# %% [markdown]
# These are estimates. The last part of each is an allowance for what only a running kernel knows. On a machine with a
# card, `memory.check_fits(profile)` compares the estimate with the free memory, and says what to change if it does not
# fit.
#
# ## 2. The pairs
#
# These are the pairs that notebook 04 saved, your own labels included. If you have not run it, they are made here in
# the same way: sampled, judged by the rubric, audited, and split by prompt. The held-out pairs belong to other prompts.
# They are never trained on; margins are measured on them.

# %%
work = workspace.Workspace(workspace.default_workdir(profile.name), profile.name)
sft = pipeline.sft(work, profile, seed=0) / "adapter"
sampled = pipeline.pairs(work, profile, seed=0) / "pairs.jsonl"
pairs, held_out = lesson_runs.pairs_to_train_on(work, profile, sampled)
asked = list({pair.prompt.id: pair.prompt for pair in held_out}.values())
print(f"{len(pairs)} pairs to train on, {len(held_out)} held out")
print(f"\n{fill(pairs[0].prompt.text, 96)}\n\nchosen\n{pairs[0].chosen.text}\n\nrejected\n{pairs[0].rejected.text}")

# %% [markdown]
# ## 3. Train, and watch
#
# In JupyterLab the next cell draws while it trains. It says in words when something looks wrong. Its **Stop** button
# ends the training after the current step and saves a checkpoint; run the cell again, and the training continues from
# there. The run lies in the folder of the workbook's run, so this also works after the kernel was restarted. If nobody
# is at the page, only the final figure is shown.
#
# Before you run it, write down a guess: will the margin on held-out pairs grow as fast as the margin on trained pairs?
# And how large will the KL be, which is the price of the margin?

# %%
run = lesson_runs.run_folder(work, profile, pairs)
references = run / "references.sqlite"  # log-probs of the reference, computed once for all that follows
watched = held_out[:32]  # measured every few steps; all held-out pairs are measured once, after training
(run / "dpo").mkdir(exist_ok=True)
steps = ceil(len(pairs) / profile.dpo.batch_size)
dashboard = Dashboard(steps, batch_size=profile.dpo.batch_size)
await dashboard.watch(  # noqa: F704
    dpo.train_dpo,
    profile,
    pairs,
    sft,
    asked[: profile.dpo.kl_prompts],
    run / "dpo",
    seed=0,
    held_out=watched,
    references=references,
    log=lambda line: None,
)

# %% [markdown]
# ### How to read it
#
# - **Margin** is $\beta$ times the difference of the two log-ratios. Because $\beta$ is a factor of it, margins of
#   different $\beta$ cannot be compared. The log-ratios themselves, in nats, can.
# - **Rewards.** The loss asks only for a difference between chosen and rejected. If the chosen reward falls too, but
#   more slowly than the rejected one, both kinds of answers became less likely (notebook 02, section 11).
# - **Accuracy** is the share of pairs with a margin above zero. It does not say how far above.
# - **KL** is measured on answers that the policy itself samples, and exactly over the vocabulary at each token. The
#   log-ratios on the pairs of the data set are *not* a KL.
#
# ### The margin on enough pairs
#
# The curve of held-out pairs rests on few pairs, because it is measured often. Each point is therefore uncertain. After
# training, the margin is measured once on all held-out pairs. How much narrower do you expect the interval to be with
# ten times as many pairs?

# %%
found = lesson_runs.margins(profile, run / "dpo" / "adapter", sft, held_out)
print("\n".join(lesson_runs.margin_lines(found, sorted({min(30, len(found)), min(100, len(found)), len(found)}))))

# %% [markdown]
# The width of an interval falls with the square root of the number of pairs. Use the last line when you compare two
# trainings, and the curve only to see a trend.
#
# ### Step 0
#
# Before the first step three things were checked and written down: the loss is $\ln 2$, the margin is 0, and the
# gradient of every adapter is the one that stock TRL computes through dequantised weights in plain matrix products. The
# cosine below belongs to the adapter whose two gradients agree least.

# %%
start = json.loads((run / "dpo" / "start.json").read_text())
assert abs(start["loss"] - log(2)) < 1e-3
print(f"loss {start['loss']:.6f}, ln 2 = {log(2):.6f}; margin {start['margin']:.1g}")
print(f"cosine between the gradients {start['gradient_cosine']:.6f}")

# %% [markdown]
# ### The price of a margin
#
# The next figure shows the same run without time: the gap between chosen and rejected on held-out pairs, over the KL at
# the same step. While the curve climbs, the policy gets something for moving away from the reference. If it goes to the
# right and no longer up, the policy only moves away. Does this run climb until its end?

# %%
rows = read_log(run / "dpo" / "log.jsonl")
way = frontier(rows, LOG_RATIOS)
show(
    frontiers({"this run": rows}),
    f"Held-out gap over KL: from 0 to a gap of {way[-1][2]:.1f} nats at a KL of {way[-1][1]:.1f} nats.",
)

# %%
for step, kl, gap in way:
    print(f"step {step:3}: KL {kl:.2f} nats, gap {gap:.2f} nats")

# %% [markdown]
# ## 4. What is refused
#
# Stock TRL raises no error for any of the following. Here each is found before the first step, or at the step where it
# happens, and the message says what to do.


# %%
scratch = Path(tempfile.mkdtemp())  # for the small trainings below; removed at the end, unlike the run above


def train(name, pairs, with_profile=profile, **options):
    """Train quietly in a temporary folder and return it."""
    folder = scratch / name
    folder.mkdir(exist_ok=True)
    options = {"kl_prompts": (), "references": references, "log": lambda line: None, **options}
    dpo.train_dpo(with_profile, pairs, sft, folder=folder, seed=0, **options)
    return folder


def changed(table, **values):
    """The profile with some values of one table changed."""
    return profile.model_copy(update={table: getattr(profile, table).model_copy(update=values)})


few = pairs[: 2 * profile.dpo.batch_size]

# %% [markdown]
# **A row without signal.** Chosen and rejected are the same text. The loss of this row stays $\ln 2$, and its gradient
# is zero.

# %%
same = records.PreferencePair(**{**dict(few[3]), "rejected": few[3].chosen})
with cells.refusal():
    train("same", [*few[:3], same, *few[4:]])

# %% [markdown]
# **An answer that is cut off.** `max_length` is one token too small for the longest row. Its end-of-sequence token
# (EOS) is cut off, so this row would not teach the model to stop.

# %%
tokenizer = loading.load_base(profile)[1]
encoded = [from_scratch.encode(tokenizer, pair) for pair in few]
longest = max(len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in encoded)
with cells.refusal():
    train("cut-off", few, changed("model", max_length=longest - 1))

# %% [markdown]
# **A learning rate that is far too high.** A rate that is right for full fine-tuning can be wrong for LoRA, and the
# other way round. The check knows how the model is tuned and how large it is. You can switch the check off. Then the
# training stops at the first number that is not finite, before the optimizer has written it into a weight:

# %%
with cells.refusal():
    train("too-fast", few, changed("dpo", learning_rate=0.1))
with cells.refusal():
    train("far-too-fast", few, changed("dpo", learning_rate=1e30, warmup_share=0.0, any_learning_rate=True))

# %% [markdown]
# ## 5. Stop, and continue
#
# A training that was stopped should continue as if it had never been stopped: the same losses and the same weights, to
# the last bit. For this the weights alone are not enough. The optimizer's moments, the learning-rate schedule, the
# order of the data and the state of the random numbers are needed too. Below, one training is never interrupted. The
# other is asked to stop during its second step, in the same way as by the button.


# %%
class StopAt(transformers.TrainerCallback):
    """Asks for a stop while a step is under way."""

    def __init__(self, step, stop):
        self.step, self.stop = step, stop

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.stop.set()


some = pairs[: 4 * profile.dpo.batch_size]
whole = train("whole", some)
stop = threading.Event()
with cells.refusal():
    train("stopped", some, stop=stop, callbacks=[StopAt(2, stop)])

# %% [markdown]
# A checkpoint is valid only if it has a manifest with the size and the hash of every file. The manifest is written
# last. If the process is killed during a save, the unfinished folder is ignored and the checkpoint before it is used.

# %%
for checkpoint in (scratch / "stopped" / "checkpoints").glob("checkpoint-*"):
    print(checkpoint.name, "is", checkpoints.damage_in(checkpoint) or "whole")
resumed = train("stopped", some, log=print)
assert hashes(resumed / "adapter") == hashes(whole / "adapter"), "the weights are the same, bit for bit"
logs = [cells.without_timings(read_log(folder / "log.jsonl")) for folder in (resumed, whole)]
assert logs[0] == logs[1], "and so is the log"
for row in read_log(resumed / "log.jsonl"):
    if "loss" in row:
        print(f"step {row['step']}: learning rate {row['learning_rate']:.1e}, loss {row['loss']:.6f}")

# %% [markdown]
# (With a warm-up, the first step has a learning rate of zero, so the loss of the second step equals that of the first.)
#
# ## 6. Beta, three ways
#
# $\beta$ is the price of one nat of KL (notebook 01): the higher it is, the closer the *optimum* is to the reference.
# The next cell makes three short trainings on the same pairs, with one value of $\beta$ each. The learning rate is
# higher than above and the batches are smaller, so that two dozen steps move the policy visibly. Margins contain
# $\beta$, so compare the gap in nats. The KL is measured on two dozen answers and is noisy, so a point of the figure
# may lie to the left of the one before it.
#
# Your guess first: which $\beta$ ends with the largest gap, and by how much?

# %%
fast_steps = {"batch_size": 8, "learning_rate": 2.5 * profile.dpo.learning_rate, "warmup_share": 0.0, "kl_every": 8}
sweep, adapters = {}, {}
for place, beta in enumerate((0.01, 0.1, 1.0)):
    tried = changed("dpo", beta=beta, **fast_steps)
    folder = train(f"beta-{beta:g}", pairs[: 24 * 8], tried, held_out=watched, kl_prompts=asked[:24])
    sweep[f"beta {beta:g}"] = read_log(folder / "log.jsonl")
    adapters[f"beta_{place}"] = folder / "adapter"

# %%
ends = {name: frontier(rows, LOG_RATIOS)[-1] for name, rows in sweep.items()}
told = "; ".join(f"{name}: gap {gap:.1f} at KL {kl:.1f}" for name, (_, kl, gap) in ends.items())
show(frontiers(sweep), f"Held-out gap over KL for three betas, in nats. At the end {told}.")

# %%
for name, rows in sweep.items():
    kl = next(row for row in reversed(rows) if "kl/sequence" in row)
    last = next(row for row in reversed(rows) if "eval_rewards/margins" in row)
    first = next(gap for step, _, gap in frontier(rows, LOG_RATIOS) if step > 0)
    weight = torch.sigmoid(torch.tensor(-last["eval_rewards/margins"]))
    print(
        f"{name:9} gap after {fast_steps['kl_every']} steps {first:.2f} nats, at the end "
        f"{last['eval_log_ratios/margins']:.2f} nats, KL {kl['kl/sequence']:.2f} ± {kl['kl/standard_error']:.2f} nats; "
        f"weight of a pair at the last margin {weight:.2f}"
    )

# %% [markdown]
# These are two dozen steps, and not the optimum. Adam divides each gradient by its own size, so the factor $\beta$ in
# front of the gradient cancels, and the three trainings start with steps of the same size. They separate when the
# weights $\sigma(-\beta h)$ of the pairs fall. With $\beta = 1$ they fall after one or two nats. With
# $\beta = 0.01$ they stay at about one half in such a short run, and the run ends because its steps are used up. At
# the lower learning rate of the profile the gap stays smaller (section 3), so the weights of different $\beta$ differ
# even less. A short sweep over $\beta$ therefore measures the learning rate and the number of steps as well.
#
# Does $\beta$ change the answers? Each of the three answers the same held-out prompts at temperature 1, and the rubric
# scores the answers. This works only in the workbook's own world, which has a rubric:

# %%
if not profile.data.external:
    how = generation.Sampling(1.0, 0, profile.pairs.max_new_tokens, profile.pairs.batch_size)
    trained = loading.load_arms(profile, {"sft": sft, **adapters})
    for name, arm in zip(["SFT", *sweep], ["sft", *adapters], strict=True):
        given = generation.generate(trained, arm, asked[:100], how)
        scored = [rubric.overall(prompt, answer.text) for prompt, answer in zip(asked, given, strict=False)]
        print(f"{name:9} mean score {interval(mean_interval(scored))} on {len(scored)} prompts")

# %% [markdown]
# Compare the intervals of the three trainings with each other. If they overlap widely, this sweep gives no reason to
# prefer one $\beta$.
#
# To try: put `7 *` in place of `2.5 *`, and `"any_learning_rate": True` beside it. Which of the three moves furthest
# from the reference, and why?
#
# ## 7. Keep it
#
# The adapter is saved with a **card**, which names its base, data and settings and the ends of the curves. After that
# nothing in memory is trusted: base and adapters are loaded from the disk again, some pairs are tokenised again, and
# their rewards must be those that the training ended with. Merged models, with $W + \frac{\alpha}{r} B A$ in place of
# $W$, are written too. All of it stays in the folder of the workbook's run.

# %%
released = run / "release"
shutil.rmtree(released, ignore_errors=True)  # an earlier release of this same run: same settings, same pairs
shutil.copytree(sft, run / "sft" / "adapter", dirs_exist_ok=True)
write_pairs(run / "pairs" / "pairs.jsonl", pairs)
proof = release.release_adapter(profile, run, released, merge=True)
print(f"largest difference in a reward {proof.distance:.1g}, allowed {proof.allowed:.1g}, on {proof.pairs} pairs")
print("kept in", released.relative_to(work.root.parent), "below the folder of your runs")

# %%
card = (released / "adapter" / "README.md").read_text()
Markdown(card.split("---\n", 2)[2].replace("\n# ", "\n#### ").replace("\n## ", "\n##### "))

# %% [markdown]
# There are two merged models, and they are not the same. The adapter was trained beside *rounded* weights. Merged into
# the same rounded weights (after dequantisation) it computes what it computed before. Merged into the original weights
# it meets a slightly different model. The table says how different, in nats of the log-prob of a whole answer:

# %%
merged = json.loads((released / "merged.json").read_text())
lines = ["| merged into the base | mean | largest | a token |", "| --- | ---: | ---: | ---: |"]
for m in merged:
    lines.append(f"| {m['base']} | {m['mean_difference']:.2g} | {m['largest_difference']:.2g} | {m['per_token']:.2g} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## 8. Three arms
#
# One frozen base and two adapters make three models. Each answers a few held-out prompts at temperature 1. The prompts
# are the first ones of the list and were not selected. Three answers prove nothing; notebook 06 compares the arms on
# enough prompts.

# %%
arms = loading.load_arms(profile, {"sft": sft, "dpo": released / "adapter"})
how = generation.Sampling(1.0, 0, profile.pairs.max_new_tokens, profile.pairs.batch_size)
answers = {arm: generation.generate(arms, arm, asked[:3], how) for arm in ("base", "sft", "dpo")}
for i, prompt in enumerate(asked[:3]):
    print(fill(f"--- {prompt.text}", 96))
    for arm, given in answers.items():
        print(f"[{arm}]\n{given[i].text}")
    print()

# %% [markdown]
# ## 9. Where the time went
#
# The training used a **fast path**, which is the default. A DPO step as it is usually written does work that changes
# nothing in the result:
#
# 1. **The prompt twice.** Chosen and rejected begin with the same prompt. The fast path computes this common beginning
#    once; the two answers are branches after it that do not see each other.
# 2. **Padding.** In a padded batch every row is as wide as the longest one. Here all tokens stand in one row.
# 3. **Positions that are not scored.** The head maps every position to the whole vocabulary. Only the positions that
#    predict a token of an answer are needed.
# 4. **The reference, again.** The reference does not change. Its log-probs are computed once a pair and kept, across
#    epochs, restarts, and the three betas above.
# 5. **Copies for the adapters.** An adapter is kept in fp32, and PEFT copies every layer's activations to fp32 for it.
#    Here the adapter, which is small, is converted to the type of the activations instead.
#
# The first two can be counted. This is a batch of eight pairs:

# %%
eight = pairs[:8]
batch = from_scratch.collate(tokenizer, eight)
layout = branches.Branches.of(batch.input_ids, batch.attention_mask.long())
padded, real = batch.input_ids.numel(), int(batch.attention_mask.sum())
print(f"{padded} positions in TRL's batch, {real} of them tokens; {len(layout.owner)} where prompts are shared")

# %% [markdown]
# The fast path may change how log-probs are computed, but not their values. Here are the same eight pairs on the same
# weights, through stock TRL and through the fast path:


# %%
def per_token(kind):
    """The log-prob of each token of the batch, as a trainer's own forward computes it, and the trainer."""
    model, tokenizer = loading.load_base(profile)
    arguments = trainers.common_arguments(profile, profile.dpo, scratch / "unused", seed=0)
    trainer = kind(
        loading.add_adapter(model, "default", sft, trainable=True),
        args=trl.DPOConfig(**arguments),
        train_dataset=Dataset.from_list([pair.to_trl() for pair in eight]),
        processing_class=tokenizer,
    )
    loading.adapters_to_fp32(trainer.model)  # TRL puts those of a 4-bit model into bf16
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(len(eight))]))
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    with torch.no_grad(), trainer.accelerator.autocast():
        said = trainer.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels, use_cache=False,
            fused_lm_head=True,
        )  # fmt: skip
    return said.log_probs.float(), trainer


by_trl, _ = per_token(trl.DPOTrainer)
by_fast, trainer = per_token(fast.FastDPOTrainer)
assert trainer.stock_reason is None, trainer.stock_reason
apart = (by_trl - by_fast).abs().max().item()
assert apart < (1e-3 if profile.model.compute_dtype == "float32" else 0.25)
print(f"{by_trl.shape[0]} sequences; the log-prob of no token differs by more than {apart:.1g} nats")

# %% [markdown]
# How much faster it is depends on lengths and vocabulary, so it has to be measured. The figure shows the committed log
# of a benchmark (`python -m benchmarks.dpo_step`), in which the variants ran in turn, each in a fresh process. The
# machine was shared, so read ratios and not speeds. Compare the two stock variants with the fast path, and then the
# fast path with the variants that lack one of its parts: which part brings most?

# %%
measured = json.loads((profiles.DATA / "runs" / "dpo_step.json").read_text())
measured_cells = benchmark.cells(measured)
shown = ("smollm2-135m", "ragged") if ("smollm2-135m", "ragged") in measured_cells else measured_cells[0]
arm_speeds = benchmark.speeds(measured, *shown)
told = ", ".join(f"{arm} {middle:.2f}" for arm, (middle, *_) in arm_speeds.items())
show(benchmark.step_rates(measured, *shown), f"Pairs per second on {shown[0]}, lengths {shown[1]}: {told}.")

# %%
gains = {cell: benchmark.gain(measured, *cell, "best_stock") for cell in measured_cells}
for cell, times in gains.items():
    stock = benchmark.gain(measured, *cell, "stock")
    against = f", {stock:.2f} times stock" if stock else ""
    print(f"{cell[0]:14} {cell[1]:7} fast path: {times:.2f} times best_stock{against}")
for model in dict.fromkeys(model for model, _ in measured_cells):
    least = min((cell for cell in measured_cells if cell[0] == model), key=gains.get)
    print(f"{model}: the smallest gain is {gains[least]:.2f}, at the lengths {least[1]}")

# %% [markdown]
# Lengths are given as prompt : chosen : rejected; `ragged` means that they differ from row to row. Each ratio is taken
# within one round, and the median over the rounds is printed. The longer the prompt is beside the answers, the more
# work sharing it saves; where gains of two lengths differ by a few hundredths only, the rounds do not tell which is
# larger.

# %%
shutil.rmtree(scratch)  # the small trainings only
assert (released / "adapter" / "README.md").exists(), "the release stays"

# %% [markdown]
# ## What we saw
#
# - The memory that a training needs can be counted before it starts, and the adapter is a small part of it.
# - Margin and KL belong in one picture: a gain and its price. A margin needs enough pairs, and an interval.
# - Rows without signal, a lost EOS, a rate that is too high and numbers that are not finite are refused in words.
# - A stopped training continues bit for bit.
# - In a short run, $\beta$, the learning rate and the number of steps act together.
# - What was saved is what was trained. A merge into the original weights changes the model, by an amount that is known.
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


exercises.check_merge(my_merge)

# %% [markdown]
# **2.** Choose the checkpoint to continue from. Each is `(step, promised, found)`: the files that its manifest lists
# and the files that are there, both as a dict from a file's name to its hash. Return the highest step whose files are
# exactly those of the manifest, or 0 if there is none. About one line.


# %%
def my_newest(checkpoints):
    """A list of (step, promised, found) in, in any order; a step out."""
    ...


exercises.check_newest(my_newest)

# %% [markdown]
# **3.** How many positions does a padded batch compute for each position that is computed without padding and with each
# prompt only once? A padded batch has two rows a pair, each as wide as the longest row of the batch. About two lines.


# %%
def my_saving(lengths):
    """A list of (prompt, chosen, rejected), in tokens, one a pair, in; padded positions over shared ones out."""
    ...


exercises.check_saving(my_saving)

# %% [markdown]
# **Next:** [06 · Three arms](06_three_way_eval.ipynb). A larger margin on pairs does not prove a better model. There,
# Base, SFT and the SFT+DPO adapter of the whole run answer the same prompts, and statistics decide.
