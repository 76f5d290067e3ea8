"""Preference rows as data sets hold them: which format a row is in, and which outcomes it gives.

Most formats are one of four kinds, and an entry in a table says the rest: two sides named chosen and rejected; two
answers and a label; a list of answers with scores or ranks; one rated answer a row.

Where the prompt is implicit, conversations are cut at the message at which they part. Texts are cut after the last
mark of an assistant's turn that they share, such as `Answer:`, else between two words; the space there goes to the
answers. TRL's `extract_prompt` cuts at the character, also inside a word.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_kit.preferences.importers.columns import (
    CHATS,
    NAMES,
    TIES,
    Fields,
    Format,
    NoPair,
    Outcome,
    Unpaired,
    answers_of,
    column,
    content_of,
    empty,
    is_chat,
    meant_by,
    messages_of,
    named,
    number,
    pair,
    plain_name,
    prompt_of,
    response,
    text_of,
    transcript,
)
from dpo_kit.preferences.importers.reprs import structure_in
from dpo_kit.records import Message, PreferencePair, Prompt, Verdict

MOST_PAIRS = 100  # from one prompt, when every good answer meets every bad one
ANSWERS_NOW = re.compile(
    r"(?:(?:^|\n)\s*(?:#+ *)?(?:answer|assistant|response|output|bot|ai|gpt|chatgpt|a|agent|model)(?: *:|\n)"
    r"|<\|(?:im_start|start_header_id)\|>assistant(?:<\|end_header_id\|>)?\n*|<\|assistant\|>\n?|\[/INST\]"
    r"|<start_of_turn>model\n)",
    re.I,
)
Judged = tuple[int | None, str, float | None]
"""Of two answers the index of the better one and why, or None and why there is none, such as "tie"; a strength."""


def pair_up(answers: Iterable[Unpaired]) -> list[PreferencePair | NoPair]:
    """Pair every answer with every worse one to the same prompt.

    Where these were more than `MOST_PAIRS`, the prompt's answers are paired in turn instead, each used at least once
    where there are two ratings: a prompt with thousands of answers would otherwise outweigh all others.
    """
    groups: dict[str, tuple[Prompt, list[Unpaired]]] = {}
    for answer in answers:
        groups.setdefault(answer.prompt.id, (answer.prompt, []))[1].append(answer)
    outcomes: list[PreferencePair | NoPair] = []
    for prompt, rated in groups.values():
        found = [(a, b) for a, b in itertools.product(rated, rated) if a.score > b.score] if len(rated) < 1000 else None
        if found == [] or len({a.score for a in rated}) < 2:
            binary = rated[0].score in (0, 1) and rated[0].judge != "rating"
            other = ("bad" if rated[0].score else "good") if binary else "differently rated"
            outcomes += [NoPair(prompt, f"no {other} answer to the same prompt")] * len(rated)
            continue
        if found is None or len(found) > MOST_PAIRS:
            highest = max(answer.score for answer in rated)
            good, bad = ([a for a in rated if (a.score == highest) == top] for top in (True, False))
            found = [(good[i % len(good)], bad[i % len(bad)]) for i in range(max(len(good), len(bad)))]
        for one, other in found:
            scores = (one.score, other.score) if one.judge == "rating" else None
            reason = f"rated {one.score:g} against {other.score:g}" if scores else ""
            verdict = Verdict(winner="a", judge=one.judge, reason=reason)
            outcomes.append(
                PreferencePair(prompt=prompt, chosen=one.answer, rejected=other.answer, verdict=verdict, scores=scores)
            )
    return outcomes


# Two sides: chosen and rejected.


def _sides(judge: str) -> Callable[[Fields], list[Outcome]]:
    def read(row: Fields) -> list[Outcome]:
        chosen, rejected = column(row, "chosen"), column(row, "rejected")
        if isinstance(chosen, str) and isinstance(rejected, str) and not _asks(row):
            return [_implicit(row, chosen, rejected, judge)]
        good, bad = answers_of(chosen, row, "chosen"), answers_of(rejected, row, "rejected")
        if len(good) * len(bad) > 1:
            row.remarks.append("several answers on a side: each chosen one is paired with each rejected one")
        if len(good) * len(bad) > MOST_PAIRS:
            raise ValueError(f"{len(good)} chosen and {len(bad)} rejected answers make more than {MOST_PAIRS} pairs")
        return [_scored_pair(row, *parted(row, one, other), judge) for one, other in itertools.product(good, bad)]

    return read


def _transcripts(row: Fields) -> list[Outcome]:
    """Anthropic's HH: each side is one text of Human and Assistant turns."""
    before = row.get("prompt") or ""  # some copies of HH keep the shared part in a column of its own
    sides = [transcript(before + text_of(column(row, side), side)) for side in ("chosen", "rejected")]
    return [_scored_pair(row, *_cut(row, *sides), "hh")]


