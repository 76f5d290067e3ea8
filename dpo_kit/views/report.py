"""The report of a comparison: `report.json` for programs, `report.html` for people, `outcomes.jsonl` prompt by prompt.

The page needs no other file. Text from models is escaped. If an escape is ever forgotten, the page's content security
policy is a second protection: only scripts that it names by their hash run, nothing is fetched, no form is sent and no
base address is set. The policy cannot stop a link that a reader clicks, a `<meta http-equiv="refresh">`, or a style:
for these, escaping is the only protection.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.results import Report, from_data
from dpo_kit.files import write_atomically
from dpo_kit.jsonl import write_jsonl
from dpo_kit.records import Prompt, Response
from dpo_kit.views.answer_browser import answer_browser, templates
from dpo_kit.views.figures import evaluation_figures
from dpo_kit.views.tables import (
    controls_html,
    further_tables,
    notes,
    pairwise_sentence,
    power_sentence,
    summary_html,
    title,
)
from dpo_kit.views.training import training_curves

TRAINING = "The training before it"
SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)


def write_report(
    folder: Path, report: Report, log: Sequence[dict], prompts: Sequence[Prompt], responses: Sequence[Response]
) -> None:
    """Write `report.json`, `outcomes.jsonl` and a self-contained `report.html`; an empty `log` draws no training.

    Raises ValueError where the report holds a NaN or an infinity, and then writes nothing.
    """
    content = report.to_json()
    figures = evaluation_figures(report, report.outcomes)
    if log:
        told = "Loss, rewards, margin, accuracy and KL over the steps of DPO."
        figures[TRAINING] = (training_curves(log), told)
    drawn = [
        {"title": name, "html": _embed(figure, plotly_js=i == 0), "description": told, "broad": name == TRAINING}
        for i, (name, (figure, told)) in enumerate(figures.items())
    ]
    filters = f"<script>{Path(__file__).with_name('report.js').read_text(encoding='utf-8')}</script>"
    html = (
        templates()
        .get_template("report.html.jinja")
        .render(
            report=report,
            policy=_policy([filters, *(str(figure["html"]) for figure in drawn)]),
            title=title(report),
            table=summary_html(report, report.refusal),
            controls=controls_html(report.controls),
            pairwise=pairwise_sentence(report.pairwise, report.primary, report.refusal),
            power=power_sentence(report),
            notes=notes(report),
            figures=drawn,
            browser=answer_browser(prompts, responses, report.outcomes, report.primary),
            tables=further_tables(report),
            filters=filters,
        )
    )
    write_jsonl(folder / "outcomes.jsonl", report.outcomes)
    write_atomically(folder / "report.html", html)
    write_atomically(folder / "report.json", content)


def read_report(path: Path) -> Report:
    """A `report.json` as a record. Raises DpoKitError where the file is not one."""
    try:
        return from_data(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split("\n")[:3])  # pydantic explains over many lines
        raise DpoKitError(f"{path}: this is not a report that can be read ({why}); run the evaluation again") from None


def _policy(parts: Sequence[str]) -> str:
    """The content security policy of a page in which only the scripts of these parts may run.

    The parts are plotly's and ours. They contain no text from a model.
    """
    scripts = [script for part in parts for script in SCRIPT.findall(part)]
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(sorted({f"'sha256-{digest}'" for digest in digests}))
    # styles stand inline, ours in the tables and plotly's in its figures
    styles = "style-src 'unsafe-inline'"
    return f"default-src 'none'; script-src {allowed}; {styles}; base-uri 'none'; form-action 'none'"


def _embed(figure: go.Figure, plotly_js: bool) -> str:
    """The figure as HTML; `plotly_js` includes the library, which one figure a page must."""
    options = {"displayModeBar": False, "responsive": True}
    # the page decides the width, on a phone too
    fluid = figure.update_layout(template_layout_width=None, width=None, autosize=True)
    return fluid.to_html(full_html=False, include_plotlyjs=plotly_js, config=options)
