"""Variational inference over minibatches against closed forms and against all data at once."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from simulate import simulate_figure2

from bayesmeta.inference.minibatch_svi import minibatch_svi
from bayesmeta.inference.status import Outcome
from bayesmeta.inference.svi import svi
from bayesmeta.models.figure2 import HIERARCHICAL, figure2

SIZE, TASKS, BATCH = 6, 600, 50
RNG = np.random.default_rng(0)
# Inputs on scales and with correlations that plain gradient steps would struggle with.
A = RNG.normal(size=(TASKS, SIZE)) @ (np.eye(SIZE) + 0.7) * np.array([0.1, 1, 1, 3, 1, 1])
Y = A @ RNG.normal(size=SIZE) + RNG.normal(size=TASKS)


def regression(batch):
    design, outcome, scale = batch
    weights = numpyro.sample("b", dist.Normal(0, 3).expand([SIZE]).to_event(1))
    numpyro.factor("y", (scale * dist.Normal(design @ weights, 1.0).log_prob(outcome)).sum())


def batches(width=BATCH, scale=None):
    """An `epoch` over the regression data; the last batch is padded."""
    count = -(-TASKS // width)
    weight = np.zeros(count * width)
    weight[:TASKS] = count if scale is None else scale
    rows = np.resize(np.arange(TASKS), count * width)

    def epoch(rng):
        for index in rng.permutation(count):
            at = slice(index * width, (index + 1) * width)
            parts = (A[rows[at]], Y[rows[at]], weight[at])
            yield tuple(jnp.asarray(part, float) for part in parts)

    return epoch


def exact_posterior():
    covariance = np.linalg.inv(A.T @ A + np.eye(SIZE) / 9.0)
    return covariance @ A.T @ Y, covariance


def divergence(draws):
    """KL from the draws' normal to the exact posterior, in nats."""
    mean, covariance = exact_posterior()
    draws = np.asarray(draws, np.float64)
    ours, shift = np.cov(draws.T), draws.mean(0) - mean
    precision = np.linalg.inv(covariance)
    log_ratio = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(ours)[1]
    return 0.5 * (np.trace(precision @ ours) - SIZE + shift @ precision @ shift + log_ratio)


@pytest.mark.parametrize("width", [BATCH, 64])  # 64 does not divide the number of tasks
def test_a_gaussian_posterior_is_recovered(width):
    result = minibatch_svi(regression, batches(width), num_epochs=20)
    assert result.status.converged, result.status
    assert result.status.diagnostics["log_ratio_sd"] < 0.4
    # 2000 draws of an exact fit have a divergence of about 27 / 4000 nats.
    assert divergence(result.samples["b"][0]) < 0.1


def test_batches_without_their_scale_are_noticed():
    result = minibatch_svi(regression, batches(scale=1.0), num_epochs=20)
    assert divergence(result.samples["b"][0]) > 0.5


def test_the_check_uses_all_data():
    result = minibatch_svi(regression, batches(), num_epochs=20, num_checked=2000)
    evidence = dist.MultivariateNormal(
        jnp.zeros(TASKS), jnp.asarray(9.0 * A @ A.T + np.eye(TASKS))
    ).log_prob(jnp.asarray(Y))
    # The ELBO is below the log evidence by the guide's divergence, which is small.
    assert abs(result.status.diagnostics["elbo"] - float(evidence)) < 0.2


def test_one_short_epoch_is_reported():
    result = minibatch_svi(regression, batches(10), num_epochs=1)
    assert result.status.outcome is Outcome.NOT_SETTLED, result.status


def test_a_diagonal_guide_is_flagged_where_parameters_are_correlated():
    result = minibatch_svi(regression, batches(), num_epochs=20, guide="diagonal")
    full = minibatch_svi(regression, batches(), num_epochs=20)
    assert result.status.diagnostics["log_ratio_sd"] > 2 * full.status.diagnostics["log_ratio_sd"]
    assert (result.samples["b"].std((0, 1)) < full.samples["b"].std((0, 1))).all()


def test_strategies_agree_with_a_fit_to_all_data():
    count = 1200
    data, _ = simulate_figure2(np.random.default_rng(1), num_tasks=count, num_domains=4)

    def epoch(rng):
        for rows in rng.permutation(count).reshape(4, -1):
            yield dataclasses.replace(
                data,
                log_p=data.log_p[..., rows],
                log_likelihood=data.log_likelihood[:, rows],
                gold=data.gold[rows],
                domain=data.domain[rows],
                x=data.x[rows],
                scale=4.0 * data.scale[rows],
            )

    small = minibatch_svi(figure2, epoch, HIERARCHICAL, num_epochs=25, decenter=("v",))
    whole = svi(figure2, data, HIERARCHICAL, decenter=("v",))
    difference = small.samples["F"].mean((0, 1)) - whole.samples["F"].mean((0, 1))
    assert np.abs(difference).max() < 0.04
    assert set(small.samples) == set(whole.samples)


def test_same_seed_same_result():
    first, second = (minibatch_svi(regression, batches(100), num_epochs=2) for _ in range(2))
    np.testing.assert_array_equal(first.samples["b"], second.samples["b"])


def test_batches_of_another_shape_are_refused():
    widths = iter([50, 50, 40, 40])

    def epoch(rng):
        yield from batches(next(widths))(rng)

    with pytest.raises(ValueError, match="Pad short batches"):
        minibatch_svi(regression, epoch, num_epochs=3)


def test_an_empty_epoch_is_refused():
    with pytest.raises(ValueError, match="yielded no batch"):
        minibatch_svi(regression, lambda rng: iter(()))


@pytest.mark.parametrize(
    "settings", [{"num_epochs": 0}, {"num_particles": 3}, {"num_checked": 10}, {"guide": "x"}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="got|must be"):
        minibatch_svi(regression, batches(), **settings)
