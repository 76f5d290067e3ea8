"""Any arms on the same prompts: the numbers of the table, from answers on disk.

The unit is the prompt. One contrast is primary, fixed before anyone looked: SFT+DPO against SFT; its metrics stand
under Holm's correction, since nobody fixed which of them would show it. All other contrasts are secondary, and stand
under a correction of their own. An answer that is missing is counted and named, never invented: each number rests on
the prompts where it could be computed, and says on how many.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from statistics import fmean, stdev

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation import statistics
from dpo_kit.evaluation.scoring import Rate, Score, checked, rate_all, same_judge
from dpo_kit.preferences.judges import Judge, judge_all
from dpo_kit.records import PreferencePair, Prompt, Response, Verdict

ORDER = ("base", "sft", "dpo")  # the workbook's arms, as its tables show them
PRIMARY = ("dpo", "sft")
SMALLEST_INTERESTING = (
    0.05  # of a metric in [0, 1], stated before looking; a judge's scale of 1 to 5 is 4 times as wide
)
RATING, SCALE = "judge_score", (1.0, 5.0)
NAMED = 5

Texts = Mapping[str, Mapping[str, list[str]]]  # arm -> prompt id -> its samples
Column = dict[str, float]  # prompt id -> score


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
    workers: int = 1,
) -> dict:
    """Compare arms at one temperature; returns plain data.

    `metrics` holds each metric's mean per arm and the primary difference (`dpo_minus_sft`) with its 95% paired interval
    and its verdict in words under Holm; `intervals` the intervals of the means; `contrasts` the secondary differences;
    `pairwise` the primary contrast by `judge`, `judged` what else its verdicts tell; `missing` who did not answer what;
    `per_prompt` one row a prompt. Where an arm has several samples a prompt, metrics are averaged over them, the judge
    sees the first, and `win_rate_at_k` compares the best of K.

    Verdicts are only as good as `judge`: give it wrapped in `both_orders`, and give `run_controls` the same one.
    `rate` scores single answers from 1 to 5. `clusters` names the source that prompts share, where they do.
    Raises DpoKitError for an answer to an unknown prompt, a doubled answer, or a primary arm that is not there.
    """
    arms = _ordered(arms or {r.arm: None for r in responses})
    if missing_arms := [arm for arm in primary if arm not in arms]:
        raise DpoKitError(
            f"arm {missing_arms[0]!r} is not there; the arms are {', '.join(arms)}: choose others to compare"
        )
    texts = _texts(prompts, responses, arms)
    samples = {arm: _samples(prompts, texts[arm], score, rate, workers) for arm in arms}
    columns = {arm: _columns(samples[arm]) for arm in arms}
    cluster = {p.id: clusters(p) for p in prompts} if clusters else None
    given = {} if judge is None else _judge(judge, prompts, texts, primary, workers)
    judged = {} if judge is None else _judged(given, texts, primary, cluster)
    warning = same_judge(given.values(), trained_on)
    metrics = list(dict.fromkeys(metric for arm in arms for metric in columns[arm]))
    return {
        "n_prompts": len(prompts),
        "arms": arms,
        "primary": list(primary),
        "metrics": _metrics(metrics, columns, arms, primary, cluster),
        "intervals": {m: {arm: _mean(m, columns[arm].get(m, {}), cluster) for arm in arms} for m in metrics},
        "contrasts": _contrasts(metrics, columns, arms, primary, cluster),
        "pairwise": judged.pop("pairwise", None),
        "judged": judged,
        "win_rate_at_k": _at_k(samples, primary),
        "stopped": {arm: _stop_rate(responses, arm) for arm in arms},
        "characters": {arm: _mean_of(len(t) for ts in texts[arm].values() for t in ts) for arm in arms},
        "missing": _missing(prompts, texts),
        "unscored": {arm: _unscored(samples[arm]) for arm in arms} if rate else {},
        "warnings": [warning] if warning else [],
        "per_prompt": [_row(p.id, arms, texts, columns, given) for p in prompts],
    }


def first_answers(
    prompts: Sequence[Prompt], responses: Sequence[Response]
) -> tuple[list[Prompt], dict[str, list[str]]]:
    """What controls take: the prompts that every arm answered, and each arm's first sample in their order."""
    texts = _texts(prompts, responses, _ordered({r.arm: None for r in responses}))
    answered = [p for p in prompts if all(p.id in of_arm for of_arm in texts.values())]
    return answered, {arm: [of_arm[p.id][0] for p in answered] for arm, of_arm in texts.items()}


