"""Rows that repeat each other, and prompts that the evaluation will ask: exactly by hash, nearly by MinHash.

Two rows are near-duplicates when
- their numbers are the same in the prompt and in each answer (digits inside a word count): "users 31%" and "users 33%"
  are two incidents, however alike the rest;
- the sets of three consecutive words of prompt and answers together overlap by `NEAR` (Jaccard, computed exactly);
- each of prompt, chosen and rejected shares half of its words with its counterpart, so that two pairs of answers to
  one long prompt are not taken for one;
- in each of the three, the sentences that the two rows do not have in common still agree in `NEAR` of their words, in
  their order. So what rows share word for word (a system prompt, retrieved context, examples) never makes two different
  questions near-duplicates. Nor does a template: where most words of a sentence stand in many rows, two rows that fill
  one of its places with different words are not near-duplicates.

Case, punctuation and white space do not count. The duplicates of a set are the connected components of such pairs of
rows, and of each component the row with the smallest digest stays. So neither depends on the order of the rows.
MinHash (Broder 1997) with banding only proposes candidates; of two rows with a Jaccard overlap of .7 it proposes 99%,
at .75 99.9%.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from hashlib import blake2b

import networkx as nx
import numpy as np
from rensa import RMinHash

from dpo_kit.records import PreferencePair, Prompt

NEAR, PART = 0.7, 0.5
BANDS, ROWS = 25, 5  # a candidate with Jaccard j is proposed with probability 1 - (1 - j^ROWS)^BANDS
BATCH = 500
CROWD = 30  # of the texts with one and the same band, how many earlier ones each is compared with
FEW, MANY = 8, 100  # rows from which a word triple is shared text: half of the rows, but never fewer or more than these
LEAST = 4  # triples: where fewer are not shared, MinHash takes all
WORD, NUMBER = re.compile(r"\w+"), re.compile(r"[0-9]+")
SENTENCE_END = re.compile(r"[.!?:;|\n\"“”…。！？]+|\s[-–—]+\s|</?\w+>")
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


def near_duplicates(pairs: Sequence[PreferencePair], keys: Sequence[Key], skip: Iterable[int] = ()) -> dict[int, int]:
    """Rows that nearly repeat a row that stays, each with that row; rows in `skip` are left out.

    Of each component the row stays whose key is the smallest.
    """
    left = sorted(set(range(len(pairs))) - set(skip), key=keys.__getitem__)
    texts = {row: (chat_text(pairs[row].prompt), pairs[row].chosen.text, pairs[row].rejected.text) for row in left}
    place = {row: n for n, row in enumerate(left)}
    found = {}
    for rows in nx.connected_components(nx.Graph(near(texts))):
        kept, *others = sorted(rows, key=place.__getitem__)
        found |= dict.fromkeys(others, kept)
    return found


def near(texts: dict[int, Parts], among: Collection[int] = ()) -> Iterator[tuple[int, int]]:
    """The pairs of rows whose texts nearly repeat each other, a row and an earlier one; rows come in a fixed order.

    With `among`, which come first, other rows are compared only with these.
    """
    shingles = Shingles(texts)

    @lru_cache(maxsize=20_000)
    def sentences(row: int) -> tuple[dict[str, None], ...]:
        return tuple(map(_sentences, texts[row]))

    for row, other in _candidates(shingles, among):
        sides = zip(sentences(row), sentences(other), strict=True)
        if all(_alike(a, b, shingles.is_own) for a, b in sides) and _overlap(texts[row], texts[other]):
            yield row, other


def shared_prompts(pairs: Sequence[PreferencePair], holdout: Sequence[Prompt]) -> tuple[dict[int, str], dict[int, str]]:
    """Rows whose prompt is one of the evaluation's, exactly (but for case and white space) and nearly."""
    asked = {canonical(chat_text(prompt)): prompt.id for prompt in holdout}
    own = [canonical(chat_text(pair.prompt)) for pair in pairs]
    exact = {row: f"is the evaluation's {asked[key]}" for row, key in enumerate(own) if key in asked}
    n = len(holdout)
    texts = {i: (chat_text(prompt),) for i, prompt in enumerate(holdout)}
    texts |= {n + row: (chat_text(pair.prompt),) for row, pair in enumerate(pairs) if row not in exact}
    close = {row - n: f"is close to the evaluation's {holdout[other].id}" for row, other in near(texts, range(n))}
    return exact, close


