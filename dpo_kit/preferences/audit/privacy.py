"""Personal data and secrets, found by their shape, and masked wherever a report would show them.

A pattern finds what looks like an address or a key. It does not find what else ties a text to a person, such as names
and stories. Numbers that carry a check digit must satisfy it, so an order number is rarely taken for a bank card.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address

from dpo_kit.records import PreferencePair

SECRET_KINDS = ("private key", "API key", "IBAN", "card number")


def luhn(number: str) -> bool:
    """Whether the digits satisfy the check of bank cards (ISO/IEC 7812-1), and are not one digit repeated."""
    digits = [int(c) for c in number if c.isdigit()]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether the text satisfies the check of bank accounts (ISO 13616: the rearranged number is 1 modulo 97)."""
    compact = re.sub(r"\s", "", text)
    return 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def public_address(text: str) -> bool:
    """Whether it is an IPv4 address that is reachable from outside: private, loopback and version-like ones are not."""
    try:
        return ip_address(text).is_global
    except ValueError:
        return False


# Where none of these stands in a text, the patterns of its kinds need not be tried. Most texts end here.
MARKS = ("@", "-----BEGIN", "sk-", "AKIA", "ghp_", "gho_", "ghs_", "github_pat_", "xox", "AIza", "hf_", "glpat-", "eyJ")
LONG_NUMBER = re.compile(r"[0-9][0-9 ().-]{6}")
# By kind: its pattern, and what else must hold of a match (`bool` holds of every text that is not empty).
SHAPES: dict[str, tuple[re.Pattern, Callable[[str], bool]]] = {
    "private key": (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"), bool,
    ),
    "API key": (
        re.compile(
            r"\b(?:sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|gh[pos]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|xox[abeoprs]-[\w-]{10,}"
            r"|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,}|glpat-[\w-]{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
        ),
        bool,
    ),
    "e-mail": (re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})*\.[A-Za-z]{2,24}\b"), bool),
    "IBAN": (re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), iban),
    "card number": (re.compile(r"(?<![\w.-])[0-9](?:[ -]?[0-9]){12,18}(?![\w-])"), luhn),
    "IPv4 address": (re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])"), public_address),
    "phone number": (
        re.compile(
            r"(?<![\w+.-])(?:\+[1-9][0-9]{0,2}[ .-]?(?:\(?[0-9]{1,4}\)?[ .-]?){2,5}[0-9]{2,4}"
            r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[0-9]{3}[ .-][0-9]{4})(?![\w-])"
        ),
        bool,
    ),
}  # fmt: skip
NUMERIC = ("IBAN", "card number", "IPv4 address", "phone number")


def find(text: str) -> Iterator[tuple[str, re.Match]]:
    """Each thing found, with its kind. Overlaps are possible."""
    numeric = LONG_NUMBER.search(text) is not None
    marked = any(mark in text for mark in MARKS)
    for kind, (shape, valid) in SHAPES.items():
        if numeric if kind in NUMERIC else marked:
            yield from ((kind, match) for match in shape.finditer(text) if valid(match[0]))


def mask(text: str) -> str:
    """The text with each thing found replaced by its kind in brackets."""
    for kind, (shape, valid) in SHAPES.items():
        text = shape.sub(lambda match, kind=kind, valid=valid: f"[{kind}]" if valid(match[0]) else match[0], text)
    return text


def scan(pairs: Sequence[PreferencePair]) -> tuple[dict[int, str], dict[int, str]]:
    """Rows with secrets and rows with personal data, each with the kinds that were found and where."""
    secrets: dict[int, str] = {}
    personal: dict[int, str] = {}
    for row, pair in enumerate(pairs):
        prompt = "\n".join(message.text for message in pair.prompt.messages)
        found: dict[str, list[str]] = {}
        for where, text in (("prompt", prompt), ("chosen", pair.chosen.text), ("rejected", pair.rejected.text)):
            for kind in dict.fromkeys(kind for kind, _ in find(text)):
                found.setdefault(kind, []).append(where)
        for kinds, flagged in ((SECRET_KINDS, secrets), (SHAPES.keys() - set(SECRET_KINDS), personal)):
            if here := [f"{kind} in {' and '.join(found[kind])}" for kind in found if kind in kinds]:
                flagged[row] = ", ".join(here)
    return secrets, personal
