import io
import json
import math
import re
import threading
from dataclasses import replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.results import Control, Gap, HeldOut, Interval, Regression, from_data
from dpo_kit.views.answer_browser import answer_browser
from dpo_kit.views.report import read_report, write_report
from dpo_kit.views.tables import (
    controls_html,
    header,
    html_table,
    metrics_html,
    notes,
    number,
    pairwise_sentence,
    power_sentence,
    print_report,
    summary_header,
    summary_rows,
    table_rows,
)
from dpo_kit.workbook.cells import markdown_table
from tests.jupyterlab import browser_page

REFUSAL = "refused: control padded failed"
HOSTILE = {
    "script": "<script>document.title = 'run'</script>",
    "image": "</pre></details><img src=x onerror=\"document.title = 'run'\">",
    "style": "</style><style>body { display: none }</style>",
    "terminal": "\x1b[31mred\x1b]8;;http://example.com\x07link\x00",
    "direction": "safe \u202e txet \u2066",
    "surrogate": "a\ud800b",
    "long": "x" * 10**6,
    "tall": "line\n" * 10**4,
    "empty": "",
    "template": "{{ data }} {% for x in y %}",
}


def write(folder, comparison, **changes):
    given = {"responses": comparison.responses, "report": comparison.report, "log": comparison.log, **changes}
    write_report(folder, given["report"], given["log"], comparison.prompts, given["responses"])
    return (folder / "report.html").read_text()


def hostile(comparison):
    """Every kind of hostile answer, from every arm."""
    texts = list(HOSTILE.values())
    return [r.model_copy(update={"text": texts[i % len(texts)]}) for i, r in enumerate(comparison.responses)]


def refused(comparison):
    failed = Control("padded", "no win", False, "120 wins")
    return replace(comparison.report, controls=(*comparison.report.controls, failed))


def test_the_terminal_table_fits_into_eighty_columns(comparison):
    for report in (comparison.report, refused(comparison)):
        out = io.StringIO()
        print_report(report, Console(file=out, width=80))
        assert "…" not in out.getvalue()
        for row in table_rows(report.metrics):
            assert all(cell in out.getvalue() for cell in row[:-1])
    assert "control padded FAILED: 120 wins" in out.getvalue()
    assert "better" not in out.getvalue()


def everything(comparison):
    """The report of the comparison, with a row of every kind."""
    metric = comparison.report.metrics["faithfulness"]
    higher = replace(metric, difference=replace(metric.difference, verdict="higher"))
    two = replace(metric, means={arm: metric.means[arm] for arm in ("sft", "dpo")})
    accuracy = HeldOut("dpo", "sft", 0.1, 40, Interval(0.7, 0.6, 0.8), None, "above one half", "nothing to compare")
    return replace(
        comparison.report,
        metrics={**comparison.report.metrics, "judge_score": metric},
        heuristics={"words": replace(higher, means=dict.fromkeys(metric.means, 1234.5)), "distinct_bigrams": higher},
        held_out=(accuracy,),
        regression=Regression("sft", "dpo", 120, log_loss=two, tasks={"all_tasks": two, "copying": two}),
    )


def test_one_table_holds_scores_ratings_heuristics_rewards_what_was_forgotten_and_who_is_preferred(comparison):
    report = everything(comparison)
    rows = {row[0]: row[1:] for row in summary_rows(report)}
    assert list(rows)[-9:] == [
        "judge's rating, 1-5", "words", "distinct bigrams", "reward accuracy", "reward margin", "log-loss, bits/byte",
        "tasks passed", "copying", "preferred, pairwise",
    ]  # fmt: skip
    assert {len(row) for row in rows.values()} == {len(summary_header(report)) - 1}
    assert rows["words"][0] == "1234"
    assert rows["reward accuracy"] == ("–", "–", "0.700", "0.700 [0.600, 0.800]", "above one half")
    assert rows["log-loss, bits/byte"][0] == "–", "the base was not asked"
    pairwise = report.pairwise
    decided = pairwise.wins + pairwise.losses
    assert rows["preferred, pairwise"][:3] == (
        "–", f"{pairwise.losses / decided:.3f}", f"{pairwise.wins / decided:.3f}",
    )  # fmt: skip
    assert rows["preferred, pairwise"][-1] == "better"
    lost = replace(pairwise, win_rate=Interval(0.4, 0.3, 0.45))
    assert summary_rows(replace(report, pairwise=lost))[-1][-1] == "worse"
    assert summary_rows(replace(report, pairwise=replace(lost, win_rate=None)))[-1][-1] == "nothing to compare"
    out = io.StringIO()
    print_report(report, Console(file=out, width=80))
    assert "…" not in out.getvalue(), "it fits into 80 columns"
    assert all(name in out.getvalue() for name in rows)
    assert from_data(json.loads(report.to_json())) == replace(report, outcomes=())


