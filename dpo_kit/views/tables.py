"""The three-way table and the pairwise result, in words and figures, for a terminal and for Markdown."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

ARM_NAMES = {"base": "Base", "sft": "SFT", "dpo": "SFT+DPO"}
HEADER = ("metric", *ARM_NAMES.values(), "difference, 95%", "verdict")


def table_rows(metrics: dict[str, dict]) -> list[tuple[str, ...]]:
    """One row of strings per metric, in the order of `HEADER`."""
    return [
        (
            metric.replace("_", " "),
            *(f"{values[arm]:.3f}" for arm in ARM_NAMES),
            "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format_map(values["dpo_minus_sft"]),
            verdict(values["dpo_minus_sft"]),
        )
        for metric, values in metrics.items()
    ]


def verdict(difference: dict[str, float]) -> str:
    """What the interval allows one to say: better, worse, or inconclusive."""
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "inconclusive"


def pairwise_sentence(pairwise: dict) -> str:
    """The pairwise result of SFT+DPO against SFT as one sentence."""
    counts = f"{pairwise['wins']} wins, {pairwise['ties']} ties, {pairwise['losses']} losses"
    if pairwise["unjudged"]:
        counts += f", {pairwise['unjudged']} unjudged"
    if pairwise["decisive_win_rate"] is None:
        return f"SFT+DPO against SFT: {counts}; no prompt was decided, so nothing is shown."
    return (
        f"SFT+DPO against SFT: {counts}; of the decided prompts {pairwise['decisive_win_rate']:.1%} won (95% Wilson "
        f"interval {pairwise['low']:.1%} to {pairwise['high']:.1%}, sign test p = {pairwise['p_value']:.2g})."
    )


def markdown_table(metrics: dict[str, dict]) -> str:
    """The table as Markdown."""
    lines = [HEADER, ("---", *["---:"] * 4, "---"), *table_rows(metrics)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_report(data: dict, console: Console | None = None) -> None:
    """Print the table and the pairwise result to a terminal; it fits into 80 columns."""
    console = console or Console()
    title = f"{data['n_prompts']} held-out prompts, sampled at temperature 1, seed {data['seed']}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("metric", "verdict") else "right", no_wrap=True)
    for row in table_rows(data["metrics"]):
        table.add_row(*row)
    console.print(table)
    console.print(pairwise_sentence(data["pairwise"]), highlight=False)