def parted(row: Fields, a: list[Message], b: list[Message]) -> tuple[Prompt, tuple[list[Message], list[Message]]]:
    """The prompt and the two answers of a row whose sides are answers, or conversations that begin alike."""
    if a[0].role == b[0].role == "assistant":
        return prompt_of(row), (a, b)
    if not _asks(row):
        return _cut(row, a, b)
    asked = column(row, "prompt")
    prompt, sides = _cut(row, a, b)
    if isinstance(asked, str):
        if asked.strip() not in (message.content.strip() for message in prompt.messages):
            raise ValueError("prompt: not the text that the conversations begin with")
        return prompt, sides
    given, shared = prompt_of(row), list(prompt.messages)
    said = [message for message in given.messages if message.role not in ("system", "developer")]
    turns = [message for message in shared if message.role not in ("system", "developer")]
    lead = shared[: len(shared) - len(turns)] or list(given.messages[: len(given.messages) - len(said)])
    if turns[: len(said)] != said and said[-len(turns) :] != turns:
        raise ValueError("prompt: not what the conversations begin with")
    return Prompt.of([*lead, *(turns if len(turns) > len(said) else said)], tools=given.tools), sides


def _cut(row: Fields, a: list[Message], b: list[Message]) -> tuple[Prompt, tuple[list[Message], list[Message]]]:
    """What two conversations share from the start is the prompt, and the rest is their answers."""
    shared = _common(a[:-1], b[:-1])
    if shared == 0 or {a[shared].role, b[shared].role} != {"assistant"}:
        raise ValueError("chosen and rejected must begin alike and part at an assistant's turn")
    return named(row, a[:shared]), (a[shared:], b[shared:])


def _implicit(row: Fields, chosen: str, rejected: str, judge: str) -> Outcome:
    shared = _border(chosen, rejected)
    if shared < 1:
        raise ValueError("there is no prompt, and chosen and rejected begin differently")
    row.remarks.append("the prompt is what chosen and rejected share from the start")
    prompt = prompt_of(row, chosen[:shared])
    return _scored_pair(row, prompt, (chosen[shared:], rejected[shared:]), judge)


def _border(a: str, b: str) -> int:
    """Where the prompt ends that two texts share: after the last mark of an assistant's turn, else between words."""
    shared = _common(a, b)
    marks = [mark.end() for mark in ANSWERS_NOW.finditer(a[:shared])]
    if marks:
        return marks[-1]
    while shared and any(len(t) > shared and _in_word(t[shared - 1]) and _in_word(t[shared]) for t in (a, b)):
        shared -= 1
    return shared - (shared > 0 and a[shared - 1] == " ")  # the space belongs to the answer


def _in_word(letter: str) -> bool:
    """Whether a letter belongs to a script that puts spaces between words."""
    return (letter.isalnum() or letter in "_'’") and not "\u2e80" <= letter <= "\uffef"


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences have in common from the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _asks(row: Fields) -> bool:
    """Whether a row has a prompt of its own."""
    return column(row, "prompt") is not None or any(is_chat(dict.get(row, name)) for name in CHATS)