def difference_key(primary: Sequence[str]) -> str:
    """The key of the primary difference in a metric: `dpo_minus_sft`."""
    return "{}_minus_{}".format(*primary)


def _ordered(arms) -> list[str]:
    """The three arms of the workbook first and in its order, then any others as they come."""
    return [arm for arm in ORDER if arm in arms] + [arm for arm in arms if arm not in ORDER]


def _texts(prompts, responses, arms) -> Texts:
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


def _samples(prompts, texts, score, rate, workers) -> dict[str, list[dict[str, float]]]:
    """The scores of every sample of one arm, by prompt; what a judge could not rate has no rating."""
    rows = [(prompt, text) for prompt in prompts for text in texts.get(prompt.id, ())]
    scored = [checked(score)(*row) if score else {} for row in rows]
    if rate:
        ratings = rate_all(rate, *zip(*rows, strict=True), workers=workers) if rows else []
        scored = [
            {**values, **({} if rating.score is None else {RATING: rating.score})}
            for values, rating in zip(scored, ratings, strict=True)
        ]
    by_prompt = defaultdict(list)
    for (prompt, _), values in zip(rows, scored, strict=True):
        by_prompt[prompt.id].append(values)
    return by_prompt


def _columns(samples) -> dict[str, Column]:
    """Per metric the mean over a prompt's samples, for the prompts that have one."""
    columns = defaultdict(dict)
    for prompt, rows in samples.items():
        for metric in {metric: None for row in rows for metric in row}:
            columns[metric][prompt] = fmean(row[metric] for row in rows if metric in row)
    return dict(columns)


def _metrics(metrics, columns, arms, primary, cluster) -> dict[str, dict]:
    """Each metric's mean per arm, and the primary difference under Holm over the metrics."""
    of_arm = {m: {arm: columns[arm].get(m, {}) for arm in arms} for m in metrics}
    gains = {m: _difference(m, *(of_arm[m][arm] for arm in primary), cluster) for m in metrics}
    means = {m: {arm: _mean_of(column.values()) for arm, column in of_arm[m].items()} for m in metrics}
    return {m: {**means[m], difference_key(primary): gain} for m, gain in _under_holm(gains).items()}


def _difference(metric: str, treated: Column, control: Column, cluster) -> dict:
    """Treated - control on the prompts that both have, with interval, verdict, and what this many could have seen."""
    both = [prompt for prompt in treated if prompt in control]
    bounds, smallest = (SCALE, 4 * SMALLEST_INTERESTING) if metric == RATING else (None, SMALLEST_INTERESTING)
    if len(both) < 2:
        few = f"nothing to compare: {len(both)} prompts have both"
        nothing = dict.fromkeys(("mean", "low", "high", "could_see"))
        return {**nothing, "n": len(both), "p_value": 1.0, "verdict": few}
    ours, theirs = [treated[p] for p in both], [control[p] for p in both]
    interval = statistics.paired_difference(ours, theirs, cluster and [cluster[p] for p in both], bounds)
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    # on pass/fail scores this is McNemar's test; on others, the sign test on prompts where the two differ
    sign = statistics.mcnemar([gain > 0 for gain in gains], [gain < 0 for gain in gains])
    return {
        **asdict(interval),
        "n": len(both),
        "p_value": sign.p_value,
        "verdict": statistics.verdict_text(interval, len(both), smallest),
        "could_see": statistics.smallest_effect(len(both), stdev(gains)) if stdev(gains) else 0.0,
    }


def _mean(metric: str, column: Column, cluster) -> dict | None:
    of, bounds = cluster and [cluster[p] for p in column], SCALE if metric == RATING else None
    return asdict(statistics.mean_interval(list(column.values()), of, bounds)) if column else None


def _contrasts(metrics, columns, arms, primary, cluster) -> list[dict]:
    """Every other difference between two arms, later arm minus earlier, under Holm over all of them."""
    pairs = [(b, a) for a, b in combinations(arms, 2) if {a, b} != set(primary)]
    rows = {
        (treated, control, metric): {"treated": treated, "control": control, "metric": metric}
        | _difference(metric, columns[treated].get(metric, {}), columns[control].get(metric, {}), cluster)
        for treated, control in pairs
        for metric in metrics
    }
    return list(_under_holm(rows).values())


