"""Beliefs carried over episodes: exact where everything is Gaussian, and honest elsewhere."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from simulate import simulate_figure2

from bayesmeta.inference.conjugate_stream import LinearStream
from bayesmeta.inference.nuts import nuts
from bayesmeta.inference.status import Outcome
from bayesmeta.inference.stream_program import StreamProgram
from bayesmeta.inference.streaming import Stream, StreamState
from bayesmeta.models.figure2 import HIERARCHICAL, figure2

SIZE, NOISE = 3, 0.5
PRIOR_SD = {"a": 1.0, "b": 2.0}
RNG = np.random.default_rng(1)
EPISODES = [(RNG.normal(size=(5, SIZE)), RNG.normal(size=5)) for _ in range(4)]


def regression(design, outcome):
    """Two sites, so that they can forget at different rates."""
    a = numpyro.sample("a", dist.Normal(0, PRIOR_SD["a"]))
    b = numpyro.sample("b", dist.Normal(0, PRIOR_SD["b"]).expand([SIZE - 1]).to_event(1))
    mean = design @ jnp.concatenate([a[None], b])
    numpyro.sample("y", dist.Normal(mean, NOISE).to_event(1), obs=outcome)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def run(method, forgetting, episodes=EPISODES):
    arrays = [tuple(map(jnp.asarray, episode)) for episode in episodes]
    stream = Stream.of(regression, *arrays[0], forgetting=forgetting)
    state: Any = None
    statuses = []
    for episode in arrays:
        state, fit = stream.update(state, *episode, method=method)
        statuses.append(fit.status)
    return state, statuses


@pytest.mark.parametrize("method", ["vcl", "laplace"])
@pytest.mark.parametrize("forget", [1.0, 0.7])
def test_gaussian_streams_are_exact(x64, method, forget):
    belief = LinearStream.start(np.zeros(SIZE), np.diag([1.0, 4.0, 4.0]))
    for episode in EPISODES:
        belief = belief.update(*episode, NOISE, forget)
    state, statuses = run(method, {"a": forget, "b": forget})
    assert state.episode == 4 and all(status.converged for status in statuses)
    np.testing.assert_allclose(state.loc, belief.loc, atol=1e-6)
    np.testing.assert_allclose(state.covariance, belief.covariance, atol=1e-6)


def test_moments_of_draws_agree_within_their_error():
    belief = LinearStream.start(np.zeros(SIZE), np.diag([1.0, 4.0, 4.0]))
    belief = belief.update(*EPISODES[0], NOISE)
    state, (status,) = run("moments", {}, EPISODES[:1])
    assert status.converged, status
    error = np.sqrt(np.diag(belief.covariance) / status.diagnostics["ess_bulk"])
    assert (np.abs(state.loc - belief.loc) < 4 * error).all()
    ratio = np.diag(state.covariance) / np.diag(belief.covariance)
    assert (np.abs(ratio - 1) < 4 * np.sqrt(2 / status.diagnostics["ess_tail"])).all()


def test_sites_forget_at_their_own_rates(x64):
    """With an orthogonal design the sites are independent, so each has its own closed form."""
    design = np.eye(SIZE)
    episodes = [(design, RNG.normal(size=SIZE)) for _ in range(5)]
    state, _ = run("laplace", {"a": 0.9, "b": 0.5}, episodes)
    rates, age = np.array([0.9, 0.5, 0.5]), np.arange(5)[::-1, None]
    weight = rates[None] ** age / NOISE**2
    precision = np.array([1.0, 0.25, 0.25]) + weight.sum(0)
    loc = (weight * np.stack([y for _, y in episodes])).sum(0) / precision
    np.testing.assert_allclose(np.diag(state.covariance), 1 / precision, rtol=1e-6)
    np.testing.assert_allclose(state.loc, loc, atol=1e-6)


def test_the_same_episode_twice_counts_twice(x64):
    """Why memory must refuse what it has seen: the belief narrows as if the evidence were new."""
    once, _ = run("laplace", {}, EPISODES[:1])
    twice, _ = run("laplace", {}, [EPISODES[0]] * 2)
    assert np.diag(twice.covariance)[1] < 0.75 * np.diag(once.covariance)[1]


def test_parts_of_a_program_add_up_to_its_density(x64):
    data, _ = simulate_figure2(np.random.default_rng(0), num_tasks=20)
    from numpyro.infer.util import log_density

    program = StreamProgram.of(figure2, data, HIERARCHICAL)
    z = 0.3 * np.random.default_rng(1).normal(size=program.size)
    log_prior, log_likelihood = program.log_terms(jnp.asarray(z), data, HIERARCHICAL)
    sites = {k: v.reshape(s) for (k, s), v in zip(program.sites, _parts(program, z), strict=True)}
    log_tau = sites["tau_E"]
    sites["tau_E"] = np.exp(log_tau)
    wanted = log_density(figure2, (data, HIERARCHICAL), {}, sites)[0] + log_tau
    assert float(log_prior.sum() + log_likelihood) == pytest.approx(float(wanted), abs=1e-9)
    wanted = stats.halfnorm.logpdf(sites["tau_E"], 0, 0.5) + log_tau
    index = [name for name, _ in program.sites].index("tau_E")
    assert float(log_prior[index]) == pytest.approx(float(wanted), abs=1e-9)


def _parts(program, z):
    return [z[program.slices[name]] for name, _ in program.sites]


@pytest.fixture(scope="module")
def figure2_stream():
    data, _ = simulate_figure2(np.random.default_rng(5), num_tasks=240, num_features=1)
    episodes = [cut(data, slice(60 * b, 60 * b + 60)) for b in range(4)]
    stream = Stream.of(figure2, episodes[0], HIERARCHICAL, decenter=("v",), gaussianise=("tau_E",))
    state, fits = None, []
    for episode in episodes:
        state, fit = stream.update(state, episode, HIERARCHICAL)
        fits.append(fit)
    return data, stream, state, fits


def cut(data, tasks):
    """Some tasks of a data set."""
    return dataclasses.replace(
        data,
        log_p=data.log_p[:, :, tasks],
        log_likelihood=data.log_likelihood[:, tasks],
        gold=data.gold[tasks],
        domain=data.domain[tasks],
        x=data.x[tasks],
        scale=data.scale[tasks],
    )


def test_a_stream_of_figure2_is_close_to_its_batch(figure2_stream):
    """Not equal: the belief between episodes is Gaussian. Strategies may differ by as much as half
    a posterior standard deviation, and their spreads by as much as half."""
    data, stream, state, fits = figure2_stream
    assert all(fit.status.converged for fit in fits), [fit.status for fit in fits]
    batch = nuts(figure2, data, HIERARCHICAL, decenter=("v",))
    streamed = stream.sites(state, data_like(data), HIERARCHICAL, num_samples=4000)["F"][0]
    mean, sd = batch.samples["F"].mean((0, 1)), batch.samples["F"].std((0, 1))
    apart = np.abs(streamed.mean(0) - mean) / sd
    assert np.sqrt((apart**2).mean()) < 0.5
    ratio = streamed.std(0) / sd
    assert 0.67 < np.median(ratio) < 1.5
    first = fits[0].samples["F"].mean((0, 1))
    # The wrong version stops after one episode.
    assert np.sqrt((((first - mean) / sd) ** 2).mean()) > 0.5


def data_like(data):
    return cut(data, slice(0, 60))


def test_a_stream_is_compiled_once(figure2_stream):
    _, stream, state, _ = figure2_stream
    before = stream.compiled["many"]._cache_size()
    data, _ = simulate_figure2(np.random.default_rng(9), num_tasks=60, num_features=1)
    stream.update(state, data, HIERARCHICAL, method="vcl")
    assert stream.compiled["many"]._cache_size() == before


def funnel(y):
    """Effects that share a scale which nothing informs (Neal 2003): no Gaussian covers them."""
    scale = numpyro.sample("scale", dist.Normal(0.0, 1.5))
    x = numpyro.sample("x", dist.Normal(0.0, jnp.exp(scale)).expand([9]).to_event(1))
    numpyro.sample("y", dist.Normal(x[0], 5.0), obs=y)


def test_what_no_gaussian_covers_is_flagged_and_auto_turns_to_draws():
    stream = Stream.of(funnel, jnp.asarray(0.3))
    _, fit = stream.update(None, jnp.asarray(0.3), method="vcl")
    assert fit.status.outcome is Outcome.PARETO_K
    _, fit = stream.update(None, jnp.asarray(0.3))
    assert fit.settings["method"] == "moments"


def test_bad_input_is_refused():
    arrays = tuple(map(jnp.asarray, EPISODES[0]))
    with pytest.raises(ValueError, match=r"no latent sites; known: \['a', 'b'\]"):
        Stream.of(regression, *arrays, forgetting={"c": 0.5})
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            Stream.of(regression, *arrays, forgetting={"a": wrong})
    stream = Stream.of(regression, *arrays)
    with pytest.raises(ValueError, match="Continue a stream with the program"):
        stream.update(StreamState(np.zeros(2), np.eye(2), 1), *arrays)
    with pytest.raises(ValueError, match="method must be"):
        stream.update(None, *arrays, method="magic")

    def coin():
        numpyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})

    with pytest.raises(ValueError, match="'z' is discrete"):
        StreamProgram.of(coin)
    _, fit = stream.update(None, arrays[0], arrays[1] * np.nan)
    assert fit.status.outcome is Outcome.NOT_FINITE
