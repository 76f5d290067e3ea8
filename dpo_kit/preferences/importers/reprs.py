"""Chat messages and lists that somebody wrote as text: as JSON, or as Python, NumPy or pandas print them.

Tables hold such texts where a program saved objects in cells. Python's notation is read by `ast.literal_eval`, which
runs nothing, and only after every character outside of strings was found harmless and the depth small.
"""

import ast
import json
import re
from typing import Any

MOST_CHARACTERS = 5_000_000
DEEPEST = 60
SPEAKERS = r"user|assistant|system|developer|tool|human|gpt|function|observation|model|bot|prompter|chatgpt"
OPENS = re.compile(r"\s*(?:(?:np\.)?array\(|[\[(])*\s*\{", re.ASCII)
FIRST_KEY = re.compile(r"""\s*(?:(?:np\.)?array\(|[\[(])+\s*\{\s*["'](?:role|from|content|value)["']\s*:""")
ROLE = re.compile(rf"""["'](?:role|from)["']\s*:\s*["'](?:{SPEAKERS})["']""")
TOKEN = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<open>[\[{(])|(?P<close>[\]})])"""
    r"""|(?P<dropped>,\s*dtype=[\w.'<>]+|(?:np\.)?(?:array|str_|float\d*|int\d*|bool_?)(?=\())"""
    r"""|(?P<word>[A-Za-z_]\w*)|(?P<number>[+-]?\d[\d.]*(?:[eE][+-]?\d+)?)|(?P<space>[\s,:]+)""",
    re.DOTALL,
)
WORDS = {"True": "True", "False": "False", "None": "None", "nan": "None", "null": "None", "true": "True",
         "false": "False"}  # fmt: skip


def messages_in(text: str) -> Any:
    """The chat messages that a text holds, or the text itself where it is just a text.

    Raises ValueError for a text that begins as messages do and cannot be read: it must never pass for an answer.
    """
    if not OPENS.match(text) or not (FIRST_KEY.match(text) or ROLE.search(text)):
        return text
    try:
        value = structure_in(text)
    except ValueError as error:
        if FIRST_KEY.match(text) or text.lstrip().startswith("[{"):
            raise ValueError(f"chat messages as text, which cannot be read ({error})") from None
        return text
    turns = value if isinstance(value, list) else value.get("messages", [value]) if isinstance(value, dict) else ()
    found = [turn for turn in turns if isinstance(turn, dict) and {"role", "from"} & turn.keys()]
    return value if found and len(found) == len(turns) else text


def structure_in(text: str) -> Any:
    """The list or object that a text holds. Raises ValueError where it holds none."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"longer than {MOST_CHARACTERS} characters")
    try:
        value = json.loads(text, parse_constant=lambda name: None)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair raises ValueError
        return value
    except json.JSONDecodeError:
        pass
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    try:
        return ast.literal_eval(_separated(text))
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("neither JSON nor Python's notation; it may have been cut") from None


def _separated(text: str) -> str:
    """Python's notation with the commas that NumPy leaves out. Raises ValueError for anything but plain values."""
    parts, depth, at, ended = [], 0, 0, False
    while at < len(text):
        token = TOKEN.match(text, at)
        if token is None:
            raise ValueError(f"{text[at : at + 20]!r} is no plain value")
        kind, said, at = token.lastgroup, token.group(), token.end()
        if kind == "word" and said not in WORDS:
            raise ValueError(f"{said[:20]!r} is no plain value")
        depth += (kind == "open") - (kind == "close")
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        if kind in ("string", "number", "word", "open"):
            parts.append("," if ended else "")
        if kind == "space":
            ended = ended and not said.strip()
        elif kind != "dropped":
            ended = kind != "open"
        parts.append("" if kind == "dropped" else WORDS.get(said, said) if kind == "word" else said)
    return "".join(parts).strip()
