"""A comparison as a table and in sentences: for a terminal, a notebook, a page, Markdown.

The columns follow from the record, so the same table shows three arms or five. Where a control failed there is no
verdict: each row says "refused", and `refusal` says why.
"""

from collections.abc import Collection, Mapping, Sequence
from html import escape

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape as literal
from rich.table import Table

from dpo_kit.evaluation.results import Comparison, Control, HeldOut, Interval, Metric, Pairwise, Regression, Report

ARM_NAMES = {"base": "Base", "sft": "SFT", "dpo": "SFT+DPO"}
TASK_NAMES = {"log_loss": "log-loss, bits/byte", "all_tasks": "tasks passed"}
NUMBERS = "text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap"
WORDS = "text-align: left"
GOOD, BAD, REFUSED = (f"color: {colour}; font-weight: 600" for colour in ("#009e73", "#d55e00", "#d32f2f"))
# How a cell looks that starts with one of these words; the page replaces the colours by class, for dark screens too.
LOOKS = {
    "better": ("good", GOOD), "passed": ("good", GOOD), "worse": ("bad", BAD),
    "refused": ("refused", REFUSED), "FAILED": ("refused", REFUSED), "No verdict": ("refused", REFUSED),
    "higher": ("open", ""), "lower": ("open", ""),
    "inconclusive": ("open", ""), "no difference": ("open", ""), "nothing to compare": ("open", ""),
}  # fmt: skip


def arm_name(arm: str) -> str:
    """An arm as people call it."""
    return ARM_NAMES.get(arm, arm)


def metric_name(metric: str) -> str:
    """A metric as people call it."""
    return "judge's rating, 1-5" if metric == "judge_score" else metric.replace("_", " ")


def arms_of(metrics: Mapping[str, Metric]) -> list[str]:
    """The arms that the metrics compare, in order."""
    return list(next(iter(metrics.values())).means) if metrics else []


def header(metrics: Mapping[str, Metric]) -> tuple[str, ...]:
    """The names of the columns of `table_rows`."""
    return "metric", *map(arm_name, arms_of(metrics)), "difference, 95%", "verdict"


def table_rows(metrics: Mapping[str, Metric], refusal: str | None = None) -> list[tuple[str, ...]]:
    """One row of strings per metric, in the order of `header`."""
    return [
        (
            metric_name(name),
            *(number(mean) for mean in metric.means.values()),
            interval(metric.difference.interval, "+"),
            "refused" if refusal else metric.difference.verdict,
        )
        for name, metric in metrics.items()
    ]


def summary_header(comparison: Comparison) -> tuple[str, ...]:
    """The names of the columns of `summary_rows`."""
    return "metric", *map(arm_name, comparison.arms), "difference, 95%", "verdict"


def summary_rows(comparison: Comparison, refusal: str | None = None) -> list[tuple[str, ...]]:
    """The one table of a comparison: scores and ratings, what needs no judge, what was forgotten, who is preferred.

    A failed control says that the judge or the scores cannot be believed. What needs neither keeps its verdicts.
    """
    held_out: Sequence[HeldOut] = getattr(comparison, "held_out", ())
    regression: Regression | None = getattr(comparison, "regression", None)
    forgotten = {"log_loss": regression.log_loss, **regression.tasks} if regression else {}
    rows = [_row(metric_name(name), metric, comparison, refusal) for name, metric in comparison.metrics.items()]
    rows += [_row(metric_name(name), metric, comparison) for name, metric in comparison.heuristics.items()]
    for row in held_out:
        for what, found, verdict in (
            ("accuracy", row.accuracy, row.accuracy_verdict), ("margin", row.margin, row.margin_verdict),
        ):  # fmt: skip
            values = [number(found.mean if found and arm == row.policy else None) for arm in comparison.arms]
            rows.append((f"reward {what}", *values, interval(found), verdict))
    rows += [_row(TASK_NAMES.get(name, name), metric, comparison) for name, metric in forgotten.items() if metric]
    if pairwise := comparison.pairwise:
        decided = pairwise.wins + pairwise.losses
        shares = {comparison.primary[0]: pairwise.wins, comparison.primary[1]: pairwise.losses}
        values = [number(shares[arm] / decided if decided and arm in shares else None) for arm in comparison.arms]
        verdict = "refused" if refusal else _preferred(pairwise.win_rate)
        rows.append(("preferred, pairwise", *values, interval(pairwise.win_rate), verdict))
    return rows


