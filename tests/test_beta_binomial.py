"""The beta-binomial by products and by gamma functions, and the sum of exponentials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from bayesmeta.models.beta_binomial import FEW_ATTEMPTS, log_beta_binomial, log_ways
from bayesmeta.models.log_sum_exp import log_sum_exp

CASES = [
    (y, m, log_odds, phi)
    for m in (1, 2, 5, FEW_ATTEMPTS)
    for y in range(m + 1)
    for log_odds in (-3.0, 0.2, 4.0)
    for phi in (0.3, 7.0, 900.0)
]


def log_prob(y, m, log_odds, phi, most):
    return log_ways(y, m, most) + log_beta_binomial(log_odds, phi, y, m, most)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("most", [FEW_ATTEMPTS, FEW_ATTEMPTS + 1, None])
def test_it_is_the_beta_binomial_of_scipy(most):
    y, m, log_odds, phi = (jnp.asarray(v, float) for v in zip(*CASES, strict=True))
    p = expit(np.asarray(log_odds))
    scipy = stats.betabinom(m, phi * p, phi * (1 - p)).logpmf(y)
    np.testing.assert_allclose(log_prob(y, m, log_odds, phi, most), scipy, atol=1e-9)
    other_way_up = log_prob(y, m, -log_odds, phi, most)
    assert np.abs(other_way_up - scipy).max() > 1

    def total(log_odds, log_phi, most):
        return log_prob(y, m, log_odds, jnp.exp(log_phi), most).sum()

    slope = jax.grad(total, (0, 1))
    for ours, plain in zip(
        slope(log_odds, jnp.log(phi), most), slope(log_odds, jnp.log(phi), None), strict=True
    ):
        np.testing.assert_allclose(ours, plain, atol=1e-8)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_more_attempts_than_were_said_give_no_density(most):
    for m in range(1, FEW_ATTEMPTS + 1):
        value = log_prob(jnp.asarray(1), jnp.asarray(m), 0.2, 7.0, most)
        assert bool(jnp.isnan(value)) == (m > most)


@pytest.mark.parametrize("most", [FEW_ATTEMPTS, None])
def test_extreme_chances_and_concentrations_stay_finite_in_single_precision(most):
    """Both ways up, since products of small factors could underflow as well."""
    m = FEW_ATTEMPTS
    for log_odds in (-80.0, -30.0, 30.0, 80.0):
        for phi in (1e-6, 1.0, 1e6) if most is None else (1e-6, 1.0, 1e9):
            for y in (0, 1, m // 2, m):
                value, slope = jax.value_and_grad(
                    lambda lo, log_phi, y=y: log_prob(y, m, lo, jnp.exp(log_phi), most), (0, 1)
                )(jnp.float32(log_odds), jnp.log(jnp.float32(phi)))
                assert np.isfinite([value, *slope]).all(), (log_odds, phi, y)


def test_the_sum_of_exponentials_has_the_softmax_as_derivative():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)) * 20)
    for axis in range(3):
        # float32: relative to the largest term.
        np.testing.assert_allclose(
            log_sum_exp(x, axis), jax.nn.logsumexp(x, axis=axis), rtol=1e-6, atol=1e-5
        )
        ours = jax.grad(lambda x, axis=axis: log_sum_exp(x, axis).sum())(x)
        np.testing.assert_allclose(ours, jax.nn.softmax(x, axis), atol=1e-6)
        assert np.abs(ours - jax.nn.softmax(2 * x, axis)).max() > 1e-3
    nothing = jnp.full((2, 3), -jnp.inf)
    assert np.isneginf(log_sum_exp(nothing, 0)).all()
    assert (np.asarray(jax.grad(lambda x: log_sum_exp(x, 0)[0])(nothing)) == 0).all()
    part = jnp.asarray([[-jnp.inf, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(log_sum_exp(part, 0), [1.0, np.log(2)], atol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda x: log_sum_exp(x, 0).sum())(part), [[0, 0.5], [1, 0.5]], atol=1e-6
    )


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("x", [[0.3, -1.0, 2.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
def test_second_derivatives_hold_at_ties_too(x):
    p = np.asarray(jax.nn.softmax(jnp.asarray(x)))
    found = jax.hessian(lambda x: log_sum_exp(x, 0))(jnp.asarray(x))
    np.testing.assert_allclose(found, np.diag(p) - np.outer(p, p), atol=1e-12)
