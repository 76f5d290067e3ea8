"""What tools for annotation and chat export: Argilla, Label Studio, Open WebUI, OpenAssistant.

Argilla and Label Studio do not say what a label means, because that stands in the tool's own settings. So labels are
matched to the answers' columns by name, number, letter or side, and a label that matches none of them, or two, is an
error and never a guess. The answer of each annotator is a judgement of its own.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from dpo_kit.preferences.importers.columns import (
    ANSWER,
    Fields,
    Format,
    NoPair,
    Outcome,
    Unpaired,
    meant_by,
    messages_of,
    named,
    number,
    pair,
    prompt_of,
    response,
    text_of,
)
from dpo_kit.records import Message, Prompt

UNFINISHED = ("discarded", "draft", "pending", "missing")
PREFERENCE = re.compile(r"prefer|choice|choose|better|best|winner|rank|compar|pairwise", re.I)
REMARK = re.compile(r"reason|why|expla|comment|rationale|remark|note", re.I)


def _argilla_missing(row: Fields) -> str | None:
    """Argilla 1.x writes feedback records; 2.x nests them otherwise, and flattens them in its datasets."""
    if isinstance(row.get("fields"), dict):
        return None if "responses" in row else "no column responses"
    return None if any(key.endswith(".responses") for key in row) else "no column fields, none that ends in .responses"


def _argilla(row: Fields) -> list[Outcome]:
    """The pairs of a record: of a ranking all pairs with different ranks, of a label the one that it decides."""
    fields = row.opened("fields") if isinstance(row.get("fields"), dict) else row
    names = [name for name in fields if ANSWER.fullmatch(name) and isinstance(fields[name], str)]
    if len(names) < 2:
        raise ValueError(f"fields: two answers were expected (such as response1, response2), found {list(fields)}")
    prompt, answers = prompt_of(fields), list(_argilla_answers(row))
    asked = _preference_questions({question for question, _, _, value in answers if isinstance(value, list | str)})
    outcomes: list[Outcome] = []
    for question, user, status, value in answers:
        if status in UNFINISHED and question in (None, *asked):
            outcomes.append(NoPair(prompt, f"{status} by the annotator"))
        elif question in asked:
            for better, worse, reason in _comparisons(value, names):
                texts = (fields[names[better]], fields[names[worse]])
                tied = NoPair(prompt, reason) if reason == "tie" else None
                outcomes.append(tied or pair(fields, prompt, texts, f"argilla:{user}", reason, annotator=str(user)))
    return outcomes or [NoPair(prompt, "not annotated")]


def _preference_questions(questions: Iterable[str]) -> set[str]:
    """The questions that ask for the preference: those whose names say so, else the only one there is."""
    asked = {question for question in questions if not REMARK.search(question)}
    by_name = {question for question in asked if PREFERENCE.search(question)}
    if not by_name and len(asked) > 1:
        raise ValueError(f"cannot tell which question asks for the preference, among {', '.join(sorted(asked))}")
    return by_name or asked


def _argilla_answers(row: Fields) -> Iterator[tuple[str | None, str, str | None, Any]]:
    """(question, annotator, status, value) of every answer, from any of the three layouts."""
    responses = row.get("responses")
    if isinstance(responses, list):  # 1.x
        for response in responses:
            who = response.get("user_id") or "unknown", response.get("status")
            for question, answer in (response.get("values") or {None: {"value": None}}).items():
                yield question, *who, answer["value"]
    elif isinstance(responses, dict):  # 2.x, nested
        for question, answers in responses.items():
            for answer in answers or []:
                yield question, answer.get("user_id") or "unknown", answer.get("status"), answer["value"]
    for key in [key for key in row if key.endswith(".responses")]:  # 2.x, flattened
        values = row[key] or []
        users, statuses = (row.get(f"{key}.{name}") or [None] * len(values) for name in ("users", "status"))
        for user, status, value in zip(users, statuses, values, strict=True):
            yield key.removesuffix(".responses"), user or "unknown", status, value


def _comparisons(value: Any, names: list[str]) -> Iterator[tuple[int, int, str]]:
    """(better, worse, reason) of every two answers that one annotation compares."""
    if isinstance(value, list):
        ranked = [item if isinstance(item, dict) else {"rank": i, "value": item} for i, item in enumerate(value, 1)]
        places = [(item["rank"], meant_by(item["value"], names)) for item in ranked]
        for (rank, one), (other_rank, other) in itertools.combinations(sorted(places), 2):
            yield one, other, "tie" if rank == other_rank else f"ranks {rank} and {other_rank}"
    elif isinstance(value, str):
        better = meant_by(value, names)
        if better is not None and len(names) != 2:
            raise ValueError(f"the label {value!r} names one of {len(names)} answers and not what it was compared with")
        yield (0, 1, "tie") if better is None else (better, 1 - better, f"label {value}")


def _label_studio_missing(row: Fields) -> str | None:
    if not isinstance(row.get("data"), dict):
        return "no column data"
    return None if isinstance(row.get("annotations"), list) else "no column annotations"


def _label_studio(row: Fields) -> list[Outcome]:
    """The pairs of a task in the JSON export: from Pairwise (`selected`: left or right), else from Choices."""
    data = row.opened("data")
    prompt, outcomes = prompt_of(data), []
    for annotation in row["annotations"]:
        results = annotation.get("result") or []
        shown = [result for result in results if result.get("type") == "pairwise"]
        shown = shown or [result for result in results if result.get("type") == "choices"]
        asked = _preference_questions({str(result.get("from_name")) for result in shown})
        if annotation.get("was_cancelled"):
            outcomes.append(NoPair(prompt, "skipped by the annotator"))
        else:
            found = [_selected(prompt, data, annotation, r) for r in shown if str(r.get("from_name")) in asked]
            outcomes += found or [NoPair(prompt, "not annotated")]
    return outcomes or [NoPair(prompt, "not annotated")]


def _selected(prompt: Prompt, data: Fields, annotation: dict[str, Any], result: dict[str, Any]) -> Outcome:
    names = _compared(data, str(result.get("to_name", "")))
    value = result["value"]
    labels = [value["selected"]] if "selected" in value else value["choices"]
    if len(labels) != 1:
        raise ValueError(f"one choice was expected, found {labels}")
    winner = meant_by(labels[0], names)
    if winner is None:
        return NoPair(prompt, "tie")
    who = annotation.get("completed_by")
    who = who.get("id") if isinstance(who, dict) else who
    texts = (text_of(data[names[0]], names[0]), text_of(data[names[1]], names[1]))
    judge, at = f"label-studio:{'unknown' if who is None else who}", annotation.get("created_at")
    known = None if who is None else str(who)
    return pair(data, prompt, texts, judge, f"label {labels[0]}", winner=winner, at=at, annotator=known)


def _compared(data: Fields, to_name: str) -> list[str]:
    """The two columns that were shown left and right: those the result names, else the two that look like answers."""
    by_name = [name for name in to_name.split(",") if name in data]
    names = by_name if len(by_name) == 2 else [name for name in data if ANSWER.fullmatch(name)]
    if len(names) != 2:
        raise ValueError(f"data: cannot tell which two columns were compared, among {list(data)}")
    return names


def _open_webui_missing(row: Fields) -> str | None:
    snapshot = row.get("snapshot")
    there = isinstance(snapshot, dict) and isinstance(row.get("data"), dict) and isinstance(row.get("meta"), dict)
    return None if there else "no columns data, meta and snapshot"


def _open_webui(row: Fields) -> list[Outcome]:
    """A thumb up or down on one message of a chat; in the arena, the message against the other model's."""
    data, meta = row["data"], row["meta"]
    chat = row["snapshot"]["chat"].get("chat", row["snapshot"]["chat"])
    messages = chat["history"]["messages"]
    rated = messages.get(str(meta.get("message_id")))
    if rated is None:
        raise ValueError("snapshot: the message that was rated is not in it")
    before, parent, seen = [], rated.get("parentId"), set()
    while parent in messages and parent not in seen:
        seen.add(parent)
        before.insert(0, {key: messages[parent].get(key) for key in ("role", "content", "files", "images")})
        parent = messages[parent].get("parentId")
    prompt, thumb = named(row, messages_of(before, row, "snapshot")), number(data.get("rating"))
    who, judge = str(row.get("user_id") or "unknown"), "open-webui"
    others = [message for key in messages.get(rated.get("parentId"), {}).get("childrenIds") or ()
              if (message := messages.get(key)) is not None and message is not rated]  # fmt: skip
    if thumb is None:
        return [NoPair(prompt, "not annotated")]
    if data.get("sibling_model_ids") and others:
        if thumb == 0 or (thumb < 0 and len(others) > 1):
            return [NoPair(prompt, "tie" if thumb == 0 else "the other answers were not compared")]
        known = {"reason": f"rating {thumb:g}", "winner": int(thumb < 0), "annotator": who}
        return [pair(row, prompt, (_said(rated), _said(other)), judge, arms=(rated.get("model"), other.get("model")),
                     **known) for other in others]  # fmt: skip
    answer = response(row, prompt, _said(rated), rated.get("model") or data.get("model_id"))
    return [Unpaired(prompt, answer, float(thumb > 0), judge)]


