"""The comparison as a table and in sentences: for a terminal, a notebook, a page, Markdown. It reads plain data.

A metric's row is read from its own data: the arms are its numbers, the difference its one dict. So the same table shows
three arms or five. Where a control failed there is no verdict: each row says "refused", and `refusal` says why.
"""

from html import escape

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

ARM_NAMES = {"base": "Base", "sft": "SFT", "dpo": "SFT+DPO"}
NUMBERS = "text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap"
WORDS = "text-align: left"
STYLES = {
    "better": "color: #009e73; font-weight: 600",
    "worse": "color: #d55e00; font-weight: 600",
    "refused": "color: #d32f2f; font-weight: 600",
}


def arm_name(arm: str) -> str:
    """An arm as people call it."""
    return ARM_NAMES.get(arm, arm)


def metric_name(metric: str) -> str:
    """A metric as people call it."""
    return metric.replace("_", " ")


def difference_of(values: dict) -> dict:
    """The primary difference among a metric's data."""
    return next(value for value in values.values() if isinstance(value, dict))


def arms_of(metrics: dict[str, dict]) -> list[str]:
    """The arms that the metrics compare, in order."""
    values = next(iter(metrics.values()), {})
    return [key for key, value in values.items() if not isinstance(value, dict)]


def header(metrics: dict[str, dict]) -> tuple[str, ...]:
    """The names of the columns."""
    return "metric", *map(arm_name, arms_of(metrics)), "difference, 95%", "verdict"


def table_rows(metrics: dict[str, dict], refusal: str | None = None) -> list[tuple[str, ...]]:
    """One row of strings per metric, in the order of `header`."""
    return [
        (
            metric_name(metric),
            *(number(values[arm]) for arm in arms_of(metrics)),
            interval(difference_of(values), "+"),
            "refused" if refusal else difference_of(values)["verdict"],
        )
        for metric, values in metrics.items()
    ]


def number(value: float | None, sign: str = "") -> str:
    """Three decimals; a dash where there is no number."""
    return "–" if value is None else f"{value:{sign}.3f}"


def interval(given: dict | None, sign: str = "") -> str:
    """An estimate with its interval, such as +0.210 [+0.152, +0.265]."""
    if given is None or given["mean"] is None:
        return "–"
    return "{} [{}, {}]".format(*(number(given[key], sign) for key in ("mean", "low", "high")))


def short(verdict: str) -> str:
    """A verdict in one or two words, for a narrow column."""
    return verdict.split(":")[0].split(" larger")[0]


def pairwise_sentence(
    pairwise: dict | None, primary: tuple[str, str] = ("dpo", "sft"), refusal: str | None = None
) -> str:
    """The pairwise result of the primary contrast as one sentence."""
    arms = "{} against {}".format(*map(arm_name, primary))
    if pairwise is None:
        return f"{arms}: no judge was asked."
    counts = f"{pairwise['wins']} wins, {pairwise['ties']} ties, {pairwise['losses']} losses"
    if pairwise["unjudged"]:
        counts += f", {pairwise['unjudged']} unjudged"
    if refusal:
        return f"{arms}: {counts}; {refusal}, so these counts show nothing."
    if pairwise["decisive_win_rate"] is None:
        return f"{arms}: {counts}; no prompt was decided, so nothing is shown."
    return (
        f"{arms}: {counts}; of the decided prompts {pairwise['decisive_win_rate']:.1%} won (95% Wilson "
        f"interval {pairwise['low']:.1%} to {pairwise['high']:.1%}, sign test p = {pairwise['p_value']:.2g})."
    )


def power_sentence(data: dict) -> str:
    """What a run of this size could have seen: the effects that it would have shown with 80% power."""
    could = {m: difference_of(values)["could_see"] for m, values in data["metrics"].items()}
    seen = [f"{metric_name(m)} {size:.3f}" for m, size in could.items() if size]
    parts = ["a true difference of " + ", ".join(seen)] if seen else []
    if data["pairwise"]:
        decisive = data["pairwise"]["wins"] + data["pairwise"]["losses"]
        rate = data["judged"]["could_see"]
        parts.append(
            f"a win rate of {rate:.0%} on {decisive} decided prompts"
            if rate
            else f"no win rate on {decisive} decided prompts"
        )
    return (
        f"With 80% power this run could have seen {'; '.join(parts)}."
        if parts
        else "This run could not have seen anything."
    )


