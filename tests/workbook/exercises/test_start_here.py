"""The checks of notebook 00: each plausible mistake gets its own hint."""

import pytest

from dpo_kit.triage.incidents import SEVERITIES, severity
from dpo_kit.workbook.exercises.start_here import check_decisive_win_rate, check_severity


def test_solutions_pass():
    assert check_severity(severity).passed
    assert check_decisive_win_rate(lambda wins, ties, losses: wins / (wins + losses)).passed


def strict(impact, share):
    return {5: "SEV1", 4: "SEV1", 3: "SEV2", 2: "SEV3"}.get(impact + (share > 10) + (share > 40), "SEV4")


def upside_down(impact, share):
    return SEVERITIES[3 - SEVERITIES.index(severity(impact, share))]


def spreadless(impact, share):
    return severity(impact, 1)


def lower_case(impact, share):
    return severity(impact, share).lower()


@pytest.mark.parametrize(
    ("answer", "hint"),
    [(strict, "use >="), (upside_down, "SEV1 is the worst"), (spreadless, "the spread is missing")],
)
def test_plausible_wrong_severities_get_their_own_hint(answer, hint):
    verdict = check_severity(answer)
    assert not verdict.passed
    assert hint in verdict.message


def test_another_wrong_severity_is_still_wrong():
    assert not check_severity(lower_case).passed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda w, t, n: w / (w + t + n), "ties were counted"),
        (lambda w, t, n: (w + t / 2) / (w + t + n), "half of each tie"),
        (lambda w, t, n: w / n if n else float("inf"), "wins per loss"),
    ],
)
def test_plausible_wrong_win_rates_get_their_own_hint(answer, hint):
    assert hint in check_decisive_win_rate(answer).message