def _scored_pair(row: Fields, prompt: Prompt, answers: Sequence[Any], judge: str) -> Outcome:
    scores = [number(column(row, f"score_{side}")) for side in ("chosen", "rejected")]
    if str(dict.get(row, "status")).lower() in TIES:
        return NoPair(prompt, "tie")
    if None not in scores and scores[0] == scores[1]:
        return NoPair(prompt, "tie")  # who is called chosen is then an accident, whatever the columns say
    arms = (column(row, "model_chosen"), column(row, "model_rejected"))
    reason = "" if None in scores else f"scores {scores[0]:g} against {scores[1]:g}"
    return pair(row, prompt, answers, judge, reason, arms=arms, scores=scores)


# Two answers and a label.


@dataclass(frozen=True)
class Two:
    """A format of two answers and what says which is better: the answers' columns, the label's, how it is read.

    `more` are other columns that must be there, and `asked` is the prompt's column where it has no usual name.
    """

    answers: Sequence[tuple[str, str]]
    labels: Sequence[str]
    rule: Callable[[Fields, tuple[str, str], str], Judged]
    more: Sequence[str] = ()
    asked: str | None = None

    def missing(self, row: Fields) -> str | None:
        """What a row lacks of the answers, a label, and the other columns that tell this format from others."""
        names = next((names for names in self.answers if set(names) <= row.keys()), None)
        if names is None:
            return f"no column {next((name for name in self.answers[0] if name not in row), self.answers[0][0])}"
        if not any(name in row for name in self.labels):
            return f"no column {' or '.join(self.labels)}"
        return next((f"no column {name}" for name in self.more if name not in row), None)

    def format(self, name: str) -> Format:
        """The entry of `FORMATS`; `name` is the judge where the row names none."""

        def read(row: Fields) -> list[Outcome]:
            names = next(names for names in self.answers if set(names) <= row.keys())
            if self.asked:
                row.rename(self.asked, "prompt")
            there = [n for n in self.labels if n in row]
            label = next((n for n in there if not empty(dict.get(row, n))), there[0])
            return [two_answers(row, names, name, self.rule(row, names, label))]

        return Format(self.missing, read)


def two_answers(row: Fields, names: tuple[str, str], judge: str, judged: Judged) -> Outcome:
    """What a judgement of two answers gives. Answers may be texts, messages, or one text for each of the user's."""
    values = [row[name] for name in names]
    if all(isinstance(value, list) and value and all(isinstance(t, str) for t in value) for value in values):
        prompt, sides = _in_turns(row, *values)
    else:
        sides = [answers_of(value, row, name)[0] for value, name in zip(values, names, strict=True)]
        prompt, sides = parted(row, *sides)
    winner, why, strength = judged
    if winner is None:
        return NoPair(prompt, why)
    suffixes = [name.rsplit("_")[-1] for name in names]
    arms = [next((row[f"{w}_{s}"] for w in ("generator", "model") if f"{w}_{s}" in row), None) for s in suffixes]
    stated = dict.get(row, "annotator")
    judge = row["annotator"] if isinstance(stated, str) and stated else judge
    scores = [number(row[f"score_{s}"]) if f"score_{s}" in row else None for s in suffixes]
    return pair(row, prompt, sides, judge, why, winner=winner, arms=arms, strength=strength, scores=scores)


def _in_turns(row: Fields, a: list[str], b: list[str]) -> tuple[Prompt, list[list[Message]]]:
    """A dialogue as one list of the user's texts and a list of each model's answers to them."""
    asked = row.get("prompt")
    asked = structure_in(asked) if isinstance(asked, str) and asked.startswith("[") else asked
    asked = [asked] if isinstance(asked, str) else asked
    if not (isinstance(asked, list) and len(asked) == len(a) == len(b)):
        raise ValueError("prompt: one text for each answer was expected")

    def side(said: list[str]) -> list[Message]:
        turns = zip(itertools.cycle(("user", "assistant")), itertools.chain(*zip(asked, said, strict=True)))
        return [Message(role=role, content=text_of(text, "turn")) for role, text in turns][1:]

    return named(row, [Message(role="user", content=text_of(asked[0], "prompt"))]), [side(a), side(b)]


