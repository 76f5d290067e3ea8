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
# # 00 · Start here
#
# **Question.** What does Direct Preference Optimization (DPO) do to a language model, and how would you know?
#
# **Needs.** Nothing: no network, no GPU, no account. A small language model is shipped with the workbook.
#
# **Takes.** About two minutes of computing on two CPU cores, and twenty to read. A GPU does not help here.
#
# A language model is first taught by examples: **supervised fine-tuning**, SFT. It copies their mistakes as well. DPO
# then shows it pairs of its own answers, with a note on which one was better, and asks it to make the better one more
# likely. In this notebook the whole path is walked once. The others take it apart:
#
# | session | notebooks | about |
# | --- | --- | --- |
# | A, 3 hours | 01, 02 | the paper's mathematics, executable; the loss and its gradient |
# | B, 4 hours | 03, 04, 05 | the SFT reference, preference data, QLoRA DPO on one GPU |
# | C, 3 hours | 06 | base, SFT and SFT+DPO compared with honest statistics |

# %%
import json
from textwrap import fill

from IPython.display import Markdown

from dpo_kit import pipeline
from dpo_kit.jsonl import read_pairs, read_records
from dpo_kit.profiles import DATA, load_profile
from dpo_kit.records import Response
from dpo_kit.training.metrics_log import read_log
from dpo_kit.triage import rubric
from dpo_kit.triage.incidents import Incident
from dpo_kit.triage.reports import draw_prompts
from dpo_kit.views.figures import three_arms
from dpo_kit.views.tables import pairwise_sentence
from dpo_kit.views.training import training_curves
from dpo_kit.workbook.cells import describe_machine, markdown_table
from dpo_kit.workbook.exercises.start_here import check_decisive_win_rate, check_severity
from dpo_kit.workbook.figures.evaluation import differences
from dpo_kit.workbook.show import show
from dpo_kit.workspace import Workspace, default_workdir

# %% [markdown]
# ## Your machine
#
# One dial, the **profile**, decides everything that depends on the machine: the model, its quantisation, lengths,
# batches and learning rates. `tiny` is the default and runs anywhere.

# %%
describe_machine()

# %%
profile = load_profile()
print(profile.name, "|", profile.model.path, "|", profile.model.quantize, "| beta", profile.dpo.beta)

# %% [markdown]
# ## The world
#
# Somebody reports an incident, in one of many phrasings and with things that do not matter. The model must triage it:
# a severity, a summary, an action. Five facts are in the report, and the right answer follows from them by a rule that
# fits on a sticker, so here, unlike in life, we can compute how good an answer truly is.

# %%
prompt = draw_prompts(8, "train", "demonstrations", seed=0)[5]
print(fill(prompt.text, 100))
print(f"\nfacts: {prompt.facts}\n")
print(Incident.from_facts(prompt.facts).answer)

# %% [markdown]
# The **rubric** scores any string on five counts, each between 0 and 1. Here is a confident answer with two faults:
# it names the wrong severity and a cause that nobody reported.

# %%
right = Incident.from_facts(prompt.facts).answer
wrong = {"SEV1": "SEV3", "SEV2": "SEV4", "SEV3": "SEV1", "SEV4": "SEV2"}
severity = Incident.from_facts(prompt.facts).severity
faulty = right.replace(severity, wrong[severity]).replace(".\nACTION", " after a DNS change.\nACTION")
assert set(rubric.score(prompt, right).values()) == {1.0}, "the right answer scores 1 on every count"
rubric.score(prompt, faulty)

# %% [markdown]
# ## Supervised fine-tuning
#
# The demonstrations were written by people in a hurry. The profile sets how often they are wrong, and SFT learns the
# mistakes with the rest. A stage that was done before is verified and skipped, so this cell is quick the second time.

# %%
work = Workspace(default_workdir(profile.name), profile.name)
sft = pipeline.sft(work, profile, seed=0)
sft_log = [row for row in read_log(sft / "log.jsonl") if "loss" in row]
print(f"loss {sft_log[0]['loss']:.2f} at the first step, {sft_log[-1]['loss']:.2f} at the last, {len(sft_log)} steps")

# %% [markdown]
# ## Pairs
#
# The SFT model answers each new prompt twice, at random. A **judge** says which answer is better; here it is the exact
# rubric, elsewhere a person or another model. Where it sees no difference there is nothing to learn and no pair.

# %%
pairs = read_pairs(pipeline.pairs(work, profile, seed=0) / "pairs.jsonl")
pair = pairs[2]
print(f"{len(pairs)} pairs from {profile.pairs.prompts} prompts\n\n{fill(pair.prompt.text, 100)}\n")
for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
    print(f"{name}, overall score {rubric.overall(pair.prompt, response.text):.2f}\n{response.text}\n")

# %% [markdown]
# ## DPO
#
# The policy starts as a copy of the SFT model, and a second, frozen copy is its **reference**. So before the first
# step nothing has been learnt: every margin is 0 and the loss is $-\log \sigma(0) = \ln 2 \approx 0.693$. This is
# asserted in every run, as is that the gradient reaches the lowest layer of the quantised model.

