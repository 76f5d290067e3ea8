"""Is the effect real? The whole path on several seeds, and its control: the same with shuffled labels.

    python -m benchmarks.seeds [--first 0] [--seeds 10] [--controls 10] [--runs runs/seeds] [--rescore]

Writes every run's report to `data/runs/seeds.json`, where reports of other seeds stay, and prints the table of LOG.md.
Finished stages are not run again, so an interrupted benchmark goes on where it stopped. The control shares its SFT
stage with the run of the same seed.
`--rescore` trains nothing: it compares the answers of the runs that are there, whatever version of the code made them.
"""

import argparse
import json
import shutil
from pathlib import Path

from dpo_kit.evaluation.harness import evaluate_answers
from dpo_kit.evaluation.results import Report, from_data
from dpo_kit.files import write_atomically
from dpo_kit.jsonl import read_records
from dpo_kit.pipeline import run
from dpo_kit.preferences.judges import both_orders
from dpo_kit.profiles import ROOT, load_profile
from dpo_kit.records import Prompt, Response
from dpo_kit.triage import rubric
from dpo_kit.triage.judges import rubric_judge

METRICS = ("format_conformance", "severity_match", "faithfulness", "action_match")
JUDGED_BY = ("severity_match", "faithfulness")
KEPT = ROOT / "data" / "runs" / "seeds.json"


def main() -> None:
    """Run all seeds, write the reports, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--controls", type=int, default=10, help="of how many of them the control is run too")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "seeds")
    parser.add_argument("--rescore", action="store_true", help="compare what is there, run nothing")
    arguments = parser.parse_args()
    reports: dict[str, list[Report]] = {"judged": [], "shuffled": []}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        judged, shuffled = (arguments.runs / f"{labels}-{seed}" for labels in reports)
        if arguments.rescore:
            for labels, folder in zip(reports, (judged, shuffled), strict=True):
                reports[labels] += [rescored(folder, seed)] if (folder / "eval").exists() else []
            continue
        reports["judged"].append(run(load_profile("tiny"), judged, seed=seed))
        if seed >= arguments.first + arguments.controls:
            continue
        if not (shuffled / "sft").exists():
            shutil.copytree(judged / "sft", shuffled / "sft")
        control = load_profile("tiny", pairs={"shuffle_labels": True})
        reports["shuffled"].append(run(control, shuffled, seed=seed))
    reports = _beside_others(reports)
    data = {labels: [report.to_data() for report in runs] for labels, runs in reports.items()}
    write_atomically(KEPT, json.dumps(data, indent=1, allow_nan=False) + "\n")
    print(table(reports))
    print(f"\n{summary(reports)}")


def kept_reports() -> dict[str, list[Report]]:
    """The reports of `data/runs/seeds.json`, by the labels that DPO was trained on."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return {labels: [from_data(run) for run in runs] for labels, runs in kept.items()}


def _beside_others(reports: dict[str, list[Report]]) -> dict[str, list[Report]]:
    """These reports and those of other seeds that were kept before, in the order of seeds."""
    kept = kept_reports()
    seeds = {labels: {run.seed: run for run in [*kept.get(labels, ()), *runs]} for labels, runs in reports.items()}
    return {labels: [runs[seed] for seed in sorted(runs)] for labels, runs in seeds.items()}


def rescored(workdir: Path, seed: int) -> Report:
    """The comparison of a finished run's sampled answers, with the controls that its files allow."""
    prompts = read_records(workdir / "eval" / "prompts.jsonl", Prompt)
    responses = read_records(workdir / "eval" / "responses.jsonl", Response)
    sampled = [response for response in responses if response.temperature > 0]
    judge, temperature = both_orders(rubric_judge()), sampled[0].temperature
    return evaluate_answers(prompts, sampled, rubric.score, judge, temperature=temperature, seed=seed)


def table(reports: dict[str, list[Report]]) -> str:
    """One row a run: each metric as base / SFT / SFT+DPO at temperature 1, and the pairwise result."""
    columns = ["labels", "seed", *METRICS, "wins, ties, losses", "decisive win rate", "better", "worse"]
    lines = [columns, ["---"] * len(columns)]
    for labels, runs in reports.items():
        lines += [[labels, *row(report)] for report in runs]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(report: Report) -> list[str]:
    """The cells of one run, from its seed on."""
    means = [" / ".join(f"{mean:.3f}" for mean in report.metrics[metric].means.values()) for metric in METRICS]
    pairwise = report.pairwise
    counts = f"{pairwise.wins}, {pairwise.ties}, {pairwise.losses}"
    rate = f"{pairwise.decisive_win_rate:.3f} ({pairwise.low:.3f} to {pairwise.high:.3f})"
    better, worse = (", ".join(verdicts(report, word)) or "none" for word in ("better", "worse"))
    return [str(report.seed), *means, counts, rate, report.refusal or better, worse]


def verdicts(report: Report, word: str) -> list[str]:
    """The metrics on which the report's verdict is `word`; none where a control failed."""
    if report.refusal:
        return []
    return [name for name, metric in report.metrics.items() if metric.difference.verdict == word]


def summary(reports: dict[str, list[Report]]) -> str:
    """In how many runs the verdict is "better" on a metric of `JUDGED_BY`: with the control it must be none."""
    lines = []
    for labels, runs in reports.items():
        found = sum(bool(set(JUDGED_BY) & set(verdicts(report, "better"))) for report in runs)
        lines.append(f"{labels} labels: 'better' on {' or '.join(JUDGED_BY)} in {found} of {len(runs)} runs")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