class Shingles:
    """The sequences of three words of each text, as numbers, and which of them many texts share."""

    def __init__(self, texts: dict[int, Parts]):
        self.texts, self._ids = texts, _WordIds()
        self._rows, seen = {}, np.zeros(1 << 22, np.uint32)
        for row, parts in texts.items():
            self._rows[row] = self._numbered(_words(" ".join(parts)) or [""]).astype(np.uint32)
            seen[np.unique(self._slot(_triples(self._rows[row])))] += 1
        self._shared = seen >= max(FEW, min(len(texts) // 2, MANY))

    def own(self, row: int) -> np.ndarray:
        """The triples of a text but the shared ones; all where hardly any would be left."""
        triples = _triples(self._rows[row])
        mine = triples[~self._shared[self._slot(triples)]]
        return mine if len(mine) > LEAST else triples

    def is_own(self, words: list[str]) -> list[bool]:
        """For each word of a sentence, whether no triple that it stands in is shared."""
        if len(words) < 3:
            return [True] * len(words)
        shared = self._shared[self._slot(_triples(self._numbered(words)))]  # (words - 2,)
        covered = np.convolve(shared, np.ones(3, int))  # (words,): in how many shared triples each word stands
        return (covered == 0).tolist()

    def _numbered(self, words: list[str]) -> np.ndarray:
        return np.fromiter(map(self._ids.__getitem__, words), np.uint64, len(words))

    @staticmethod
    def _slot(triples: np.ndarray) -> np.ndarray:
        return (triples >> np.uint64(42)).astype(np.int64)  # the upper 22 bits, which the products mix best


class _WordIds(dict):
    """A number of 32 bits for each word, the same in every process."""

    def __missing__(self, word: str) -> int:
        digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4).digest()
        return self.setdefault(word, int.from_bytes(digest))


def _triples(ids: np.ndarray) -> np.ndarray:
    """A hash (uint64) of each three consecutive words; of each word where there are fewer than three."""
    ids = ids.astype(np.uint64) * MIX  # (words,)
    return ids if len(ids) < 3 else ((ids[:-2] * MIX + ids[1:-1]) * MIX + ids[2:]) * MIX


def _candidates(shingles: Shingles, among: Collection[int]) -> list[tuple[int, int]]:
    """Pairs of rows, the later first, that have their numbers and at least one band in common."""
    rows, numbers, bands = list(shingles.texts), *_signatures(shingles)
    place = {row: n for n, row in enumerate(rows)}
    seen: set[tuple[int, int]] = set()
    for band in bands.T:
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, number, value in zip(rows, numbers, band.tolist(), strict=True):
            group = groups[number, value]
            if not among or row not in among:
                seen.update((row, other) for other in group[:CROWD])
            if not among or row in among:
                group.append(row)
    return sorted(seen, key=lambda pair: (place[pair[0]], place[pair[1]]))


def _signatures(shingles: Shingles) -> tuple[list[int], np.ndarray]:
    """A hash of the numbers, and the bands `(len(texts), BANDS)` of a MinHash of the word triples, by text."""
    rows, bands = list(shingles.texts), [np.empty((0, BANDS), np.uint64)]
    for start in range(0, len(rows), BATCH):
        hashed = [shingles.own(row) for row in rows[start : start + BATCH]]
        ends = np.cumsum([0, *map(len, hashed)], dtype=np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(hashed), ends, BANDS * ROWS, 0)
        digests = np.array(matrix.to_rows(), np.uint64).reshape(len(hashed), BANDS, ROWS)
        folded = digests[:, :, 0]
        for i in range(1, ROWS):  # the digests of one band become one number; a band is equal only where all are
            folded = folded * MIX + digests[:, :, i]
        bands.append(folded)
    return [hash(tuple(map(_numbers, parts))) for parts in shingles.texts.values()], np.concatenate(bands)


def _alike(a: dict[str, None], b: dict[str, None], is_own: Callable[[list[str]], list[bool]]) -> bool:
    """Whether two texts, given as their sentences, share half of their words and differ only in a few of them."""
    if a.keys() == b.keys():
        return True
    differing = [s.split() for s in a if s not in b], [s.split() for s in b if s not in a]
    x, y = ([word for words in side for word in words] for side in differing)
    if jaccard(set(x), set(y)) < PART:
        return False
    aligned = SequenceMatcher(None, x, y, autojunk=False)
    if aligned.ratio() < NEAR or jaccard(set(" ".join(a).split()), set(" ".join(b).split())) < PART:
        return False
    own_x, own_y = ([own for words in side for own in is_own(words)] for side in differing)
    if 2 * sum(own_x) > len(x) or 2 * sum(own_y) > len(y):
        return True
    # Mostly text that many rows share, so a template: two rows that fill one of its places differently are two rows.
    changes = (change for change in aligned.get_opcodes() if change[0] == "replace")
    return not any(any(own_x[i:j]) and any(own_y[k:end]) for _, i, j, k, end in changes)


def _overlap(a: Parts, b: Parts) -> bool:
    """Whether all three-word sequences of two rows overlap by `NEAR`."""
    words = (_words(" ".join(parts)) for parts in (a, b))
    return jaccard(*(set(zip(w, w[1:], w[2:], strict=False)) or {tuple(w)} for w in words)) >= NEAR


def jaccard(a: set, b: set) -> float:
    """|a and b| / |a or b|; 1 for two empty sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


def _sentences(text: str) -> dict[str, None]:
    """The words of each sentence or line, in order, each sentence once."""
    parts = (" ".join(_words(part)) for part in SENTENCE_END.split(text))
    return dict.fromkeys(part for part in parts if part)


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _numbers(text: str) -> tuple[str, ...]:
    return tuple(sorted(NUMBER.findall(text)))
