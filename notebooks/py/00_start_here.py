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
# **Question.** What does Direct Preference Optimization (DPO) do to a language model, and how can we measure it?
#
# **Needs.** You need no network, no GPU and no account. A small language model is shipped with the workbook.
#
# **Takes.** About two minutes of computing on two CPU cores, and twenty minutes of reading. A GPU does not help here.
#
# A language model is first trained on examples of good answers. This is **supervised fine-tuning**, SFT, and the model
# learns the mistakes in the examples as well. DPO then trains it on pairs of its own answers, with a label that says
# which answer is better, so that the better one becomes more likely relative to the other. This notebook runs all steps
# once. The other notebooks explain them:
#
# | session | notebooks | about |
# | --- | --- | --- |
# | A, 3 hours | 01, 02 | the paper's mathematics, executable; the loss and its gradient |
# | B, 4 hours | 03, 04, 05 | the SFT reference, preference data, QLoRA DPO on one GPU |
# | C, 3 hours | 06 | base, SFT and SFT+DPO compared with honest statistics |

# %%
import json
from statistics import fmean
from textwrap import fill

from IPython.display import Markdown
from scipy import stats

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
from dpo_kit.workbook.exercises import start_here as exercises
from dpo_kit.workbook.figures.evaluation import differences
from dpo_kit.workbook.show import show
from dpo_kit.workspace import Workspace, default_workdir

# %% [markdown]
# ## Your machine
#
# The **profile** sets everything that depends on the machine: the model, its quantisation, lengths, batches and
# learning rates. The default is `tiny`, which needs no GPU and no network.

# %%
describe_machine()

# %%
profile = load_profile()
print(profile.name, "|", profile.model.path, "|", profile.model.quantize, "| beta", profile.dpo.beta)

# %% [markdown]
# ## The world
#
# Somebody reports an incident, in one of many phrasings, sometimes with details that do not matter. The model must
# triage it: it names a severity, a summary and an action. Each report contains five facts, and a short rule gives the
# right answer for them. So here, unlike in practice, we can compute how good an answer is.

# %%
prompt = draw_prompts(8, "train", "demonstrations", seed=0)[5]
print(fill(prompt.text, 100))
print(f"\nfacts: {prompt.facts}\n")
print(Incident.from_facts(prompt.facts).answer)

# %% [markdown]
# The **rubric** scores any text by five metrics, each between 0 and 1. The next cell scores an answer with two faults:
# it names the wrong severity, and a cause that nobody reported. Which metrics do you expect below 1?

# %%
right = Incident.from_facts(prompt.facts).answer
wrong = {"SEV1": "SEV3", "SEV2": "SEV4", "SEV3": "SEV1", "SEV4": "SEV2"}
severity = Incident.from_facts(prompt.facts).severity
faulty = right.replace(severity, wrong[severity]).replace(".\nACTION", " after a DNS change.\nACTION")
assert set(rubric.score(prompt, right).values()) == {1.0}, "the right answer scores 1 by every metric"
rubric.score(prompt, faulty)

# %% [markdown]
# ## Supervised fine-tuning
#
# The demonstrations imitate people who write in a hurry. The profile sets how often they are wrong, and SFT learns
# their mistakes as well. If this stage was done before, its files are verified and it is skipped, so this cell is quick
# the second time.

# %%
work = Workspace(default_workdir(profile.name), profile.name)
sft = pipeline.sft(work, profile, seed=0)
sft_log = [row for row in read_log(sft / "log.jsonl") if "loss" in row]
print(f"loss {sft_log[0]['loss']:.2f} at the first step, {sft_log[-1]['loss']:.2f} at the last, {len(sft_log)} steps")

# %% [markdown]
# ## Pairs
#
# The SFT model answers each new prompt twice, by sampling at random. A **judge** says which answer is better. Here the
# judge is the exact rubric; elsewhere it is a person or another model. Where both answers are equally good, there is no
# pair.

# %%
pairs = read_pairs(pipeline.pairs(work, profile, seed=0) / "pairs.jsonl")
pair = pairs[2]
print(f"{len(pairs)} pairs from {profile.pairs.prompts} prompts\n\n{fill(pair.prompt.text, 100)}\n")
for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
    print(f"{name}, overall score {rubric.overall(pair.prompt, response.text):.2f}\n{response.text}\n")

# %% [markdown]
# ## DPO
#
# The model that DPO trains is called the **policy**. It starts as a copy of the SFT model, and a second, frozen copy is
# its **reference**. The **margin** of a pair says how much more the policy prefers the better answer than the reference
# does. Before the first step both models are equal, so every margin is 0 and the loss is
# $-\log \sigma(0) = \ln 2 \approx 0.693$. Every run checks this at its start. It also checks that the gradient reaches
# the lowest layer of the quantised model.

# %%
dpo = pipeline.dpo(work, profile, seed=0)
json.loads((dpo / "start.json").read_text())

# %% [markdown]
# The next figure has two results to look for. How far apart are the rewards of the chosen and of the rejected answers
# at the end? The loss asks for this distance. And how large does the **KL** become, the distance of the policy from the
# reference, measured on the policy's own answers? A policy far from the reference can lose what SFT taught it.

# %%
log = read_log(dpo / "log.jsonl")
show(training_curves(log), "Five panels over DPO steps: loss falls, rewards part, margin and accuracy rise, KL grows.")

