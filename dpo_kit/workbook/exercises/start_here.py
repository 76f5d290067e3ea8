"""The checks of notebook 00: the severity rule, and a win rate."""

from collections.abc import Callable

from dpo_kit.triage.incidents import SEVERITIES, severity
from dpo_kit.workbook.exercises import CheckResult, verdict_on


def check_severity(answer: Callable) -> CheckResult:
    """`answer(impact, share)`: 0 to 3 and percent of users in, "SEV1" to "SEV4" out."""
    cases = [(impact, share) for impact in range(4) for share in (1, 9, 10, 39, 40, 99)]
    return verdict_on(answer, severity, _SEVERITY, cases)


def check_decisive_win_rate(answer: Callable) -> CheckResult:
    """`answer(wins, ties, losses)`: the share of decided prompts that were won."""
    cases = [(30, 50, 20), (1, 0, 3), (8, 92, 0)]
    return verdict_on(answer, lambda wins, ties, losses: wins / (wins + losses), _WIN_RATE, cases)


def _severity(impact: int, share: int, *, steps: tuple[int, int] = (10, 40), strict: bool = False) -> str:
    spread = sum(share > step if strict else share >= step for step in steps)
    return {5: "SEV1", 4: "SEV1", 3: "SEV2", 2: "SEV3"}.get(impact + spread, "SEV4")


_SEVERITY = {
    "at exactly 10% and 40% the spread has already risen: use >=": lambda i, s: _severity(i, s, strict=True),
    "the scale is upside down: SEV1 is the worst": lambda i, s: SEVERITIES[3 - SEVERITIES.index(severity(i, s))],
    "the spread is missing: add 0, 1 or 2 for the share of users": lambda i, s: _severity(i, s, steps=(101, 101)),
}
_WIN_RATE = {
    "ties were counted: a decisive rate leaves them out of the denominator": lambda w, t, n: w / (w + t + n),
    "half of each tie was counted as a win: that is a win rate, but not the decisive one": (
        lambda w, t, n: (w + t / 2) / (w + t + n)
    ),
    "this is wins per loss; the denominator holds wins and losses": lambda w, t, n: w / n if n else float("inf"),
}
