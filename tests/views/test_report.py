import copy
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from dpo_kit.views.answer_browser import answer_browser
from dpo_kit.views.report import write_report
from dpo_kit.views.tables import (
    controls_html,
    header,
    html_table,
    markdown_table,
    notes,
    pairwise_sentence,
    power_sentence,
    print_report,
    table_rows,
)
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
    given = {"responses": comparison.responses, "data": comparison.data, "log": comparison.log, **changes}
    write_report(folder, given["data"], given["log"], comparison.prompts, given["responses"], comparison.rows)
    return (folder / "report.html").read_text()


def hostile(comparison):
    """Every kind of hostile answer, from every arm."""
    texts = list(HOSTILE.values())
    return [r.model_copy(update={"text": texts[i % len(texts)]}) for i, r in enumerate(comparison.responses)]


def refused(comparison):
    data = copy.deepcopy(comparison.data)
    data["controls"].append({"name": "padded", "expected": "no win", "passed": False, "found": "120 wins"})
    return {**data, "refusal": REFUSAL}


def test_the_terminal_table_fits_into_eighty_columns(comparison):
    for data in (comparison.data, refused(comparison)):
        out = io.StringIO()
        print_report(data, Console(file=out, width=80))
        assert "…" not in out.getvalue()
        for row in table_rows(data["metrics"]):
            assert all(cell in out.getvalue() for cell in row[:-1])
    assert "control padded FAILED: 120 wins" in out.getvalue()
    assert "better" not in out.getvalue()


def test_the_markdown_table_is_rectangular_and_speaks(comparison):
    metrics = comparison.data["metrics"]
    lines = markdown_table(metrics).splitlines()
    assert {line.count("|") for line in lines} == {len(header(metrics)) + 1} == {7}
    assert lines[0] == "| metric | Base | SFT | SFT+DPO | difference, 95% | verdict |"
    for line, values in zip(lines[2:], metrics.values(), strict=True):
        assert f"{values['dpo']:.3f}" in line
        assert line.endswith(f"| {values['dpo_minus_sft']['verdict']} |")


def test_a_refused_comparison_says_so_wherever_a_verdict_would_stand(comparison):
    data = refused(comparison)
    assert {row[-1] for row in table_rows(data["metrics"], REFUSAL)} == {"refused"}
    assert "these counts show nothing" in pairwise_sentence(data["pairwise"], data["primary"], REFUSAL)
    for table in (markdown_table(data["metrics"], REFUSAL), html_table(data["metrics"], REFUSAL)):
        assert table.count(f"No verdict: {REFUSAL}") == 1, "why is said once, above the rows"
        assert "better" not in table
    assert "color: #d32f2f" in controls_html(data["controls"])
    assert "color: #d32f2f" not in controls_html(comparison.data["controls"])


def test_nothing_decided_missing_and_unjudged_are_said(comparison):
    data = copy.deepcopy(comparison.data)
    data["pairwise"].update(wins=0, losses=0, unjudged=2, decisive_win_rate=None)
    data["missing"] = {"dpo": {"count": 7, "first": ["p1", "p2"], "reason": "status 500"}}
    assert "2 unjudged; no prompt was decided, so nothing is shown" in pairwise_sentence(data["pairwise"])
    told = "\n".join(notes(data))
    assert "SFT+DPO has no answer to 7 of 120 prompts (p1, p2, ...)" in told
    assert "why: status 500" in told
    assert "2 prompts are unjudged" in told
    assert pairwise_sentence(None) == "SFT+DPO against SFT: no judge was asked."


def test_the_power_line_names_what_could_have_been_seen(comparison):
    told = power_sentence(comparison.data)
    for metric, values in comparison.data["metrics"].items():
        size = values["dpo_minus_sft"]["could_see"]
        assert not size or f"{metric.replace('_', ' ')} {size:.3f}" in told
    assert re.search(r"a win rate of \d\d% on \d+ decided prompts", told)


def test_the_notebooks_table_is_escaped_and_its_numbers_stand_right(comparison):
    values = copy.deepcopy(comparison.data["metrics"]["faithfulness"])
    values["dpo_minus_sft"]["verdict"] = "<b>better</b>"
    html = html_table({"<script>": values}, "refused: <i>")
    assert "<script>" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert html.count("text-align: right") == 2 * 4


def test_the_browser_groups_by_outcome_and_shows_the_judged_answer(comparison):
    html = answer_browser(comparison.prompts, comparison.responses, comparison.rows)
    for winner, kind in (("b", "lost"), ("a", "won"), ("tie", "tied")):
        n = sum(row["winner"] == winner for row in comparison.rows)
        assert f"SFT+DPO {kind}: {n}<" in html
    assert html.count('class="prompt"') == len(comparison.prompts)
    few = answer_browser(comparison.prompts, comparison.responses, comparison.rows, limit=2)
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
    assert json.loads((tmp_path / "report.json").read_text()) == comparison.data


def test_the_page_needs_no_network(comparison, tmp_path):
    fetched = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            fetched.extend(value for name, value in attributes if name in ("src", "href"))

    html = write(tmp_path, comparison)
    Tags().feed(html)
    assert fetched == []
    assert "default-src 'none'" in html


def test_a_report_of_nothing_can_be_written(comparison, tmp_path):
    # no metric, no judge, no control, no log: what is left are the answers and how long they are
    data = {**comparison.data, "metrics": {}, "contrasts": [], "pairwise": None, "judged": {}, "controls": []}
    html = write(tmp_path, comparison, data=data, log=[])
    assert "no judge was asked" in html
    assert "No metric was given" in html


@pytest.mark.browser
def test_the_page_in_a_browser_runs_nothing_hostile_and_fits_a_phone(comparison, tmp_path):
    write(tmp_path, comparison, responses=hostile(comparison), data=refused(comparison))
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