# %%
dpo = pipeline.dpo(work, profile, seed=0)
json.loads((dpo / "start.json").read_text())

# %% [markdown]
# Watch two things in the next figure. The reward of the chosen answers and that of the rejected ones part, which is
# what the loss asks for. And the KL, the distance from the reference measured on the policy's own answers, grows: that
# is what it costs.

# %%
log = read_log(dpo / "log.jsonl")
show(training_curves(log), "Five panels over DPO steps: loss falls, rewards part, margin and accuracy rise, KL grows.")

# %% [markdown]
# A **reward** here is $\beta$ times the log-ratio of policy and reference: how much likelier the policy has made an
# answer. Whether the chosen answers themselves became likelier, or only less unlikely than the rejected ones, is
# something the loss does not care about; look at the sign of the green line.

# %%
steps = [row for row in log if "loss" in row]
first, last = steps[0], steps[-1]
for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
    print(f"{name:20} {first[name]:8.3f} -> {last[name]:8.3f}")

# %% [markdown]
# ## Three arms
#
# A margin on training pairs is not a better model. So the base model, the SFT model and the SFT+DPO model, which share
# one set of frozen 4-bit weights, now answer prompts that none of them has seen, in phrasings and about
# service-region combinations that no training text contains.

# %%
pipeline.evaluate(work, profile, seed=0)
report = pipeline.report(work, profile, seed=0)
Markdown(markdown_table(report.metrics))

# %% [markdown]
# Each row is a count of the rubric, averaged over the held-out prompts, one answer each at temperature 1. The interval
# is for the difference between SFT+DPO and SFT, paired by prompt; the verdict says in words what it allows. Next, the
# same as a figure: each marker is an arm, and further right is better.

# %%
show(three_arms(report.metrics), "Mean score of base, SFT and SFT+DPO on each metric.")

# %% [markdown]
# SFT taught the format and much of the rest, faults included. What DPO added on top is the subject of the whole
# workbook, so here it is alone, with its uncertainty. An interval that touches the dotted line shows
# nothing.

# %%
show(differences(report.metrics), "SFT+DPO minus SFT on each metric, with 95% intervals.")

# %% [markdown]
# A judge can also be asked directly which of two answers to the same prompt is better. The unit is the prompt, and a
# tie is a tie.

# %%
print(fill(pairwise_sentence(report.pairwise), 100))

# %% [markdown]
# ## Look at answers
#
# Never trust a table alone. These are the first two held-out prompts, not the best two.

# %%
evaluated = read_records(work.root / "eval" / "responses.jsonl", Response)
for prompt in draw_prompts(2, "heldout", "evaluation", seed=0):
    print(fill(f"--- {prompt.text}", 100))
    for response in (r for r in evaluated if r.prompt_id == prompt.id and r.temperature > 0):
        print(f"[{response.arm}]\n{response.text}")

# %% [markdown]
# ## The control
#
# Would any further training have helped as much? The same DPO on the same pairs, but with a coin deciding which answer
# is called the better one, should gain nothing. This takes as long as the run above, so it is read from a committed
# log: ten seeds with the judge's labels, and the same with shuffled ones.

# %%
seeds = json.loads((DATA / "runs" / "seeds.json").read_text())
for labels, runs in seeds.items():
    gains = [run["metrics"]["severity_match"]["difference"]["interval"]["mean"] for run in runs]
    rates = [run["pairwise"]["decisive_win_rate"] for run in runs]
    print(f"{labels:9} severity match, difference by seed: {', '.join(f'{gain:+.3f}' for gain in gains)}")
    print(f"{labels:9} decisive win rate by seed:          {', '.join(f'{rate:.3f}' for rate in rates)}")

# %% [markdown]
# ## What we saw
#
# SFT copies its demonstrations, faults included. DPO used nothing but pairs of the model's own answers and a judge's
# word on each, and moved the model away from its faults; with a coin for a judge it did not. The judge here knows the
# truth. Yours will not, and that is what notebooks 04 and 06 are about.
#
# ## Exercises
#
# **1.** Write the severity rule, in about three lines: impact (0 to 3) plus spread (0 below 10% of users, 1 below 40%,
# 2 from there on); 4 or 5 is `"SEV1"`, 3 is `"SEV2"`, 2 is `"SEV3"`, less is `"SEV4"`.


# %%
def my_severity(impact, share):
    """0 to 3 and a percentage in, "SEV1" to "SEV4" out."""
    ...


check_severity(my_severity)

# %% [markdown]
# **2.** Write the decisive win rate, in one line: of the prompts that were decided, the share that was won.


# %%
def my_decisive_win_rate(wins, ties, losses):
    """Three counts in, a share out."""
    ...


check_decisive_win_rate(my_decisive_win_rate)

# %% [markdown]
# **Next:** [01 · The paper, executable](01_paper_math.ipynb), which derives the loss you have just minimised.