def _by_number(row: Fields, names: tuple[str, str], label: str) -> Judged:
    """PKU-SafeRLHF: the label is the number in the answer's name."""
    value, said = row.label(label)
    if said:
        return _declared(value, names)
    found = number(value)
    if found is None:
        return None, "not annotated", None
    row.labels.append((label, names, found))
    if found not in (0, 1):
        raise ValueError(
            f"{label}: 0 or 1 was expected, found {found:g}; declare it with --map {label}.{found:g}=first"
        )
    return int(found), f"{label} {found:g}", None


def _signed(row: Fields, names: tuple[str, str], label: str) -> Judged:
    """HelpSteer: from -3 (the first answer is much better) to 3 (the second)."""
    value, said = row.label(label)
    if said:
        return _declared(value, names)
    found = number(value)
    if found is None or abs(found) > 10:  # HelpSteer 2 writes -100 where the annotators gave no preference
        return None, "not annotated", None
    row.labels.append((label, names, found))
    if abs(found) > 3:
        raise ValueError(f"{label}: between -3 and 3 was expected, found {found:g}")
    return (None, "tie", None) if found == 0 else (int(found > 0), f"{label} {found:g}", abs(found))


def _one_or_two(row: Fields, names: tuple[str, str], label: str) -> Judged:
    """LLMBar and AlpacaEval: from 1 (the first answer is better) to 2 (the second); a draw is 1.5, or 0."""
    value, said = row.label(label)
    if said or (isinstance(value, str) and not re.fullmatch(r"\s*[\d.]+\s*", value)):
        return _declared(value, names)
    found = number(value)
    if found is None:
        return None, "not annotated", None
    row.labels.append((label, names, found))
    if found == 1.5 or (found == 0 and label == "preference"):  # no label of LLMBar is 0
        return None, "tie", None
    if not 1 <= found <= 2:
        raise ValueError(
            f"{label}: between 1 ({names[0]} is better) and 2 ({names[1]}) was expected, found {found:g}; declare what "
            f"it means with --map {label}.{found:g}=first"
        )
    return int(found > 1.5), f"label {value}", None


def _stanford(row: Fields, names: tuple[str, str], label: str) -> Judged:
    """SHP: 1 where A is preferred and 0 where B is; without a label the votes decide."""
    value, said = row.label("labels") if "labels" in row else (None, False)
    if said:
        return _declared(value, names)
    found, scores = number(value), [number(row.get(f"score_{side}")) for side in "ab"]
    if found not in (None, 0, 1):
        raise ValueError(f"labels: 1 (A is preferred) or 0 (B) was expected, found {found:g}")
    if found is None:
        return _by_scores(row, names, "score_a")
    winner = int(found == 0)
    reason = "" if None in scores else f"scores {scores[winner]:g} against {scores[1 - winner]:g}"
    return winner, reason, None


def _by_scores(row: Fields, names: tuple[str, str], label: str) -> Judged:
    """WebGPT's comparisons: each answer has a score, and the higher one is preferred."""
    scores = [number(row.get(f"score_{name[-1]}")) for name in names]
    if None in scores:
        return None, "not annotated", None
    winner = int(scores[0] < scores[1])
    reason = f"scores {scores[winner]:g} against {scores[1 - winner]:g}"
    return (None, "tie", None) if scores[0] == scores[1] else (winner, reason, None)


def _one_hot(row: Fields, names: tuple[str, str], label: str) -> Judged:
    """The LMSYS competition: three columns, of which one is 1; answers are lists of turns, written as text."""
    row.update({n: structure_in(row[n]) for n in names if isinstance(row[n], str) and row[n].startswith("[")})
    flags = [number(row.get(name)) for name in ("winner_model_a", "winner_model_b", "winner_tie")]
    if sorted(flag or 0 for flag in flags) != [0, 0, 1]:
        raise ValueError("winner_model_a, winner_model_b, winner_tie: exactly one must be 1")
    winner = flags.index(1)
    return (None, "tie", None) if winner == 2 else (winner, f"winner model_{'ab'[winner]}", None)


