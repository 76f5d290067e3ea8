"""What the two common annotation tools export: Argilla's records and Label Studio's tasks.

Neither export says what a label means, because that stands in the tool's own settings. So labels are matched to the
answers' columns by name, number, letter or side, and a label that matches none of them, or two, is an error and never
a guess. The answer of each annotator is a judgement of its own.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from dpo_kit.preferences.importers.columns import ANSWER, Format, NoPair, Outcome, meant_by, pair, prompt_of, text_of
from dpo_kit.records import Prompt

UNFINISHED = ("discarded", "draft", "pending", "missing")
PREFERENCE = re.compile(r"prefer|choice|choose|better|best|winner|rank|compar|pairwise", re.I)
REMARK = re.compile(r"reason|why|expla|comment|rationale|remark|note", re.I)


def _argilla_missing(row: dict[str, Any]) -> str | None:
    """Argilla 1.x writes feedback records; 2.x nests them otherwise, and flattens them in its datasets."""
    if isinstance(row.get("fields"), dict):
        return None if "responses" in row else "no column responses"
    return None if any(key.endswith(".responses") for key in row) else "no column fields, none that ends in .responses"


def _argilla(row: dict[str, Any]) -> list[Outcome]:
    """The pairs of a record: of a ranking all pairs with different ranks, of a label the one that it decides."""
    fields = row["fields"] if isinstance(row.get("fields"), dict) else row
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
                tied = reason == "tie"
                outcomes.append(NoPair(prompt, reason) if tied else pair(prompt, texts, f"argilla:{user}", reason))
    return outcomes or [NoPair(prompt, "not annotated")]


def _preference_questions(questions: Iterable[str]) -> set[str]:
    """The questions that ask for the preference: those whose names say so, else the only one there is."""
    asked = {question for question in questions if not REMARK.search(question)}
    by_name = {question for question in asked if PREFERENCE.search(question)}
    if not by_name and len(asked) > 1:
        raise ValueError(f"cannot tell which question asks for the preference, among {', '.join(sorted(asked))}")
    return by_name or asked


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


def _label_studio_missing(row: dict[str, Any]) -> str | None:
    if not isinstance(row.get("data"), dict):
        return "no column data"
    return None if isinstance(row.get("annotations"), list) else "no column annotations"


def _label_studio(row: dict[str, Any]) -> list[Outcome]:
    """The pairs of a task in the JSON export: from Pairwise (`selected`: left or right), else from Choices."""
    prompt, outcomes = prompt_of(row["data"]), []
    for annotation in row["annotations"]:
        results = annotation.get("result") or []
        shown = [result for result in results if result.get("type") == "pairwise"]
        shown = shown or [result for result in results if result.get("type") == "choices"]
        asked = _preference_questions({str(result.get("from_name")) for result in shown})
        if annotation.get("was_cancelled"):
            outcomes.append(NoPair(prompt, "skipped by the annotator"))
        else:
            found = [_selected(prompt, row["data"], annotation, r) for r in shown if str(r.get("from_name")) in asked]
            outcomes += found or [NoPair(prompt, "not annotated")]
    return outcomes or [NoPair(prompt, "not annotated")]


def _selected(prompt: Prompt, data: dict[str, Any], annotation: dict[str, Any], result: dict[str, Any]) -> Outcome:
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
    return pair(prompt, texts, judge, f"label {labels[0]}", winner=winner, at=at)


def _compared(data: dict[str, Any], to_name: str) -> list[str]:
    """The two columns that were shown left and right: those the result names, else the two that look like answers."""
    by_name = [name for name in to_name.split(",") if name in data]
    names = by_name if len(by_name) == 2 else [name for name in data if ANSWER.fullmatch(name)]
    if len(names) != 2:
        raise ValueError(f"data: cannot tell which two columns were compared, among {list(data)}")
    return names


EXPORTS = {
    "argilla": Format(_argilla_missing, _argilla, ("fields", "responses")),
    "label-studio": Format(_label_studio_missing, _label_studio, ("data", "annotations")),
}
