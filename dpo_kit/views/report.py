"""The report of a run: `report.json` for programs, `report.html` for people. Both whole or absent."""

import json
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader

from dpo_kit.files import write_atomically
from dpo_kit.records import Prompt, Response
from dpo_kit.views.figures import differences, three_arms, training_curves
from dpo_kit.views.tables import ARM_NAMES, HEADER, pairwise_sentence, table_rows

EXAMPLES = 5


def summarize(*, profile: str, seed: int, pairs: int, sampled: dict, greedy: dict, manifests: Sequence[dict]) -> dict:
    """The report as plain data. `sampled` and `greedy` are comparisons, `manifests` those of the stages, in order."""
    return {
        "seed": seed,
        "profile": profile,
        "n_prompts": sampled["n_prompts"],
        "metrics": sampled["metrics"],
        "pairwise": sampled["pairwise"],
        "stopped": sampled["stopped"],
        "greedy": {key: greedy[key] for key in ("metrics", "pairwise", "stopped")},
        "pairs": pairs,
        "timings_s": {manifest["stage"]: manifest["cost"]["seconds"] for manifest in manifests},
        "peak_memory_mb": max(manifest["cost"]["peak_memory_mb"] for manifest in manifests),
        "versions": manifests[-1]["versions"],
    }


def write_report(
    folder: Path, data: dict, log: list[dict], prompts: Sequence[Prompt], responses: Sequence[Response]
) -> None:
    """Write `report.json` and a self-contained `report.html` that needs no network.

    What models wrote is escaped: a tag in an answer is shown, not obeyed.
    """
    write_atomically(folder / "report.json", json.dumps(data, indent=1) + "\n")
    page = Environment(loader=PackageLoader("dpo_kit", "views"), autoescape=True).get_template("report.html.jinja")
    html = page.render(
        data=data,
        header=HEADER,
        tables={"sampled at temperature 1": data["metrics"], "greedy": data["greedy"]["metrics"]},
        table_rows=table_rows,
        pairwise=pairwise_sentence(data["pairwise"]),
        figures=[
            _embed(three_arms(data["metrics"]), "Mean score of each arm on each metric.", plotly_js=True),
            _embed(differences(data["metrics"]), "SFT+DPO minus SFT on each metric with 95% intervals."),
            _embed(training_curves(log), "Loss, rewards, margin, accuracy and KL over the steps of DPO."),
        ],
        examples=examples(prompts, responses),
    )
    write_atomically(folder / "report.html", html)


def examples(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[dict]:
    """The first few prompts with each arm's answer, side by side: not picked, so not flattering."""
    texts = {(r.prompt_id, r.arm): r.text for r in responses}
    return [
        {"prompt": prompt.text, "answers": {name: texts[prompt.id, arm] for arm, name in ARM_NAMES.items()}}
        for prompt in prompts[:EXAMPLES]
    ]


def _embed(figure: go.Figure, description: str, plotly_js: bool = False) -> dict[str, str]:
    """The figure as HTML; `plotly_js` includes the library, which one figure a page must."""
    options = {"displayModeBar": False, "responsive": True}
    html = figure.update_layout(width=None).to_html(full_html=False, include_plotlyjs=plotly_js, config=options)
    return {"html": html, "description": description}