# %% [markdown]
# A **reward** is $\beta$ times the log-ratio of policy and reference. It is positive where the policy gives an answer
# more probability than the reference does. The loss depends only on the difference of the two rewards. So look at the
# sign of the reward of the chosen answers: did they become more likely, or only less unlikely than the rejected ones?

# %%
steps = [row for row in log if "loss" in row]
first, last = steps[0], steps[-1]
for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
    print(f"{name:20} {first[name]:8.3f} -> {last[name]:8.3f}")

# %% [markdown]
# ## Three arms
#
# A margin on training pairs does not show that the answers are better. So we compare answers of three models: the base
# model, the SFT model and the SFT+DPO model. They share one set of frozen 4-bit weights. They answer prompts that none
# of them was trained on, in phrasings and about service-region combinations that no training text contains.
#
# **Predict, then run:** on which of the five metrics will SFT+DPO be better than SFT?

# %%
pipeline.evaluate(work, profile, seed=0)
report = pipeline.report(work, profile, seed=0)
Markdown(markdown_table(report.metrics))

# %% [markdown]
# Each row is a metric of the rubric, averaged over the held-out prompts, with one answer to each at temperature 1. The
# interval belongs to the difference between SFT+DPO and SFT, paired by prompt. The verdict says in words what the
# interval allows us to conclude. The next figure shows the same means: each marker is one of the three models, and
# further right is better.

# %%
show(three_arms(report.metrics), "Mean score of base, SFT and SFT+DPO on each metric.")

# %% [markdown]
# The workbook is about the difference that DPO makes after SFT, so the next figure shows this difference alone, with
# its interval. How to read it:
#
# - An interval to the right of the dotted line says that SFT+DPO is better; one to the left says that it is worse. With
#   five metrics the verdict asks for more, because one of five may look better by chance.
# - An interval that contains the line does not tell us the direction. It still limits the size of a difference. If the
#   whole interval is narrow enough, the verdict says "no difference larger than ..."; otherwise it says "inconclusive".

# %%
show(differences(report.metrics), "SFT+DPO minus SFT on each metric, with 95% intervals.")

# %% [markdown]
# A judge can also be asked directly which of two answers to the same prompt is better. Each prompt counts once, as a
# win, a tie or a loss. Ties are counted apart: a win rate of the **decided** prompts leaves them out.

# %%
print(fill(pairwise_sentence(report.pairwise), 100))

# %% [markdown]
# ## Look at answers
#
# Always read some answers as well; a table does not show everything. These are the answers to the first two held-out
# prompts, not to the best two.

# %%
evaluated = read_records(work.root / "eval" / "responses.jsonl", Response)
for prompt in draw_prompts(2, "heldout", "evaluation", seed=0):
    print(fill(f"--- {prompt.text}", 100))
    for response in (r for r in evaluated if r.prompt_id == prompt.id and r.temperature > 0):
        print(f"[{response.arm}]\n{response.text}")

# %% [markdown]
# ## The control
#
# Would any further training have helped as much? To find out, we train in the same way on the same pairs, but choose at
# random which answer of a pair is called the better one. **Predict:** how large is the gain then? Ten seeds of each
# take long, so the next cell reads the results from a log that is shipped with the workbook, and computes a 95%
# interval for the mean over the seeds.

# %%
seeds = json.loads((DATA / "runs" / "seeds.json").read_text())
for labels, runs in seeds.items():
    gains = [run["metrics"]["severity_match"]["difference"]["interval"]["mean"] for run in runs]
    rates = [run["pairwise"]["decisive_win_rate"] for run in runs]
    print(f"{labels:9} severity match, difference by seed: {', '.join(f'{gain:+.3f}' for gain in gains)}")
    print(f"{labels:9} decisive win rate by seed:          {', '.join(f'{rate:.3f}' for rate in rates)}")
    low, high = stats.t.interval(0.95, len(gains) - 1, loc=fmean(gains), scale=stats.sem(gains))
    print(f"{labels:9} mean difference in severity match {fmean(gains):+.3f}, 95% {low:+.3f} to {high:+.3f}\n")
    assert min(gains) > 0 if labels == "judged" else low < 0 < high

# %% [markdown]
# ## What we saw
#
# SFT copies its demonstrations, faults included. DPO used only pairs of the model's own answers and a judge's label for
# each pair. With the judge's labels, the severity became right more often for every seed in the log. With random labels
# the interval for the mean difference contains zero. The judge in this notebook knows the right answers. A judge in
# practice does not, and notebooks 04 and 06 are about that case.
#
# ## Exercises
#
# **1.** Write the severity rule, in about three lines: impact (0 to 3) plus spread (0 below 10% of users, 1 below 40%,
# 2 from there on); 4 or 5 is `"SEV1"`, 3 is `"SEV2"`, 2 is `"SEV3"`, less is `"SEV4"`.


# %%
def my_severity(impact, share):
    """0 to 3 and a percentage in, "SEV1" to "SEV4" out."""
    ...


exercises.check_severity(my_severity)

# %% [markdown]
# **2.** Write the decisive win rate, in one line: the share of the decided prompts that was won.


# %%
def my_decisive_win_rate(wins, ties, losses):
    """Three counts in, a share out."""
    ...


exercises.check_decisive_win_rate(my_decisive_win_rate)

# %% [markdown]
# **Next:** [01 · The paper, executable](01_paper_math.ipynb), which derives the loss you have just minimised.
