"""Checks that read one row at a time: identical, blank, turns out of order, cut off, and in which language."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from dpo_kit.languages import language
from dpo_kit.records import PreferencePair, Response, role_fault
from dpo_kit.visible import is_blank

TURN_MARKER = re.compile(r"\n\nHuman:|\n\nAssistant:|<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]")
# What some model's tokenizer reads as the end of a turn or the start of one, and what nobody writes for another reason.
CONTROL = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|eom_id|system|user|assistant|end|start|turn|endoftext"
    r"|end_of_text|begin_of_text|observation|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN)\|>"
    r"|<｜(?:User|Assistant|begin▁of▁sentence|end▁of▁sentence)｜>|<(?:start|end)_of_turn>"
    r"|\[/?INST\]|<</?SYS>>|\[/?SYSTEM_PROMPT\]"
)
# What belongs to a template too, but also to plain writing: HTML, a report's headings.
FOREIGN = re.compile(r"</?s>|<(?:bos|eos)>|(?m:^### ?(?:Instruction|Response|Input|Human|Assistant|User|System):)"
                     r"|(?m:^(?:USER|ASSISTANT|SYSTEM): )")  # fmt: skip
TERMINAL = re.compile(r"[.!?…。！？](?=\s|$)")
# An English sentence does not end in one of these. (Stranded prepositions are left out: "what are you looking for".)
DANGLING = re.compile(
    r"an?|and|are|because|been|but|can|could|his|if|into|is|my|of|or|our|should|than|that's|the|their|these|they|was|"
    r"we|were|where|which|while|whose?|will|with|would|your",
    re.IGNORECASE,
)
LONG_ENOUGH = 8  # words on the last line before its lack of a full stop means anything
READ = 100  # characters of each answer from which its language is guessed
Codes = tuple[str | None, str | None]


def identical(pairs: Sequence[PreferencePair]) -> dict[int, str]:
    """Rows whose two answers are the same but for white space around them: their loss stays ln 2, their gradient 0."""
    return {i: p.chosen.text for i, p in enumerate(pairs) if p.chosen.text.strip() == p.rejected.text.strip()}


def holding(pairs: Sequence[PreferencePair], marker: re.Pattern) -> dict[int, str]:
    """Rows with a text, of any turn, that holds the marker."""
    flagged = {}
    for i, pair in enumerate(pairs):
        prompt = "\n".join(message.text for message in pair.prompt.messages)
        texts = (("prompt", prompt), ("chosen", pair.chosen.text), ("rejected", pair.rejected.text))
        hit = next(((name, at[0]) for name, text in texts if (at := marker.search(text))), None)
        if hit:
            flagged[i] = f"{hit[0]} holds {hit[1].strip()!r}"
    return flagged


def blank(pairs: Sequence[PreferencePair]) -> dict[int, str]:
    """Rows with an answer or a last user turn in which nothing can be seen."""
    empty = {i: [name for name, text in parts(pair).items() if is_blank(text)] for i, pair in enumerate(pairs)}
    return {i: f"{' and '.join(names)} blank" for i, names in empty.items() if names}


def parts(pair: PreferencePair) -> dict[str, str]:
    """The last user turn and the two answers."""
    return {"prompt": pair.prompt.text, "chosen": pair.chosen.text, "rejected": pair.rejected.text}


def wrong_roles(pairs: Sequence[PreferencePair]) -> dict[int, str]:
    """Rows whose prompt is not [system,] user, assistant, ..., user, or with a second turn inside a message."""
    faults = {i: role_fault(pair.prompt.messages) or _hidden_turn(pair) for i, pair in enumerate(pairs)}
    return {i: fault for i, fault in faults.items() if fault}


def _hidden_turn(pair: PreferencePair) -> str | None:
    found = ((name, TURN_MARKER.search(text)) for name, text in parts(pair).items())
    return next((f"{name} holds the turn marker {at[0].strip()!r}" for name, at in found if at), None)


def cut_off(pairs: Sequence[PreferencePair]) -> dict[int, str]:
    """Rows with an answer that is known to have been cut by its length limit."""
    return _sides(pairs, lambda response: response.stopped is False)


def looks_cut_off(pairs: Sequence[PreferencePair]) -> dict[int, str]:
    """Rows with an answer that seems to end in mid-sentence, where nobody recorded whether it stopped."""
    return _sides(pairs, lambda response: response.stopped is None and ends_midway(response.text))


def _sides(pairs: Sequence[PreferencePair], bad: Callable[[Response], bool]) -> dict[int, str]:
    flagged = {}
    for i, pair in enumerate(pairs):
        if sides := [name for name in ("chosen", "rejected") if bad(getattr(pair, name))]:
            flagged[i] = f"{' and '.join(sides)}: …{getattr(pair, sides[0]).text[-60:]}"
    return flagged


def ends_midway(text: str) -> bool:
    """Whether a text seems to stop in mid-sentence.

    It does with an open code fence, with a comma or a dangling word at its end, and where it ends every sentence but
    the last with a full stop. Chat that never uses full stops is left alone.
    """
    text = text.rstrip()
    if not text:
        return False
    if text.count("```") % 2 or text[-1] in ",;([{–—":
        return True
    last_line = text.rsplit("\n", 1)[-1]
    words = last_line.split()
    if not text[-1].isalpha() or len(words) < 3:
        return False
    if DANGLING.fullmatch(words[-1]):
        return True
    is_item = re.match(r"\s*(?:[-*•#>|]|\d+[.)])", last_line) is not None
    return len(words) >= LONG_ENOUGH and not is_item and len(TERMINAL.findall(text)) >= 2


def languages(pairs: Sequence[PreferencePair]) -> list[Codes]:
    """The ISO 639-1 codes of chosen and rejected by row, None where one is too short or the guess is not confident."""
    return [(language(pair.chosen.text[:READ]), language(pair.rejected.text[:READ])) for pair in pairs]


def minority(codes: Sequence[Codes]) -> tuple[dict[int, str], dict[str, int]]:
    """Rows with an answer that is not in the most frequent language, and how many answers each language has."""
    counts = Counter(code for both in codes for code in both if code)
    main = max(counts, key=counts.__getitem__, default=None)
    others = {row: sorted({code for code in both if code} - {main}) for row, both in enumerate(codes)}
    return {row: f"{' and '.join(other)}, not {main}" for row, other in others.items() if other}, dict(counts)