def _row(name: str, metric: Metric, comparison: Comparison, refusal: str | None = None) -> tuple[str, ...]:
    means = [number(metric.means.get(arm)) for arm in comparison.arms]
    return name, *means, interval(metric.difference.interval, "+"), "refused" if refusal else metric.difference.verdict


def _preferred(rate: Interval | None) -> str:
    if rate is None:
        return "nothing to compare"
    return "better" if rate.low > 0.5 else "worse" if rate.high < 0.5 else "inconclusive"


def number(value: float | None, sign: str = "") -> str:
    """Three decimals, of large numbers fewer; a dash where there is no number."""
    if value is None:
        return "–"
    return f"{value:{sign}z.{3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0}f}"


def interval(given: Interval | None, sign: str = "") -> str:
    """An estimate with its interval, such as +0.210 [+0.152, +0.265]; a dash where there is none."""
    if given is None:
        return "–"
    return f"{number(given.mean, sign)} [{number(given.low, sign)}, {number(given.high, sign)}]"


def short(verdict: str) -> str:
    """A verdict in one or two words, for a narrow column."""
    # "inconclusive: needs ..." is "inconclusive", "no difference larger than 0.05" is "no difference"
    return verdict.split(":")[0].split(" larger")[0]


def pairwise_sentence(
    pairwise: Pairwise | None, primary: tuple[str, str] = ("dpo", "sft"), refusal: str | None = None
) -> str:
    """The pairwise result of the primary contrast as one sentence."""
    arms = "{} against {}".format(*map(arm_name, primary))
    if pairwise is None:
        return f"{arms}: no judge was asked."
    if refusal:
        return f"{arms}: {pairwise}; {refusal}, so these counts show nothing."
    if pairwise.decisive_win_rate is None:
        return f"{arms}: {pairwise}; no prompt was decided, so nothing is shown."
    return (
        f"{arms}: {pairwise}; of the decided prompts {pairwise.decisive_win_rate:.1%} won (95% Wilson "
        f"interval {pairwise.low:.1%} to {pairwise.high:.1%}, sign test p = {pairwise.p_value:.2g})."
    )


