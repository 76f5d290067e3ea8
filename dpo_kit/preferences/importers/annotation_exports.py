"""What the two common annotation tools export: Argilla's records and Label Studio's tasks.

Neither export says what a label means; that lies in the tool's own settings. So labels are matched to the answers'
columns by name, number, letter or side, and one that matches none or two of them is an error, never a guess.
Every annotator's answer is a judgement of its own.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from dpo_kit.preferences.importers.columns import ANSWER, pair, prompt_messages, text_of, which
from dpo_kit.records import PreferencePair

UNFINISHED = ("discarded", "draft", "pending", "missing")
PREFERENCE = re.compile(r"prefer|choice|choose|better|best|winner|rank|compar|pairwise", re.I)
REMARK = re.compile(r"reason|why|expla|comment|rationale|remark|note", re.I)


def lacks_argilla(row: dict[str, Any]) -> str | None:
    """Why a row is no Argilla record (1.x feedback records; 2.x nested, or flattened as in its datasets)."""
    if isinstance(row.get("fields"), dict):
        return None if "responses" in row else "no column responses"
    return None if any(key.endswith(".responses") for key in row) else "no column fields, none that ends in .responses"


def argilla(row: dict[str, Any]) -> list[PreferencePair | str]:
    """The pairs of an Argilla record: of a ranking all pairs with different ranks, of a label the one it decides."""
    fields = row["fields"] if isinstance(row.get("fields"), dict) else row
    names = [name for name in fields if ANSWER.fullmatch(name) and isinstance(fields[name], str)]
    if len(names) < 2:
        raise ValueError(f"fields: two answers were expected (such as response1, response2), found {list(fields)}")
    messages, answers = prompt_messages(fields), list(_argilla_answers(row))
    asked = _asking({question for question, _, _, value in answers if isinstance(value, list | str)})
    outcomes: list[PreferencePair | str] = []
    for question, user, status, value in answers:
        if status in UNFINISHED and question in (None, *asked):
            outcomes.append(f"{status} by the annotator")
        elif question in asked:
            for better, worse, reason in _orders(value, names):
                texts = (fields[names[better]], fields[names[worse]])
                outcomes.append(reason if reason == "tie" else pair(messages, texts, f"argilla:{user}", reason))
    return outcomes or ["not annotated"]


def _asking(questions: Iterable[str]) -> set[str]:
    """The questions that ask for the preference: those whose names say so, else the only one there is."""
    asked = {question for question in questions if not REMARK.search(question)}
    named = {question for question in asked if PREFERENCE.search(question)}
    if not named and len(asked) > 1:
        raise ValueError(f"cannot tell which question asks for the preference, among {', '.join(sorted(asked))}")
    return named or asked


def _argilla_answers(row: dict[str, Any]) -> Iterator[tuple[str | None, str, str | None, Any]]:
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


def _orders(value: Any, names: list[str]) -> Iterator[tuple[int, int, str]]:
    """(better, worse, reason) of every two answers that one annotation compares."""
    if isinstance(value, list):
        ranked = [item if isinstance(item, dict) else {"rank": i, "value": item} for i, item in enumerate(value, 1)]
        places = [(item["rank"], which(item["value"], names)) for item in ranked]
        for (rank, one), (other_rank, other) in itertools.combinations(sorted(places), 2):
            yield one, other, "tie" if rank == other_rank else f"ranks {rank} and {other_rank}"
    elif isinstance(value, str):
        better = which(value, names)
        if better is not None and len(names) != 2:
            raise ValueError(f"the label {value!r} names one of {len(names)} answers and not what it was compared with")
        yield (0, 1, "tie") if better is None else (better, 1 - better, f"label {value}")


def lacks_label_studio(row: dict[str, Any]) -> str | None:
    """Why a row is no Label Studio task (its JSON export)."""
    if not isinstance(row.get("data"), dict):
        return "no column data"
    return None if isinstance(row.get("annotations"), list) else "no column annotations"


def label_studio(row: dict[str, Any]) -> list[PreferencePair | str]:
    """The pairs of a Label Studio task: from Pairwise (`selected`: left or right), else from Choices."""
    outcomes: list[PreferencePair | str] = []
    for annotation in row["annotations"]:
        results = annotation.get("result") or []
        shown = [result for result in results if result.get("type") == "pairwise"]
        shown = shown or [result for result in results if result.get("type") == "choices"]
        asked = _asking({str(result.get("from_name")) for result in shown})
        if annotation.get("was_cancelled"):
            outcomes.append("skipped by the annotator")
        else:
            found = [_selected(row["data"], annotation, r) for r in shown if str(r.get("from_name")) in asked]
            outcomes += found or ["not annotated"]
    return outcomes or ["not annotated"]


def _selected(data: dict[str, Any], annotation: dict[str, Any], result: dict[str, Any]) -> PreferencePair | str:
    names = _compared(data, str(result.get("to_name", "")))
    value = result["value"]
    labels = [value["selected"]] if "selected" in value else value["choices"]
    if len(labels) != 1:
        raise ValueError(f"one choice was expected, found {labels}")
    winner = which(labels[0], names)
    if winner is None:
        return "tie"
    who = annotation.get("completed_by")
    who = who.get("id") if isinstance(who, dict) else who
    texts = (text_of(data[names[0]], names[0]), text_of(data[names[1]], names[1]))
    judge, at = f"label-studio:{'unknown' if who is None else who}", annotation.get("created_at")
    return pair(prompt_messages(data), texts, judge, f"label {labels[0]}", winner=winner, at=at)


def _compared(data: dict[str, Any], to_name: str) -> list[str]:
    """The two columns that were shown left and right: those the result names, else the two that look like answers."""
    named = [name for name in to_name.split(",") if name in data]
    names = named if len(named) == 2 else [name for name in data if ANSWER.fullmatch(name)]
    if len(names) != 2:
        raise ValueError(f"data: cannot tell which two columns were compared, among {list(data)}")
    return names
