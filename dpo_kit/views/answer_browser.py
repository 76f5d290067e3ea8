"""Answers side by side, grouped by who won, so that a reader can look at the answers that lost.

It works without JavaScript: groups and answers are `<details>`. Models wrote the answers, so they are escaped and their
hidden characters are shown. Of a very long answer only the start is shown, with its full length.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader

from dpo_kit.records import Prompt, Response
from dpo_kit.views.tables import arm_name, metric_name
from dpo_kit.visible import reveal

CLIP = 2000  # characters of an answer that are shown
GROUPS = {"b": "lost", "a": "won", "tie": "tied", "unjudged": "unjudged", None: "not compared"}


@cache
def templates() -> Environment:
    """The package's templates. They escape all text that is put into them."""
    environment = Environment(loader=PackageLoader("dpo_kit", "views"), autoescape=True)
    environment.globals.update(arm_name=arm_name, metric_name=metric_name, clip=CLIP)
    environment.filters["reveal"] = reveal
    return environment


def answer_browser(
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    per_prompt: Sequence[dict],
    primary: tuple[str, str] = ("dpo", "sft"),
    limit: int | None = None,
) -> str:
    """The browser as HTML: a group for each outcome of the primary arm. The losses come first and are unfolded.

    With `limit` only so many prompts of each group are shown, to keep a notebook small; the group's title has the full
    count. Of several samples the first is shown, which is the one that was judged.
    """
    texts: dict[tuple[str, str], str] = {}
    for response in sorted(responses, key=lambda r: -1 if r.seed is None else r.seed):
        # the sample of the lowest seed: the judge saw that one
        texts.setdefault((response.prompt_id, response.arm), response.text)
    groups = {name: [row for row in per_prompt if row["winner"] == winner] for winner, name in GROUPS.items()}
    return (
        templates()
        .get_template("answer_browser.html.jinja")
        .render(
            prompts={prompt.id: prompt for prompt in prompts},
            groups={name: rows for name, rows in groups.items() if rows},
            texts=texts,
            primary=primary,
            limit=limit,
        )
    )


def shown(text: str) -> str:
    """An answer as HTML that cannot run or hide anything: escaped, hidden characters shown, clipped, never empty."""
    macros: Any = templates().get_template("answer_browser.html.jinja").module
    return macros.shown(text)
