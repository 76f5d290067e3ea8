"""An audit as a table for the notebook and three figures, all from `AuditReport.to_json()`."""

from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dpo_kit.views.style import BLUE, COLOURS, GREY, ORANGE, PURPLE, VERMILION, whiskers
from dpo_kit.views.tables import AUDIT_COLUMNS, MARKS, audit_cells, audit_title, html_table
from dpo_kit.workbook.show import DASHES, hatch

INKS = {"blocking": VERMILION, "warning": ORANGE, "info": BLUE}


def audit_html(data: dict) -> str:
    """The audit for a notebook: a table with examples folded under each finding. All text from the data is escaped."""
    rows, below = ([write(finding) for finding in data["findings"]] for write in (audit_cells, _examples))
    return html_table(AUDIT_COLUMNS, rows, words=("severity", "what to do"), caption=audit_title(data), below=below)


def _examples(finding: dict) -> str:
    if not finding["examples"]:
        return ""
    lines = "".join(f"<li>row {e['row']} ({escape(e['id'])}): {escape(e['why'])}</li>" for e in finding["examples"])
    folded = f"<details><summary>examples: {escape(finding['name'])}</summary><ul>{lines}</ul></details>"
    return f'<tr><td></td><td colspan="{len(AUDIT_COLUMNS) - 1}" style="text-align: left">{folded}</td></tr>'


def findings_bar(data: dict) -> go.Figure:
    """How many rows each check of single rows flagged, on a logarithmic axis, coloured by severity."""
    flagged = [finding for finding in data["findings"] if finding["rows"]]
    figure = go.Figure([
        go.Bar(
            x=[f["count"] for f in flagged if f["severity"] == severity],
            y=[f["name"] for f in flagged if f["severity"] == severity],
            text=[f"{f['count']:,}" for f in flagged if f["severity"] == severity],
            name=MARKS[severity], orientation="h", textposition="outside",
            marker=hatch(ink, shape),
        )
        for (severity, ink), shape in zip(INKS.items(), ("x", "/", ""), strict=True)
    ])  # fmt: skip
    decades = [-0.3, len(str(data["rows"])) + 0.2]
    figure.update_xaxes(title=f"rows of {data['rows']:,}", type="log", dtick=1, range=decades)
    figure.update_yaxes(categoryorder="array", categoryarray=[f["name"] for f in reversed(flagged)])
    height = 150 + 28 * max(len(flagged), 2)
    return figure.update_layout(template="dpo_kit", barmode="overlay", height=height, legend_y=-0.35, margin_t=20)


def lengths(data: dict) -> go.Figure:
    """Histograms of the lengths of prompt, chosen and rejected with `max_length`; and rejected against chosen."""
    measures, drawn = data["measures"], data["measures"]["lengths"]
    figure = make_subplots(cols=2, subplot_titles=("how long", "rejected against chosen"), horizontal_spacing=0.12)
    colours = {**COLOURS, "prompt": GREY}
    for name, counts in drawn["counts"].items():
        line = {"shape": "hv", "color": colours[name], "dash": DASHES.get(name, "dot")}
        figure.add_trace(go.Scatter(x=drawn["edges"], y=[*counts, 0], name=name, mode="lines", line=line), 1, 1)
    chosen, rejected = zip(*drawn["dots"], strict=True) if drawn["dots"] else ((), ())
    marker = {"color": BLUE, "size": 4, "opacity": 0.4}
    dots = go.Scatter(x=chosen, y=rejected, mode="markers", name="a pair", showlegend=False, marker=marker)
    figure.add_trace(dots, 1, 2)
    most = max((*chosen, *rejected, 1))
    figure.add_shape(type="line", x0=0, y0=0, x1=most, y1=most, line={"color": GREY, "dash": "dot"}, row=1, col=2)
    if measures["max_length"]:
        line = {"color": PURPLE, "dash": "dashdot"}
        figure.add_vline(measures["max_length"], line=line, annotation_text="max_length", row=1, col=1)
    unit = measures["unit"]
    figure.update_xaxes(title=unit, row=1, col=1).update_yaxes(title="rows", row=1, col=1)
    figure.update_xaxes(title=f"chosen, {unit}", row=1, col=2).update_yaxes(title=f"rejected, {unit}", row=1, col=2)
    return figure.update_layout(template="dpo_kit", width=900, legend_y=-0.25)


def shortcuts(data: dict) -> go.Figure:
    """For each surface feature, how often the chosen answer has more of it, with 95% intervals.

    A feature at one half does not give the label away.
    """
    features = [feature for feature in data["measures"]["shortcuts"] if feature["decided"]]
    shares, lows, highs = ([feature[key] for feature in features] for key in ("share", "low", "high"))
    figure = go.Figure(
        go.Scatter(
            x=shares,
            y=[f"{feature['feature']} ({feature['decided']:,})" for feature in features],
            mode="markers", marker={"color": BLUE, "size": 9, "symbol": "square"},
            error_x=whiskers(shares, lows, highs),
        )
    )  # fmt: skip
    figure.add_vline(0.5, line_dash="dot", line_color=GREY)
    classifier = data["measures"]["classifier"]
    title = f"all features together: {classifier['accuracy']:.1%} right on unseen prompts" if classifier else ""
    figure.update_xaxes(title="chosen has more: share of the pairs that differ (how many)", tickformat=".0%")
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(template="dpo_kit", title=title, height=170 + 24 * len(features))
