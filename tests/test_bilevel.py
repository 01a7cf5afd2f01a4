"""First F, then Theta: a bound that never falls, and what the two levels lose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from simulate import simulate_figure2

from bayesmeta.inference.bilevel import bilevel
from bayesmeta.inference.status import Outcome
from bayesmeta.inference.streaming import Stream
from bayesmeta.models.figure2 import HIERARCHICAL, figure2


def log_strategy(sites, args):
    data = args[0]
    logits = sites["mu"] + data.x @ sites["W"].T + sites["delta"][data.domain]
    return jax.nn.log_softmax(logits, -1)


@pytest.fixture(scope="module")
def setting():
    with jax.enable_x64(True):
        data, truth = simulate_figure2(np.random.default_rng(4), num_tasks=120, num_features=1)
        stream = Stream.of(figure2, data, HIERARCHICAL, decenter=("v",), gaussianise=("tau_E",))
        scores = np.asarray(data.log_likelihood).T
        found = bilevel(
            stream, None, data, HIERARCHICAL, log_strategy=log_strategy, log_likelihood=scores
        )
        yield data, stream, scores, found


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_the_bound_never_falls(setting):
    *_, found = setting
    assert len(found.bound) > 3 and found.fit.status.converged, found.fit.status
    assert (np.diff(found.bound) > -1e-9).all()
    assert found.bound[-1] > found.bound[0] + 1e-3


def test_the_inner_level_is_at_its_best(setting):
    data, stream, scores, found = setting
    r = found.responsibilities
    np.testing.assert_allclose(r.sum(1), 1, rtol=1e-12)
    sites = stream.sites(found.state, data, HIERARCHICAL, num_samples=4000)
    logits = (
        sites["mu"][0][:, None]
        + np.einsum("np,skp->snk", np.asarray(data.x), sites["W"][0])
        + sites["delta"][0][:, np.asarray(data.domain)]
    )
    draws = log_softmax(logits, -1)
    wanted = np.exp(log_softmax(draws.mean(0) + scores, 1))
    error = draws.std(0).max() / np.sqrt(4000)
    assert np.abs(r - wanted).max() < 4 * error


def test_two_levels_bound_less_tightly_and_are_surer_than_one(setting):
    data, stream, _, found = setting
    state, fit = stream.update(None, data, HIERARCHICAL, method="vcl")
    assert found.bound[-1] < fit.status.diagnostics["elbo"]
    assert np.trace(found.state.covariance) < np.trace(state.covariance)
    F = [
        stream.sites(one, data, HIERARCHICAL, num_samples=4000)["F"][0].mean(0)
        for one in (found.state, state)
    ]
    assert np.abs(F[0] - F[1]).mean() < 0.05
    assert np.abs(F[0] - 1 / 3).max() > 0.1


def test_rewards_move_the_strategy_and_tau_tempers_them(setting):
    data, stream, scores, found = setting
    reward = np.zeros_like(scores)
    reward[:, 1] = 2.0
    shares = [found.responsibilities[:, 1].mean()]
    for tau in (4.0, 1.0):
        moved = bilevel(
            stream,
            None,
            data,
            HIERARCHICAL,
            log_strategy=log_strategy,
            log_likelihood=scores,
            reward=reward,
            tau=tau,
            num_alternations=30,
        )
        shares.append(moved.responsibilities[:, 1].mean())
    assert shares[0] < shares[1] < shares[2]


def test_weight_zero_leaves_the_prior_and_bad_settings_are_refused(setting):
    data, stream, scores, _ = setting
    call = dict(log_strategy=log_strategy, log_likelihood=scores)
    found = bilevel(stream, None, data, HIERARCHICAL, weight=np.zeros(120), **call)
    u = stream.program.slices["u"]
    np.testing.assert_allclose(found.state.loc[u], 0, atol=1e-6)
    np.testing.assert_allclose(np.diag(found.state.covariance)[u], 1.5**2, rtol=1e-5)
    found = bilevel(stream, None, data, HIERARCHICAL, num_alternations=2, **call)
    assert found.fit.status.outcome is Outcome.NOT_SETTLED
    with pytest.raises(ValueError, match="tau must be > 0"):
        bilevel(stream, None, data, HIERARCHICAL, tau=0.0, **call)
    assert jnp.asarray(1.0).dtype == jnp.float64
