"""Outdated knowledge and change points, against the design's table and a sum over all histories."""

import itertools

import numpy as np
import pytest
from scipy import stats

from bayesmeta.inference.change_points import log_marginal, probability_outdated, run_lengths


@pytest.mark.parametrize(("successes", "wanted"), [(8, 0.04), (5, 0.23), (1, 0.99)])
def test_outdated_knowledge(successes, wanted):
    """T5.3: ten trials where 18 successes and 4 failures were known."""
    found = probability_outdated([successes, 10 - successes], [18, 4], [1, 1], hazard=0.1)
    assert round(found, 2) == wanted
    ways = [stats.betabinom.pmf(successes, 10, *beta) for beta in ((1, 1), (18, 4))]
    by_hand = 0.1 * ways[0] / (0.1 * ways[0] + 0.9 * ways[1])
    assert found == pytest.approx(by_hand, abs=1e-12)


def test_run_lengths_equal_the_sum_over_all_histories():
    rng = np.random.default_rng(0)
    counts, prior, hazard = rng.integers(0, 5, (5, 3)), np.array([0.5, 1.0, 2.0]), 0.3
    found = run_lengths(counts, prior, hazard)
    total = np.zeros(5)
    for changes in itertools.product((False, True), repeat=4):
        starts = [0, *(t + 1 for t, changed in enumerate(changes) if changed), 5]
        weight = np.prod([hazard if changed else 1 - hazard for changed in changes])
        for begin, end in itertools.pairwise(starts):
            weight *= np.exp(log_marginal(counts[begin:end].sum(0), prior))
        total[4 - starts[-2]] += weight
    np.testing.assert_allclose(found[4], total / total.sum(), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)


def test_a_change_is_found_where_it_was():
    rng = np.random.default_rng(1)
    counts = np.concatenate(
        [rng.multinomial(20, p, 10) for p in ([0.8, 0.1, 0.1], [0.2, 0.5, 0.3])]
    )
    found = run_lengths(counts, np.ones(3), hazard=0.05)
    assert found[19].argmax() == 9 and found[19, 9] > 0.5
    same = run_lengths(rng.multinomial(20, [0.8, 0.1, 0.1], 20), np.ones(3), hazard=0.05)
    assert same[19].argmax() == 19 and same[19, 19] > 0.5


def test_hazards_that_are_none():
    with pytest.raises(ValueError, match="hazard is 0"):
        run_lengths(np.ones((2, 2)), np.ones(2), 0.0)
