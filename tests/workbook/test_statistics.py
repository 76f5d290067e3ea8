"""What a smaller evaluation would have found: the rule of the table, and equal arms that win no more often."""

import numpy as np

from dpo_kit.workbook.statistics import redrawn


def scores(rate, seed):
    return (np.random.default_rng(seed).random(400) < rate).astype(float)


def share(found, metric, word):
    return np.mean([verdict == word for _, verdict in found[metric]])


def test_a_large_effect_is_found_and_equal_arms_are_inconclusive():
    control, noise = scores(0.5, 1), scores(0.5, 2)
    found = redrawn(
        {"up": scores(0.8, 0), "same": noise}, {"up": control, "same": noise}, ("up", "same"), 200, 0.05, 40
    )
    assert share(found, "up", "better") > 0.8
    assert share(found, "same", "no difference") == 1
    assert all(0 < mean < 0.5 for mean, _ in found["up"])


def test_a_verdict_must_hold_among_all_metrics_as_in_the_table():
    """Seventeen metrics without a difference take verdicts away from the one that has a small difference."""
    ours, theirs = {"up": scores(0.65, 0)}, {"up": scores(0.5, 1)}
    alone = redrawn(ours, theirs, ("up",), 200, 0.05, 16)
    others = {f"none{i}": scores(0.5, 10 + i) for i in range(17)}
    among = redrawn(ours | others, theirs | others, ("up",), 200, 0.05, 16)
    assert share(among, "up", "better") < share(alone, "up", "better")
    assert [mean for mean, _ in alone["up"]] == [mean for mean, _ in among["up"]]
