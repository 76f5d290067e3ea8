"""What a row gives that holds no preference: a prompt to evaluate on, an answer to one, demonstrations for SFT."""

from typing import Any

from dpo_kit.preferences.importers.annotation_exports import tree_turns
from dpo_kit.preferences.importers.columns import (
    CHATS,
    Fields,
    answers_of,
    column,
    is_chat,
    messages_of,
    named,
    prompt_of,
    response,
    text_of,
)
from dpo_kit.records import Message, Prompt, Response

IDS = ("id", "prompt_id", "question_id")


def evaluation_prompt(row: Fields, place: int) -> Prompt:
    """The prompt of a row: its first turn where MT-Bench lists several, without an answer at its end.

    It is named by its `id`, `prompt_id` or `question_id`, else by its place. `facts` are kept.
    """
    turns = row.get("turns")
    if isinstance(turns, list) and turns and column(row, "prompt") is None:
        prompt = named(row, [Message(role="user", content=text_of(turns[0], "turns"))])
        row.remarks += ["only the first turn is asked, the later ones are left out"] if len(turns) > 1 else []
    else:
        prompt, answers = _without_answer(row)
        row.remarks += ["the answer at the end of the messages is taken off"] if answers else []
    name = next((row[key] for key in IDS if row.get(key) not in (None, "")), place)
    return Prompt(id=str(name), messages=prompt.messages, facts=row.get("facts") or {}, tools=prompt.tools)


def answer_of(row: Fields) -> tuple[str | None, Prompt, Response]:
    """The id that a row gives its prompt, if any, the prompt, and the answer."""
    prompt, answers = _with_answer(
        row, "no answer: neither a column such as output, nor an assistant's turn at the end"
    )
    name = next((str(row[key]) for key in IDS if row.get(key) not in (None, "")), None)
    return name, prompt, response(row, prompt, answers, row.first(("generator", "model", "arm")))


def demonstrations(row: Fields) -> list[tuple[Prompt, Response]]:
    """Conversations that end with an answer, Alpaca's instruction and output, the best path of OpenAssistant's trees.

    The whole conversation before the last answer is the prompt. Raises ValueError where no answer is there.
    """
    root = row.get("prompt")
    if isinstance(root, dict) and "replies" in root:
        return _best_path(row, root)
    absent = "no demonstration: no column such as output, and the messages do not end with an answer"
    prompt, answers = _with_answer(row, absent)
    return [(prompt, response(row, prompt, answers, row.first(("model", "generator"))))]


def _with_answer(row: Fields, absent: str) -> tuple[Prompt, list[Message]]:
    """The prompt and the answer of a row, from its own column or from the end of the messages.

    Raises ValueError with the text `absent` where there is none.
    """
    prompt, answers = _without_answer(row)
    given = column(row, "completion")
    if given is not None:
        (answers,) = answers_of(given, row, "completion")
    if not answers:
        raise ValueError(absent)
    return prompt, answers


def _best_path(row: Fields, root: dict[str, Any]) -> list[tuple[Prompt, Response]]:
    """Of a tree, every answer of the assistant's that has the best rank among its siblings."""
    found = []
    for before, replies in tree_turns(root):
        best = min(replies, key=lambda reply: reply["rank"] if reply.get("rank") is not None else 0)
        if best["role"] == "assistant":
            prompt = named(row, before)
            found.append((prompt, response(row, prompt, text_of(best["text"], "text"))))
    if not found:
        raise ValueError("no demonstration: the tree holds no reply of the assistant")
    row.remarks += ["of several replies the one with the best rank is taken"]
    return found


def _without_answer(row: Fields) -> tuple[Prompt, list[Message]]:
    """The prompt of a row, and the answer that its messages end with, if they do."""
    asked = column(row, "prompt")
    if asked is None:
        asked = row.first([name for name in CHATS if is_chat(dict.get(row, name))])
    if isinstance(asked, list) and asked and all(isinstance(turn, dict) for turn in asked):
        messages, answers = messages_of(asked, row), []
        while messages and messages[-1].role == "assistant":
            answers.insert(0, messages.pop())
        return (named(row, messages), answers) if answers else (prompt_of(row), [])
    return prompt_of(row), []
