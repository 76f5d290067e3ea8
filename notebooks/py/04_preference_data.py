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
# **Question.** Where do preference pairs come from, how many of them may be wrong, and which should no model be
# trained on?
#
# **Needs.** The SFT model of notebook 03. If it is not there yet, it is trained here.
#
# **Takes.** Two minutes of computing on two CPU cores, and sixty minutes of reading. A GPU does not help here.
#
# A preference pair is a statement: "this answer is better than that one". DPO has no other source of truth. It cannot
# notice that a statement is wrong, so the mistakes of the judge become the habits of the model. This notebook is about
# the statements themselves: who makes them, how often they are wrong, and what to check before training on them. At
# the end it saves the pairs that notebook 05 trains on.

# %%
import json
import tempfile
from collections import Counter
from pathlib import Path
from textwrap import fill

from IPython.display import HTML
from transformers import AutoTokenizer

from dpo_kit import jsonl, pipeline, profiles, records, workspace
from dpo_kit.evaluation.statistics import position_bias
from dpo_kit.models import generation, loading
from dpo_kit.preferences import audit, importers, judges, ranking, sampling
from dpo_kit.preferences.judges.llm import estimate_cost
from dpo_kit.preferences.labels import Labels, aligned, as_items
from dpo_kit.triage import reports, rubric
from dpo_kit.triage.judges import rubric_judge, simulated
from dpo_kit.views.tables import interval
from dpo_kit.workbook import annotate, cells, lesson_runs
from dpo_kit.workbook.exercises import preference_data as exercises
from dpo_kit.workbook.figures.audit import audit_html, findings_bar, lengths, shortcuts
from dpo_kit.workbook.figures.preference import judges_compared
from dpo_kit.workbook.show import show
from dpo_kit.workbook.statistics import agreement, kappa

profile = profiles.load_profile()
cells.only_incidents(profile, "python -m dpo_kit audit FILE")
work = workspace.Workspace(workspace.default_workdir(profile.name), profile.name)

# %% [markdown]
# ## Sample
#
# It is best when both answers of a pair come from the model that will be trained. The model then learns the difference
# between what it does well and what it does badly, on texts that it really writes. Many public data sets were sampled
# from other models; that works too, but part of what they teach is about texts that this model would never write.
#
# Here the SFT arm answers some prompts four times each, at two temperatures. The random numbers of a sample follow from
# its prompt, so a prompt gets the same answers in any batch.

# %%
pipeline.sft(work, profile, seed=0)
arms = loading.load_arms(profile, {"sft": work.root / "sft" / "adapter"})
prompts = reports.draw_prompts(60, "train", "ranking", seed=0)
answers = sampling.sample(arms, "sft", prompts, [0.7, 0.7, 1.0, 1.0], profile.pairs, seed=0)
print(f"{len(prompts)} prompts;", generation.count_stops([response for four in answers for response in four]))

# %% [markdown]
# Here is one prompt with its four answers. The number in front of each answer is its score by the rubric of this world,
# which computes how right an answer is:

# %%
print(fill(prompts[0].text, 100), "\n")
for response in answers[0]:
    print(f"temperature {response.temperature}, {rubric.overall(prompts[0], response.text):.2f}: {response.text!r}")

# %% [markdown]
# ## From n answers to pairs
#
# Four answers to a prompt can be turned into pairs in several ways. Taking the best and the worst gives one clear pair
# a prompt. Taking all pairs gives more of them, but each answer then appears several times, and many differences are
# small. Asking for a smallest gap in score is a middle way. Compare the three by the number of pairs and by the gaps:

# %%
rankings = [
    ranking.rank_by_score(prompt, four, rubric.overall, "rubric") for prompt, four in zip(prompts, answers, strict=True)
]
ways = {
    "best against worst": ranking.best_against_worst(rankings),
    "all pairs": ranking.all_pairs(rankings),
    "a gap of 0.3 or more": ranking.margin_filtered(rankings, 0.3),
}
for name, made in ways.items():
    gaps = [rubric.overall(p.prompt, p.chosen.text) - rubric.overall(p.prompt, p.rejected.text) for p in made]
    print(f"{name:22} {len(made):4} pairs, mean gap {sum(gaps) / len(gaps):.2f}, smallest {min(gaps):.2f}")

