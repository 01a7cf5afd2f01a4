"""Variational inference where the answer is known, and where it must not be trusted."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import FALSE_ALARM
from scipy import stats
from simulate import simulate_figure2

from bayesmeta.inference.status import Outcome
from bayesmeta.inference.svi import svi
from bayesmeta.inference.svi_fit import matched_noise
from bayesmeta.models.figure2 import HIERARCHICAL, figure2

SIZE, TASKS = 21, 60
RNG = np.random.default_rng(0)
A = (RNG.normal(size=(TASKS, SIZE)) * np.exp(RNG.normal(size=SIZE))).astype(np.float32)
Y = (2.0 * RNG.normal(size=TASKS)).astype(np.float32)


def regression(design, outcome, prior_scale=3.0):
    weights = numpyro.sample("b", dist.Normal(0, prior_scale).expand([SIZE]).to_event(1))
    numpyro.sample("y", dist.Normal(design @ weights, 1.0), obs=outcome)


def exact_posterior(prior_scale):
    """Mean and covariance of the regression weights, in closed form."""
    design = A.astype(np.float64)
    covariance = np.linalg.inv(design.T @ design + np.eye(SIZE) / prior_scale**2)
    return covariance @ design.T @ Y, covariance


def check_draws(draws, mean, covariance):
    """Independent draws [draw, size] against a normal: mean and covariance by chi-square."""
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, (draws - mean).T).T
    count, size = white.shape
    average = white.mean(0)
    assert count * average @ average < stats.chi2.ppf(1 - FALSE_ALARM, size)
    # Under the right covariance each centred entry has variance 1/n, or 2/n on the diagonal.
    excess = white.T @ white / count - np.eye(size)
    statistic = count * (
        np.square(np.tril(excess, -1)).sum() + np.square(np.diag(excess)).sum() / 2
    )
    assert statistic < stats.chi2.ppf(1 - FALSE_ALARM, size * (size + 1) / 2)


@pytest.fixture(scope="module")
def gaussian():
    return svi(regression, jnp.asarray(A), jnp.asarray(Y))


def test_a_gaussian_posterior_is_recovered(gaussian):
    assert gaussian.status.converged, gaussian.status
    assert gaussian.sample_stats["log_ratio"].std() < 0.01
    check_draws(gaussian.samples["b"][0], *exact_posterior(3.0))


def test_the_elbo_of_an_exact_fit_is_the_evidence(gaussian):
    evidence = stats.multivariate_normal(cov=9.0 * A @ A.T + np.eye(TASKS)).logpdf(Y)
    assert abs(gaussian.status.diagnostics["elbo"] - evidence) < 0.01


def test_another_prior_is_noticed(gaussian):
    with pytest.raises(AssertionError):
        check_draws(gaussian.samples["b"][0], *exact_posterior(1.0))


def test_a_covariance_that_ignores_correlation_is_noticed(gaussian):
    mean, covariance = exact_posterior(3.0)
    with pytest.raises(AssertionError):
        check_draws(gaussian.samples["b"][0], mean, np.diag(np.diag(covariance)))


def test_a_low_rank_guide_has_the_looser_bound(gaussian):
    low = svi(regression, A, Y, guide="low_rank", num_samples=500)
    assert low.status.diagnostics["elbo"] < gaussian.status.diagnostics["elbo"] - 0.1
    assert low.sample_stats["log_ratio"].std() > 0.1


def funnel():
    log_scale = numpyro.sample("a", dist.Normal(0, 2))
    numpyro.sample("b", dist.Normal(0, jnp.exp(log_scale)).expand([4]).to_event(1))


def test_too_few_steps_are_reported():
    result = svi(funnel, num_steps=1)
    assert result.status.outcome is Outcome.NOT_SETTLED, result.status
    assert result.status.diagnostics["gain_left"] > 0.1


def test_a_funnel_is_flagged():
    result = svi(funnel)
    assert result.status.outcome is Outcome.PARETO_K, result.status


def test_a_skewed_figure2_posterior_is_flagged_and_its_mean_is_near():
    data, _ = simulate_figure2(
        np.random.default_rng(3), num_tasks=24, num_skills=2, num_domains=2, num_features=1
    )
    result = svi(figure2, data, HIERARCHICAL, decenter=("v",))
    assert result.status.outcome is Outcome.PARETO_K, result.status
    exact = mean_strategy_by_prior_draws(data)
    assert abs(result.samples["F"][..., 0, 0].mean() - exact) < 0.02


def mean_strategy_by_prior_draws(data, size=200_000):
    """E[F[0, 0]] for two skills, two domains and one feature, from weighted prior draws."""
    rng, half = np.random.default_rng(0), np.sqrt(0.5)
    u, slope = rng.normal(0, 1.5, size), rng.normal(0, 0.5, size)
    v = rng.normal(size=size) * np.abs(rng.normal(0, 0.5, size))
    scores = np.exp(np.asarray(data.log_likelihood, np.float64))
    log_weight = np.zeros(size)
    for n in range(scores.shape[1]):
        sign = half if data.domain[n] == 0 else -half
        first = 1 / (1 + np.exp(-2 * half * (u + slope * float(data.x[n, 0]) + sign * v)))
        log_weight += np.log(first * scores[0, n] + (1 - first) * scores[1, n])
    weight = np.exp(log_weight - log_weight.max())
    return weight @ (1 / (1 + np.exp(-2 * half * (u + half * v)))) / weight.sum()


def test_draws_and_status_are_the_same_for_the_same_seed():
    first, second = (svi(regression, A, Y, num_samples=100, rng_seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.samples["b"], second.samples["b"])
    assert first.samples["b"].shape == (1, 100, SIZE)


def test_matched_noise_has_the_moments_it_promises():
    import jax

    noise = np.asarray(matched_noise(jax.random.key(0), 8, 5))
    assert len(noise) >= 10
    np.testing.assert_allclose(noise.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(noise.T @ noise / len(noise), np.eye(5), atol=1e-5)


def test_an_unknown_guide_is_refused():
    with pytest.raises(ValueError, match="got 'dense'"):
        svi(regression, A, Y, guide="dense")  # pyright: ignore[reportArgumentType]