def test_a_refusal_is_of_the_judge_and_leaves_what_needs_none(comparison):
    rows = {row[0]: row[-1] for row in summary_rows(everything(comparison), REFUSAL)}
    assert {rows["preferred, pairwise"], rows["judge's rating, 1-5"], rows["severity match"]} == {"refused"}
    assert (rows["words"], rows["reward accuracy"]) == ("higher", "above one half")


def test_a_number_that_rounds_to_zero_has_no_sign():
    assert (number(-0.0001), number(-0.0001, "+"), number(12.34), number(None)) == ("0.000", "+0.000", "12.3", "–")


def test_the_markdown_table_is_rectangular_and_speaks(comparison):
    metrics = comparison.report.metrics
    lines = markdown_table(metrics).splitlines()
    assert {line.count("|") for line in lines} == {len(header(metrics)) + 1} == {7}
    assert lines[0] == "| metric | Base | SFT | SFT+DPO | difference, 95% | verdict |"
    for line, metric in zip(lines[2:], metrics.values(), strict=True):
        assert f"{metric.means['dpo']:.3f}" in line
        assert line.endswith(f"| {metric.difference.verdict} |")


def test_a_refused_comparison_says_so_wherever_a_verdict_would_stand(comparison):
    report = refused(comparison)
    assert report.refusal == REFUSAL
    assert {row[-1] for row in table_rows(report.metrics, REFUSAL)} == {"refused"}
    assert "these counts show nothing" in pairwise_sentence(report.pairwise, report.primary, REFUSAL)
    for table in (markdown_table(report.metrics, REFUSAL), metrics_html(report.metrics, REFUSAL)):
        assert table.count(f"No verdict: {REFUSAL}") == 1, "why is said once, above the rows"
        assert "better" not in table
    assert "color: #d32f2f" in controls_html(report.controls)
    assert "color: #d32f2f" not in controls_html(comparison.report.controls)


def test_nothing_decided_missing_and_unjudged_are_said(comparison):
    undecided = replace(comparison.report.pairwise, wins=0, losses=0, unjudged=2, decisive_win_rate=None)
    assert "2 unjudged; no prompt was decided, so nothing is shown" in pairwise_sentence(undecided)
    missing = {"dpo": Gap(7, ("p1", "p2"), "status 500"), "sft": Gap(0, (), "3 times too long")}
    told = "\n".join(notes(replace(comparison.report, pairwise=undecided, missing=missing)))
    assert "SFT+DPO has no answer to 7 of 120 prompts (p1, p2, ...)" in told
    assert "why: status 500" in told
    assert "SFT has no answer to some of the questions;" in told
    assert "why: 3 times too long" in told
    assert "2 prompts are unjudged" in told
    assert pairwise_sentence(None) == "SFT+DPO against SFT: no judge was asked."


def test_the_power_line_names_what_could_have_been_seen(comparison):
    told = power_sentence(comparison.report)
    for name, metric in comparison.report.metrics.items():
        size = metric.difference.could_see
        assert not size or f"{name.replace('_', ' ')} {size:.3f}" in told
    assert re.search(r"a win rate of \d\d% on \d+ decided prompts", told)


def test_the_notebooks_table_is_escaped_and_its_numbers_stand_right(comparison):
    metric = comparison.report.metrics["faithfulness"]
    metric = replace(metric, difference=replace(metric.difference, verdict="<b>better</b>"))
    html = metrics_html({"<script>": metric}, "refused: <i>") + metrics_html({"x": metric})
    assert "<script>" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert html.count("text-align: right") == 2 * 2 * 4


