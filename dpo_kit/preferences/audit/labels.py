"""Do the labels agree with each other? Contradictions, cycles within a prompt, and how often labels are wrong."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import networkx as nx

from dpo_kit.preferences.audit.duplicates import Key
from dpo_kit.preferences.audit.shortcuts import wilson
from dpo_kit.records import PreferencePair


def contradictions(keys: Sequence[Key]) -> tuple[dict[int, str], list[int]]:
    """Rows of pairs that are labelled both ways, and which to drop: the minority, or all where votes are equal."""
    flagged, drops = {}, []
    for by_winner in _repeats(keys):
        if len(by_winner) < 2:
            continue
        (_, winners), (_, losers) = sorted(by_winner.items(), key=lambda item: -len(item[1]))
        both = sorted(winners + losers)
        flagged |= dict.fromkeys(both, f"rows {', '.join(map(str, both[:6]))} prefer opposite answers to one prompt")
        drops += losers if len(winners) > len(losers) else both
    return flagged, drops


def cycles(keys: Sequence[Key], skip: Sequence[int]) -> dict[int, str]:
    """Rows that lie on a cycle a > b > c > a of three or more answers to one prompt. No reward can order these.

    An edge lies on a cycle exactly when both its ends are in one strongly connected component. `skip` are the rows of
    plain contradictions, which are the cycles of two.
    """
    graphs: dict[bytes, nx.DiGraph] = defaultdict(nx.DiGraph)
    left = set(range(len(keys))) - set(skip)
    shared = Counter(keys[row][0] for row in left)
    for row in sorted(left):
        prompt, chosen, rejected = keys[row]
        if shared[prompt] >= 3 and chosen != rejected:  # a cycle needs three rows; most prompts have one
            graph = graphs[prompt]
            graph.add_edge(chosen, rejected, rows=[*graph.get_edge_data(chosen, rejected, {"rows": []})["rows"], row])
    flagged = {}
    for graph in graphs.values():
        for answers in nx.strongly_connected_components(graph):
            rows = sorted(row for *_, of_edge in graph.subgraph(answers).edges(data="rows") for row in of_edge)
            why = f"rows {', '.join(map(str, rows[:6]))} prefer {len(answers)} answers in a circle"
            flagged |= dict.fromkeys(rows, why)
    return flagged


def scores(pairs: Sequence[PreferencePair]) -> dict[str, dict[int, str]]:
    """What the data's own scores or strengths say, by finding and row: against the label, no difference, a small one,
    both low. Small is a tenth of the widest margin; low is the lowest quarter of the scale, as far as it was used.
    """
    found: dict[str, dict[int, str]] = {
        "scores against the label": {}, "ties": {}, "small margins": {}, "both rated low": {},
    }  # fmt: skip
    margins = {row: _margin(pair) for row, pair in enumerate(pairs)}
    margins = {row: margin for row, margin in margins.items() if margin is not None}
    widest = max(map(abs, margins.values()), default=0.0)
    rated = [score for pair in pairs for score in pair.scores or ()]
    low = min(rated, default=0.0) + (max(rated, default=0.0) - min(rated, default=0.0)) / 4
    for row, margin in margins.items():
        given = pairs[row].scores
        said = f"{given[0]:g} for chosen, {given[1]:g} for rejected" if given else f"strength {margin:g}"
        if margin < 0:
            found["scores against the label"][row] = said
        elif margin == 0:
            found["ties"][row] = said
        elif margin <= widest / 10:
            found["small margins"][row] = said
        if given and max(given) <= low < max(rated):
            found["both rated low"][row] = said
    return found


def _margin(pair: PreferencePair) -> float | None:
    return pair.scores[0] - pair.scores[1] if pair.scores else pair.strength


def self_contradictions(pairs: Sequence[PreferencePair], keys: Sequence[Key]) -> dict[int, str]:
    """Rows in which one annotator, or one judge that is named, preferred both answers to a prompt in turn."""
    flagged = {}
    for by_winner in _repeats(keys):
        who = {winner: {pairs[row].annotator for row in rows} - {None} for winner, rows in by_winner.items()}
        both = set.intersection(*who.values()) if len(who) > 1 else set()
        rows = [row for rows in by_winner.values() for row in rows if pairs[row].annotator in both]
        flagged |= {row: f"annotator {pairs[row].annotator} preferred either answer" for row in rows}
    return flagged


@dataclass(frozen=True)
class LabelNoise:
    """How often two judgements of one pair agree, and the error rate of a single label that explains it.

    Two labels that are wrong independently with probability e agree with probability A = (1 - e)^2 + e^2, so
    e = (1 - sqrt(2 A - 1)) / 2. It misleads where judges share a bias, because then they agree on the same mistake.
    """

    pairs: int
    agreement: float
    error: float | None
    low: float | None
    high: float | None


def label_noise(pairs: Sequence[PreferencePair], keys: Sequence[Key]) -> LabelNoise | None:
    """The noise of labels, from pairs that were judged more than once, each weighing the same; None without such.

    A row that repeats another with its verdict is a copy, not a second judgement. The interval is Wilson's over pairs.
    """
    shares = []
    for by_winner in _repeats(keys):
        votes = [len({_judgement(pairs[row]) for row in rows}) for rows in by_winner.values()]
        total = sum(votes)
        if total > 1:  # of all ordered pairs of votes, the share that agree
            shares.append(sum(n * (n - 1) for n in votes) / (total * (total - 1)))
    if not shares:
        return None
    agreement = sum(shares) / len(shares)
    low, high = wilson(sum(shares), len(shares))
    return LabelNoise(len(shares), agreement, error_rate(agreement), error_rate(high), error_rate(low))


def error_rate(agreement: float) -> float | None:
    """The error rate e of `LabelNoise`. None where labels agree less often than coins: then some are reversed."""
    return None if agreement < 0.5 else (1 - math.sqrt(2 * agreement - 1)) / 2


def _judgement(pair: PreferencePair) -> str:
    return pair.verdict.model_dump_json(exclude={"winner", "in_orders"})


def _repeats(keys: Sequence[Key]) -> Iterator[dict[bytes, list[int]]]:
    """For each prompt and two answers that more than one row has: the rows, by the answer that they prefer."""
    groups: dict[tuple[bytes, bytes, bytes], list[int]] = defaultdict(list)
    for row, (prompt, chosen, rejected) in enumerate(keys):
        if chosen != rejected:
            groups[prompt, *sorted((chosen, rejected))].append(row)
    for rows in groups.values():
        if len(rows) > 1:
            by_winner: dict[bytes, list[int]] = defaultdict(list)
            for row in rows:
                by_winner[keys[row][1]].append(row)
            yield by_winner
