"""From n answers to one prompt to a ranking, and from rankings to preference pairs.

Answers are ranked by a score, or by a judge who compares every two of them. Of a ranking one can pair the best with the
worst, every two, or every two that are far enough apart. The first way wastes answers; the second repeats each answer
n - 1 times and holds many near-ties; `margin_filtered` lies between.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from dpo_kit.preferences.judges import Judge, Unscorable, judge_all
from dpo_kit.records import PreferencePair, Prompt, Response, Verdict

SAME = 1e-9  # points no further apart than this are equal, and a gap is not lost to rounding


@dataclass(frozen=True)
class Ranking:
    """The answers to one prompt, best first, with their points, and who gave these."""

    prompt: Prompt
    responses: tuple[Response, ...]
    points: tuple[float, ...]
    judge: str


def rank_by_score(
    prompt: Prompt, responses: Sequence[Response], score: Callable[[Prompt, str], float], name: str
) -> Ranking:
    """Rank by a score, higher is better; `name` says whose. Answers without a finite score are left out."""
    points = []
    for response in responses:
        try:
            points.append(score(prompt, response.text))
        except Unscorable:
            points.append(math.nan)
    return _ranking(prompt, responses, points, name)


def rank_by_judge(prompt: Prompt, responses: Sequence[Response], judge: Judge, workers: int = 1) -> Ranking:
    """Rank by a round robin of n (n - 1) / 2 questions: points = (wins + ties / 2) / comparisons that were judged.

    Identical texts tie without a question. An answer of which no comparison was judged is left out, because nobody
    knows its place. A judge with cycles (a over b over c over a) gives equal points, and equal points make no pair.
    """
    games = list(combinations(range(len(responses)), 2))
    asked = [(i, j) for i, j in games if responses[i].text != responses[j].text]
    texts = [[responses[game[side]].text for game in asked] for side in (0, 1)]
    verdicts = judge_all(judge, [prompt] * len(asked), *texts, workers=workers)
    winners = {game: verdict.winner for game, verdict in zip(asked, verdicts, strict=True)}
    shares: list[list[float]] = [[] for _ in responses]
    for i, j in games:
        won = {"a": 1.0, "tie": 0.5, "b": 0.0}.get(winners.get((i, j), "tie"))
        if won is not None:
            shares[i].append(won)
            shares[j].append(1 - won)
    points = [fmean(own) if own else math.nan for own in shares]
    return _ranking(prompt, responses, points, verdicts[0].judge if verdicts else "nobody")


def best_against_worst(rankings: Iterable[Ranking], min_gap: float = SAME) -> list[PreferencePair]:
    """At most one pair a prompt, whose points differ by at least `min_gap`, and at all."""
    return [pair for r in rankings if r.responses for pair in _pairs(r, [(0, len(r.responses) - 1)], min_gap)]


def all_pairs(rankings: Iterable[Ranking]) -> list[PreferencePair]:
    """Every two answers of a prompt that differ in points and in text."""
    return margin_filtered(rankings, SAME)


def margin_filtered(rankings: Iterable[Ranking], min_gap: float) -> list[PreferencePair]:
    """Every two answers of a prompt whose points differ by at least `min_gap`, and at all."""
    return [pair for r in rankings for pair in _pairs(r, combinations(range(len(r.responses)), 2), min_gap)]


def _ranking(prompt: Prompt, responses: Sequence[Response], points: Sequence[float], judge: str) -> Ranking:
    known = [i for i in range(len(responses)) if math.isfinite(points[i])]
    order = sorted(known, key=lambda i: -points[i])
    return Ranking(prompt, tuple(responses[i] for i in order), tuple(points[i] for i in order), judge)


def _pairs(ranking: Ranking, places: Iterable[tuple[int, int]], min_gap: float) -> list[PreferencePair]:
    """The answer at the first place of each two is chosen; equal points or texts make no pair."""
    pairs = []
    for better, worse in places:
        chosen, rejected = ranking.responses[better], ranking.responses[worse]
        high, low = ranking.points[better], ranking.points[worse]
        if high - low >= max(min_gap - SAME, SAME) and chosen.text != rejected.text:
            reason = f"{high:.3f} against {low:.3f}, ranks {better + 1} and {worse + 1} of {len(ranking.responses)}"
            verdict = Verdict(winner="a", judge=ranking.judge, reason=reason)
            pairs.append(PreferencePair(prompt=ranking.prompt, chosen=chosen, rejected=rejected, verdict=verdict))
    return pairs
