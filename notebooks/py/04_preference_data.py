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
# # 04 · Preference data that deserves to be trained on
#
# **Question.** Where do preference pairs come from, how wrong may they be, and which should a model never see?
#
# **Needs.** The SFT model of notebook 03; it is trained here if it is not there yet.
#
# **Takes.** Two minutes of computing on two CPU cores, and sixty of reading. A GPU does not help here.
#
# DPO believes what it is told. A pair says "this answer is better than that one", and the loss has no other source of
# truth: a biased judge becomes a biased model. So this notebook is about the sentence itself: who says it, how often
# it is wrong, and what to look at before training on it.

# %%
import json
import tempfile
from collections import Counter
from pathlib import Path
from textwrap import fill

from IPython.display import HTML
from transformers import AutoTokenizer

from dpo_kit import pipeline
from dpo_kit.evaluation.statistics import position_bias
from dpo_kit.jsonl import read_pairs, read_records, write_pairs
from dpo_kit.models.generation import count_stops
from dpo_kit.models.loading import load_arms
from dpo_kit.preferences.audit import audit_pairs
from dpo_kit.preferences.importers import import_pairs
from dpo_kit.preferences.judges import both_orders, judge_all
from dpo_kit.preferences.judges.llm import estimate_cost
from dpo_kit.preferences.labels import Labels, aligned, as_items
from dpo_kit.preferences.ranking import all_pairs, best_against_worst, margin_filtered, rank_by_score
from dpo_kit.preferences.sampling import sample
from dpo_kit.profiles import load_profile
from dpo_kit.records import Response, split_by_prompt
from dpo_kit.triage import rubric
from dpo_kit.triage.judges import rubric_judge, simulated
from dpo_kit.triage.reports import draw_prompts
from dpo_kit.workbook.annotate import annotate
from dpo_kit.workbook.exercises.preference_data import (
    check_collapse,
    check_error_rate,
    check_kappa,
    check_split,
)
from dpo_kit.workbook.figures.audit import audit_html, findings_bar, lengths, shortcuts
from dpo_kit.workbook.figures.preference import judges_compared
from dpo_kit.workbook.show import show
from dpo_kit.workbook.statistics import agreement, kappa
from dpo_kit.workspace import Workspace, default_workdir

profile = load_profile()
work = Workspace(default_workdir(profile.name), profile.name)

# %% [markdown]
# ## Sample
#
# The two answers of a pair should come from the model that will be trained. It then learns the difference between
# what it does well and what it does badly, at places where it really goes. Here the SFT arm answers sixty prompts four
# times each, at two temperatures. A prompt's samples are seeded by the prompt, so they are the same in any batch.

# %%
pipeline.sft(work, profile, seed=0)
arms = load_arms(profile, {"sft": work.root / "sft" / "adapter"})
prompts = draw_prompts(60, "train", "ranking", seed=0)
answers = sample(arms, "sft", prompts, [0.7, 0.7, 1.0, 1.0], profile.pairs, seed=0)
print(count_stops([response for four in answers for response in four]))

# %% [markdown]
# One prompt, its four answers, and what the exact rubric of this world gives each:

# %%
print(fill(prompts[0].text, 100), "\n")
for response in answers[0]:
    print(f"temperature {response.temperature}, {rubric.overall(prompts[0], response.text):.2f}: {response.text!r}")

# %% [markdown]
# ## From n answers to pairs
#
# Four answers can be ranked and paired in several ways. The best against the worst gives one clear pair a prompt.
# All pairs give more, but each answer returns several times, and many differences are small. A smallest gap in score
# lies between.

# %%
rankings = [
    rank_by_score(prompt, four, rubric.overall, "rubric") for prompt, four in zip(prompts, answers, strict=True)
]
ways = {
    "best against worst": best_against_worst(rankings),
    "all pairs": all_pairs(rankings),
    "a gap of 0.3 or more": margin_filtered(rankings, 0.3),
}
for name, made in ways.items():
    gaps = [rubric.overall(p.prompt, p.chosen.text) - rubric.overall(p.prompt, p.rejected.text) for p in made]
    print(f"{name:22} {len(made):4} pairs, mean gap {sum(gaps) / len(gaps):.2f}, smallest {min(gaps):.2f}")

# %% [markdown]
# ## Judge
#
# For training, the workbook samples two answers to each of a thousand prompts. The stage below was run by notebook 00
# or is run now. Its judge is the rubric, which knows the truth; where it sees no difference, there is no pair.

