"""Base against SFT against SFT+DPO: the numbers of the table, from answers on disk."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean

from dpo_kit.evaluation.arms import ARMS
from dpo_kit.evaluation.statistics import paired_difference, pairwise
from dpo_kit.preferences.judging import Judge, judge_all
from dpo_kit.records import Prompt, Response

Score = Callable[[Prompt, str], dict[str, float]]


def compare(prompts: Sequence[Prompt], responses: Sequence[Response], score: Score, judge: Judge) -> dict:
    """Compare the three arms at one temperature.

    Returns plain data: `n_prompts`, `metrics` (mean per arm, and SFT+DPO minus SFT with a 95% paired interval),
    `pairwise` (SFT+DPO against SFT by `judge`) and `stopped` (share of answers that ended in EOS, per arm).
    Raises ValueError where an arm lacks an answer to a prompt or has two.
    """
    texts = {arm: _texts(prompts, responses, arm) for arm in ARMS}
    scores = {arm: [score(*row) for row in zip(prompts, texts[arm], strict=True)] for arm in ARMS}
    verdicts = judge_all(judge, prompts, texts["dpo"], texts["sft"])
    return {
        "n_prompts": len(prompts),
        "metrics": {metric: _metric(metric, scores) for metric in scores["base"][0]},
        "pairwise": asdict(pairwise(verdicts)),
        "stopped": {arm: fmean(r.stopped for r in responses if r.arm == arm) for arm in ARMS},
    }


def _metric(metric: str, scores: dict[str, list[dict[str, float]]]) -> dict:
    columns = {arm: [row[metric] for row in rows] for arm, rows in scores.items()}
    difference = paired_difference(columns["dpo"], columns["sft"])
    return {**{arm: fmean(column) for arm, column in columns.items()}, "dpo_minus_sft": asdict(difference)}


def _texts(prompts: Sequence[Prompt], responses: Sequence[Response], arm: str) -> list[str]:
    """The arm's answers in the order of the prompts."""
    of_arm = [r for r in responses if r.arm == arm]
    by_prompt = {r.prompt_id: r.text for r in of_arm}
    if len(of_arm) != len(prompts) or by_prompt.keys() != {p.id for p in prompts}:
        raise ValueError(f"arm {arm}: {len(of_arm)} answers for {len(prompts)} prompts; each prompt needs exactly one")
    return [by_prompt[p.id] for p in prompts]
