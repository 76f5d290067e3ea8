"""Answers side by side, grouped by who won, so that one can read what was lost.

It works without JavaScript: groups and answers are `<details>`. Every answer is a text that others wrote, so it is
escaped and its hidden characters are shown. Of a very long answer the start is shown, and its full length is stated.
"""

from collections.abc import Sequence
from html import escape

from dpo_kit.records import Prompt, Response
from dpo_kit.views.tables import arm_name, metric_name
from dpo_kit.visible import reveal

CLIP = 2000  # characters of an answer that are shown
GROUPS = {"b": "lost", "a": "won", "tie": "tied", "unjudged": "unjudged", None: "not compared"}
STYLE = """<style>
.answer-browser summary { cursor: pointer; padding: .35rem 0; overflow-wrap: anywhere; }
.answer-browser .group > summary { font-weight: 600; }
.answer-browser .prompt { margin: .2rem 0 .2rem .8rem; }
.answer-browser .answers { display: grid; gap: .7rem; }
@media (min-width: 641px) { .answer-browser .answers { grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); } }
.answer-browser .answers > div { border: 1px solid #8886; border-radius: .5rem; padding: .6rem .7rem; min-width: 0; }
.answer-browser pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; margin: .35rem 0 0; padding: 0;
  max-height: 22rem; overflow: auto; background: none; color: inherit; }
.answer-browser .why { font-size: .85rem; opacity: .75; overflow-wrap: anywhere; margin: .4rem 0; }
</style>"""


def answer_browser(
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    per_prompt: Sequence[dict],
    primary: tuple[str, str] = ("dpo", "sft"),
    limit: int | None = None,
) -> str:
    """The browser as HTML: a group for each outcome of the primary arm, what it lost first and open.

    `limit` shows only the first so many prompts of a group, which keeps a notebook small; the count says how many
    there are. Of several samples the first is shown, the one that was judged.
    """
    texts = {}
    for response in sorted(responses, key=lambda r: -1 if r.seed is None else r.seed):
        texts.setdefault((response.prompt_id, response.arm), response.text)
    by_id = {prompt.id: prompt for prompt in prompts}
    groups = {winner: [row for row in per_prompt if row["winner"] == winner] for winner in GROUPS}
    made = [
        _group(f"{arm_name(primary[0])} {GROUPS[winner]}", GROUPS[winner], rows, by_id, texts, limit)
        for winner, rows in groups.items()
        if rows
    ]
    return f'{STYLE}<div class="answer-browser">{"".join(made)}</div>'


def shown(text: str) -> str:
    """An answer as HTML that cannot run or hide anything: escaped, hidden characters shown, clipped, never empty."""
    return f"<pre>{_readable(text)}</pre>" if text else "<em>(empty answer)</em>"


def _group(title, kind, rows, by_id, texts, limit) -> str:
    kept = rows[:limit]
    count = f"{len(rows)}" if len(kept) == len(rows) else f"first {len(kept)} of {len(rows)}"
    cards = "".join(_card(row, by_id[row["prompt_id"]], texts) for row in kept)
    opened = " open" if kind == "lost" else ""
    start = f'<details class="group" data-outcome="{kind}"{opened}><summary>{escape(title)}: {count}</summary>'
    return f"{start}{cards}</details>"


def _card(row: dict, prompt: Prompt, texts: dict) -> str:
    why = f'<p class="why">{_readable(row["reason"])}</p>' if row["reason"] else ""
    answers = "".join(_answer(arm, texts.get((prompt.id, arm)), scores) for arm, scores in row["scores"].items())
    asked = _readable(prompt.text)
    return f'<details class="prompt"><summary>{asked}</summary>{why}<div class="answers">{answers}</div></details>'


def _answer(arm: str, text: str | None, scores: dict[str, float]) -> str:
    told = ", ".join(f"{metric_name(metric)} {value:.2f}" for metric, value in scores.items())
    body = "<em>(no answer)</em>" if text is None else shown(text)
    return f'<div><strong>{escape(arm_name(arm))}</strong><div class="why">{escape(told)}</div>{body}</div>'


def _readable(text: str) -> str:
    more = f" <em>… {CLIP:,} of {len(text):,} characters shown</em>" if len(text) > CLIP else ""
    return escape(reveal(text[:CLIP])) + more
