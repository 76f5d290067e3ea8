"""Rows that repeat each other, and prompts that the evaluation will ask: exactly by hash, nearly by MinHash.

Two rows are near-duplicates when
- their numbers are the same in the prompt and in each answer (digits inside a word count): "users 31%" and "users 33%"
  are two incidents, however alike the rest;
- the sets of three consecutive words of prompt and answers together overlap by `NEAR` (Jaccard, computed exactly);
- each of prompt, chosen and rejected shares half of its words with its counterpart, so that two pairs of answers to
  one long prompt are not taken for one.
Case, punctuation and white space do not count. MinHash (Broder 1997) with banding only proposes candidates; of two rows
with a Jaccard overlap of .7 it proposes 99%, at .75 99.9%.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import count

import numpy as np
from rensa import RMinHash

from dpo_kit.records import PreferencePair, Prompt

NEAR, PART = 0.7, 0.5
BANDS, ROWS = 25, 5  # a candidate with Jaccard j is proposed with probability 1 - (1 - j^ROWS)^BANDS
BATCH = 500
CROWD = 50  # of the texts with one and the same band, how many earlier ones each is compared with
WORD, NUMBER = re.compile(r"\w+"), re.compile(r"[0-9]+")
MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd constant with well-spread bits; products wrap around
Key = tuple[bytes, bytes, bytes]
Parts = tuple[str, ...]


def canonical(text: str) -> bytes:
    """A digest (16 bytes) of the text that is the same for another case, white space or Unicode form."""
    # NFKC: a letter with its accent, the two as separate characters, and a full-width letter look alike to a reader.
    same = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return blake2b(same.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def chat_text(prompt: Prompt) -> str:
    """The whole prompt as one text, roles included."""
    return "\n".join(f"{message.role}: {message.text}" for message in prompt.messages)


def keys(pairs: Sequence[PreferencePair]) -> list[Key]:
    """Digests of prompt, chosen and rejected, by row."""
    return [(canonical(chat_text(p.prompt)), canonical(p.chosen.text), canonical(p.rejected.text)) for p in pairs]


def duplicates(keys: Sequence[Hashable]) -> dict[int, int]:
    """Rows that repeat an earlier one, each with the first row that it repeats."""
    first: dict[Hashable, int] = {}
    return {row: first[key] for row, key in enumerate(keys) if first.setdefault(key, row) != row}


def near_duplicates(pairs: Sequence[PreferencePair], skip: Iterable[int] = ()) -> dict[int, int]:
    """Rows that nearly repeat an earlier one that stays, each with that row; rows in `skip` are left out."""
    texts = {row: (chat_text(p.prompt), p.chosen.text, p.rejected.text) for row, p in enumerate(pairs)}
    for row in skip:
        del texts[row]
    return near(texts)


def near(texts: dict[int, Parts], among: int = 0) -> dict[int, int]:
    """Each row whose text nearly repeats an earlier row's, with that row. Of a chain of such rows the first stays.

    With `among`, rows from that number on are compared only with the rows below it.
    """
    found: dict[int, int] = {}
    for row, other in _candidates(texts, among):
        if row not in found and other not in found and _is_near(texts[row], texts[other]):
            found[row] = other
    return found


def shared_prompts(pairs: Sequence[PreferencePair], holdout: Sequence[Prompt]) -> tuple[dict[int, str], dict[int, str]]:
    """Rows whose prompt is one of the evaluation's, exactly (but for case and white space) and nearly."""
    asked = {canonical(chat_text(prompt)): prompt.id for prompt in holdout}
    own = [canonical(chat_text(pair.prompt)) for pair in pairs]
    exact = {row: f"is the evaluation's {asked[key]}" for row, key in enumerate(own) if key in asked}
    n = len(holdout)
    texts = {i: (chat_text(prompt),) for i, prompt in enumerate(holdout)}
    texts |= {n + row: (chat_text(pair.prompt),) for row, pair in enumerate(pairs) if row not in exact}
    close = {row - n: f"is close to the evaluation's {holdout[other].id}" for row, other in near(texts, n).items()}
    return exact, close


def _candidates(texts: dict[int, Parts], among: int) -> Iterator[tuple[int, int]]:
    """Pairs of rows, the later first, that have their numbers and at least one band in common."""
    rows, numbers, bands = list(texts), *_signatures(list(texts.values()))
    seen: set[tuple[int, int]] = set()
    for band in bands.T:
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, number, value in zip(rows, numbers, band.tolist(), strict=True):
            group = groups[number, value]
            seen.update((row, other) for other in group[:CROWD])
            if not among or row < among:
                group.append(row)
    return iter(sorted(pair for pair in seen if not among or pair[0] >= among))


def _signatures(texts: Sequence[Parts]) -> tuple[list[int], np.ndarray]:
    """A hash of the numbers, and the bands `(len(texts), BANDS)` of a MinHash of the word triples, by text."""
    numbers, bands = [], [np.empty((0, BANDS), np.uint64)]
    vocabulary: dict[str, int] = defaultdict(count(1).__next__)
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        numbers += [hash(tuple(map(_numbers, parts))) for parts in batch]
        hashed = [_triple_hashes(_words(" ".join(parts)) or [""], vocabulary) for parts in batch]
        ends = np.cumsum([0, *map(len, hashed)], dtype=np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(hashed), ends, BANDS * ROWS, 0)
        digests = np.array(matrix.to_rows(), np.uint64).reshape(len(batch), BANDS, ROWS)
        folded = digests[:, :, 0]
        for i in range(1, ROWS):  # the digests of one band become one number; a band is equal only where all are
            folded = folded * MIX + digests[:, :, i]
        bands.append(folded)
    return numbers, np.concatenate(bands)


def _triple_hashes(words: list[str], vocabulary: dict[str, int]) -> np.ndarray:
    ids = np.fromiter(map(vocabulary.__getitem__, words), np.uint64, len(words)) * MIX  # (words,)
    return ids if len(ids) < 3 else (ids[:-2] * MIX + ids[1:-1]) * MIX + ids[2:]


def _is_near(a: Parts, b: Parts) -> bool:
    if any(jaccard(set(_words(x)), set(_words(y))) < PART for x, y in zip(a, b, strict=True)):
        return False
    return jaccard(_triples(a), _triples(b)) >= NEAR


def _triples(parts: Parts) -> set[tuple[str, ...]]:
    words = _words(" ".join(parts))
    return set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}


def jaccard(a: set, b: set) -> float:
    """|a and b| / |a or b|; 1 for two empty sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _numbers(text: str) -> tuple[str, ...]:
    return tuple(sorted(NUMBER.findall(text)))