def _said(message: dict[str, Any]) -> str:
    return text_of(message.get("content"), "content")


def tree_turns(node: dict[str, Any], before: tuple[Message, ...] = ()) -> Iterator[tuple[tuple[Message, ...], list]]:
    """(the turns before, the replies) of every turn of an OpenAssistant tree that has replies."""
    role = {"prompter": "user"}.get(node["role"], node["role"])
    before = (*before, Message(role=role, content=text_of(node["text"], "text")))
    replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
    if replies:
        yield before, replies
        for reply in replies:
            yield from tree_turns(reply, before)


def _tree_missing(row: Fields) -> str | None:
    root = row.get("prompt")
    return None if isinstance(root, dict) and "replies" in root else "no tree of replies in the column prompt"


def _tree(row: Fields) -> list[Outcome]:
    """OpenAssistant: wherever the assistant's replies have ranks, the best one against the worst one."""
    outcomes: list[Outcome] = []
    for before, replies in tree_turns(row["prompt"]):
        if replies[0]["role"] != "assistant":
            continue
        prompt = named(row, before)
        ranked = sorted((r for r in replies if r.get("rank") is not None), key=lambda reply: reply["rank"])
        if len(ranked) < 2:
            outcomes.append(NoPair(prompt, "one reply, or no ranks"))
            continue
        if len(ranked) > 2:
            row.remarks.append("of more than two answers, the best and the worst make the pair")
        texts = (text_of(ranked[0]["text"], "text"), text_of(ranked[-1]["text"], "text"))
        outcomes.append(
            pair(row, prompt, texts, "openassistant", f"ranks {ranked[0]['rank']} and {ranked[-1]['rank']}")
        )
    return outcomes


EXPORTS = {
    "argilla": Format(_argilla_missing, _argilla),
    "label-studio": Format(_label_studio_missing, _label_studio),
    "open-webui": Format(_open_webui_missing, _open_webui),
    "openassistant": Format(_tree_missing, _tree),
}