def test_every_cell_of_a_table_is_escaped_and_knows_its_column():
    hostile = '<img src=x>"'
    html = html_table((hostile, "n"), [(hostile, hostile)], words=(hostile,), caption=hostile)
    assert "<img" not in html
    assert html.count("&lt;img src=x&gt;&quot;") == 4
    assert 'data-label="n"' in html


def test_the_browser_groups_by_outcome_and_shows_the_judged_answer(comparison):
    html = answer_browser(comparison.prompts, comparison.responses, comparison.report.outcomes)
    for winner, kind in (("b", "lost"), ("a", "won"), ("tie", "tied")):
        n = sum(row["winner"] == winner for row in comparison.report.outcomes)
        assert f"SFT+DPO {kind}: {n}<" in html
    assert html.count('class="prompt"') == len(comparison.prompts)
    few = answer_browser(comparison.prompts, comparison.responses, comparison.report.outcomes, limit=2)
    assert few.count('class="prompt"') <= 2 * 3
    assert "first 2 of" in few


def test_what_a_model_wrote_is_shown_and_not_obeyed(comparison, tmp_path):
    html = write(tmp_path, comparison, responses=hostile(comparison))
    shown = html[html.index('class="answer-browser"') :]
    for text in ("<script>document", "<img", "</style>", "\x1b", "\x00", "\x07", "\u202e", "\ud800", "x" * 5000):
        assert text not in shown, text
    assert "2,000 of 1,000,000 characters shown" in shown
    assert "(empty answer)" in shown
    assert "{{ data }}" in shown
    assert len(html) < 12e6, "long answers are cut in view"
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(comparison.report.to_json())


def test_the_page_needs_no_network(comparison, tmp_path):
    fetched = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            fetched.extend(value for name, value in attributes if name in ("src", "href"))

    html = write(tmp_path, comparison)
    Tags().feed(html)
    assert fetched == []
    assert "default-src 'none'" in html


def test_texts_that_are_no_answers_are_escaped_too(comparison, tmp_path):
    # an arm's name, the reason a server gave and a warning reach the page outside the answers
    hostile = "<img src=x onerror=\"document.title = 'run'\">"
    gap = {"dpo": Gap(1, ("p1",), hostile)}
    made = {
        "missing": gap,
        "warnings": (hostile,),
        "sampling": hostile,
        "profile": hostile,
        "versions": {"trl": hostile},
    }
    html = write(tmp_path, comparison, report=replace(comparison.report, **made))
    assert "<img" not in html
    assert html.count("&lt;img src=x") >= len(made)


def test_a_report_comes_back_from_its_file_as_it_was(comparison, tmp_path):
    write(tmp_path, comparison, report=replace(comparison.report, greedy=comparison.report, win_rate_at_k={}))
    again = read_report(tmp_path / "report.json")
    assert again.outcomes == again.greedy.outcomes == (), "the rows of single prompts are in outcomes.jsonl"
    assert replace(again, greedy=None, outcomes=comparison.report.outcomes) == comparison.report
    assert again.greedy.metrics == comparison.report.metrics
    with_k = {**comparison.report.to_data(), "win_rate_at_k": {"2": {"mean": 0.5, "low": 0.4, "high": 0.6}}}
    assert from_data(with_k).win_rate_at_k[2].mean == 0.5, "JSON has no numbers as keys"


