"""What is wrong with a set of preference pairs, before a model learns it, and which pairs to keep.

Every check runs once, in the order in which a reader should act on what it finds. A row is dropped from `kept` for
faults that are in it beyond doubt. What is only a guess (it looks cut off, a telephone number may be public), and what
holds of the set as a whole, is reported and kept.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_kit.errors import DpoKitError
from dpo_kit.preferences.audit import content, coverage, duplicates, labels, privacy, shortcuts
from dpo_kit.preferences.audit.findings import EXAMPLES, ROW_CHECKS, Example, Finding, flag_rows, skipped, snippet
from dpo_kit.records import PreferencePair, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dpo_kit.models.tokens import Scoring

STRONG = 0.55  # with 60,000 rows any difference is significant; below this accuracy it hardly moves a model
NOISY = 0.1  # an error rate of labels from which on more data helps less than better labels
LIMITS = (256, 512, 1024, 2048, 4096)  # tokens; for each the report says how many rows such a max_length would cut
SHOWN = 80  # characters of the example of what is scored
RENDERED = (("text lost in rendering", "lost"), ("no signal after rendering", "same"),
            ("thinking that the data has not", "thinks"), ("no EOS after templating", "no_eos"),
            ("prompt not a prefix", "prefix"))  # fmt: skip
DOTS = 1500  # rows in the scatter of lengths


@dataclass(frozen=True)
class AuditReport:
    """What was found. `measures` is plain data for figures: lengths, and how far surface features predict the label."""

    pairs: Sequence[PreferencePair]
    findings: tuple[Finding, ...]
    measures: dict[str, Any]

    @cached_property
    def dropped(self) -> dict[int, tuple[str, ...]]:
        """The rows that should not be trained on, each with the names of the checks that say so."""
        reasons: dict[int, tuple[str, ...]] = {}
        for finding in self.findings:
            for row in finding.drops:
                reasons[row] = (*reasons.get(row, ()), finding.name)
        return dict(sorted(reasons.items()))

    @property
    def kept(self) -> list[PreferencePair]:
        """The pairs that should be trained on, in the order in which they came."""
        return [pair for row, pair in enumerate(self.pairs) if row not in self.dropped]

    @property
    def blocking(self) -> list[Finding]:
        """The findings that speak against training on the pairs as they are."""
        return [finding for finding in self.findings if finding.severity == "blocking"]

    def __getitem__(self, name: str) -> Finding:
        return next(finding for finding in self.findings if finding.name == name)

    def to_json(self) -> dict[str, Any]:
        """Everything but the pairs, as plain data; secrets are masked in it."""
        findings = [asdict(finding) for finding in self.findings]
        rows = {"rows": len(self.pairs), "kept": len(self.pairs) - len(self.dropped)}
        return {**rows, "findings": findings, "dropped": self.dropped, "measures": self.measures}


def audit_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    holdout: Sequence[Prompt] | None = None,
    max_length: int | None = None,
    workers: int = 1,
    *,
    scoring: "Scoring | None" = None,
    keep: Collection[str] = (),
    unreadable: Mapping[int, str] | None = None,
    logps: Sequence[float] | None = None,
) -> AuditReport:
    """Run every check on the pairs.

    `tokenizer`, with its chat template, and `max_length`, in tokens, are those of the training to come; `holdout` has
    the prompts of the evaluation. A check that lacks one of these is `skipped`. `workers` processes tokenise.
    `scoring` says which tokens of an answer bear loss. Rows that only the findings named in `keep` would drop stay.
    `unreadable` has the lines of the file that made no pair, with what is wrong; `logps` by row the mean log-prob, in
    nats, of a token of the chosen answer under the model to be trained.
    Raises DpoKitError where there are no pairs, where the tokenizer cannot render a chat, or `keep` names no finding.
    """
    if not pairs:
        raise DpoKitError("no pairs to audit: the file is empty, or every line of it was bad")
    if unknown := set(keep) - ROW_CHECKS.keys():
        raise DpoKitError(f"keep: no finding {min(unknown)!r}; there are {', '.join(ROW_CHECKS)}")
    roles, keys, facts = content.wrong_roles(pairs), duplicates.keys(pairs), None
    if tokenizer is not None:
        # Imported here, so that an audit without a tokenizer does not wait for transformers. A chat template may fail
        # on roles out of order, so rows that have them are not rendered.
        from dpo_kit.preferences.audit.tokens import token_facts

        ordered = [row for row in range(len(pairs)) if row not in roles]
        facts = token_facts(tokenizer, pairs, ordered, max_length, workers, scoring)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(prompt for prompt, *_ in keys))}
    differences, prompts = shortcuts.differences(pairs), [numbers[prompt] for prompt, *_ in keys]
    features, classifier = shortcuts.by_feature(differences, prompts), shortcuts.classify(differences, prompts)
    lengths, unit = (facts.lengths, "tokens") if facts else (_words(pairs), "words")
    findings = (
        *_unreadable(unreadable or {}, len(pairs)),
        *(
            replace(found, drops=()) if found.name in keep else found
            for found in _rows(pairs, keys, roles, facts, holdout, max_length)
        ),
        *_scored(tokenizer, pairs, facts, scoring),
        coverage.prompts(pairs, keys),
        coverage.off_policy(logps),
        _length_gap(features),
        _shortcuts(features, classifier),
        _noise(pairs, keys),
        _lengths(lengths, unit, max_length),
    )
    measures = {
        "unit": unit,
        "max_length": max_length,
        "lengths": _drawn(lengths),
        "shortcuts": [asdict(feature) for feature in features],
        "classifier": asdict(classifier) if classifier else None,
    }
    return AuditReport(pairs, findings, measures)


def _words(pairs) -> dict[int, tuple[int, int, int]]:
    """By row, the words of prompt, chosen and rejected: the lengths where there is no tokenizer."""
    return {
        i: tuple(len(text.split()) for text in (duplicates.chat_text(p.prompt), p.chosen.text, p.rejected.text))
        for i, p in enumerate(pairs)
    }


def _rows(pairs, keys, roles, facts, holdout, max_length) -> Iterator[Finding]:
    """The checks of single rows, in the order of the report."""
    yield flag_rows("identical answers", pairs, content.identical(pairs))
    yield flag_rows("empty or blank", pairs, content.blank(pairs))
    yield flag_rows("wrong role order", pairs, {**roles, **(facts.refused if facts else {})})
    yield flag_rows("cut off", pairs, content.cut_off(pairs))
    yield flag_rows("looks cut off", pairs, content.looks_cut_off(pairs))
    foreign, control = content.holding(pairs, content.FOREIGN), content.holding(pairs, content.CONTROL)
    # Without a tokenizer nobody knows whether they are its own; with one, those of other models are plain text to it.
    foreign, control = (foreign, control) if facts is None else ({**control, **foreign}, facts.control)
    yield flag_rows("control tokens in texts", pairs, control)
    yield flag_rows("markers of another model", pairs, {r: why for r, why in foreign.items() if r not in control})
    for name, by_row in RENDERED:
        if facts is None:
            yield skipped(name, "a tokenizer with its chat template")
            continue
        flagged = getattr(facts, by_row)
        # where every row has it the template is at fault, and no row is to blame
        every = len(flagged) == len(facts.lengths) and by_row != "same"
        yield flag_rows(name, pairs, flagged, drops=() if every else None)
    for name, by_row in (("EOS cut off", "cut"), ("identical after truncation", "identical")):
        missing = facts is None or max_length is None
        yield skipped(name, "a tokenizer and max_length") if missing else flag_rows(name, pairs, getattr(facts, by_row))
    again = duplicates.duplicates(keys)
    yield flag_rows("duplicates", pairs, {row: f"repeats row {first}" for row, first in again.items()})
    opposite, drops = labels.contradictions(keys)
    # Two answers labelled both ways have every word in common, and "opposite labels" says more of them.
    near = duplicates.near_duplicates(pairs, keys, skip=again.keys() | opposite.keys())
    yield flag_rows("near-duplicates", pairs, {row: f"nearly repeats row {kept}" for row, kept in near.items()})
    yield flag_rows("opposite labels", pairs, opposite, drops)
    yield flag_rows("preference cycles", pairs, labels.cycles(keys, list(opposite)))
    yield flag_rows("an annotator's contradictions", pairs, labels.self_contradictions(pairs, keys))
    yield from _scores(pairs)
    shared = duplicates.shared_prompts(pairs, holdout) if holdout else (None, None)
    for name, flagged in zip(("exact evaluation prompts", "near evaluation prompts"), shared, strict=True):
        yield flag_rows(name, pairs, flagged) if holdout else skipped(name, "the evaluation's prompts")
    for name, flagged in zip(("secrets", "personal data"), privacy.scan(pairs), strict=True):
        yield flag_rows(name, pairs, flagged)
    other, counts = content.minority(content.languages(pairs))
    shares = ", ".join(f"{code} {n / len(pairs) / 2:.1%}" for code, n in Counter(counts).most_common(4))
    finding = flag_rows("languages", pairs, other)
    advice = f"of the answers {shares or 'none can be told'}; {finding.advice}"
    yield replace(finding, advice=advice, numbers={"languages": counts})


def _scores(pairs: Sequence[PreferencePair]) -> Iterator[Finding]:
    """What the data's own scores say of its labels."""
    scored = labels.scores(pairs)
    for name, flagged in scored.items():
        finding = flag_rows(name, pairs, flagged)
        known = sum(pair.scores is not None or pair.strength is not None for pair in pairs)
        if name == "scores against the label" and 2 * len(flagged) > known:  # then it is no noise
            finding = replace(finding, severity="blocking")
        yield finding if known else skipped(name, "scores or strengths in the data")