# %% [markdown]
# ## Judge
#
# The pairs for training come from the `pairs` stage of the run: the SFT arm answers each prompt twice, and a judge
# compares the two answers. If notebook 00 has run this stage, the result is read; otherwise it is run now. Its judge is
# the rubric, so its labels are true. Where the rubric sees no difference, there is no pair.

# %%
folder = pipeline.pairs(work, profile, seed=0)
source = folder / "pairs.jsonl"
pairs = jsonl.read_pairs(source)
sampled = jsonl.read_records(folder / "responses.jsonl", records.Response)
a, b = sampled[: len(sampled) // 2], sampled[len(sampled) // 2 :]
questions = {prompt.id: prompt for prompt in reports.draw_prompts(profile.pairs.prompts, "train", "pairs", seed=0)}
questions = [questions[response.prompt_id] for response in a]
texts = [response.text for response in a], [response.text for response in b]
truth = rubric_judge()
true_verdicts = judges.judge_all(truth, questions, *texts)
print(f"{len(questions)} prompts:", Counter(verdict.winner for verdict in true_verdicts))
assert len(pairs) == sum(verdict.winner in "ab" for verdict in true_verdicts) >= 500

# %% [markdown]
# Your own judge will not know the truth. To see what that does, we use a **simulated annotator** whose faults we set
# ourselves. It can misread a pair, it can take the answer that is shown first without reading, and it can take the
# longer answer without reading. Three of the annotators below have one fault each, and one has all three:

# %%
faults = {
    "rubric": {},
    "misreads": {"accuracy": 0.8},
    "takes the first": {"position_bias": 0.3},
    "takes the longer": {"length_bias": 0.3},
    "all three": {"accuracy": 0.8, "position_bias": 0.3, "length_bias": 0.3},
}
annotators = {name: simulated(truth, **options) for name, options in faults.items()}
heard = {name: judges.judge_all(judge, questions, *texts) for name, judge in annotators.items()}

# %% [markdown]
# Two numbers say how good a judge is. **Agreement** $p_o$ is the share of prompts on which it says what the truth says.
# Two judges who guess would also agree sometimes; call that share $p_e$. It is computed from how often each of the two
# gives each label. **Cohen's kappa** is the agreement beyond chance, as a share of what is possible beyond chance:
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
# Before you look at the figure: do the intervals of the annotator with all three faults overlap with those of the
# annotators with one fault? And how far is its kappa from zero, which is the value of a judge that guesses?

# %%
show(judges_compared(scores), "Agreement with the truth and Cohen's kappa for five judges, with 95% intervals.")

# %%
worst = scores["all three"]
least = min((row for name, row in scores.items() if name != "all three"), key=lambda row: row[0].low)
assert worst[0].high < least[0].low, "the intervals overlap"
print(f"all three faults: agreement at most {worst[0].high:.2f}; one fault: at least {least[0].low:.2f}")
print(f"kappa of the annotator with all three faults: [{worst[1].low:.2f}, {worst[1].high:.2f}]")

# %% [markdown]
# Each fault lowers the agreement, and the three together lower it below any one alone. The labels themselves do not
# show this: a wrong label looks like a right one. So how would you find out without knowing the truth?
#
# ## Ask in both orders
#
# One fault can be found without knowing the truth. Ask the judge again with the two answers exchanged. A judge that
# took the first answer now takes the other one, so it contradicts itself. `both_orders` asks twice and turns a
# contradiction into a tie. The share of contradictions is the judge's **inconsistency**. Among the contradictions, the
# share in which the answer shown first won is its **position bias**: one half would mean no preference for a place.

# %%
twice = {name: judges.judge_all(judges.both_orders(judge), questions, *texts) for name, judge in annotators.items()}
for name, verdicts in twice.items():
    found = position_bias(verdicts)
    first = f", the first won {found.first.mean:.0%} of them" if found.first else ""
    print(f"{name:17} contradicts itself on {found.inconsistent.mean:.1%} of {found.n} prompts{first}")
assert position_bias(twice["rubric"]).inconsistent.mean == 0

# %% [markdown]
# Asking twice costs twice as much and leaves fewer pairs. Are the remaining pairs better? The next cell counts, among
# the prompts that the judge and the truth both decide, the share that the judge decides rightly:


# %%
def right_share(verdicts):
    """Of the prompts that this judge and the truth both decide, the share on which they agree."""
    both = [(v.winner, t) for v, t in zip(verdicts, said, strict=True) if v.winner in "ab" and t in "ab"]
    return len(both), sum(x == y for x, y in both) / len(both)


for name in faults:
    (once_n, once), (twice_n, again) = right_share(heard[name]), right_share(twice[name])
    print(f"{name:17} asked once {once:.1%} right of {once_n}, in both orders {again:.1%} right of {twice_n}")
assert right_share(twice["takes the first"])[1] == 1
assert right_share(twice["takes the longer"]) == right_share(heard["takes the longer"])

# %% [markdown]
# Asking in both orders removes the wrong labels of the annotator that takes the first answer. It changes nothing for
# the annotator that misreads and for the one that takes the longer answer: these simulated annotators make the same
# mistake in both orders. (A person who misreads may well not, and then asking twice finds some of these mistakes too.)
#
# To see what wrong labels do to DPO, train on them: the profile's `[judge]` table takes the same settings, for example
# `load_profile(judge={"kind": "simulated", "accuracy": 0.8})` in notebook 05.
#
# ## A language model as judge
#
# `make_judge` builds the judge that the profile's `[judge]` table names: the API of OpenAI or Anthropic, or any server
# that understands OpenAI's requests (vLLM, Ollama, `transformers serve`). The two answers are sent as data between
# delimiters that an answer cannot guess. A reply that cannot be read is recorded as `unjudged`, and never as a winner.
# This notebook calls no such server. What it would cost can be computed from the questions that would be asked:

# %%
settings = profile.judge.model_copy(update={"kind": "anthropic"})
cost = estimate_cost(questions, *texts, settings)
print(f"{settings.model}, both orders: {cost.questions:,} questions, {cost.input_tokens:,} tokens in")
print(f"about ${cost.dollars:.2f}, at most ${cost.at_most:.2f}; nothing is asked beyond ${settings.max_dollars:.2f}")

# %% [markdown]
# To use such a judge, put the key into the environment, never into a notebook, and set the table:
#
# ```python
# from dpo_kit.preferences.judges import judge_all, make_judge
# from dpo_kit.profiles import load_profile
#
# profile = load_profile(judge={"kind": "openai", "base_url": "http://localhost:8000/v1", "model": "my-model"})
# judge = make_judge(profile.judge, cache=work.root / "judge_cache.sqlite")
# verdicts = judge_all(judge, questions, *texts, workers=profile.judge.concurrency)
# ```
#
# Replies are kept on the disk. If the work is interrupted, no question is paid for twice.
#
# ## You as judge
#
# Now label ten pairs yourself. In JupyterLab the next cell shows two answers side by side, in a random order. While the
# panel has the focus, the keys `a`, `b`, `t` (tie), `s` (skip) and `u` (undo) work. The panel says "Saved" only after
# the label is on the disk. Run the cell again to continue where you stopped. What you decide is used: further down,
# your verdict takes the place of the rubric's in the pairs that are saved for training.

# %%
ten = [(prompt, x, y) for prompt, x, y in zip(questions, a, b, strict=True) if x.text != y.text][:10]
me = annotate.annotate(ten, annotator="me", database=work.root / "labels.db")

# %% [markdown]
# How well do you agree with the rubric? The rubric knows the facts of the report. You had to read them out of it.

# %%
my_labels = Labels(work.root / "labels.db")
rubrics = {item.id: truth(item.prompt, item.a.text, item.b.text) for item in as_items(ten)}
both = aligned(my_labels.verdicts("me"), rubrics)
if both[0]:
    print(f"{len(both[0])} labels; agreement {interval(agreement(*both))}, kappa {interval(kappa(*both))}")
else:
    print("no labels yet: run the cell above in JupyterLab")

# %% [markdown]
# Ten labels say little. Suppose that you agree with the rubric on eight pairs of ten, on forty of fifty, or on 160 of
# 200. The share is the same each time; look at how the interval narrows:

# %%
for count in (10, 50, 200):
    agreed = ["a"] * count, ["a"] * (count * 8 // 10) + ["b"] * (count * 2 // 10)
    print(f"{count * 8 // 10:3} of {count:3}: {interval(agreement(*agreed))}")

# %% [markdown]
# ## Audit
#
# Before training, check what a judge does not check. `audit_pairs` looks at each row (is it empty, cut off, without an
# end-of-sequence token; does it hold an e-mail address?), at rows together (duplicates, opposite labels, cycles of
# preferences), at the whole set (does the longer answer win; can the label be guessed without reading?), and at the
# evaluation (does a prompt stand in both?).

# %%
tokenizer = AutoTokenizer.from_pretrained(profile.model_path)
holdout = reports.draw_prompts(profile.evaluation.prompts, "heldout", "evaluation", seed=0)
report = audit.audit_pairs(pairs, tokenizer, holdout, profile.model.max_length)
HTML(audit_html(report.to_json()))

# %% [markdown]
# Read the table from the top, and open the examples of a check that found something. In our own pairs, these findings
# must be mended before training:

# %%
for finding in report.blocking:
    print(f"{finding.name}: {finding.count} of {len(pairs)} rows; {finding.advice}")
print(f"{len(report.dropped)} rows to drop")

# %% [markdown]
# Sampling at a high temperature gives an empty answer now and then, and a judge rightly calls it worse. Such a row
# teaches only that an answer is better than none, and a rule without exceptions is easier to check, so it is dropped.
#
# Next come **shortcuts**: for several features of the surface, how often the chosen answer has more of it than the
# rejected one. One half means that the feature says nothing about the label. Which interval is furthest from one half?

# %%
show(
    shortcuts(report.to_json()), "For each surface feature, how often the chosen answer has more of it, with intervals."
)

# %% [markdown]
# If a feature is far from one half, the model can lower its loss by imitating this feature alone. That is not always
# wrong: in this world the right form of an answer has several lines, so more lines can really be better. The audit
# cannot decide this. You have to. The next figure shows the lengths of both answers, in tokens. Is the chosen answer
# systematically longer or shorter?

# %%
show(lengths(report.to_json()), "Histograms of token lengths, and chosen against rejected length.")

# %%
longer = [len(pair.chosen.text) > len(pair.rejected.text) for pair in pairs]
shorter = [len(pair.chosen.text) < len(pair.rejected.text) for pair in pairs]
print(f"in characters, chosen is longer in {sum(longer)} pairs, shorter in {sum(shorter)}, equal in the others")

# %% [markdown]
# ## Now with faults
#
# Our sampled pairs have hardly any of these faults, so they do not show what the audit finds. To test it, we plant
# faults in a copy of the pairs, a few of each kind, and look for them in the table.


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
print({name: len(rows) for name, rows in planted.items()})
dirty = [*pairs, *(pair for rows in planted.values() for pair in rows)]
found = audit.audit_pairs(dirty, tokenizer, holdout, profile.model.max_length)
HTML(audit_html(found.to_json()))

# %% [markdown]
# The next figure shows the same counts on a logarithmic axis. The checks in red block training; the others are for you
# to judge. Which of the planted faults are among the red ones?

# %%
show(findings_bar(found.to_json()), "How many rows each check flagged, by severity.")

# %% [markdown]
# `kept` holds the pairs to train on. Of a duplicate, one copy stays. Of two rows with opposite labels both are dropped,
# because nobody knows which is right. Personal data are reported and not dropped, since only you know whether they may
# be used. On the command line, `python -m dpo_kit audit FILE --out cleaned.jsonl` does the same, and exits with 1 where
# something blocks.

# %%
clean = audit.audit_pairs(found.kept, tokenizer, holdout, profile.model.max_length)
print(f"{len(dirty)} pairs, {len(found.dropped)} dropped, {len(found.kept)} kept")
print("blocking before:", [finding.name for finding in found.blocking])
print("blocking after: ", [finding.name for finding in clean.blocking])
assert not clean.blocking

# %% [markdown]
# ## Split, and save for notebook 05
#
# The copy with the planted faults has done its work. What is saved comes from the sampled pairs: your labels take the
# place of the rubric's, the audit drops what blocks, and a part is held out, so that notebook 05 can measure the margin
# on pairs that it does not train on. The split is **by prompt**: with two pairs of one prompt on both sides, the model
# would be examined on what it was taught.

# %%
mine = lesson_runs.with_labels(pairs, my_labels, "me")
kept = audit.audit_pairs(mine, tokenizer, holdout, profile.model.max_length).kept
train, held_out = records.split_by_prompt(kept, lesson_runs.HOLDOUT)
assert not {pair.prompt.text for pair in train} & {pair.prompt.text for pair in held_out}, "a prompt on both sides"
lesson_runs.save_pairs(work, source, train, held_out)
assert lesson_runs.pairs_to_train_on(work, profile, source) == (train, held_out), "notebook 05 trains on other pairs"
print(f"{len(train)} pairs to train on, {len(held_out)} held out")
print(f"{sum(pair.verdict.judge == 'human:me' for pair in kept)} of them with your label")

# %%
print(
    json.dumps(json.loads((work.root / "my_pairs" / "train.jsonl").read_text().splitlines()[0]), indent=1)[:900], "..."
)

# %% [markdown]
# Every TRL trainer reads `prompt`, `chosen` and `rejected`. The other fields say where the pair comes from.
#
# ## Your own data
#
# `import_pairs` recognises by itself which format a file has: TRL's, UltraFeedback, Anthropic's HH transcripts, scored
# answers as in SHP, unpaired thumbs as for KTO, or an export of Argilla or Label Studio. The file may be JSON Lines,
# JSON, CSV or Parquet. To try it, put the path of your file in place of `mine_file` below. A row that cannot be read
# goes to a quarantine file with its line and the reason, and the other rows are imported.

# %%
with tempfile.TemporaryDirectory() as scratch:
    mine_file = Path(scratch) / "mine.jsonl"
    question = "\n\nHuman: How do I boil an egg?\n\nAssistant:"
    row = {"chosen": f"{question} Seven minutes in boiling water.", "rejected": f"{question} Eggs are food."}
    mine_file.write_text(f'{json.dumps(row)}\n{{"chosen": "cut of\n')
    imported = importers.import_pairs(mine_file, quarantine=Path(scratch) / "quarantine.jsonl")
    put_aside = json.loads((Path(scratch) / "quarantine.jsonl").read_text())
print("\n".join(imported.notes))
print("line", put_aside["line"], "was put aside:", put_aside["reason"])
imported.pairs[0].to_trl()

# %% [markdown]
# ## What we saw
#
# - A pair is a statement, and DPO believes it. The faults of a judge cannot be seen in its labels.
# - Asking in both orders finds position bias. It did not find misreading, nor the preference for long answers. For
#   these you need labels that you trust, for example some of your own.
# - Before training: audit the pairs, drop what is certainly wrong, look at what is doubtful, and split by prompt.
#
# ## Exercises
#
# Solutions are in `solutions/04_preference_data.ipynb`; try first.
#
# **1.** Combine the two answers of a judge into one verdict, in about four lines. `forward` is the winner when `a` was
# shown first, and `backward` the winner when `b` was shown first; both already name the answers a and b, not the
# places. Two different verdicts make a tie. If one of the two is `"unjudged"`, the result is `"unjudged"`.


# %%
def my_collapse(forward, backward):
    """Two of "a", "b", "tie", "unjudged" in, one out."""
    ...


exercises.check_collapse(my_collapse)

# %% [markdown]
# **2.** How often is the simulated annotator wrong? Assume that the truth decides every pair, that the better answer is
# shown first in half of the pairs, and that it is the longer one in a share `longer` of them. About two lines.


# %%
def my_error_rate(accuracy, position_bias, length_bias, longer):
    """Four probabilities in, one out."""
    ...


exercises.check_error_rate(my_error_rate)

# %% [markdown]
# **3.** Cohen's kappa from two lists of labels, in about five lines, without a library.


# %%
def my_kappa(x, y):
    """Two equally long lists of labels in, kappa out."""
    ...


exercises.check_kappa(my_kappa)

# %% [markdown]
# **4.** Split pairs so that no prompt is on both sides, in about four lines. Number the prompts 0, 1, 2, ... in the
# order in which they first appear. A prompt is held out if its number is divisible by `every`.


# %%
def my_split(prompts, every):
    """A list of prompts, one a pair, in; for each pair True where it is held out."""
    ...


exercises.check_split(my_split)

# %% [markdown]
# **Next:** [05 · QLoRA DPO](05_qlora_dpo.ipynb), which trains on the pairs that were saved here.
