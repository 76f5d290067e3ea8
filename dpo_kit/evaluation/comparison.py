"""Arms on the same prompts are compared: their answers are scored and judged, and the result is one record.

The unit is the prompt. One contrast is primary, chosen before the data are seen: SFT+DPO against SFT. The p-values of
its metrics are adjusted by Holm's correction, because no metric was chosen in advance. All other contrasts are
secondary and are adjusted separately. Missing answers are counted and listed. Each number is computed from the prompts
that have the needed answers, and comes with their count.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean, stdev

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation import statistics
from dpo_kit.evaluation.results import Comparison, Difference, Gap, Interval, Judged, Metric, Outcome
from dpo_kit.evaluation.scoring import Rate, Score, checked, rate_all, same_judge, unjudged_because
from dpo_kit.preferences.judges import Judge, judge_all
from dpo_kit.records import PreferencePair, Prompt, Response, Verdict

ORDER = ("base", "sft", "dpo")  # the arms of the workbook, in the order of its tables
PRIMARY = ("dpo", "sft")
# The smallest difference that would matter, of a metric in [0, 1], stated before looking. A judge's scale from 1 to 5
# is four times as wide, and so is its smallest difference.
SMALLEST_INTERESTING = 0.05
RATING, SCALE = "judge_score", (1.0, 5.0)
NAMED = 5  # how many of the prompts that an arm did not answer are listed

Texts = Mapping[str, Mapping[str, list[str]]]  # arm -> prompt id -> the texts of its samples
Samples = Mapping[str, list[dict[str, float]]]  # prompt id -> for each sample its scores by metric
Columns = Mapping[str, Mapping[str, dict[str, float]]]  # arm -> metric -> prompt id -> score
Clusters = Mapping[str, Hashable] | None  # prompt id -> the source that it shares with others


def compare(
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    score: Score | None,
    judge: Judge | None,
    *,
    arms: Sequence[str] | None = None,
    primary: tuple[str, str] = PRIMARY,
    rate: Rate | None = None,
    clusters: Callable[[Prompt], Hashable] | None = None,
    trained_on: Sequence[PreferencePair] = (),
    reasons: Mapping[str, str] | None = None,
    workers: int = 1,
) -> Comparison:
    """Compare arms on their answers at one temperature.

    Where an arm has several samples a prompt, metrics are averaged over them, the judge sees the first, and
    `win_rate_at_k` compares the best of K. Wrap `judge` in `both_orders`, and give the same one to `run_controls`,
    because verdicts are only as good as the judge. `score` gives an answer's metrics in [0, 1], and `rate` a judge's
    score from 1 to 5. `clusters` names the source of a prompt, where prompts share sources. `trained_on` are the
    training pairs, for a warning where their judge judges here too. `reasons` says by arm why answers are missing.
    Raises DpoKitError for an answer to an unknown prompt, a doubled answer, or a primary arm without answers.
    """
    arms = _ordered(arms or {r.arm: None for r in responses})
    if absent := [arm for arm in primary if arm not in arms]:
        raise DpoKitError(f"arm {absent[0]!r} is not there; the arms are {', '.join(arms)}: choose others to compare")
    texts = _texts(prompts, responses, arms)
    samples = {arm: _samples(prompts, texts[arm], score, rate, workers) for arm in arms}
    columns = {arm: _columns(samples[arm]) for arm in arms}
    cluster = {p.id: clusters(p) for p in prompts} if clusters else None
    verdicts = {} if judge is None else _verdicts(judge, prompts, texts, primary, workers)
    warning = same_judge(verdicts.values(), trained_on)
    metrics = compare_columns(columns, arms, primary, cluster)
    others = [(later, earlier) for earlier, later in combinations(arms, 2) if {earlier, later} != set(primary)]
    worth = statistics.pairwise(list(verdicts.values()), cluster and [cluster[p] for p in verdicts])
    return Comparison(
        n_prompts=len(prompts),
        arms=tuple(arms),
        primary=tuple(primary),
        metrics=metrics,
        pairwise=None if judge is None else worth,
        contrasts=tuple(_under_holm([_difference(m, *pair, columns, cluster) for pair in others for m in metrics])),
        judged=None if judge is None else _judged(verdicts, texts, primary),
        win_rate_at_k=_at_k(samples, primary),
        stopped={arm: _mean(r.stopped for r in responses if r.arm == arm and r.stopped is not None) for arm in arms},
        characters={arm: _mean(len(text) for of_prompt in texts[arm].values() for text in of_prompt) for arm in arms},
        missing=_missing(prompts, texts, reasons or {}),
        unscored={arm: sum(RATING not in row for rows in samples[arm].values() for row in rows) for arm in arms}
        if rate
        else {},
        warnings=(warning,) if warning else (),
        outcomes=tuple(_outcome(prompt.id, arms, texts, columns, verdicts.get(prompt.id)) for prompt in prompts),
        unjudged_because=unjudged_because(verdicts.values()),
    )


def first_answers(
    prompts: Sequence[Prompt], responses: Sequence[Response]
) -> tuple[list[Prompt], dict[str, list[str]]]:
    """The input of the controls: the prompts that every arm answered, and each arm's first samples in that order."""
    texts = _texts(prompts, responses, _ordered({r.arm: None for r in responses}))
    answered = [p for p in prompts if all(p.id in of_arm for of_arm in texts.values())]
    return answered, {arm: [of_arm[p.id][0] for p in answered] for arm, of_arm in texts.items()}