def _named(row: Fields, names: tuple[str, str], label: str) -> Judged:
    """A label that names the better answer: its column, its letter, its model, or the answer itself."""
    value, said = row.label(label)
    if empty(value):
        return None, "not annotated", None
    if isinstance(value, str) and not said:
        holders = [[n, f"model_{n.rsplit('_')[-1]}", f"generator_{n.rsplit('_')[-1]}"] for n in names]
        exact = [any(dict.get(row, n) == value for n in holder) for holder in holders]
        if exact.count(True) == 1:
            return exact.index(True), f"{label} {value[:40]}", None
        if order := re.fullmatch(r"\W*([abAB12])\W*?([<>=]+|>>|<<)\W*([abAB12])\W*", value):
            first = order[1].lower() in "a1"
            return (
                (None, "tie", None) if "=" in order[2] else (int((">" in order[2]) != first), f"{label} {value}", None)
            )
    if not said and re.fullmatch(r"-?\d+(?:\.\d+)?|true|false", str(value).strip().lower()):
        found = number(value)
        row.labels.append((label, names, found))
        if {name[-1] for name in names} == {"0", "1"}:
            return _by_number(row, names, label)
        if found in (1, 2):
            return int(found) - 1, f"{label} {found:g}", None
        if found == 0:
            return None, "tie", None
        raise ValueError(
            f"{label}: the value {found:g} does not say which answer is better; declare it, such as "
            f"--map {label}.{found:g}=first"
        )
    return _declared(value, names, label)


def _declared(value: Any, names: tuple[str, str], label: str = "label") -> Judged:
    winner = meant_by(text_of(value, label), names)
    return (None, "tie", None) if winner is None else (winner, f"label {value}", None)


def ambiguous(labels: Iterable[tuple[str, tuple[str, ...], float]], alpaca_eval: bool) -> str | None:
    """Why the values of a label column could mean two things, if so; only a whole file can tell.

    0 and 1 may number the answers, or say whether the first is better; 1 and 2 number them. With 0, 1 and 2 only
    AlpacaEval's own columns tell that 0 is a draw.
    """
    by_column: dict[tuple[str, tuple[str, ...]], set[float]] = {}
    for label, names, value in labels:
        by_column.setdefault((label, names), set()).add(value)
    for (label, names), values in by_column.items():
        numbered = {name[-1] for name in names}
        if label in SIGNED:
            clear = not values <= {0, 1} and all(abs(value) <= 3 for value in values)
        elif numbered == {"0", "1"}:
            clear = values <= {0, 1}
        else:
            whole = all(value.is_integer() for value in values)
            clear = not whole or values == {1, 2} or (values == {0, 1, 2} and alpaca_eval)
            clear = clear or (len(values) == 1 and values <= {1, 2} and numbered == {"1", "2"})
        if not clear:
            said = " and ".join(f"{value:g}" for value in sorted(values))
            words = zip(sorted(values), ("first", "second", "tie"), strict=False)
            return (
                f"column {label} holds {said}, which does not say whether {names[0]} or {names[1]} is better; "
                f"declare it, for instance --map {' '.join(f'{label}.{value:g}={word}' for value, word in words)}"
            )
    return None


# A list of answers with scores or ranks.

LISTS = ("completions", "answers", "responses", "generations", "candidates", "outputs")
SCORES = ("overall_score", "score", "rating", "overall_rating", "fine_grained_score", "reward", "preference_label")
SCORE_LISTS = ("ratings", "scores", "rating", "rewards", "ranks")
TEXTS = ("response", "answer", "text", "content", "completion", "output", "generation", "message", "value", "parts")
PREFERRED = {"preferred": 1.0, "chosen": 1.0, "non-preferred": 0.0, "non_preferred": 0.0, "rejected": 0.0}


