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
# # 06 · Three arms, honest statistics
#
# **Question.** Is SFT+DPO better than SFT, and how would we know?
#
# **Needs.** The SFT and DPO adapters of notebooks 03 and 05; what is not there yet is trained here.
#
# **Takes.** Two minutes of computing on two CPU cores once the adapters exist, and ninety of reading. A GPU does not
# help here.
#
# Three answers that look nicer are not evidence. This notebook asks the question the way a statistician would sign it:
# fixed in advance, on prompts that no arm has seen, with intervals, with controls that can fail, and with
# "inconclusive" among the possible ends.

# %%
import json
import math
from collections import Counter
from textwrap import fill

import numpy as np
from IPython.display import HTML, Markdown
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from dpo_kit import pipeline
from dpo_kit.evaluation.comparison import PRIMARY, SMALLEST_INTERESTING, first_answers
from dpo_kit.evaluation.controls import run_controls
from dpo_kit.evaluation.results import refusal_of
from dpo_kit.evaluation.statistics import (
    holm,
    paired_difference,
    pairwise,
    position_bias,
    sign_test_power,
    verdict_text,
    win_rate_at_k,
)
from dpo_kit.jsonl import read_records
from dpo_kit.models.loading import load_arms
from dpo_kit.preferences.judges import both_orders, judge_all
from dpo_kit.preferences.sampling import sample
from dpo_kit.profiles import DATA, load_profile
from dpo_kit.records import Prompt, Response
from dpo_kit.triage import rubric
from dpo_kit.triage.judges import rubric_judge, simulated
from dpo_kit.views.answer_browser import answer_browser
from dpo_kit.views.figures import forest, per_prompt_scatter, win_rate_by_length, wins_ties_losses
from dpo_kit.views.tables import (
    arm_name,
    controls_html,
    interval,
    metric_name,
    metrics_html,
    notes,
    pairwise_sentence,
    power_sentence,
    short,
)
from dpo_kit.workbook.exercises.three_way_eval import check_holm, check_pairing, check_prompts_needed, check_sign_test
from dpo_kit.workbook.figures.evaluation import rate_by_k, rates_compared, spread_by_size, verdict_shares
from dpo_kit.workbook.figures.theory import lines
from dpo_kit.workbook.reflection import reflection
from dpo_kit.workbook.show import show
from dpo_kit.workbook.statistics import decisive_prompts_needed, kappa, mcnemar, prompts_needed
from dpo_kit.workspace import Workspace, default_workdir

profile = load_profile()
work = Workspace(default_workdir(profile.name), profile.name)

# %% [markdown]
# ## What is fixed before anyone looks
#
# Whoever may choose the contrast, the metric, the prompts and the moment to stop after seeing the numbers will find
# something. So these are fixed in the code, not in this notebook:
#
# - one **primary contrast**; every other difference is secondary, and pays for being one of many;
# - how many **held-out prompts**, in phrasings and about combinations that no training text contains;
# - the **smallest difference that would matter**, which lets us say "nothing worth having" and not only "don't know".

# %%
print("primary contrast:", " against ".join(arm_name(arm) for arm in PRIMARY))
print("held-out prompts:", profile.evaluation.prompts)
print("smallest difference that would matter:", SMALLEST_INTERESTING, "of a score between 0 and 1")

# %% [markdown]
# ## Three arms answer
#
# The arms share one set of frozen 4-bit weights: Base is these alone, SFT and SFT+DPO are adapters on them. Each
# answers every prompt once at random and once greedily. SFT answers a second time at random, for a control. The draws
# of the arms are independent: with common noise, two similar models would mostly give the same answer, and we would
# measure the coupling.

# %%
pipeline.sft(work, profile, seed=0)
pipeline.pairs(work, profile, seed=0)
pipeline.dpo(work, profile, seed=0)
folder = pipeline.evaluate(work, profile, seed=0)
prompts = read_records(folder / "prompts.jsonl", Prompt)
responses = read_records(folder / "responses.jsonl", Response)
sampled = [response for response in responses if response.temperature > 0]
assert len(prompts) >= 400
print(Counter((response.arm, response.temperature) for response in responses))