def _unreadable(lines: Mapping[int, str], rows: int) -> Iterator[Finding]:
    """The lines of the file that made no pair."""
    if lines:
        examples = tuple(Example(-1, f"line {line}", snippet(why)) for line, why in list(lines.items())[:EXAMPLES])
        numbers = ", ".join(map(str, list(lines)[:20])) + (", …" if len(lines) > 20 else "")
        advice = f"lines {numbers}: {examples[0].why}; repair or remove them, the rest was audited"
        share = len(lines) / (rows + len(lines))
        said = {"lines": list(lines)}
        yield Finding("unreadable lines", "blocking", len(lines), share, advice, examples=examples, numbers=said)


def _scored(tokenizer, pairs, facts, scoring) -> Iterator[Finding]:
    """What bears loss, in words and on one pair."""
    if tokenizer is None or not facts.lengths:
        return
    from dpo_kit.models.tokens import Scoring
    from dpo_kit.preferences.audit.tokens import shown

    row, scoring = min(facts.lengths), scoring or Scoring()
    try:
        text = shown(tokenizer, pairs[row], scoring)
    except DpoKitError as error:
        text = str(error)
    tokens = [sum(answers) for _, *answers in facts.lengths.values()]
    example = Example(row, snippet(pairs[row].prompt.id), snippet(text[-SHOWN:]))
    yield Finding("what is scored", "info", sum(tokens), 1.0, str(scoring), examples=(example,), numbers=vars(scoring))