def _candidates(row: Fields) -> list[Outcome]:
    """UltraFeedback's completions, Nectar's ranks, Nova's candidates, Gemini's completions, distilabel's lists."""
    last = (dict.get(row, "messages") or [None])[-1]
    if isinstance(last, dict) and "candidates" in last:
        turns, name, found = row["messages"][:-1], "messages.candidates", last["candidates"]
        prompt = named(row, messages_of(turns, row))
    else:
        name = _listed(row)
        prompt, found = prompt_of(row), row[name]
    rated = []
    scores = next((row[n] for n in SCORE_LISTS if isinstance(dict.get(row, n), list)), None)
    for i, item in enumerate(found):
        if isinstance(item, dict):
            entry = Fields(item, within=f"{row.within}{name}.")
            row.inner.append(entry)
            answer, score = _answer_in(entry, row), _score_in(entry)
            score = number(scores[i]) if score is None and scores and len(scores) == len(found) else score
        else:
            answer, score = [Message(role="assistant", content=text_of(item, name))], number(scores[i])
        rated.append((score, answer, entry.first(("model", "model_name")) if isinstance(item, dict) else None))
    if scores is not None and len(scores) != len(found):
        raise ValueError(f"{len(found)} {name} and {len(scores)} scores")
    known = [item for item in rated if item[0] is not None]
    if len(known) < 2:
        return [NoPair(prompt, "not annotated")]
    worst, best = min(known, key=lambda item: item[0]), max(known, key=lambda item: item[0])
    if best[0] == worst[0]:
        return [NoPair(prompt, "tie")]
    if len(rated) > 2:
        row.remarks.append("of more than two answers, the best and the worst make the pair")
    ranks = "rank" in name or all(score <= 0 for score, *_ in known)
    reason = f"ranks {-best[0]:g} and {-worst[0]:g}" if ranks else f"scores {best[0]:g} against {worst[0]:g}"
    arms = (best[2], worst[2])
    return [pair(row, prompt, (best[1], worst[1]), name, reason, arms=arms, scores=(best[0], worst[0]))]


def _answer_in(entry: Fields, row: Fields) -> list[Message]:
    value = entry.first(TEXTS)
    if isinstance(value, dict) or (isinstance(value, list) and value and "role" in value[0]):
        return messages_of(value, row, "answer")
    return [Message(role="assistant", content=content_of("" if value is None else value, "answer"))]


def _score_in(entry: Fields) -> float | None:
    """The score of one listed answer, higher for a better one; ranks count down from 0."""
    stated = entry.first(SCORES)
    if isinstance(stated, str) and stated.lower() in PREFERRED:
        return PREFERRED[stated.lower()]
    if stated is not None:
        return number(stated)
    if not empty(dict.get(entry, "rank")):
        return -number(entry["rank"])
    notes = dict.get(entry, "annotations")
    ratings = [n.get("Rating", n.get("rating")) for n in notes.values() if isinstance(n, dict)] if notes else []
    found = [number(rating) for rating in ratings if re.fullmatch(r"[\d.]+", str(rating))]
    if not found:
        return None
    entry.used.add("annotations")
    return sum(found) / len(found)


def _listed(row: Fields) -> str | None:
    """The column that holds a list of answers, if there is one."""
    return next((name for name in LISTS if isinstance(dict.get(row, name), list) and dict.get(row, name)), None)


def _candidates_missing(row: Fields) -> str | None:
    if column(row, "chosen") is not None and column(row, "rejected") is not None:
        return "chosen and rejected are there"
    last = dict.get(row, "messages")
    if isinstance(last, list) and last and isinstance(last[-1], dict) and "candidates" in last[-1]:
        return None
    name = _listed(row)
    if name is None:
        return f"no list of answers in {', '.join(LISTS)}"
    scored = any(isinstance(dict.get(row, n), list) for n in SCORE_LISTS)
    first = dict.get(row, name)[0]
    inside = isinstance(first, dict) and {plain_name(key) for key in first} & {*SCORES, "rank", "annotations"}
    return None if scored or inside else f"the answers in {name} have no scores or ranks"