# %% [markdown]
# Now every answer is scored by the rubric, the judge is asked about each pair of answers in both orders, the controls
# are run, and `report.json` and `report.html` are written. You will read the numbers here.

# %%
report = pipeline.report(work, profile, seed=0)
per_prompt = report.outcomes
print("\n".join(fill(f"note: {note}", 100) for note in notes(report)))

# %% [markdown]
# That note matters wherever the judge is a person or a model: whoever is trained on a judge's taste wins by that
# judge's taste. Here the judge is the exact rubric, which computes the truth, so a gain by it is a gain.
#
# ## The null result first
#
# Before the harness is asked what nobody knows, it is asked what everybody knows. The same answers on both sides must
# all be ties. Two samples of the *same* model, or two arms under shuffled names, may show no winner. A constant answer
# must lose. Cut-off and padded answers must not win.

# %%
HTML(controls_html(report.controls))

# %% [markdown]
# ## A harness that is broken
#
# Would the controls notice? Here is a judge that many evaluations use without knowing it: it is asked once, in one
# order; it sometimes takes the first answer unread, and sometimes the longer one.

# %%
truth = rubric_judge()
hasty = simulated(truth, position_bias=0.3, length_bias=0.3)
asked, answers = first_answers(prompts, sampled)
resample = [response.text for response in read_records(folder / "resample.jsonl", Response)]
broken = run_controls(asked, answers, hasty, resample=resample)
HTML(controls_html(broken))

# %% [markdown]
# It finds a winner where one model meets itself, and words that say nothing win. Whatever it says of our arms, it would
# say of any. So it is given no verdict to say: every row is refused, and the line above the table and the pairwise
# sentence say why.

# %%
refusal = refusal_of(broken)
assert refusal, "a judge of this kind must not pass"
hasty_verdicts = judge_all(hasty, asked, answers["dpo"], answers["sft"])
print(fill(pairwise_sentence(pairwise(hasty_verdicts), refusal=refusal), 100))
HTML(metrics_html(report.metrics, refusal))

# %% [markdown]
# ## The table
#
# Now the harness that passed. One row a metric: the mean of each arm over the prompts, the **difference** SFT+DPO minus
# SFT with its 95% interval, and a verdict in words.

# %%
assert report.refusal is None
HTML(metrics_html(report.metrics, report.refusal))

# %% [markdown]
# Read it line by line. *Better* and *worse* mean two things: the interval leaves out zero, and the row holds as one of
# five, of which more below. *No difference larger than* means that the interval lies within the smallest difference
# that would matter, on both sides: that is a finding. *Inconclusive* means neither, and says what is missing: more
# prompts, about so many, or a difference that stands out among five and not only by itself.

# %%
readings = {
    "better": "the interval lies above zero, and the row holds among the others.",
    "worse": "the interval lies below zero, and the row holds among the others.",
    "no difference": f"the whole interval lies within ±{SMALLEST_INTERESTING:g}.",
    "inconclusive": "nothing is claimed.",
}
for name, metric in report.metrics.items():
    row = metric.difference
    print(f"{metric_name(name):19} {interval(row.interval, '+'):28} {row.verdict}: {readings[short(row.verdict)]}")

# %% [markdown]
# ## One row by hand
#
# Take the severity. Each prompt gives two numbers, 0 or 1, and the difference of the two is $-1$, $0$ or $+1$. The
# unit is the **prompt**: both arms met the same one, so what makes prompts easy or hard drops out of the difference.
# With $n$ prompts and $s$ the standard deviation of the differences, the textbook interval is
# $\bar d \pm 1.96\, s / \sqrt{n}$.


# %%
def column(arm, metric):
    """The scores of one arm on one metric, in the order of the prompts."""
    return np.array([row["scores"][arm][metric] for row in per_prompt])