# %%
folder = pipeline.pairs(work, profile, seed=0)
pairs = read_pairs(folder / "pairs.jsonl")
asked = read_records(folder / "responses.jsonl", Response)
a, b = asked[: len(asked) // 2], asked[len(asked) // 2 :]
questions = {prompt.id: prompt for prompt in draw_prompts(profile.pairs.prompts, "train", "pairs", seed=0)}
questions = [questions[response.prompt_id] for response in a]
texts = [response.text for response in a], [response.text for response in b]
truth = rubric_judge()
true_verdicts = judge_all(truth, questions, *texts)
print(Counter(verdict.winner for verdict in true_verdicts))
assert len(pairs) == sum(verdict.winner in "ab" for verdict in true_verdicts) >= 500

# %% [markdown]
# Your judge will not know the truth. The **simulated annotator** has faults that are set: it reads rightly with a given
# accuracy, sometimes takes the first answer unread, and sometimes the longer one. Three of them, one fault each, and
# one that has all three:

# %%
faults = {
    "rubric": {},
    "misreads": {"accuracy": 0.8},
    "takes the first": {"position_bias": 0.3},
    "takes the longer": {"length_bias": 0.3},
    "all three": {"accuracy": 0.8, "position_bias": 0.3, "length_bias": 0.3},
}
judges = {name: simulated(truth, **options) for name, options in faults.items()}
heard = {name: judge_all(judge, questions, *texts) for name, judge in judges.items()}

# %% [markdown]
# Two numbers say how good a judge is. **Agreement** is the share of prompts on which it says what the truth says.
# **Cohen's kappa** takes off what two judges would agree on by chance,
#
# $$\kappa = \frac{p_o - p_e}{1 - p_e}.$$

# %%
said = [verdict.winner for verdict in true_verdicts]
scores = {}
for name, verdicts in heard.items():
    own = [verdict.winner for verdict in verdicts]
    scores[name] = agreement(own, said), kappa(own, said)
    print(f"{name:17} agreement {scores[name][0].mean:.2f}, kappa {scores[name][1].mean:.2f}")

# %% [markdown]
# The same figures with their intervals. Look for the judge that has all three faults: what does it still know?

# %%
show(judges_compared(scores), "Agreement with the truth and Cohen's kappa for five judges, with 95% intervals.")

# %% [markdown]
# Each fault costs agreement, and together they cost more than any alone. Nothing in the labels says so: they look like
# any others.
#
# ## Ask in both orders
#
# One fault can be seen without knowing the truth. Ask again with the two answers exchanged: a judge that took the
# first takes the other now. `both_orders` asks twice and calls a contradiction a tie. The share of contradictions is
# the judge's inconsistency; of those, how often the first answer won is its position bias.

# %%
twice = {name: judge_all(both_orders(judge), questions, *texts) for name, judge in judges.items()}
for name, verdicts in twice.items():
    found = position_bias(verdicts)
    first = f", the first won {found.first.mean:.0%} of them" if found.first else ""
    print(f"{name:17} contradicts itself on {found.inconsistent.mean:.1%} of {found.n} prompts{first}")
assert position_bias(twice["rubric"]).inconsistent.mean == 0

# %% [markdown]
# Asking twice costs twice as much and makes fewer pairs. Are those that are left better? Of the pairs that each judge
# decides, the share it decides rightly:


# %%
def right_share(verdicts):
    """Of the prompts that this judge and the truth both decide, the share on which they agree."""
    both = [(v.winner, t) for v, t in zip(verdicts, said, strict=True) if v.winner in "ab" and t in "ab"]
    return len(both), sum(x == y for x, y in both) / len(both)


for name in faults:
    (once_n, once), (twice_n, again) = right_share(heard[name]), right_share(twice[name])
    print(f"{name:17} asked once {once:.1%} right of {once_n}, in both orders {again:.1%} right of {twice_n}")

# %% [markdown]
# Position bias is cured by asking twice. Misreading and a love of length are not: they are the same in both orders.
# What noise in the labels does to DPO itself, you can try in notebook 05: the profile's `[judge]` table takes the same
# settings.
#
# ## A language model as judge
#
# `make_judge` builds the judge that the profile's `[judge]` table names: OpenAI's or Anthropic's API, or any server
# that speaks OpenAI's (vLLM, Ollama, `transformers serve`). Answers are handed over as data between delimiters that an
# answer cannot guess, and what cannot be read in the reply is `unjudged`, never a winner. Nothing is called here. But
# what it would cost can be computed from the questions as they would be asked:

# %%
settings = profile.judge.model_copy(update={"kind": "anthropic"})
cost = estimate_cost(questions, *texts, settings)
print(f"{settings.model}, both orders: {cost.questions:,} questions, {cost.input_tokens:,} tokens in")
print(f"about ${cost.dollars:.2f}, at most ${cost.at_most:.2f}; nothing is asked beyond ${settings.max_dollars:.2f}")

# %% [markdown]
# To use one, put the key into the environment, never into a notebook, and set the table:
#
# ```python
# profile = load_profile(judge={"kind": "openai", "base_url": "http://localhost:8000/v1", "model": "my-model"})
# judge = make_judge(profile.judge, cache=work.root / "judge_cache.sqlite")
# verdicts = judge_all(judge, questions, *texts, workers=profile.judge.concurrency)
# ```
#
# Replies are cached on disk, so an interrupted evening is not paid for twice.
#
# ## You as judge
#
# Label ten pairs yourself. In JupyterLab the next cell shows two answers side by side, in an order that a coin chose.
# Keys `a`, `b`, `t` (tie), `s` (skip) and `u` (undo) work while the panel has the focus. A label is on the disk before
# the panel says so; run the cell again to go on where you stopped.

# %%
ten = [(prompt, x, y) for prompt, x, y in zip(questions, a, b, strict=True) if x.text != y.text][:10]
me = annotate(ten, annotator="me", database=work.root / "labels.db")

# %% [markdown]
# How well do you agree with the rubric? It knows the five facts, which you were not shown.

# %%
mine = Labels(work.root / "labels.db").verdicts("me")
rubrics = {item.id: truth(item.prompt, item.a.text, item.b.text) for item in as_items(ten)}
labels = aligned(mine, rubrics)
if labels[0]:
    print(f"{len(labels[0])} labels; agreement {agreement(*labels)}, kappa {kappa(*labels)}")
else:
    print("no labels yet: run the cell above in JupyterLab")

# %% [markdown]
# With ten labels the interval is as wide as the question. Fifty would be a start.
#
# ## Audit
#
# Before training, look for what a judge cannot see. `audit_pairs` asks some twenty questions of a set of pairs: of each
# row (identical, empty, cut off, no end-of-sequence token, somebody's e-mail address), of rows among each other
# (duplicates, opposite labels, cycles), of the set (does the longer answer win? can the label be guessed without
# reading?), and of its evaluation (is a prompt in both?).

# %%
tokenizer = AutoTokenizer.from_pretrained(profile.model_path)
holdout = draw_prompts(profile.evaluation.prompts, "heldout", "evaluation", seed=0)
report = audit_pairs(pairs, tokenizer, holdout, profile.model.max_length)
HTML(audit_html(report.to_json()))

# %% [markdown]
# Read the table from the top; open an example where there is one. What blocks, in our own pairs:

# %%
for finding in report.blocking:
    print(f"{finding.name}: {finding.count} of {len(pairs)} rows; {finding.advice}")
print(f"{len(report.dropped)} rows to drop")

# %% [markdown]
# Sampling at temperature 1 finds an empty answer now and then, and a judge will call it worse. The gain is small and
# the rule is simple, so such a row goes. The shortcuts come next: how often the chosen answer has more of some surface
# feature than the rejected one. Half says nothing.

# %%
show(
    shortcuts(report.to_json()), "For each surface feature, how often the chosen answer has more of it, with intervals."
)

# %% [markdown]
# A feature far from one half is a temptation: a model can lower the loss by imitating it alone. Some of it may be
# real, as where the right form of an answer has more lines. Whether it is, you must know; the audit can only point.
# The lengths beside each other, in tokens:

# %%
show(lengths(report.to_json()), "Histograms of token lengths, and chosen against rejected length.")

# %% [markdown]
# ## Now with faults
#
# A set that somebody made on purpose is rarely as clean. So we plant faults in a copy, a few of each kind, and see
# what the audit finds.


# %%
def with_text(pair, side, text):
    """The pair with other words on one side."""
    return pair.model_copy(update={side: getattr(pair, side).model_copy(update={"text": text})})


def swapped(pair):
    """The pair with the opposite label."""
    return pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen})


