"""What the trainer will see of each pair: the token ids that TRL makes, looked at and not kept.

TRL renders the prompt alone and with each answer through the chat template, takes the longest common prefix of the ids
as the prompt, and keeps the first `max_length` tokens of each side (`truncation_mode="keep_start"`). What is lost
without a message shows here: no EOS, an EOS that is cut off, a prompt whose tokens change once an answer follows,
answers that are equal after the cut, text that the template leaves out, control tokens inside a text.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dpo_kit.errors import DpoKitError
from dpo_kit.models.tokens import (
    Scoring,
    common_prefix,
    control_tokens,
    encode,
    must_stop,
    stop_ids,
    thinks_alone,
)
from dpo_kit.records import Message, PreferencePair

BATCH = 250
Ids = Sequence[int]


@dataclass
class TokenFacts:
    """By row, what the ids show: lengths `(prompt, chosen, rejected)` in tokens, and why a row is at fault."""

    lengths: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    no_eos: dict[int, str] = field(default_factory=dict)
    prefix: dict[int, str] = field(default_factory=dict)
    cut: dict[int, str] = field(default_factory=dict)
    identical: dict[int, str] = field(default_factory=dict)
    control: dict[int, str] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    same: dict[int, str] = field(default_factory=dict)
    thinks: dict[int, str] = field(default_factory=dict)

    def update(self, other: "TokenFacts") -> None:
        """Add the rows of another batch."""
        for name, by_row in vars(other).items():
            getattr(self, name).update(by_row)


def token_facts(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    rows: Sequence[int],
    max_length: int | None,
    workers: int = 1,
    scoring: Scoring | None = None,
) -> TokenFacts:
    """Tokenise the given rows in batches, in as many processes as there are `workers`.

    Raises DpoKitError where the tokenizer has no chat template or no EOS.
    """
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise DpoKitError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template or no EOS token: "
            "set tokenizer.chat_template and tokenizer.eos_token as training will use them"
        )
    facts, found, scoring = (
        TokenFacts(),
        re.compile("|".join(map(re.escape, control_tokens(tokenizer)))),
        scoring or Scoring(),
    )
    for row in rows:
        if why := _control(pairs[row], found):
            facts.control[row] = why

    def rendered(some: Sequence[int]) -> Texts:
        texts = _render(tokenizer, pairs, some, facts)
        for row, row_texts in texts.items():
            _compare(facts, row, pairs[row], *row_texts, tokenizer, scoring)
        return texts

    batches = (rendered(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH))
    for batch in _examined(tokenizer, max_length, batches, workers):
        facts.update(batch)
    return facts


Texts = dict[int, tuple[str, str, str]]


def _control(pair: PreferencePair, tokens: re.Pattern) -> str | None:
    """The first control token of the tokenizer in a text of the pair, and where it stands."""
    for where, messages in _messages(pair):
        for message in messages:
            if found := tokens.search(message.text):
                return f"{where} holds {found[0]!r}, which this tokenizer turns into a control token"
    return None


def _messages(pair: PreferencePair) -> tuple[tuple[str, Sequence[Message]], ...]:
    return ("prompt", pair.prompt.messages), ("chosen", pair.chosen.messages), ("rejected", pair.rejected.messages)


def _compare(
    facts, row: int, pair: PreferencePair, prompt: str, chosen: str, rejected: str, tokenizer, scoring
) -> None:
    """Note what the template left out of one row or put into it. The texts are those of prompt and both sides."""
    wholes = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    asked, missing = Counter(_parts(pair.prompt.messages)), []
    for where, messages in _messages(pair):
        parts = Counter(_parts(messages)) + (Counter() if where == "prompt" else asked)
        for part in _parts(messages):
            if wholes[where].count(part[1]) < sum(count for (_, text), count in parts.items() if text == part[1]):
                missing.append(f"{where}: {part[0]} turn, {part[1][:60]!r}")
    if missing:
        facts.lost[row] = f"not in the rendered text: {'; '.join(missing[:2])}"
    sides = (pair.chosen, pair.rejected)
    if pair.chosen.messages != pair.rejected.messages and _scored(pair, chosen, rejected, tokenizer, scoring):
        facts.same[row] = f"what is scored of both is {chosen[common_prefix(prompt, chosen) :][:60]!r}"
    texts = (text[common_prefix(prompt, text) :] for text in (chosen, rejected))
    if scoring.thinking is None and any(map(thinks_alone, texts, sides)):
        facts.thinks[row] = "the template writes a span of thought into an answer that has none"


def _parts(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """The texts that a template has to write, each with its role."""
    texts = ((m.role, text.strip()) for m in messages for text in (m.content, m.reasoning_content or ""))
    return [part for part in texts if part[1]]


def _scored(pair: PreferencePair, chosen: str, rejected: str, tokenizer, scoring: Scoring) -> bool:
    """Whether the scored tokens of both sides are the same. Texts that differ are compared token by token only where
    a part of an answer is not scored.
    """
    if chosen == rejected:
        return True
    if len(pair.chosen.messages) == len(pair.rejected.messages) == 1 and scoring.thinking != "masked":
        return False
    try:
        sides = [encode(tokenizer, pair.prompt, side, scoring) for side in (pair.chosen, pair.rejected)]
    except DpoKitError:
        return False
    a, b = ([token for token, scored in zip(ids, mask, strict=True) if scored] for ids, mask in sides)
    return a == b


def shown(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, scoring: Scoring) -> str:
    """The chosen side of a pair as the model reads it, with what is scored in brackets: ⟦so⟧."""
    ids, mask = encode(tokenizer, pair.prompt, pair.chosen, scoring)
    parts: list[tuple[int, list[int]]] = []
    for token, scored in zip(ids, mask, strict=True):
        if not parts or parts[-1][0] != scored:
            parts.append((scored, []))
        parts[-1][1].append(token)
    return "".join(f"⟦{tokenizer.decode(some)}⟧" if scored else tokenizer.decode(some) for scored, some in parts)


def _examined(tokenizer, max_length: int | None, batches: Iterator[Texts], workers: int) -> Iterator[TokenFacts]:
    """The facts of each batch. Processes get a few batches at a time, so that only these are held as text."""
    if workers == 1:
        yield from (_examine_batch(tokenizer, max_length, texts) for texts in batches)
        return
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(tokenizer, max_length)) as pool:
        while wave := list(islice(batches, 4 * workers)):
            yield from pool.map(_work, wave)


_worker: list = []  # what every batch needs in a worker process; sent once, since a real tokenizer has megabytes


def _start_worker(*needed) -> None:
    _worker[:] = needed


def _work(texts: Texts) -> TokenFacts:
    return _examine_batch(*_worker, texts)


def _examine_batch(tokenizer: PreTrainedTokenizerBase, max_length: int | None, texts: Texts) -> TokenFacts:
    facts = TokenFacts()
    for row, ids in zip(texts, _tokenise(tokenizer, _encoder(tokenizer), list(texts.values())), strict=True):
        _examine(facts, row, tokenizer, *ids, max_length)
    return facts


def _render(tokenizer, pairs, rows, facts) -> Texts:
    """Prompt, prompt with chosen and prompt with rejected as text, by row; rows that the template refuses are noted."""

    def render(chats: list, prompt: bool) -> list[str]:
        return tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=prompt)

    def sides(rows: Sequence[int]) -> Iterator[tuple[str, str, str]]:
        if any(pairs[row].prompt.tools for row in rows):  # one call takes one list of tools
            return iter([
                (render(tokenizer, pair.prompt, ask=True), *(render(tokenizer, pair.prompt, side.chat())
                                                            for side in (pair.chosen, pair.rejected)))
                for pair in map(pairs.__getitem__, rows)
            ])  # fmt: skip
        prompts = [pairs[row].prompt.chat() for row in rows]
        with_answers = (
            [[*chat, *getattr(pairs[row], side).chat()]
             for row, chat in zip(rows, prompts, strict=True)]
            for side in ("chosen", "rejected")
        )  # fmt: skip
        return zip(render(prompts, True), *(render(chats, False) for chats in with_answers), strict=True)

    try:
        return dict(zip(rows, sides(rows), strict=True))
    except (
        TemplateError,
        TypeError,
        ValueError,
        KeyError,
        DpoKitError,
    ) as error:  # of some row of the batch: render them one by one to find it
        if len(rows) == 1:
            why = str(error) if isinstance(error, DpoKitError) else f"the chat template refuses it: {error}"
            facts.refused[rows[0]] = why
            return {}
        return {row: texts for each in rows for row, texts in _render(tokenizer, pairs, [each], facts).items()}


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[Ids]]:
    """Texts to ids, no special tokens added: by the Rust batch call where there is one, which is twice as fast."""
    tokenizer("", add_special_tokens=False)  # leaves the Rust tokenizer with neither truncation nor padding
    if not tokenizer.is_fast:
        return lambda texts: tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    batch = tokenizer.backend_tokenizer.encode_batch_fast
    return lambda texts: [encoding.ids for encoding in batch(texts, add_special_tokens=False)]


def _tokenise(tokenizer, encode, texts: list[tuple[str, str, str]]) -> Iterator[tuple[Ids, Ids, Ids]]:
    """The ids of each row's three texts. Their common beginning, up to its last special token, is encoded once.

    A tokenizer splits a text at special tokens before it merges anything, so the ids of the parts join to those of the
    whole. Where a tokenizer does otherwise (it may put a space before each text), the first rows of a batch show it,
    and the whole texts are encoded.
    """
    heads = [_shared(tokenizer, *row) for row in texts]
    sample = [row[1] for row in texts[:4]]
    parts = [part for row, n in zip(texts, heads, strict=True) for part in (row[0][:n], *(text[n:] for text in row))]
    ids = encode(parts)
    if [ids[4 * i] + ids[4 * i + 2] for i in range(len(sample))] != encode(sample):
        whole = encode([text for row in texts for text in row])
        return zip(whole[::3], whole[1::3], whole[2::3], strict=True)
    return ((ids[i] + ids[i + 1], ids[i] + ids[i + 2], ids[i] + ids[i + 3]) for i in range(0, len(ids), 4))


def _shared(tokenizer, prompt: str, chosen: str, rejected: str) -> int:
    """How many characters the three texts share, up to the end of the prompt's last special token."""
    common = min(common_prefix(prompt, chosen), common_prefix(prompt, rejected))
    ends = (prompt.rfind(t, 0, common) + len(t) for t in tokenizer.all_special_tokens if t in prompt[:common])
    return max(ends, default=0)