gains = column("dpo", "severity_match") - column("sft", "severity_match")
n, error = len(gains), gains.std(ddof=1) / math.sqrt(len(gains))
print(f"by hand    {gains.mean():+.3f} [{gains.mean() - 1.96 * error:+.3f}, {gains.mean() + 1.96 * error:+.3f}]")
severity = report.metrics["severity_match"].difference
print("the table ", interval(severity.interval, "+"))
assert math.isclose(gains.mean(), severity.interval.mean)

# %% [markdown]
# The two nearly agree. They are not equal, since the package does not use the textbook interval: on thirty prompts with
# scores of 0 and 1 it covers too little. Tango's interval asks which true differences the data do not contradict, each
# with the variance that it implies. `dpo_kit/evaluation/statistics/intervals.py` says which interval stands where.
#
# ## All differences
#
# In the next figure look at two things: which filled squares, the primary contrast, stay clear of the dotted line, and
# how they compare with the step from Base to SFT.

# %%
show(*forest(report))

# %% [markdown]
# A square whose interval touches the line has shown nothing, however far from it its middle lies. Where a square is
# short of the circle beside it, SFT did more for that metric than DPO did.
#
# ## Five chances to be lucky
#
# The contrast was fixed in advance; which of the metrics would show it was not. Five rows are five chances for luck to
# say "better". **Holm's** method adjusts their p-values, so that of all five together the chance of a single false
# "better" or "worse" is at most 5%. (You will write it in an exercise.) A verdict needs both: an interval that leaves
# out zero, and an adjusted p below 0.05. The p-values come from a sign test on the prompts where the two arms differ.

# %%
adjusted = holm({name: metric.difference.p_value for name, metric in report.metrics.items()})
for name, p in adjusted.items():
    row = report.metrics[name].difference
    assert row.p_holm == p
    print(f"{metric_name(name):19} p {row.p_value:.2g}, among five {p:.2g}: {row.verdict}")

# %% [markdown]
# Is that too careful? DPO was trained on **shuffled labels**, where there is nothing to be learnt, with ten seeds; the
# reports are in `data/runs/seeds.json`. Next, in how many of these runs some metric came out "better", row by row and
# as one of five. (It was this table that made us correct the primary contrast too. So it shows why, and is no test of
# the rule: that would take new seeds.)

# %%
shuffled = json.loads((DATA / "runs" / "seeds.json").read_text())["shuffled"]
rows = [[metric["difference"] for metric in run["metrics"].values()] for run in shuffled]
single = [any(row["interval"]["low"] > 0 for row in of_run) for of_run in rows]
held = [any(row["verdict"] == "better" for row in of_run) for of_run in rows]
print(
    f"{len(shuffled)} runs on shuffled labels: better by an interval {sum(single)}, better as one of five {sum(held)}"
)

# %% [markdown]
# The open circles of the figure are secondary contrasts. They are more, so they pay more: their p-values are adjusted
# among all of them. The five with the largest p:

# %%
rows = sorted(report.contrasts, key=lambda row: row.p_value, reverse=True)
for row in rows[:5]:
    name = f"{arm_name(row.treated)} minus {arm_name(row.control)}, {metric_name(row.metric)}"
    print(f"{name:40} p {row.p_value:.2g}, among {len(rows)} {row.p_holm:.2g}: {row.verdict}")

# %% [markdown]
# ## Pass or fail: McNemar
#
# On a metric of passes and failures, the prompts that both arms pass, or both fail, say nothing about who is better.
# McNemar's test looks at the others only: those that just one arm passes. If the arms were equal, each would be a coin.

# %%
dpo_passes, sft_passes = column("dpo", "severity_match") == 1, column("sft", "severity_match") == 1
test = mcnemar(dpo_passes, sft_passes)
print(f"both pass {(dpo_passes & sft_passes).sum()}, neither passes {(~dpo_passes & ~sft_passes).sum()}")
print(f"only SFT+DPO passes {test.only_treated}, only SFT passes {test.only_control}, p = {test.p_value:.2g}")
by_coin = binomtest(test.only_treated, test.only_treated + test.only_control).pvalue
assert math.isclose(test.p_value, by_coin, rel_tol=1e-6)