planted = {
    "identical answers": [with_text(pair, "rejected", pair.chosen.text) for pair in pairs[0:9]],
    "empty or blank": [with_text(pair, "chosen", " \n") for pair in pairs[10:16]],
    "opposite labels": [swapped(pair) for pair in pairs[20:27]],
    "duplicate": list(pairs[30:42]),
    "in the evaluation": [
        pair.model_copy(update={"prompt": prompt}) for pair, prompt in zip(pairs[50:58], holdout, strict=False)
    ],
    "personal data": [with_text(pair, "chosen", f"{pair.chosen.text}\nMail ada@example.org.") for pair in pairs[60:65]],
}
dirty = [*pairs, *(pair for rows in planted.values() for pair in rows)]
audit = audit_pairs(dirty, tokenizer, holdout, profile.model.max_length)
HTML(audit_html(audit.to_json()))

# %% [markdown]
# The same as a figure, on a logarithmic axis. Red stands in the way of training; the rest is for you to judge.

# %%
show(findings_bar(audit.to_json()), "How many rows each check flagged, by severity.")

# %% [markdown]
# `kept` is what should be trained on. A duplicate loses all copies but one; two rows with opposite labels both go,
# since nobody knows which is right. On the command line the same is
# `python -m dpo_kit audit FILE --out cleaned.jsonl`, which exits with 1 where something blocks.

