"""What the set as a whole covers: how its prompts are spread, and how likely its answers are under the model."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dpo_kit.preferences.audit.duplicates import Key
from dpo_kit.preferences.audit.findings import Finding, skipped
from dpo_kit.records import PreferencePair

TOPICS = 8  # words that are listed
WORD = re.compile(r"[^\W\d_]{5,}")  # short words are mostly grammar
CROWDED = 0.5  # of the pairs on a tenth of the prompts: then the set is narrower than its number of rows says
UNLIKELY = -3.0  # nats a token: far below what a model samples itself, about -0.5 to -1.5


def prompts(pairs: Sequence[PreferencePair], keys: Sequence[Key]) -> Finding:
    """How many different prompts there are, how many pairs the most frequent tenth of them has, how long they are, and
    which words stand in most of them.
    """
    first = {prompt: row for row, (prompt, *_) in reversed(list(enumerate(keys)))}
    counts = np.sort(np.array(list(Counter(prompt for prompt, *_ in keys).values())))[::-1]
    carried = counts[: max(1, len(counts) // 10)].sum() / len(pairs)
    texts = [pairs[row].prompt.text for row in first.values()]
    words = Counter(word for text in texts for word in set(WORD.findall(text.casefold())))
    common = {word: count / len(texts) for word, count in words.most_common(TOPICS) if count > 1}
    lengths = np.percentile([len(text.split()) for text in texts], (5, 50, 95))
    said = ", ".join(f"{word} {share:.0%}" for word, share in common.items())
    text = (
        f"{len(counts):,} different prompts, the most frequent tenth of them carries {carried:.0%} of the pairs; "
        f"{lengths[0]:.0f} to {lengths[2]:.0f} words (median {lengths[1]:.0f}); common words: {said or 'none'}"
    )
    crowded = len(counts) >= 10 and carried > CROWDED
    numbers = {"prompts": len(counts), "top_tenth": float(carried), "words": lengths.tolist(), "common": common}
    return Finding("coverage of prompts", "warning" if crowded else "info", len(counts), float(carried), text,
                   numbers=numbers)  # fmt: skip


def off_policy(logps: Sequence[float] | None) -> Finding:
    """The share of chosen answers that the model to be trained would hardly give. `logps` are mean nats a token."""
    name = "off-policy answers"
    if logps is None:
        return skipped(name, "the model to be trained (--model)")
    values = np.array([value for value in logps if np.isfinite(value)])
    if not len(values):
        return skipped(name, "an answer that the template takes")
    share = float((values < UNLIKELY).mean())
    text = (
        f"chosen answers have a mean log-prob of {np.median(values):.2f} nats a token under the model (median); "
        f"{share:.0%} are below {UNLIKELY:g}: DPO moves such answers little; fine-tune on them first, or sample pairs"
    )
    return Finding(name, "warning" if share > 0.5 else "info", int((values < UNLIKELY).sum()), share, text,
                   numbers={"median": float(np.median(values)), "unlikely": share})  # fmt: skip