# %% [markdown]
# "Only SFT passes" is not zero. On those prompts this one answer of SFT+DPO was worse than that one answer of SFT. At
# temperature 1 that is partly the dice, and no single example can tell which part.
#
# ## Who wins?
#
# A judge who compares the two answers directly gives one verdict a prompt. Ties are not decided, so they stay out of
# the **decisive win rate** $\hat p = w / (w + \ell)$. Its interval is **Wilson's**: keep every true rate $p$ that lies
# no more than $z$ of its own standard errors from what was seen,
#
# $$|\hat p - p| \le z \sqrt{p(1-p)/n}
# \quad\Longleftrightarrow\quad
# \Big(1 + \tfrac{z^2}{n}\Big) p^2 - \Big(2\hat p + \tfrac{z^2}{n}\Big) p + \hat p^2 \le 0 .$$
#
# The ends are the roots of that parabola. They lie between 0 and 1, whatever was seen.

# %%
wins, losses = report.pairwise.wins, report.pairwise.losses
decisive, z = wins + losses, 1.959964
rate = wins / decisive
low, high = sorted(np.roots([1 + z**2 / decisive, -(2 * rate + z**2 / decisive), rate**2]))
assert np.allclose((low, high), proportion_confint(wins, decisive, method="wilson"), atol=1e-6)
assert np.allclose((low, high), (report.pairwise.low, report.pairwise.high), atol=1e-6)
print(f"{wins} of {decisive} decided prompts won: {rate:.3f} [{low:.3f}, {high:.3f}]")

# %% [markdown]
# The **sign test** asks how often a fair coin would be at least as lopsided. A win rate with ties counted half is the
# other number people report; it is over all prompts, and nearer to one half the more ties there are.

# %%
assert math.isclose(binomtest(wins, decisive).pvalue, report.pairwise.p_value)
print(fill(pairwise_sentence(report.pairwise), 100))
print("win rate, ties half:", interval(report.pairwise.win_rate))

# %% [markdown]
# Next: on how many prompts each side wins, by the judge and by each metric alone. Look at the grey: on most single
# metrics most prompts are ties, and only the sum of all five separates the answers.

# %%
show(*wins_ties_losses(report, per_prompt))

# %% [markdown]
# Where a bar holds blue and orange, SFT+DPO did better on some prompts and worse on others; the mean shows neither.
#
# ## Is it only the length?
#
# Judges like long answers, and DPO can learn to write them. So look at the win rate where SFT+DPO wrote *less* than
# SFT, and where it wrote more. If length decided, the points would move to the right as one
# goes down.

# %%
show(*win_rate_by_length(report))

# %% [markdown]
# Quarters on one side of the dotted line, whatever their length, speak for the answers; a slope would speak for their
# length. In numbers:

# %%
controlled = report.judged.length_controlled
print("mean characters:", {arm_name(arm): round(count) for arm, count in report.characters.items()})
print("win rate as counted      ", interval(controlled.win_rate))
print("win rate at equal lengths", interval(controlled.length_controlled))

# %% [markdown]
# The last number comes from a logistic regression of verdicts on length differences, read where the difference is
# zero, as in AlpacaEval 2. Compare it with the one above it. Length is a fault only if it is not wanted: in this world
# an answer that rambles *is* worse, so some of what the regression takes away is merit.
#
# ## Prompt by prompt
#
# Means hide who paid. Each dot is a pair of scores; above the line SFT+DPO did better, and the area counts prompts.

# %%
show(*per_prompt_scatter(report, per_prompt))

# %% [markdown]
# There are dots below the line. Read them: the browser opens on the prompts that SFT+DPO *lost*; the groups it won and
# tied are folded. (Eight of each are stored here, `report.html` has all.)

# %%
HTML(answer_browser(prompts, sampled, per_prompt, limit=8))

# %% [markdown]
# ## Greedy or sampled?
#
# At temperature 1 we measure the whole distribution of a model's answers; greedily, its favourite answer alone. These
# are two questions, and the answers may differ. The same table at temperature 0:

# %%
HTML(metrics_html(report.greedy.metrics))

# %%
for name in report.metrics:
    drawn, greedy = (of.metrics[name].difference.interval.mean for of in (report, report.greedy))
    print(f"{metric_name(name):19} SFT+DPO minus SFT: sampled {drawn:+.3f}, greedy {greedy:+.3f}")

# %% [markdown]
# Where the first number is larger than the second, DPO moved probability onto answers that were SFT's favourites
# already: it *sharpened*. Whoever decodes greedily gets the second number. So say how you decoded whenever you say
# how well.
#
# ## How thirty prompts would have misled
#
# Suppose we had drawn thirty of these prompts, or a hundred. We can: draw them from the run's own results, with
# replacement, again and again, and note the difference and the verdict each time.


# %%
def found(treated, control, n, draws=300):
    """Draw `n` prompts again and again: the difference found each time, and the verdict in one word."""
    random = np.random.default_rng(0)
    for _ in range(draws):
        rows = random.integers(len(treated), size=n)
        difference = paired_difference(treated[rows], control[rows])
        yield difference.mean, short(verdict_text(difference, n, SMALLEST_INTERESTING))


severities = {n: list(found(column("dpo", "severity_match"), column("sft", "severity_match"), n)) for n in (30, 100, n)}
show(*spread_by_size({n: [mean for mean, _ in draws] for n, draws in severities.items()}, gains.mean()))

# %% [markdown]
# All ridges have the same middle. With thirty prompts a single evaluation may come out anywhere under the widest one:
# at twice the effect, or at hardly any. Now the verdicts. Three comparisons: severity, the format, and the control
# where nothing is to be found: SFT against its own second sample.


# %%
def scores(texts, metric):
    """The scores of ready texts on one metric, in the order of the prompts."""
    return np.array([rubric.score(prompt, text)[metric] for prompt, text in zip(prompts, texts, strict=True)])


comparisons = {
    "severity": (column("dpo", "severity_match"), column("sft", "severity_match")),
    "format": (column("dpo", "format_conformance"), column("sft", "format_conformance")),
    "SFT against itself, severity": (scores(resample, "severity_match"), column("sft", "severity_match")),
}
shares = {}
for name, (treated, control) in comparisons.items():
    for size in (30, 100, n):
        said = Counter(verdict for _, verdict in found(treated, control, size))
        shares[f"{name}, {size}"] = {verdict: count / said.total() for verdict, count in said.most_common()}
show(*verdict_shares(shares))

# %%
thirty = {name: shares[f"{name}, 30"] for name in comparisons}
for name, row in thirty.items():
    print(f"{name} with 30 prompts: " + ", ".join(f"{verdict} {share:.0%}" for verdict, share in row.items()))
wrong_way = np.mean([mean <= 0 for mean, _ in found(*comparisons["format"], 30)])
print(f"without an interval, 30 prompts would have called the format no better in {wrong_way:.0%} of the draws")

# %% [markdown]
# Where the interval is read, thirty prompts rarely tell a lie; often they tell nothing, even of an effect that is
# there. Whoever reads the mean alone gets an answer each time, right or wrong. The rows of SFT against itself are the
# reminder: those few that say "better" or "worse" are wrong, and about one in twenty comparisons of equals ends so,
# whoever makes it. (Where their share grows with the size: all draws come from one pair of samples, which differ by
# chance, and drawing again from them repeats that chance.)
#
# ## What this run could have seen
#
# **Power** is the chance to see an effect that is there. Ask before the run how many prompts an effect needs; ask after
# it what would have escaped.

# %%
print(fill(power_sentence(report), 100), "\n")
for effect in (0.2, 0.1, 0.05, 0.02):
    print(f"to see a difference of {effect:.2f} in severity: {prompts_needed(effect, gains.std(ddof=1)):,} prompts")
for true_rate in (0.75, 0.6, 0.55, 0.52):
    print(f"to see a win rate of {true_rate:.0%}: {decisive_prompts_needed(true_rate):,} decided prompts")