# %%
kept = audit.kept
clean = audit_pairs(kept, tokenizer, holdout, profile.model.max_length)
print(f"{len(dirty)} pairs, {len(audit.dropped)} dropped, {len(kept)} kept")
print("blocking before:", [finding.name for finding in audit.blocking])
print("blocking after: ", [finding.name for finding in clean.blocking])
assert not clean.blocking

# %% [markdown]
# ## Split, and save
#
# Some pairs are held out, to watch the margin on pairs that are not trained on. The split is **by prompt**: two pairs
# of one prompt on both sides would let the model be examined on what it was taught.

# %%
train, held_out = split_by_prompt(kept, holdout=0.1)
assert not {pair.prompt.text for pair in train} & {pair.prompt.text for pair in held_out}, "a prompt on both sides"
target = work.root / "my_pairs.jsonl"
write_pairs(target, train)
assert read_pairs(target) == train
print(f"{len(train)} pairs to train on, {len(held_out)} held out\n")
print(json.dumps(json.loads(target.read_text().splitlines()[0]), indent=1)[:900], "...")

# %% [markdown]
# `prompt`, `chosen` and `rejected` are what any TRL trainer reads; the rest says where the pair came from.
#
# ## Your own data
#
# `import_pairs` finds out by itself which of ten formats a file has: TRL's, UltraFeedback, Anthropic's HH transcripts,
# scored answers as in SHP, unpaired thumbs as for KTO, exports of Argilla and Label Studio; as JSON Lines, JSON, CSV or
# Parquet. Replace `source` below by your file. What cannot be read goes to a quarantine file with its line and the
# reason, and the good rows go on.

# %%
with tempfile.TemporaryDirectory() as scratch:
    source = Path(scratch) / "mine.jsonl"
    question = "\n\nHuman: How do I boil an egg?\n\nAssistant:"
    row = {"chosen": f"{question} Seven minutes in boiling water.", "rejected": f"{question} Eggs are food."}
    source.write_text(f'{json.dumps(row)}\n{{"chosen": "cut of\n')
    imported = import_pairs(source, quarantine=Path(scratch) / "quarantine.jsonl")
    put_aside = json.loads((Path(scratch) / "quarantine.jsonl").read_text())
print("\n".join(imported.notes))
print("line", put_aside["line"], "was put aside:", put_aside["reason"])
imported.pairs[0].to_trl()

# %% [markdown]
# ## What we saw
#
# A pair is a claim. Ask in both orders and position bias shows itself; misreading and a love of length do not, and
# need labels of known truth: some of your own. Audit before training, drop what is wrong beyond doubt, look at what is
# doubtful, split by prompt. Nothing here needed a GPU, and it decides more than the learning rate does.
#
# ## Exercises
#
# **1.** Collapse two answers of a judge into one verdict, in about four lines. `forward` is the winner when `a` was
# shown first, `backward` when `b` was, both already in terms of a and b. Two different winners are a tie; one order
# unjudged is `"unjudged"`.


# %%
def my_collapse(forward, backward):
    """Two of "a", "b", "tie", "unjudged" in, one out."""
    ...


check_collapse(my_collapse)

# %% [markdown]
# **2.** How often is the simulated annotator wrong, where the truth is decisive, the better answer is shown first in
# half of the pairs, and is the longer one in a share `longer` of them? About two lines.


# %%
def my_error_rate(accuracy, position_bias, length_bias, longer):
    """Four probabilities in, one out."""
    ...


check_error_rate(my_error_rate)

# %% [markdown]
# **3.** Cohen's kappa from two lists of labels, in about five lines, without a library.


# %%
def my_kappa(x, y):
    """Two equally long lists of labels in, kappa out."""
    ...


check_kappa(my_kappa)

# %% [markdown]
# **4.** Split pairs so that no prompt is on both sides, in about four lines: every prompt whose place in order of first
# appearance (0, 1, 2, ...) is divisible by `every` is held out.


# %%
def my_split(prompts, every):
    """A list of prompts, one a pair, in; for each pair True where it is held out."""
    ...


check_split(my_split)

# %% [markdown]
# **Next:** [05 · QLoRA DPO](05_qlora_dpo.ipynb), which trains on these pairs.