def power_sentence(comparison: Comparison) -> str:
    """The smallest effects that so many prompts would have shown with 80% power; "" where nothing was to be shown."""
    could = {name: metric.difference.could_see for name, metric in comparison.metrics.items()}
    seen = [f"{metric_name(name)} {size:.3f}" for name, size in could.items() if size]
    parts = ["a true difference of " + ", ".join(seen)] if seen else []
    if comparison.pairwise and comparison.judged:
        decided, rate = comparison.pairwise.wins + comparison.pairwise.losses, comparison.judged.could_see
        parts.append(f"{f'a win rate of {rate:.0%}' if rate else 'no win rate'} on {decided} decided prompts")
    if not comparison.metrics and not comparison.pairwise:
        return ""
    could_have = "; ".join(parts)
    return f"With 80% power this run could have seen {could_have or 'no effect of any size'}."


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know besides the table: missing and unjudged answers, and reasons for doubt."""
    missing = []
    for arm, gap in comparison.missing.items():
        ids = ", ".join(gap.first) + (", ..." if gap.count > len(gap.first) else "")
        count = f"{gap.count} of {comparison.n_prompts} prompts ({ids})" if gap.count else "some of the questions"
        why = f"; why: {gap.reason}" if gap.reason else ""
        missing.append(f"{arm_name(arm)} has no answer to {count}; differences rest on prompts that both answered{why}")
    unjudged = comparison.pairwise.unjudged if comparison.pairwise else 0
    because = "; ".join(f"{times} times {reason}" for reason, times in comparison.unjudged_because.items())
    why = f"; why: {because}" if because else ""
    left = [f"{unjudged} prompts are unjudged: they count for neither arm and are no ties{why}"] if unjudged else []
    left += [f"{n} answers of {arm_name(arm)} have no score" for arm, n in comparison.unscored.items() if n]
    left += [
        f"reward rows: implicit rewards of {arm_name(row.policy)} against {arm_name(row.reference)} on {row.n} "
        f"held-out pairs, beta {row.beta:g}; they show what was learned of the pairs, and not that answers are better"
        for row in getattr(comparison, "held_out", ())
    ]
    length = comparison.judged and comparison.judged.length_controlled
    return [*missing, *left, *comparison.warnings, *(length.warnings if length else ())]


def html_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: Collection[str] = (),
    caption: str = "",
    below: Sequence[str] = (),
) -> str:
    """Any table as HTML that carries its own look, for a notebook and the page alike. All texts are escaped.

    The first column heads its rows. It and the columns named in `words` stand left, the others are numbers and stand
    right. Each cell knows the name of its column, which a narrow page shows beside it. `below` holds for each row the
    HTML of a row to follow it, or "".
    """
    looks = {name: WORDS if name in (columns[0], *words) else NUMBERS for name in columns}
    head = "".join(f'<th scope="col" style="{looks[name]}">{escape(name)}</th>' for name in columns)
    body = ""
    for i, (first, *others) in enumerate(rows):
        cells = "".join(_cell(text, name, looks[name]) for text, name in zip(others, columns[1:], strict=True))
        body += f'<tr><th scope="row" style="{WORDS}">{escape(first)}</th>{cells}</tr>{below[i] if below else ""}'
    title = f'<caption style="{WORDS}; {_look(caption)[1]}">{escape(caption)}</caption>' if caption else ""
    return f'<table class="data">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(text: str, name: str, look: str) -> str:
    kind, colour = _look(text) if look == WORDS else ("", "")
    marked = f' class="{kind}"' if kind else ""
    return f'<td{marked} data-label="{escape(name)}" style="{f"{look}; {colour}".strip("; ")}">{escape(text)}</td>'


def _look(text: str) -> tuple[str, str]:
    return LOOKS.get(short(text), ("", ""))


def metrics_html(metrics: Mapping[str, Metric], refusal: str | None = None) -> str:
    """The table of metrics as HTML."""
    caption = f"No verdict: {refusal}" if refusal else ""
    return html_table(header(metrics), table_rows(metrics, refusal), words=["verdict"], caption=caption)


def summary_html(comparison: Comparison, refusal: str | None = None) -> str:
    """The one table of a comparison as HTML."""
    caption = f"No verdict: {refusal}" if refusal else ""
    rows = summary_rows(comparison, refusal)
    return html_table(summary_header(comparison), rows, words=["verdict"], caption=caption)


def controls_html(controls: Sequence[Control]) -> str:
    """The controls as HTML: what each must show and what was found; a failed one in red."""
    columns = ("control", "result", "must show", "found")
    rows = [(c.name, "passed" if c.passed else "FAILED", c.expected, c.found) for c in controls]
    return html_table(columns, rows, words=columns)


def further_tables(report: Report) -> dict[str, str]:
    """The tables that the page folds away, as HTML by title."""
    tables = {}
    if report.greedy:
        tables["Greedy answers instead of sampled ones"] = summary_html(report.greedy, report.refusal)
    ends = []
    for arm in report.arms:
        stopped, characters = report.stopped.get(arm), report.characters.get(arm)
        known = ("–" if stopped is None else f"{stopped:.1%}", "–" if characters is None else f"{characters:.0f}")
        ends.append((arm_name(arm), *known))
    columns: tuple[str, ...] = ("arm", "ended by itself", "characters, mean")
    tables["How answers end, and how long they are"] = html_table(columns, ends)
    contrasts = []
    for row in report.contrasts:
        # the two arms are one text, because the first column is the header of its row
        who = (f"{arm_name(row.treated)} over {arm_name(row.control)}", metric_name(row.metric))
        verdict = "refused" if report.refusal else row.verdict
        contrasts.append((*who, interval(row.interval, "+"), f"{row.p_holm:.2g}", verdict))
    if contrasts:
        columns = ("contrast", "metric", "difference, 95%", "p, Holm", "verdict")
        made = html_table(columns, contrasts, words=("metric", "verdict"))
        tables["The other contrasts, under Holm's correction"] = made
    if report.win_rate_at_k:
        # for each K, the best of K samples of one arm is compared with the best of K of the other
        rates = [(str(k), interval(rate)) for k, rate in report.win_rate_at_k.items()]
        tables["Best of K against best of K"] = html_table(("K", "win rate, 95%"), rates)
    return tables


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the table and the pairwise result to a terminal; it fits into 80 columns."""
    console = console or Console()
    table = Table(title=title(report), box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False)
    for name in summary_header(report):
        table.add_column(literal(name), justify="left" if name in ("metric", "verdict") else "right", no_wrap=True)
    rows = summary_rows(report, report.refusal)
    for *cells, verdict in rows:
        # `literal`: brackets in a name are no markup
        table.add_row(*map(literal, cells), short(verdict).replace("nothing to compare", "no data"))
    console.print(table)
    # a narrow column shows the short verdict, and the full one follows below the table; how many prompts a difference
    # would need is said of what was to be shown, and not of every side figure
    aside = {
        metric_name(name) for name in (*report.heuristics, *(report.regression.tasks if report.regression else ()))
    }
    longer: dict[str, list[str]] = {}
    for metric, *_, verdict in rows:
        if short(verdict) != verdict and not (metric in aside and verdict.startswith("inconclusive: needs")):
            longer.setdefault(verdict, []).append(metric)
    sentences = [f"{', '.join(metrics)}: {verdict}" for verdict, metrics in longer.items()]
    sentences.append(pairwise_sentence(report.pairwise, report.primary, report.refusal))
    sentences += filter(None, [power_sentence(report)])
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False)
    for control in report.controls:
        if not control.passed:
            console.print(f"control {control.name} FAILED: {control.found}", style="bold red", markup=False)
    for note in notes(report):
        console.print(f"note: {note}", highlight=False, markup=False)