def _examine(facts: TokenFacts, row: int, tokenizer, prompt: Ids, chosen: Ids, rejected: Ids, limit: int | None):
    """Note in `facts` what the ids of one row show; `border` is where TRL takes the prompt to end."""
    border = min(common_prefix(prompt, chosen), common_prefix(prompt, rejected))
    answers = {"chosen": chosen[border:], "rejected": rejected[border:]}
    facts.lengths[row] = (border, len(answers["chosen"]), len(answers["rejected"]))
    if border < len(prompt):
        facts.prefix[row] = f"the prompt loses {tokenizer.decode(prompt[border:])!r} once an answer follows"
    endless = [name for name, ids in answers.items() if must_stop(tokenizer) and not _ends_in_eos(tokenizer, ids)]
    if endless:
        facts.no_eos[row] = f"{' and '.join(endless)} end in {tokenizer.decode(answers[endless[0]][-4:])!r}"
    if limit is None:
        return
    room = max(limit - border, 0)  # tokens of `limit` that the prompt leaves to each answer
    cut = [f"{name} by {len(ids) - room} tokens" for name, ids in answers.items() if len(ids) > room]
    if cut:
        facts.cut[row] = ", ".join(cut)
    if answers["chosen"][:room] == answers["rejected"][:room] and answers["chosen"] != answers["rejected"]:
        facts.identical[row] = f"the prompt takes {border} of {limit} tokens, the answers differ only after the rest"


def _ends_in_eos(tokenizer, ids: Ids) -> bool:
    """Whether EOS stands at the end; templates may put white space after it, which is harmless."""
    stops = stop_ids(tokenizer)
    for i in range(len(ids) - 1, max(len(ids) - 4, -1), -1):
        if ids[i] in stops:
            return not tokenizer.decode(ids[i + 1 :]).strip()
    return False
