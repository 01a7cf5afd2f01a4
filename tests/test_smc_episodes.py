"""Particles over episodes: the right evidence, the right posterior, and two modes stay two."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from simulate import simulate_figure2

from bayesmeta.inference.nuts import nuts
from bayesmeta.inference.smc_episodes import smc_episodes
from bayesmeta.inference.status import Outcome
from bayesmeta.inference.streaming import Stream
from bayesmeta.models.figure2 import HIERARCHICAL, figure2

Y = np.random.default_rng(0).normal(0.8, 1.0, 12)
EPISODE = np.repeat(np.arange(3), 4)
WEIGHTS = (np.arange(3)[:, None] == EPISODE).astype(float)


def normal_mean(y, weight):
    x = numpyro.sample("x", dist.Normal(0.0, 2.0))
    with numpyro.plate("task", len(y)):
        likelihood = dist.Normal(x, 1.0)
        numpyro.factor("y", weight * likelihood.log_prob(y))


def reweigh(args, weight):
    return args[0], weight


def exact(seen):
    """Posterior mean and sd of x, and log evidence of the data seen."""
    y = Y[seen]
    precision = 0.25 + len(y)
    covariance = np.eye(len(y)) + 4.0
    return y.sum() / precision, precision**-0.5, stats.multivariate_normal.logpdf(y, cov=covariance)


def test_evidence_and_posterior_are_right_after_every_episode():
    repeats = [
        smc_episodes(
            normal_mean,
            jnp.asarray(Y),
            jnp.ones(12),
            weights=WEIGHTS,
            with_weights=reweigh,
            num_particles=500,
            rng_seed=seed,
        )
        for seed in range(8)
    ]
    assert all(found.fit.status.converged for found in repeats)
    for b in range(3):
        mean, sd, log_evidence = exact(EPISODE <= b)
        totals = np.array([found.log_evidence[: b + 1].sum() for found in repeats])
        error = totals.std(ddof=1) / np.sqrt(len(totals))
        assert abs(totals.mean() - log_evidence) < 5 * error + totals.var()
        draws = np.stack([found.history["x"][b] for found in repeats])
        centres = draws.mean(1)
        # Particles are not independent, so the error comes from independent repeats; t with 7 df.
        assert abs(centres.mean() - mean) < 6 * centres.std(ddof=1) / np.sqrt(8)
        assert np.abs(draws.std(1) / sd - 1).mean() < 0.1
    # The wrong version keeps the prior's answer.
    assert abs(exact(EPISODE <= 0)[0]) > 6 * centres.std(ddof=1) / np.sqrt(8)


def two_sided(y, weight):
    """Only |x| is seen, so the posterior has two modes of equal weight."""
    x = numpyro.sample("x", dist.Normal(0.0, 2.0))
    with numpyro.plate("task", len(y)):
        numpyro.factor("y", weight * dist.Normal(jnp.abs(x), 0.5).log_prob(y))


def test_two_modes_stay_two_where_a_gaussian_keeps_one():
    args = jnp.asarray(Y + 1.2), jnp.ones(12)
    found = smc_episodes(two_sided, *args, weights=WEIGHTS, with_weights=reweigh)
    share = (found.fit.samples["x"][0] > 0).mean()
    # Half, but for resampling: no move crosses over, so its error is that of a binomial count
    # from as many particles as the worst episode left.
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(found.ess.min())
    assert np.abs(found.fit.samples["x"]).mean() > 1.5
    stream = Stream.of(two_sided, *args)
    state, _ = stream.update(None, *args, method="laplace")
    assert abs(state.loc[0]) > 1.5 and state.covariance[0, 0] < 0.1


def test_agrees_with_nuts_on_figure2():
    data, _ = simulate_figure2(np.random.default_rng(2), num_tasks=60, num_features=1)
    weights = (np.arange(3)[:, None] == np.arange(60) // 20).astype(float)

    def with_weights(args, weight):
        return dataclasses.replace(args[0], scale=weight), *args[1:]

    found = smc_episodes(
        figure2,
        data,
        HIERARCHICAL,
        weights=weights,
        with_weights=with_weights,
        num_particles=2000,
        decenter=("v",),
        gaussianise=("tau_E",),
    )
    assert found.fit.status.converged, found.fit.status
    batch = nuts(figure2, data, HIERARCHICAL, decenter=("v",), num_samples=500)
    ours, theirs = found.fit.samples["F"][0], batch.samples["F"]
    # Particles move five times after the last resampling: count no more than that left of them.
    error = np.hypot(ours.std(0) / np.sqrt(found.ess[-1]), theirs.std((0, 1)) / np.sqrt(400))
    assert (np.abs(ours.mean(0) - theirs.mean((0, 1))) < 4.5 * error).all()
    prior_mean = 1 / 3
    assert (np.abs(theirs.mean((0, 1)) - prior_mean) > 4.5 * error).any()


def test_too_much_news_at_once_is_flagged():
    found = smc_episodes(
        normal_mean,
        jnp.asarray(np.full(400, 4.0)),
        jnp.ones(400),
        weights=np.ones((1, 400)),
        with_weights=reweigh,
        num_particles=500,
    )
    assert found.fit.status.outcome is Outcome.ESS
    assert "smaller episodes" in found.fit.status.detail
    found = smc_episodes(
        normal_mean,
        jnp.asarray(Y),
        jnp.ones(12),
        weights=WEIGHTS,
        with_weights=reweigh,
        step_size=20.0,
    )
    assert not found.fit.status.converged and "step_size" in found.fit.status.detail
    found = smc_episodes(
        normal_mean,
        jnp.asarray(Y),
        jnp.ones(12),
        weights=WEIGHTS,
        with_weights=lambda args, weight: (args[0], weight * jnp.nan),
    )
    assert found.fit.status.outcome is Outcome.NOT_FINITE


def test_a_seed_fixes_everything():
    runs = [
        smc_episodes(
            normal_mean,
            jnp.asarray(Y),
            jnp.ones(12),
            weights=WEIGHTS,
            with_weights=reweigh,
            num_particles=100,
            rng_seed=3,
        )
        for _ in range(2)
    ]
    np.testing.assert_array_equal(runs[0].fit.samples["x"], runs[1].fit.samples["x"])
    assert runs[0].log_evidence == pytest.approx(runs[1].log_evidence)