# %% [markdown]
# The figure shows the same for the win rate: the chance that the sign test finds it, over the true rate. Find 60% on
# the axis, and see what thirty decided prompts make of it.

# %%
true_rates = np.linspace(0.5, 0.9, 81)
curves = {f"{count} decided": sign_test_power(count, true_rates) for count in (30, 100, decisive)}
words = {"title": "Chance to see a win rate", "x_title": "true win rate", "y_title": "power"}
at_60 = ", ".join(f"{count}: {sign_test_power(count, 0.6):.0%}" for count in (30, 100, decisive))
show(lines(true_rates, curves, **words), f"Power of the sign test over the true win rate. At 60%, by prompts: {at_60}.")

# %% [markdown]
# A curve that is low where you hope to be is a promise: the run will end with "inconclusive", or with luck.
#
# ## The best of K
#
# A model is often asked several times and the best answer kept. **WinRate@K** compares the best of $K$ answers of one
# arm with the best of $K$ of the other. It shows something that one answer cannot: a model that is better at every $K$
# knows more; one whose lead melts as $K$ grows is mostly surer of what the other can do as well, given tries. Look
# at the slope.

# %%
subset, tries = prompts[:40], 8
arms = load_arms(profile, {arm: work.root / arm / "adapter" for arm in ("sft", "dpo")})
best = {}
for seed, arm in enumerate(("sft", "dpo"), start=1):  # a seed each, so that the draws are independent
    texts = sample(arms, arm, subset, [profile.evaluation.temperature] * tries, profile.evaluation, seed)
    best[arm] = [[rubric.overall(p, r.text) for r in rs] for p, rs in zip(subset, texts, strict=True)]
at_k = win_rate_at_k(best["dpo"], best["sft"])
show(*rate_by_k(at_k))

# %%
print(f"WinRate@1 {interval(at_k[1])}, WinRate@{tries} {interval(at_k[tries])}, on {len(subset)} prompts")
for arm, scored in best.items():
    print(f"{arm_name(arm):8} mean {np.mean(scored):.3f}, mean best of {tries} {np.max(scored, axis=1).mean():.3f}")

# %% [markdown]
# Compare the means of one answer with the means of the best of eight: how much of the lead is left? Together with the
# greedy table this says what kind of help DPO was here. And mind that the rubric both picks the best answer and
# compares: this is the rate with a perfect selector. Yours will pick worse.
#
# ## A biased judge changes the answer
#
# Back to the judge. The same answers, judged by the truth and by three annotators with one fault each: one misreads,
# one takes the first answer unread, one takes the longer. Each is asked with SFT+DPO shown first, with SFT shown first,
# and in both orders, where a contradiction is a tie.

# %%
faults = {
    "the truth": {},
    "misreads": {"accuracy": 0.7},
    "takes the first": {"position_bias": 0.4},
    "takes the longer": {"length_bias": 0.6},
}
heard = {
    name: judge_all(both_orders(simulated(truth, **fault)), asked, answers["dpo"], answers["sft"])
    for name, fault in faults.items()
}
WAYS = {"SFT+DPO shown first": 0, "SFT shown first": 1}


def in_order(verdicts, number):
    """The verdicts as they were in one of the two orders."""
    return [verdict.model_copy(update={"winner": verdict.in_orders[number]}) for verdict in verdicts]


ways = {
    name: {**{way: in_order(verdicts, i) for way, i in WAYS.items()}, "both orders": verdicts}
    for name, verdicts in heard.items()
}
rates = {name: {way: pairwise(v).win_rate for way, v in row.items()} for name, row in ways.items()}

# %% [markdown]
# Look first at how far apart the two single orders lie for each judge, then at where "both orders" lies compared with
# the truth.

# %%
show(*rates_compared(rates, "win rate of SFT+DPO, ties half"))