def _length_gap(features: Sequence[shortcuts.Shortcut]) -> Finding:
    words = next(feature for feature in features if feature.feature == "words")
    text = f"the longer answer wins {words.share:.1%} [{words.low:.1%}, {words.high:.1%}] of {words.decided} pairs"
    severity, advice = "info", ""
    if _is_strong(words):
        severity, advice = "warning", "; balance lengths, or control for them when evaluating"
    return Finding("length gap", severity, words.decided, words.share, text + advice, numbers=asdict(words))


def _is_strong(feature: shortcuts.Shortcut) -> bool:
    return feature.accuracy > STRONG and (feature.low > STRONG or feature.high < 1 - STRONG)


def _shortcuts(features: Sequence[shortcuts.Shortcut], classifier: shortcuts.Classifier | None) -> Finding:
    name = "surface shortcuts"
    if classifier is None:
        return skipped(name, f"{shortcuts.ENOUGH} different prompts")
    strong = [feature.direction for feature in features if _is_strong(feature)]
    accuracy, low, high = classifier.accuracy, classifier.low, classifier.high
    text = f"surface features alone tell chosen from rejected {accuracy:.1%} [{low:.1%}, {high:.1%}]"
    severity = "warning" if strong or low > STRONG else "info"
    if severity == "warning":
        text = ": ".join([text, *([", ".join(strong[:4])] if strong else [])]) + "; is this what the judge meant?"
    return Finding(name, severity, classifier.prompts, accuracy, text, numbers=asdict(classifier))


def _noise(pairs, keys) -> Finding:
    noise = labels.label_noise(pairs, keys)
    if noise is None:
        return skipped("label noise", "pairs that were judged more than once")
    text = f"{noise.pairs} pairs were judged more than once, agreement {noise.agreement:.1%}"
    if noise.error is None:
        severity, text = "warning", f"{text}: coins would agree more, so sides were swapped somewhere"
    else:
        upper = 0.5 if noise.high is None else noise.high
        severity = "warning" if noise.low > NOISY else "info"
        text = f"{text}: about {noise.error:.1%} [{noise.low:.1%}, {upper:.1%}] of labels are wrong"
    return Finding("label noise", severity, noise.pairs, noise.error or 0.0, text, numbers=asdict(noise))


def _lengths(lengths: dict[int, tuple[int, int, int]], unit: str, max_length: int | None) -> Finding:
    if not lengths:
        return skipped("lengths", "a row that the template takes")
    longest = np.array([prompt + max(answers) for prompt, *answers in lengths.values()])
    text = "prompt and longer answer: median {:.0f}, 95% {:.0f}, most {:.0f} "
    text = text.format(*np.percentile(longest, (50, 95, 100))) + unit
    cuts = {limit: float((longest > limit).mean()) for limit in sorted({*LIMITS, max_length or LIMITS[0]})}
    shown = ", ".join(f"{limit} {share:.1%}" for limit, share in cuts.items())
    if unit == "tokens":
        text += f"; a max_length would cut: {shown}"
    share = cuts.get(max_length, 0.0)
    return Finding("lengths", "info", len(longest), share, text, numbers={"cut": cuts, "unit": unit})


def _drawn(lengths: dict[int, tuple[int, int, int]]) -> dict[str, Any]:
    """Histograms of prompt, chosen and rejected over common edges, and a scatter of chosen against rejected."""
    table = np.array(list(lengths.values())).reshape(-1, 3)  # (rows, 3)
    edges = np.linspace(0, max(table.max(initial=1), 1), 41)
    sides = zip(("prompt", "chosen", "rejected"), table.T, strict=True)
    counts = {name: np.histogram(column, edges)[0].tolist() for name, column in sides}
    dots = table[:: max(len(table) // DOTS, 1), 1:]
    return {"edges": edges.tolist(), "counts": counts, "dots": dots.tolist()}