def notes(data: dict) -> list[str]:
    """What a reader must know besides the table: what is missing, unjudged, or to be doubted."""
    missing = [
        f"{arm_name(arm)} has no answer to {gap['count']} of {data['n_prompts']} prompts ({', '.join(gap['first'])}"
        f"{', ...' if gap['count'] > len(gap['first']) else ''}); differences rest on prompts that both answered"
        + (f"; why: {gap['reason']}" if gap.get("reason") else "")
        for arm, gap in data["missing"].items()
    ]
    unjudged = data["pairwise"]["unjudged"] if data["pairwise"] else 0
    left = [f"{unjudged} prompts are unjudged: they count for neither arm and are no ties"] if unjudged else []
    left += [f"{n} answers of {arm_name(arm)} have no score" for arm, n in data["unscored"].items() if n]
    length = data["judged"].get("length_controlled") or {"warnings": []}
    return [*missing, *left, *data["warnings"], *length["warnings"]]


def markdown_table(metrics: dict[str, dict], refusal: str | None = None) -> str:
    """The table as Markdown."""
    columns = header(metrics)
    lines = [columns, ("---", *["---:"] * (len(columns) - 2), "---"), *table_rows(metrics, refusal)]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"No verdict: {refusal}.\n\n{table}" if refusal else table


def html_table(metrics: dict[str, dict], refusal: str | None = None) -> str:
    """The table as HTML that carries its own look, for a notebook and the page alike. All text is escaped."""
    names = header(metrics)
    head = "".join(f'<th scope="col" style="{_style(i, names)}">{escape(name)}</th>' for i, name in enumerate(names))
    body = "".join(f"<tr>{_cells(cells, names)}</tr>" for cells in table_rows(metrics, refusal))
    title = f'<caption style="{STYLES["refused"]}">No verdict: {escape(refusal)}</caption>' if refusal else ""
    return f'<table class="metrics">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cells(cells: tuple[str, ...], names: tuple[str, ...]) -> str:
    """The cells of one row; each knows its column's name, which a narrow page shows beside it."""
    metric, *numbers, verdict = (escape(cell) for cell in cells)
    kind = short(verdict) if short(verdict) in STYLES else "open"
    middle = "".join(
        f'<td data-label="{escape(name)}" style="{NUMBERS}">{cell}</td>'
        for name, cell in zip(names[1:-1], numbers, strict=True)
    )
    last = f'<td class="{kind}" data-label="verdict" style="{WORDS}; {STYLES.get(kind, "")}">{verdict}</td>'
    return f'<th scope="row" style="{WORDS}">{metric}</th>{middle}{last}'


def _style(i: int, names: tuple[str, ...]) -> str:
    return NUMBERS if 0 < i < len(names) - 1 else WORDS


def controls_html(controls: list[dict]) -> str:
    """The controls as HTML: what each must show and what it found; a failed one in red."""
    names = ("result", "control", "must show", "found")
    head = "".join(f'<th scope="col" style="{WORDS}">{name}</th>' for name in names)
    rows = "".join(map(_control, controls))
    return f'<table class="controls"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _control(control: dict) -> str:
    kind, result = ("better", "passed") if control["passed"] else ("refused", "FAILED")
    told = "".join(f'<td style="{WORDS}">{escape(control[part])}</td>' for part in ("expected", "found"))
    name = f'<th scope="row" style="{WORDS}">{escape(control["name"])}</th>'
    return f'<tr><td class="{kind}" style="{WORDS}; {STYLES[kind]}">{result}</td>{name}{told}</tr>'


def print_report(data: dict, console: Console | None = None) -> None:
    """Print the table and the pairwise result to a terminal; it fits into 80 columns."""
    console = console or Console()
    table = Table(title=title(data), box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False)
    for name in header(data["metrics"]):
        table.add_column(name, justify="left" if name in ("metric", "verdict") else "right", no_wrap=True)
    rows = table_rows(data["metrics"], data["refusal"])
    for *cells, verdict in rows:
        table.add_row(*cells, short(verdict))
    console.print(table)
    longer = {} if data["refusal"] else {cells[0]: cells[-1] for cells in rows if short(cells[-1]) != cells[-1]}
    sentences = [f"{metric}: {verdict}" for metric, verdict in longer.items()]
    sentences += [pairwise_sentence(data["pairwise"], data["primary"], data["refusal"]), power_sentence(data)]
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False)
    for control in data["controls"]:
        if not control["passed"]:
            console.print(f"control {control['name']} FAILED: {control['found']}", style="bold red", markup=False)
    for note in notes(data):
        console.print(f"note: {note}", highlight=False, markup=False)


def title(data: dict) -> str:
    """What the table is of."""
    seed = "" if data["seed"] is None else f", seed {data['seed']}"
    return f"{data['n_prompts']} held-out prompts, {data['sampling']}{seed}"