def title(report: Report) -> str:
    """What the table is of."""
    seed = "" if report.seed is None else f", seed {report.seed}"
    return f"{report.n_prompts} held-out prompts, {report.sampling}{seed}"


# ---- an audit ---------------------------------------------------------------------------------------------------

MARKS = {"blocking": "✗ blocking", "warning": "! warning", "info": "i info", "ok": "✓ ok", "skipped": "– skipped"}
STYLES = {"blocking": "bold red", "warning": "yellow", "info": "cyan", "ok": "green", "skipped": "dim"}
AUDIT_COLUMNS = ("check", "severity", "rows", "share", "what to do")


def audit_table(data: dict) -> Table:
    """An audit for a terminal, from `AuditReport.to_json()`."""
    table = Table(title=audit_title(data), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in AUDIT_COLUMNS:
        table.add_column(name, justify="right" if name in ("rows", "share") else "left", no_wrap=name != "what to do")
    for finding in data["findings"]:
        table.add_row(*map(literal, audit_cells(finding)), style=STYLES[finding["severity"]])
    return table


def audit_title(data: dict) -> str:
    """A title: how many pairs were audited, and how many of them can be trained on."""
    return f"{data['rows']:,} pairs audited, {data['kept']:,} to train on"


def audit_cells(finding: dict) -> tuple[str, ...]:
    """One finding as a row of strings, in the order of `AUDIT_COLUMNS`."""
    measured = finding["severity"] != "skipped"  # a check that did not run has no count; zero would mislead
    counts = (f"{finding['count']:,}", f"{finding['share']:.1%}") if measured else ("", "")
    return (finding["name"], MARKS[finding["severity"]], *counts, finding["advice"])