def compare_columns(
    columns: Columns,
    arms: Sequence[str],
    primary: tuple[str, str],
    cluster: Clusters = None,
    smallest: Mapping[str, float] | None = None,
) -> dict[str, Metric]:
    """Every metric of the columns: the mean of each arm, and the primary difference under Holm's correction over all.

    `smallest` gives by metric the smallest difference that would matter, where it is not `SMALLEST_INTERESTING`.
    """
    metrics = list(dict.fromkeys(metric for arm in arms for metric in columns[arm]))
    gains = [_difference(m, *primary, columns, cluster, (smallest or {}).get(m)) for m in metrics]
    return {gain.metric: _metric(gain, arms, columns, cluster) for gain in _under_holm(gains)}


def _ordered(arms: Iterable[str]) -> list[str]:
    """The three arms of the workbook first and in its order, then all others as they come."""
    return [arm for arm in ORDER if arm in arms] + [arm for arm in arms if arm not in ORDER]


def _texts(prompts: Sequence[Prompt], responses: Sequence[Response], arms: Sequence[str]) -> Texts:
    """Each arm's answers by prompt, in the order of their seeds; checked."""
    known = {prompt.id for prompt in prompts}
    if len(known) < len(prompts):
        raise DpoKitError(f"{len(prompts) - len(known)} prompts share their id with another: ids must differ")
    doubled = Counter((r.arm, r.prompt_id, r.seed, r.temperature) for r in responses).most_common(1)
    if doubled and doubled[0][1] > 1:
        (arm, prompt, seed, _), times = doubled[0]
        raise DpoKitError(f"arm {arm} answers prompt {prompt} {times} times with seed {seed}: keep one answer a seed")
    texts = {arm: defaultdict(list) for arm in arms}
    for response in sorted(responses, key=lambda r: -1 if r.seed is None else r.seed):
        if response.prompt_id not in known:
            raise DpoKitError(
                f"arm {response.arm} answers prompt {response.prompt_id!r}, which is not among the prompts"
            )
        if response.arm in texts:
            texts[response.arm][response.prompt_id].append(response.text)
    return {arm: dict(by_prompt) for arm, by_prompt in texts.items()}


def _samples(prompts, texts, score, rate, workers) -> Samples:
    """The scores of every sample of one arm, by prompt; an answer that a judge could not rate has no rating."""
    rows = [(prompt, text) for prompt in prompts for text in texts.get(prompt.id, ())]
    scored = [checked(score)(*row) if score else {} for row in rows]
    ratings = rate_all(rate, *zip(*rows, strict=True), workers=workers) if rate and rows else []
    for values, rating in zip(scored, ratings, strict=False):  # `ratings` is empty where there is no `rate`
        if rating.score is not None:
            values[RATING] = rating.score
    by_prompt = defaultdict(list)
    for (prompt, _), values in zip(rows, scored, strict=True):
        by_prompt[prompt.id].append(values)
    return by_prompt


def _columns(samples: Samples) -> dict[str, dict[str, float]]:
    """Per metric the mean over a prompt's samples, for the prompts that have a score."""
    columns = defaultdict(dict)
    for prompt, rows in samples.items():
        for metric in {metric: None for row in rows for metric in row}:
            columns[metric][prompt] = fmean(row[metric] for row in rows if metric in row)
    return dict(columns)


def _metric(gain: Difference, arms: Sequence[str], columns: Columns, cluster: Clusters) -> Metric:
    """The mean of each arm in one metric, with its interval, beside the primary difference."""
    bounds, intervals = SCALE if gain.metric == RATING else None, {}
    for arm in arms:
        scores = columns[arm].get(gain.metric, {})
        sources = cluster and [cluster[p] for p in scores]
        known = len(scores) > 1 or bounds or all(0 <= score <= 1 for score in scores.values())
        intervals[arm] = statistics.mean_interval(list(scores.values()), sources, bounds) if scores and known else None
    return Metric({arm: _mean(columns[arm].get(gain.metric, {}).values()) for arm in arms}, gain, intervals)


