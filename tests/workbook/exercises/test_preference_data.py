"""The checks of notebook 04: what they want is what the package does, and each plausible mistake gets its own hint."""

import numpy as np
import pytest

from dpo_kit.preferences.judges import both_orders, by_score
from dpo_kit.records import Prompt, Verdict
from dpo_kit.triage.judges import simulated
from dpo_kit.workbook.exercises.preference_data import (
    _error_rate,
    _kappa,
    check_collapse,
    check_error_rate,
    check_kappa,
    check_split,
)
from dpo_kit.workbook.statistics import kappa


def test_the_collapse_that_is_wanted_is_the_packages():
    """`both_orders` over a judge that answers as told is a right answer to the exercise."""

    def through_the_package(forward, backward):
        mirrored = {"a": "b", "b": "a"}.get(backward, backward)
        replies = iter([forward, mirrored])
        judge = both_orders(lambda prompt, a, b: Verdict(winner=next(replies), judge="told", reason=""))
        return judge(Prompt.from_text("?"), "x", "y").winner

    assert check_collapse(through_the_package).passed


def test_the_error_rate_that_is_wanted_is_the_annotators():
    """4,000 pairs, the better answer first in half and the longer in 70% of them; 4 standard errors are 0.03."""
    truth = by_score(lambda prompt, answer: float("good" in answer), "truth")
    judge = simulated(truth, accuracy=0.9, position_bias=0.1, length_bias=0.3)
    wrong = 0
    for n in range(4000):
        good = "good and long" if n % 10 < 7 else "good"
        sides = (good, "bad text") if n % 2 == 0 else ("bad text", good)
        verdict = judge(Prompt.from_text(f"question {n}"), *sides)
        wrong += sides["ab".index(verdict.winner)] != good
    assert wrong / 4000 == pytest.approx(_error_rate(0.9, 0.1, 0.3, 0.7), abs=0.03)


def test_the_kappa_that_is_wanted_is_the_packages():
    x, y = list("aabbttab"), list("ababttbb")
    assert _kappa(x, y) == pytest.approx(kappa(x, y).mean)


def scotts_pi(x, y):
    """Scott's pi, by numpy: the shares of both raters are averaged before they are squared."""
    labels = sorted({*x, *y})
    shares = np.mean([[list(rater).count(label) / len(rater) for label in labels] for rater in (x, y)], axis=0)
    chance = (shares**2).sum()
    return (np.mean(np.array(x) == np.array(y)) - chance) / (1 - chance)


@pytest.mark.parametrize(
    ("check", "answer", "hint"),
    [
        (check_collapse, lambda f, b: f, "the first question decides"),
        (check_collapse, lambda f, b: "tie" if "unjudged" in (f, b) or f != b else f, "unjudged and tie"),
        (check_error_rate, lambda a, p, ell, g: ell * (1 - g) + (1 - p - ell) * (1 - a), "position_bias / 2"),
        (check_error_rate, lambda a, p, ell, g: p / 2 + ell * g + (1 - p - ell) * (1 - a), "1 - longer"),
        (check_kappa, lambda x, y: sum(a == b for a, b in zip(x, y, strict=True)) / len(x), "chance is still in it"),
        (check_kappa, scotts_pi, "Scott's pi"),
        (check_split, lambda p, every: [sorted({*p}).index(prompt) % every == 0 for prompt in p], "first appear"),
        (check_split, lambda prompts, every: [n % every == 0 for n in range(len(prompts))], "splits by pair"),
    ],
)
def test_plausible_mistakes_get_their_own_hint(check, answer, hint):
    verdict = check(answer)
    assert not verdict.passed
    assert hint in verdict.message