# %%
winners = {name: [verdict.winner for verdict in verdicts] for name, verdicts in heard.items()}
for name, verdicts in heard.items():
    agreed, bias = kappa(winners[name], winners["the truth"]), position_bias(verdicts)
    print(f"{name:17} kappa with the truth {agreed.mean:.2f}, contradicts itself on {bias.inconsistent.mean:.0%}")

# %% [markdown]
# A judge that takes the first makes a winner of whoever is shown first, and asking in both orders takes that away. What
# is left is pulled towards one half, as with the judge that misreads: noise hides effects, and needs more prompts. The
# love of length is the same in both orders, and nothing in its verdicts gives it away; the padded control does. So:
# both orders always, controls always, and some labels of known truth.
#
# ## What DPO helped, and what it did not
#
# The sentences are made from the numbers of this run.

# %%
for name, metric in report.metrics.items():
    verdict, gain = metric.difference.verdict, metric.difference.interval.mean
    lacked = f": {gain / (1 - metric.means['sft']):+.0%} of what SFT lacked"
    print(f"{metric_name(name)}: {verdict}{lacked if verdict in ('better', 'worse') else ''}.")
for metric in ("severity_match", "action_match"):
    test = mcnemar(column("dpo", metric) == 1, column("sft", metric) == 1)
    print(f"{metric_name(metric)}: mended on {test.only_treated} prompts, broken on {test.only_control}.")

# %% [markdown]
# Three things that no row says. The *truth* judged here; with your judge a "better" is that judge's. One seed is one
# run: `data/runs/seeds.json` has others. And one world: the intervals are about more prompts of this kind, not about
# another kind.
#
# ## What we saw
#
# An evaluation is an instrument. It was tested on what is known before it was asked what is not; a broken one was
# refused. The contrast was fixed, the unit was the prompt, every difference came with its interval, and every verdict
# could have been "inconclusive". Thirty prompts would often not have told. A biased judge would have told something
# else, with the same confidence.
#
# ## Your reflection
#
# The next cell writes the beginning: your run's numbers, and blanks for what only you can say. Copy the result into a
# cell of your own and fill it in; about 300 words make a page that a colleague can check.

# %%
print(len(reflection(report).split()), "words, blanks included")
Markdown(reflection(report))

# %% [markdown]
# ## Exercises
#
# **1.** What does pairing save? With different prompts for the two arms, the variance of the difference of means would
# be $(s_t^2 + s_c^2)/n$; with the same prompts it is $s_d^2/n$, where $d$ are the differences. How many times as many
# prompts would the unpaired comparison need? About two lines.


# %%
def my_pairing(treated, control):
    """Two lists of scores on the same prompts in, one ratio out."""
    ...


check_pairing(my_pairing)

# %% [markdown]
# **2.** The exact sign test, in about three lines. Of $n$ = wins + losses coins, $k$ fall to one side in
# $\binom{n}{k}/2^n$ of all cases. Add this up from 0 to the smaller count, double it, since either side could have been
# the smaller one, and let it be at most 1.


# %%
def my_sign_test(wins, losses):
    """Two counts in, a p-value out."""
    ...


check_sign_test(my_sign_test)

# %% [markdown]
# **3.** Holm's adjustment, in about five lines. Of $m$ p-values the smallest is multiplied by $m$, the next by $m - 1$,
# and so on to 1. None may be below the one before it, and none above 1. Return them in the order in which they came.


# %%
def my_holm(p_values):
    """A list of p-values in, the adjusted ones out, in the same order."""
    ...


check_holm(my_holm)

# %% [markdown]
# **4.** How many prompts are needed, in one line: to see a difference $\delta$ with 80% power at 5%, its distance from
# zero must be $1.96 + 0.84 = 2.8$ standard errors $s/\sqrt{n}$. Solve for $n$, and round up.


# %%
def my_prompts_needed(effect, sd):
    """The difference to see and the spread of differences in, a whole number out."""
    ...


check_prompts_needed(my_prompts_needed)

# %% [markdown]
# This was the last of the six notebooks. **Back to the start:** [00 · Start here](00_start_here.ipynb), or run it all
# again with a fault of your own in the profile, and see whether you would notice.