# One rated answer a row; an answer and its edit.

RATINGS = ("rating", "stars", "thumbs", "thumb", "feedback", "user_feedback", "user_rating", "liked", "helpfulness",
           "vote", "is_good", "reward", "score", "quality")  # fmt: skip
GOOD = {"good", "up", "thumbs_up", "thumbsup", "like", "liked", "positive", "yes", "👍", "desirable", "upvote", "true"}
BAD = {"bad", "down", "thumbs_down", "thumbsdown", "dislike", "disliked", "negative", "no", "👎", "undesirable",
       "downvote", "false"}  # fmt: skip
EDITED = ("edited", "edited_response", "edit", "human_edit", "correction", "corrected", "corrected_response", "revised",
          "revised_response", "edited_answer", "edited_output", "revision")  # fmt: skip
ORIGINAL = ("original", "original_response", "draft", "model_output", *NAMES["completion"])


def _unpaired(row: Fields) -> list[Outcome]:
    """KTO's rows: the label says whether the answer is good."""
    return _rated(row, "label" if "label" in row else next(n for n in NAMES["label"] if n in row), "kto")


def _feedback(row: Fields) -> list[Outcome]:
    """Thumbs and stars: the higher rating is the better one."""
    return _rated(row, next(name for name in RATINGS if name in row), "rating")


def _rated(row: Fields, name: str, judge: str) -> list[Outcome]:
    prompt, (label, _) = prompt_of(row), row.label(name)
    (answer,) = answers_of(column(row, "completion"), row, "completion")
    if empty(label):
        return [NoPair(prompt, "not annotated")]
    word = re.sub(r"[\s-]+", "_", str(label).strip().lower())
    score = float(word in GOOD) if word in GOOD | BAD else number(label)
    if judge == "kto" and score not in (0, 1):
        hint = f"--map {name}.{score:g}=good"
        raise ValueError(f"label: true or false was expected, found {score:g}; say what it means, such as {hint}")
    model = row.first(("model", "model_name", "generator"))
    return [Unpaired(prompt, response(row, prompt, answer, model), score, "kto" if word in GOOD | BAD else judge)]


def _edit(row: Fields) -> list[Outcome]:
    """A log of answers and what people made of them: the edited answer is preferred to the original one."""
    prompt, edited, original = prompt_of(row), row.first(EDITED), row.first(ORIGINAL)
    if empty(edited) or edited == original:
        return [NoPair(prompt, "not edited")]
    return [pair(row, prompt, (text_of(edited, "edit"), text_of(original, "original")), "edit")]


# Which format a row is in.


def _needs(*names: str) -> Callable[[Fields], str | None]:
    """What a row lacks of these columns, by their exact names."""
    return lambda row: next((f"no column {name}" for name in names if name not in row), None)


def _needs_sides(holds: Callable[[Any], bool], what: str, *more: str) -> Callable[[Fields], str | None]:
    """What a row lacks to have a chosen and a rejected side of one kind, and `more` columns, by any usual name."""

    def missing(row: Fields) -> str | None:
        sides = [column(row, side) for side in ("chosen", "rejected")]
        if any(side is None for side in sides):
            return "no columns chosen and rejected"
        if not all(holds(side) for side in sides):
            return f"chosen and rejected are not {what}"
        return next((f"no column {name}" for name in more if column(row, name) is None), None)

    return missing