def _under_holm(rows: dict[Hashable, dict]) -> dict[Hashable, dict]:
    """Differences with their p-values adjusted for each other; a verdict that does not survive says so."""
    adjusted = statistics.holm({key: row["p_value"] for key, row in rows.items()})
    return {
        key: row | {"p_holm": adjusted[key]} | _surviving(row, adjusted[key], len(rows)) for key, row in rows.items()
    }


def _surviving(row: dict, p_holm: float, family: int) -> dict[str, str]:
    lost = row["verdict"] in ("better", "worse") and family > 1 and p_holm >= 0.05
    return {"verdict": f"inconclusive: {row['verdict']} by itself, not as one of {family}"} if lost else {}


def _judge(judge, prompts, texts, primary, workers) -> dict[str, Verdict]:
    """Verdicts on the first samples of the two primary arms, by prompt id, where both answered."""
    treated, control = (texts[arm] for arm in primary)
    both = [prompt for prompt in prompts if prompt.id in treated and prompt.id in control]
    answers = ([arm[p.id][0] for p in both] for arm in (treated, control))
    return dict(zip((p.id for p in both), judge_all(judge, both, *answers, workers=workers), strict=True))


def _judged(given: dict[str, Verdict], texts: Texts, primary, cluster) -> dict:
    """What the verdicts say, and what they say of length and of order."""
    verdicts = list(given.values())
    result = statistics.pairwise(verdicts, cluster and [cluster[p] for p in given])
    usable = {p: verdict for p, verdict in given.items() if verdict.winner != "unjudged"}
    lengths = [[len(texts[arm][p][0]) for p in usable] for arm in primary]
    worth = statistics.preferences(list(usable.values())).tolist()
    varied = len({t - c for t, c in zip(*lengths, strict=True)}) > 1 and len(set(worth)) > 1
    return {
        "pairwise": asdict(result),
        "judge": ", ".join(sorted({v.judge for v in verdicts})),
        "length_controlled": asdict(statistics.length_controlled(worth, *lengths)) if varied else None,
        "by_length_quartile": [asdict(q) for q in statistics.by_length_quartile(worth, *lengths)]
        if len(worth) > 7
        else [],
        "position_bias": asdict(statistics.position_bias(verdicts)),
        "could_see": _rate_seen(result.wins + result.losses),
    }


def _rate_seen(decisive: int) -> float | None:
    """The smallest win rate in whole percent that so many decisive prompts show with 80% power; None for none."""
    rates = (percent / 100 for percent in range(51, 100))
    return next((rate for rate in rates if statistics.sign_test_power(decisive, rate) >= 0.8), None)


def _at_k(samples, primary) -> dict[str, dict]:
    """Best of K against best of K by the mean of an answer's metrics, where every compared prompt has some."""
    treated, control = (
        {p: [fmean(row.values()) for row in rows] for p, rows in samples[arm].items() if rows[0]} for arm in primary
    )
    both = [p for p in treated if p in control]
    k = min((len(arm[p]) for arm in (treated, control) for p in both), default=1)
    if k < 2:
        return {}
    rates = statistics.win_rate_at_k([treated[p][:k] for p in both], [control[p][:k] for p in both], range(1, k + 1))
    return {str(k): asdict(interval) for k, interval in rates.items()}


def _missing(prompts, texts: Texts) -> dict[str, dict]:
    """Per arm how many prompts have no answer, and the first of them; arms that answered all are left out."""
    absent = {arm: [p.id for p in prompts if p.id not in answered] for arm, answered in texts.items()}
    return {arm: {"count": len(ids), "first": ids[:NAMED]} for arm, ids in absent.items() if ids}


def _unscored(samples) -> int:
    """Answers that the judge gave no score from 1 to 5."""
    return sum(RATING not in row for rows in samples.values() for row in rows)


def _stop_rate(responses, arm) -> float | None:
    return _mean_of(r.stopped for r in responses if r.arm == arm and r.stopped is not None)


def _mean_of(values) -> float | None:
    values = list(values)
    return fmean(values) if values else None


def _row(prompt_id, arms, texts, columns, given) -> dict:
    verdict = given.get(prompt_id)
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