def _difference(
    metric: str, treated: str, control: str, columns: Columns, cluster: Clusters, matters: float | None = None
) -> Difference:
    """Treated - control on the prompts that both answered, with interval, verdict and smallest detectable effect."""
    ours, theirs = columns[treated].get(metric, {}), columns[control].get(metric, {})
    both = [prompt for prompt in ours if prompt in theirs]
    contrast = {"metric": metric, "treated": treated, "control": control, "n": len(both)}
    if len(both) < 2:
        few = f"nothing to compare: {len(both)} prompts have both"
        return Difference(**contrast, interval=None, p_value=1.0, p_holm=1.0, verdict=few, could_see=None)
    bounds, smallest = (SCALE, 4 * SMALLEST_INTERESTING) if metric == RATING else (None, SMALLEST_INTERESTING)
    smallest = smallest if matters is None else matters
    pairs = [(ours[p], theirs[p]) for p in both]
    sources = cluster and [cluster[p] for p in both]
    interval = statistics.paired_difference(*zip(*pairs, strict=True), sources, bounds)
    gains = [a - b for a, b in pairs]
    # on pass/fail scores this is McNemar's test; on others, the sign test on prompts where the two differ
    p_value = statistics.sign_test(sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains))
    return Difference(
        **contrast,
        interval=interval,
        p_value=p_value,
        p_holm=p_value,
        verdict=statistics.verdict_text(interval, len(both), smallest),
        could_see=statistics.smallest_effect(len(both), stdev(gains)) if stdev(gains) else 0.0,
    )


def _under_holm(differences: Sequence[Difference]) -> list[Difference]:
    """Differences with Holm-adjusted p-values. A verdict that is not significant after the adjustment says so."""
    adjusted = statistics.holm({i: difference.p_value for i, difference in enumerate(differences)})
    family = len(differences)
    return [
        replace(
            difference,
            p_holm=adjusted[i],
            verdict=f"inconclusive: {difference.verdict} by itself, not as one of {family}"
            if difference.verdict in ("better", "worse") and family > 1 and adjusted[i] >= 0.05
            else difference.verdict,
        )
        for i, difference in enumerate(differences)
    ]


def _verdicts(judge, prompts, texts: Texts, primary, workers) -> dict[str, Verdict]:
    """Verdicts on the first samples of the two primary arms, by prompt id, where both answered."""
    treated, control = (texts[arm] for arm in primary)
    both = [prompt for prompt in prompts if prompt.id in treated and prompt.id in control]
    answers = ([arm[p.id][0] for p in both] for arm in (treated, control))
    return dict(zip((p.id for p in both), judge_all(judge, both, *answers, workers=workers), strict=True))


def _judged(verdicts: Mapping[str, Verdict], texts: Texts, primary: tuple[str, str]) -> Judged:
    """What the verdicts show about length and order, and the smallest win rate that their number could show."""
    usable = {p: verdict for p, verdict in verdicts.items() if verdict.winner != "unjudged"}
    lengths = [[len(texts[arm][p][0]) for p in usable] for arm in primary]
    worth = statistics.preferences(list(usable.values())).tolist()
    varied = len({t - c for t, c in zip(*lengths, strict=True)}) > 1 and len(set(worth)) > 1
    return Judged(
        judge=", ".join(sorted({v.judge for v in verdicts.values()})),
        length_controlled=statistics.length_controlled(worth, *lengths) if varied else None,
        by_length_quartile=tuple(statistics.by_length_quartile(worth, *lengths)) if len(worth) > 7 else (),
        position_bias=statistics.position_bias(list(verdicts.values())),
        could_see=_rate_seen(sum(verdict.winner != "tie" for verdict in usable.values())),
    )


def _rate_seen(decided: int) -> float | None:
    """The smallest win rate, in whole percent, that `decided` prompts show with 80% power; None where none is."""
    rates = (percent / 100 for percent in range(51, 100))
    return next((rate for rate in rates if statistics.sign_test_power(decided, rate) >= 0.8), None)


def _at_k(samples: Mapping[str, Samples], primary: tuple[str, str]) -> dict[int, Interval]:
    """Best of K against best of K, by the mean of each answer's metrics, where every compared prompt has metrics."""
    treated, control = (
        {p: [fmean(row.values()) for row in rows] for p, rows in samples[arm].items() if rows[0]} for arm in primary
    )
    both = [p for p in treated if p in control]
    k = min((len(arm[p]) for arm in (treated, control) for p in both), default=1)
    if k < 2:
        return {}
    return statistics.win_rate_at_k([treated[p][:k] for p in both], [control[p][:k] for p in both], range(1, k + 1))


def _missing(prompts: Sequence[Prompt], texts: Texts, reasons: Mapping[str, str]) -> dict[str, Gap]:
    """For each arm with missing answers: how many prompts have none, the first of these prompts, and the reasons."""
    absent = {arm: [p.id for p in prompts if p.id not in answered] for arm, answered in texts.items()}
    return {
        arm: Gap(len(ids), tuple(ids[:NAMED]), reasons.get(arm)) for arm, ids in absent.items() if ids or arm in reasons
    }


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return fmean(values) if values else None


def _outcome(prompt_id: str, arms, texts: Texts, columns: Columns, verdict: Verdict | None) -> Outcome:
    return {
        "prompt_id": prompt_id,
        "winner": verdict.winner if verdict else None,
        "reason": verdict.reason if verdict else None,
        "in_orders": verdict.in_orders if verdict else None,
        "characters": {arm: len(texts[arm][prompt_id][0]) for arm in arms if prompt_id in texts[arm]},
        "scores": {
            arm: {metric: column[prompt_id] for metric, column in columns[arm].items() if prompt_id in column}
            for arm in arms
        },
    }
