import copy
import io
import json
from html.parser import HTMLParser

import pytest
from rich.console import Console

from dpo_kit.records import Prompt, Response, read_records
from dpo_kit.training.metrics_log import read_log
from dpo_kit.views.figures import differences, overview, three_arms, training_curves
from dpo_kit.views.report import write_report
from dpo_kit.views.tables import HEADER, markdown_table, pairwise_sentence, print_report, table_rows, verdict


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "inconclusive"), (0.0, 0.1, "inconclusive")],
)
def test_a_verdict_needs_an_interval_that_excludes_zero(low, high, expected):
    assert verdict({"low": low, "high": high}) == expected


def test_the_terminal_table_fits_into_eighty_columns(small_run):
    out = io.StringIO()
    print_report(small_run[2], Console(file=out, width=80))
    assert "…" not in out.getvalue()
    for row in table_rows(small_run[2]["metrics"]):
        assert all(cell in out.getvalue() for cell in row)


def test_the_markdown_table_is_rectangular(small_run):
    lines = markdown_table(small_run[2]["metrics"]).splitlines()
    assert {line.count("|") for line in lines} == {len(HEADER) + 1}


def test_nothing_decided_is_said_as_such(small_run):
    nothing = {"wins": 0, "ties": 9, "losses": 0, "unjudged": 2, "decisive_win_rate": None, "low": 0, "high": 1}
    assert "2 unjudged; no prompt was decided, so nothing is shown" in pairwise_sentence({**nothing, "p_value": 1})


def test_figures_show_the_numbers_they_are_given(small_run):
    work, _, report = small_run
    log = read_log(work / "dpo" / "log.jsonl")
    curves = {trace.name: list(trace.y) for trace in training_curves(log).data}
    assert curves["margin"] == [row["rewards/margins"] for row in log if "loss" in row]
    assert curves["KL"] == [row["kl/sequence"] for row in log if "kl/sequence" in row]
    arms = {trace.name: list(trace.x) for trace in three_arms(report["metrics"]).data}
    assert arms["SFT+DPO"] == [values["dpo"] for values in report["metrics"].values()]
    (bars,) = differences(report["metrics"]).data
    lows = [x - d for x, d in zip(bars.x, bars.error_x.arrayminus, strict=True)]
    assert lows == pytest.approx([values["dpo_minus_sft"]["low"] for values in report["metrics"].values()])
    assert overview(report["metrics"], log).data


HOSTILE = [
    "<script>alert(1)</script>",
    "</pre><img src=x onerror=alert(2)>",
    "\x1b[31mred",
    "a\ud800b",
    "x" * 10**6,
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_wrote_is_shown_and_not_obeyed(small_run, tmp_path, text):
    work, _, report = small_run
    prompts = read_records(work / "eval" / "prompts.jsonl", Prompt)
    responses = [r for r in read_records(work / "eval" / "responses.jsonl", Response) if r.temperature > 0]
    hostile = [response.model_copy(update={"text": text}) for response in responses]
    write_report(tmp_path, report, read_log(work / "dpo" / "log.jsonl"), prompts, hostile)
    html = (tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in html
    assert "<img src=x" not in html
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_the_page_needs_no_network(small_run):
    fetched = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            fetched.extend(value for name, value in attributes if name in ("src", "href"))

    Tags().feed((small_run[0] / "report.html").read_text())
    assert fetched == []


def test_a_report_without_decided_prompts_can_be_written(small_run, tmp_path):
    work, _, report = small_run
    undecided = copy.deepcopy(report)
    undecided["pairwise"].update(wins=0, losses=0, decisive_win_rate=None)
    write_report(tmp_path, undecided, read_log(work / "dpo" / "log.jsonl"), [], [])
    assert "nothing is shown" in (tmp_path / "report.html").read_text()