@pytest.mark.parametrize("text", ["", "[]", '{"arms": ["a"]}', "\x00"])
def test_what_is_no_report_is_one_line(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(DpoKitError, match="not a report that can be read") as raised:
        read_report(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_nan_never_reaches_the_file(comparison, tmp_path):
    metric = comparison.report.metrics["faithfulness"]
    broken = replace(metric, difference=replace(metric.difference, could_see=math.nan))
    report = replace(comparison.report, metrics={**comparison.report.metrics, "faithfulness": broken})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path, comparison, report=report)
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_a_report_of_nothing_can_be_written(comparison, tmp_path):
    # no metric, no judge, no control, no log: what is left are the answers and how long they are
    nothing = {"metrics": {}, "contrasts": (), "pairwise": None, "judged": None, "controls": ()}
    html = write(tmp_path, comparison, report=replace(comparison.report, **nothing), log=[])
    assert "no judge was asked" in html
    assert "No metric was given" in html


@pytest.mark.browser
def test_the_page_in_a_browser_runs_nothing_hostile_and_fits_a_phone(comparison, tmp_path):
    write(tmp_path, comparison, responses=hostile(comparison), report=refused(comparison))
    requests, errors = [], []
    with browser_page(width=390, height=844) as page:
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        page.locator(".plotly").first.wait_for()
        for group in page.locator("details").all():
            group.evaluate("element => element.open = true")
        assert page.title() != "run"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("[role=alert]").inner_text().startswith("No verdict: refused")
        lost, won = (page.locator(f".group[data-outcome={kind}]") for kind in ("lost", "won"))
        page.get_by_role("button", name="lost").click()
        assert lost.is_visible()
        assert not won.is_visible()
        page.get_by_role("button", name="all").click()
        page.get_by_role("searchbox").fill(comparison.prompts[0].text)
        assert page.locator(".prompt:visible").count() == 1
        colours = [
            page.evaluate("getComputedStyle(document.body).backgroundColor")
            for scheme in ("light", "dark")
            if page.emulate_media(color_scheme=scheme) is None
        ]
    assert colours[0] != colours[1]
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert errors == []


class Elsewhere(BaseHTTPRequestHandler):
    """Another place on the network, which notes what it is asked for."""

    def do_GET(self):
        self.server.asked.add(self.path.split("?")[0])
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def elsewhere():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    server.asked = set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def injected(place):
    """What an answer could hold, if an escape were forgotten."""
    return (
        "<script>window.ran = ['script']</script>"
        "<img src=x onerror=\"window.ran = [...(window.ran || []), 'handler']\">"
        f'<base href="{place}/base/"><img src="{place}/image"><link rel=stylesheet href="{place}/style">'
        f'<form id=form action="{place}/form"><input name=answer value=secret></form>'
    )


@pytest.mark.browser
def test_the_policy_stops_scripts_forms_and_requests_that_an_escape_let_through(comparison, tmp_path, elsewhere):
    html, place = write(tmp_path, comparison), f"http://127.0.0.1:{elsewhere.server_port}"
    bad = html.replace('<div class="answer-browser">', f'<div class="answer-browser">{injected(place)}', 1)
    assert bad != html
    with_policy, without = tmp_path / "with.html", tmp_path / "without.html"
    with_policy.write_text(bad)
    without.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", bad, count=1))
    with browser_page() as page:
        page.add_init_script(
            "window.stopped = []; document.addEventListener('securitypolicyviolation', event =>"
            " stopped.push(event.effectiveDirective))"
        )
        page.goto(with_policy.as_uri())
        page.locator(".plotly").first.wait_for()  # the page's own scripts run
        page.evaluate("document.querySelector('#form').submit()")
        wanted = ["script-src-elem", "script-src-attr", "base-uri", "img-src", "style-src-elem", "form-action"]
        page.wait_for_function("wanted => wanted.every(name => stopped.includes(name))", arg=wanted)
        assert page.evaluate("window.ran") is None
        assert page.evaluate("document.baseURI") == with_policy.as_uri()
        assert elsewhere.asked == set()
    with browser_page() as page:  # and without the policy each of them works, so the test can fail
        page.goto(without.as_uri())
        page.locator(".plotly").first.wait_for()
        assert page.evaluate("window.ran") == ["script", "handler"]
        assert page.evaluate("document.baseURI") == f"{place}/base/"
        page.evaluate("document.querySelector('#form').submit()")
        page.wait_for_url(f"{place}/form?answer=secret")
        assert elsewhere.asked >= {"/form", "/image", "/style"}


@pytest.mark.browser
def test_the_page_without_javascript_still_opens_what_was_lost(comparison, tmp_path):
    write(tmp_path, comparison)
    with browser_page() as page, page.context.browser.new_context(java_script_enabled=False) as context:
        plain = context.new_page()
        plain.goto((tmp_path / "report.html").as_uri())
        assert not plain.locator(".filters").is_visible()
        assert plain.locator(".group[data-outcome=lost] .prompt").first.is_visible()
        won = plain.locator(".group[data-outcome=won]")
        assert not won.locator(".prompt").first.is_visible()
        won.locator("summary").first.click()
        assert won.locator(".prompt").first.is_visible()
