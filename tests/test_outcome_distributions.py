"""Outcome distributions: they sum to one, and their draws follow them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FALSE_ALARM
from scipy import stats

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.logistic_dirichlet import LogisticDirichlet
from bayesmeta.models.outcome_distributions import (
    BetaBinomialCount,
    SkillMixture,
    TraceCategorical,
    VerifierCount,
)

pytestmark = pytest.mark.usefixtures("double_precision")

DRAWS = 20_000


def probabilities(distribution, most):
    """[outcome, task]: the probability of every outcome up to the most that each task can have."""
    most = np.asarray(most)
    rows = []
    for c in range(most.max() + 1):
        value = jnp.asarray(np.minimum(c, most))
        rows.append(np.where(c <= most, np.exp(distribution.log_prob(value)), 0.0))
    return np.stack(rows)


def p_value(draws, expected):
    """Of Pearson's chi^2 of counts against probabilities, outcomes never expected left out."""
    counts = np.array([(draws == c).sum() for c in range(len(expected))])
    possible = expected > 0
    assert counts[~possible].sum() == 0
    observed, wanted = counts[possible], expected[possible] / expected[possible].sum() * len(draws)
    return stats.chisquare(observed, wanted).pvalue


def verdicts(attempts):
    log_odds = jnp.asarray([[0.3, -1.0], [2.0, 0.5], [-0.7, 1.5]])
    return VerifierCount(log_odds, 0.2, 0.15, jnp.asarray(attempts))


def mixture():
    logits = jnp.asarray([[0.5, -1.0], [0.0, 0.3], [1.2, 0.0]])
    return SkillMixture(logits, verdicts([5, 3]))


def attempts(max_count=None):
    p = jnp.asarray([[0.2, 0.9], [0.6, 0.4], [0.8, 0.5]])
    logits = jnp.asarray([[0.5, -1.0], [0.0, 0.3], [1.2, 0.0]])
    counts = BetaBinomialCount(jnp.log(p / (1 - p)), 8.0, jnp.asarray([5, 3]), max_count)
    return SkillMixture(logits, counts)


def few_attempts():
    return attempts(max_count=5)


def answers():
    return TraceCategorical(jnp.log(jnp.asarray([[0.1, 0.6], [0.7, 0.3], [0.2, 0.1]])))


@pytest.mark.parametrize(
    "make", [mixture, pytest.param(attempts, marks=pytest.mark.slow), few_attempts, answers]
)
def test_outcomes_sum_to_one_and_are_drawn_in_proportion(make):
    distribution, most = make(), [2, 2] if make is answers else [5, 3]
    expected = probabilities(distribution, most)
    np.testing.assert_allclose(expected.sum(0), 1, atol=1e-12)
    draws = np.asarray(distribution.sample(jax.random.key(0), (DRAWS,)))
    assert draws.shape == (DRAWS, 2)
    for n in range(2):
        p = expected[: most[n] + 1, n]
        assert p_value(draws[:, n], p) > FALSE_ALARM > p_value(draws[:, n], np.roll(p, 1))


def test_a_mixture_of_skills_by_hand():
    distribution = mixture()
    weights = np.exp(distribution.logits) / np.exp(distribution.logits).sum(0)
    correct = 1 / (1 + np.exp(-np.asarray(verdicts([5, 3]).log_odds)))
    for n, y in itertools.product(range(2), range(4)):
        many = (5, 3)[n]
        by_hand = sum(
            weights[k, n]
            * (
                correct[k, n] * stats.binom(many, 0.8).pmf(y)
                + (1 - correct[k, n]) * stats.binom(many, 0.15).pmf(y)
            )
            for k in range(3)
        )
        value = distribution.log_prob(jnp.asarray([y, y]))[n]
        assert abs(float(value) - np.log(by_hand)) < 1e-12


def test_verdicts_on_one_answer_share_its_correctness():
    one = VerifierCount(jnp.zeros(1), 0.1, 0.2, jnp.asarray([4]))
    counts = probabilities(one, [4])[:, 0]
    # Verdicts that were independent would have the same mean and a smaller spread.
    independent = stats.binom(4, 0.5 * 0.9 + 0.5 * 0.2).pmf(np.arange(5))
    mean = counts @ np.arange(5)
    assert mean == pytest.approx(independent @ np.arange(5))
    assert counts @ (np.arange(5) - mean) ** 2 > 1.5 * (independent @ (np.arange(5) - mean) ** 2)
    draws = np.asarray(one.sample(jax.random.key(1), (DRAWS,)))[:, 0]
    assert p_value(draws, counts) > FALSE_ALARM > p_value(draws, independent)


def test_error_free_verdicts_are_the_answer_itself():
    sure = VerifierCount(jnp.asarray([0.7]), 0.0, 0.0, jnp.asarray([3]))
    expected = probabilities(sure, [3])[:, 0]
    p = 1 / (1 + np.exp(-0.7))
    np.testing.assert_allclose(expected, [1 - p, 0, 0, p], atol=1e-12)


@pytest.mark.parametrize("make", [mixture, answers])
def test_task_weights_scale_log_probabilities_and_not_draws(make):
    plain = make()
    if make is mixture:
        weighted = SkillMixture(plain.logits, plain.components, jnp.asarray([2.0, 0.0]))
    else:
        weighted = TraceCategorical(plain.log_p, jnp.asarray([2.0, 0.0]))
    value = jnp.asarray([1, 1])
    np.testing.assert_allclose(
        weighted.log_prob(value), plain.log_prob(value) * np.array([2.0, 0.0]), atol=1e-12
    )
    key = jax.random.key(2)
    np.testing.assert_array_equal(weighted.sample(key, (9,)), plain.sample(key, (9,)))


def test_log_prob_accepts_many_outcomes_at_once():
    value = jnp.asarray([[0, 1], [2, 2], [1, 0]])
    for distribution in (mixture(), answers()):
        rows = np.stack([distribution.log_prob(row) for row in value])
        if isinstance(distribution, SkillMixture):
            many = jax.vmap(distribution.log_prob)(value)
        else:
            many = distribution.log_prob(value)
        np.testing.assert_allclose(many, rows, atol=1e-12)


@pytest.mark.parametrize("concentration", [0.7, 1.0, 5.0])
def test_coordinates_of_a_dirichlet_integrate_to_one(concentration):
    grid = np.linspace(-40, 40, 40_001)
    line = LogisticDirichlet(concentration, 1)
    density = np.exp(jax.vmap(line.log_prob)(jnp.asarray(grid[:, None])))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-8)
    grid = np.linspace(-30, 30, 601)
    plane = LogisticDirichlet(concentration, 2)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    density = np.exp(jax.vmap(plane.log_prob)(jnp.asarray(points))).reshape(601, 601)
    assert np.trapezoid(np.trapezoid(density, grid), grid) == pytest.approx(1, abs=1e-5)


def test_weights_of_those_coordinates_are_dirichlet():
    draws = np.asarray(LogisticDirichlet(0.7, 2).sample(jax.random.key(3), (DRAWS,)))
    weights = np.exp(draws @ contrast(3).T)
    weights /= weights.sum(1, keepdims=True)
    # One weight of three is Beta(a, 2 a).
    for k in range(3):
        assert stats.kstest(weights[:, k], stats.beta(0.7, 1.4).cdf).pvalue > FALSE_ALARM
    assert stats.kstest(weights[:, 0], stats.beta(1.0, 2.0).cdf).pvalue < FALSE_ALARM