def _needs_one(*groups: Sequence[str]) -> Callable[[Fields], str | None]:
    """What a row lacks to have one column of each group."""
    return lambda row: next((f"no column {names[0]}" for names in groups if not set(names) & row.keys()), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_side(value: Any) -> bool:
    return isinstance(value, str | list | dict)


def _transcripts_missing(row: Fields) -> str | None:
    if missing := _needs_sides(_is_text, "texts")(row):
        return missing
    starts = [row.get("prompt") or column(row, side) for side in ("chosen", "rejected")]
    begin = all(_is_text(text) and text.startswith(("\n\nHuman:", "Human:")) for text in starts)
    return None if begin else "the texts do not begin with a Human turn"


def _two_named(row: Fields) -> tuple[str, str] | None:
    """The two columns that hold answers, by their names; None where there are none, or more than two."""
    stems = "response|answer|completion|output|option|generation|text|reply|candidate|summary|solution|conversation"
    for suffixes in ("ab", "12", "01"):
        for stem in (*stems.split("|"), "model_output", "assistant", "model_response"):
            for bar in ("_", ""):
                names = [f"{stem}{bar}{suffix}" for suffix in suffixes]
                third = f"{stem}{bar}{ {'b': 'c', '2': '3', '1': '2'}[suffixes[1]] }"
                if set(names) <= row.keys() and third not in row:
                    return names[0], names[1]
    return ("a", "b") if {"a", "b"} <= row.keys() else None


CHOICES = ("preference", "preferred", "winner", "label", "choice", "better", "better_response", "preferred_response",
           "chosen", "selected", "verdict", "vote", "judgement", "judgment", "human_preference", "best",
           "best_response", "preferred_answer", "decision", "overall_preference")  # fmt: skip
SIGNED = ("overall_preference", "preference_strength")


def _any_two_missing(row: Fields) -> str | None:
    if _two_named(row) is None:
        return "no two columns such as response_a and response_b"
    return _needs_one(CHOICES)(row)


def _any_two(row: Fields) -> list[Outcome]:
    names = _two_named(row)
    label = next((n for n in CHOICES if not empty(dict.get(row, n))), next(n for n in CHOICES if n in row))
    return [two_answers(row, names, "comparison", _named(row, names, label))]


def _ours(row: Fields) -> list[Outcome]:
    return [PreferencePair.from_json({row.written[name]: row[name] for name in row})]


OURS = ("prompt_id", "verdict", "chosen_made", "rejected_made", "facts")
ROWS = {
    "dpo-kit": Format(_needs(*OURS[:4]), _ours),
    "lmsys": Two([("response_a", "response_b")], ("winner_model_a",), _one_hot, ("winner_model_b",)).format("lmsys"),
    "arena": Two([("conversation_a", "conversation_b")], ("winner",), _named).format("arena"),
    "shp": Two(
        [("human_ref_a", "human_ref_b")], ("labels", "score_a", "history"), _stanford, ("history",), "history"
    ).format("shp"),
    "saferlhf": Two([("response_0", "response_1")], ("better_response_id",), _by_number).format("saferlhf"),
    "helpsteer": Two([("response_1", "response_2"), ("response1", "response2")], SIGNED, _signed).format("helpsteer"),
    "webgpt": Two([("answer_0", "answer_1")], ("score_0",), _by_scores, ("score_1",)).format("webgpt"),
    "comparison": Two([("output_1", "output_2")], ("preference", "label"), _one_or_two).format("comparison"),
    "candidates": Format(_candidates_missing, _candidates),
    "edits": Format(_needs_one(EDITED, ORIGINAL, (*NAMES["prompt"], *CHATS)), _edit),
    "ultrafeedback": Format(_needs_sides(is_chat, "chat messages", "score_chosen"), _sides("ultrafeedback")),
    "trl-conversational": Format(_needs_sides(is_chat, "chat messages"), _sides("trl-conversational")),
    "hh": Format(_transcripts_missing, _transcripts),
    "trl-standard": Format(_needs_sides(_is_side, "texts"), _sides("trl-standard")),
    "two-answers": Format(_any_two_missing, _any_two),
    "kto": Format(_needs_one((*NAMES["prompt"], *CHATS), NAMES["completion"], NAMES["label"]), _unpaired),
    "rated": Format(_needs_one((*NAMES["prompt"], *CHATS), NAMES["completion"], RATINGS), _feedback),
}
