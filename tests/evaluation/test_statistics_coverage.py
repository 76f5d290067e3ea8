"""Simulated coverage of the 95% intervals: cells of the benchmark, at the number of prompts that is hardest."""

import numpy as np
import pytest

from benchmarks.coverage import CELLS, WANTED, coverage, exact_coverage, false_positives


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_95_percent_intervals_cover_at_30_prompts(cell):
    # the requirement itself: sd of 2,000 evaluations is sqrt(.95 x .05 / 2000) = 0.5 points, three of them are allowed
    assert WANTED[0] <= coverage(cell, 30, 2000) <= WANTED[1]


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 100])
def test_the_sign_test_errs_in_at_most_one_of_twenty(n):
    assert false_positives(n, 2000) <= 0.055


@pytest.mark.parametrize("n", [30, 100, 400])
def test_wilson_covers_on_average_and_clopper_pearson_always(n):
    # exact sums over the binomial, no simulation
    rates = np.linspace(0.5, 0.95, 91)
    assert exact_coverage("wilson", n, rates).mean() == pytest.approx(0.95, abs=0.004)
    assert exact_coverage("beta", n, rates).min() >= 0.95
