"""What a check reports: which rows it flags and why, how much that matters, and what to do.

The severity says what training on the rows as they are would do. `blocking`: the row teaches nothing or something
false, and no metric would show it. `warning`: the result is weaker or means less than it seems. `info`: worth knowing.
A check that found nothing is `ok`; one that lacked what it needs (a tokenizer, a hold-out) is `skipped`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dpo_kit.preferences.audit.privacy import mask
from dpo_kit.records import PreferencePair
from dpo_kit.visible import reveal

Severity = Literal["blocking", "warning", "info", "ok", "skipped"]
EXAMPLES = 3
SNIPPET = 90  # characters

# The checks of single rows: how much a flagged row matters, and what to do.
ROW_CHECKS: dict[str, tuple[Severity, str]] = {
    "identical answers": ("blocking", "drop them: the loss stays ln 2 and the gradient 0, whatever the model does"),
    "empty or blank": ("blocking", "drop them, and find where the text was lost: else the model learns to be silent, "
                       "or that silence always loses"),
    "wrong role order": ("blocking", "bring the turns into the order [system,] user, assistant, ..., user, with one "
                         "turn a message, or drop them"),
    "cut off": ("warning", "sample with a larger max_new_tokens, or drop them: training would end each as if it were "
                "whole"),
    "looks cut off": ("warning", "read some of them: how a text ends is only a hint, so the rows are kept"),
    "control tokens in texts": ("blocking", "take them out of the texts, or drop the rows: the model would read them "
                                "as the end of a turn or the start of another"),
    "markers of another model": ("warning", "import the text without its markup, as turns: the chat template writes "
                                 "its own markers around it"),
    "text lost in rendering": ("warning", "the chat template leaves out what it was given: use one that writes every "
                               "turn (--chat-template), or put a system text into the user's turn"),
    "no signal after rendering": ("blocking", "drop them, or use a template that keeps what tells the answers apart: "
                                  "as the model reads them, both are the same, so the gradient is 0"),
    "thinking that the data has not": ("blocking", "say what becomes of it: --thinking scored or masked, or switch it "
                                       "off with model.template_kwargs = {enable_thinking = false}"),
    "no EOS after templating": ("blocking", "use a chat template that ends the answer with EOS: else the model never "
                                "learns to stop"),
    "prompt not a prefix": ("blocking", "strip white space from the start of the answers, or end the template's prompt "
                            "with a special token: in training the prompt has other tokens than in sampling"),
    "EOS cut off": ("warning", "raise max_length, or drop them: an answer that is cut never shows how it ends"),
    "identical after truncation": ("blocking", "raise max_length, or drop them: within it both answers are equal, so "
                                   "the gradient is 0"),
    "duplicates": ("warning", "keep the first of each: a repeated row counts several times, and on both sides of a "
                   "split it leaks"),
    "near-duplicates": ("warning", "keep one of each: its numbers and most three-word sequences come again; rows that "
                        "are meant to be so alike stay with --keep near-duplicates"),
    "opposite labels": ("blocking", "keep the side with more votes, and drop both where votes are equal: the gradients "
                        "cancel"),
    "preference cycles": ("warning", "judge these prompts again, or drop them: no reward puts a circle in order"),
    "exact evaluation prompts": ("blocking", "drop them, and split by prompt rather than by pair: else the evaluation "
                                 "measures memory"),
    "near evaluation prompts": ("warning", "drop them: else the evaluation partly measures memory; prompts that are "
                                "meant to be so alike stay with --keep 'near evaluation prompts'"),
    "scores against the label": ("warning", "look whether two columns are exchanged: the data's own scores say that "
                                 "the other answer is better"),
    "ties": ("warning", "drop them: the data's own scores are equal, so which answer is called chosen is chance"),
    "small margins": ("info", "a small margin is a label that is easily wrong: is there enough signal without them?"),
    "both rated low": ("info", "DPO raises the chosen answer, also where it is only the less bad one"),
    "an annotator's contradictions": ("warning", "ask again, or drop them: the same annotator preferred both answers"),
    "secrets": ("blocking", "drop them, and revoke the keys: a model can recite what it was trained on"),
    "personal data": ("warning", "decide by kind whether to mask, to drop or to keep: they are kept here, because some "
                      "numbers, such as a help line's, belong in an answer"),
    "languages": ("info", "is this mix meant, and does the evaluation have the same?"),
}  # fmt: skip
# Guesses, matters of taste, and faults of a template: reported, not dropped.
KEPT = {"looks cut off", "personal data", "languages", "markers of another model", "text lost in rendering",
        "small margins", "both rated low", "an annotator's contradictions"}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A flagged row: its number from 0, its prompt's id, and why it was flagged. Secrets in it are masked."""

    row: int
    id: str
    why: str


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    `count` is how many rows were flagged, or measured where the check is on the whole set; `share` is count over all
    rows, or the rate that was measured. `drops` are the rows that should not be trained on for this reason.
    """

    name: str
    severity: Severity
    count: int = 0
    share: float = 0.0
    advice: str = ""
    rows: tuple[int, ...] = ()
    drops: tuple[int, ...] = ()
    examples: tuple[Example, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)


def flag_rows(
    name: str, pairs: Sequence[PreferencePair], flagged: Mapping[int, str], drops: Collection[int] | None = None
) -> Finding:
    """A finding about single rows. `flagged` says why, by row; without `drops`, all of them should be dropped."""
    severity, advice = ROW_CHECKS[name]
    rows = tuple(sorted(flagged))
    if not rows:
        return Finding(name, "ok", advice="nothing found")
    examples = tuple(Example(row, snippet(pairs[row].prompt.id), snippet(flagged[row])) for row in rows[:EXAMPLES])
    drops = (() if name in KEPT else rows) if drops is None else tuple(sorted(drops))
    return Finding(name, severity, len(rows), len(rows) / len(pairs), advice, rows, drops, examples)


def skipped(name: str, needs: str) -> Finding:
    """A check that could not run, and what it needs."""
    return Finding(name, "skipped", advice=f"not checked: needs {needs}")


def snippet(text: str) -> str:
    """The start of a text on one line: personal data and secrets masked, hidden characters as their code points."""
    line = " ".join(reveal(mask(text)).split())
    return f"{line[:SNIPPET]}…" if len(line) > SNIPPET else line
