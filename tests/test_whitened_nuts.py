"""The whitened samplers against plain NUTS, against the prior, and where they must step aside."""

import dataclasses

import arviz as az
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from simulate import simulate_figure2

from bayesmeta.inference.laplace import LaplaceError, laplace
from bayesmeta.inference.nuts import nuts
from bayesmeta.inference.whitened_hmc import whitened_hmc
from bayesmeta.inference.whitened_nuts import whitened_nuts
from bayesmeta.models.figure2 import HIERARCHICAL, figure2
from bayesmeta.models.prior import SitePrior

#: Monte Carlo standard errors: a false alarm of 6e-5 for each of the few quantities compared.
Z = 4.0


@pytest.fixture(scope="module")
def data():
    return simulate_figure2(np.random.default_rng(3), num_tasks=100)[0]


#: Fixed trajectories need more draws here: tasks are few and the approximation is poor.
ENGINES = pytest.mark.parametrize(
    ("engine", "num_samples"), [(whitened_nuts, 1000), (whitened_hmc, 4000)]
)


@pytest.fixture(scope="module")
def reference(data):
    return nuts(figure2, data, HIERARCHICAL, num_chains=4, num_samples=1000, decenter=("v",))


def quantities(result):
    """Scalars [chain, draw], squares among them: a wrong spread shows as well as a wrong mean."""
    s = {k: np.asarray(v, np.float64) for k, v in result.samples.items()}
    first = {"mu": s["mu"][..., 0], "W": s["W"][..., 1, 0], "delta": s["delta"][..., 2, 1]}
    squares = {f"{name} squared": value**2 for name, value in first.items()}
    return {**first, **squares, "F": s["F"][..., 0, 0], "tau_E": s["tau_E"]}


def mean_and_error(draws):
    return draws.mean(), float(az.mcse(az.from_dict({"posterior": {"q": draws}}))["q"])


def largest_z(one, other):
    found = []
    theirs = quantities(other)
    for name, draws in quantities(one).items():
        (a, error_a), (b, error_b) = mean_and_error(draws), mean_and_error(theirs[name])
        found.append(abs(a - b) / np.hypot(error_a, error_b))
    return max(found)


@ENGINES
def test_agrees_with_plain_nuts(engine, num_samples, data, reference):
    fitted = engine(figure2, data, HIERARCHICAL, num_chains=4, num_samples=num_samples)
    assert fitted.settings["engine"] == engine.__name__
    assert fitted.settings["fallback"] == ""
    assert fitted.status.converged, fitted.status
    assert fitted.samples.keys() == reference.samples.keys()
    for name, value in reference.samples.items():
        assert fitted.samples[name].shape[2:] == value.shape[2:]
    assert fitted.sample_stats.keys() == reference.sample_stats.keys()
    assert largest_z(fitted, reference) < Z


def test_another_prior_is_noticed(data, reference):
    wrong = HIERARCHICAL.replace("wrong", tau_E=SitePrior("HalfNormal", {"scale": 2.0}))
    result = whitened_nuts(figure2, data, wrong, num_chains=2, num_samples=1000)
    assert largest_z(result, reference) > Z


@ENGINES
def test_without_evidence_the_prior_comes_back(engine, num_samples, data):
    # Weight zero on every task: the funnel itself, which a fully centred sampler gets wrong.
    empty = dataclasses.replace(data, scale=jnp.zeros_like(data.scale))
    result = engine(figure2, empty, HIERARCHICAL, num_chains=2, num_samples=num_samples)
    assert result.status.converged, result.status
    tau = np.asarray(result.samples["tau_E"], np.float64)
    v = np.asarray(result.samples["v"], np.float64)[..., 0, 0]
    for draws, truth in ((tau, 0.5 * np.sqrt(2 / np.pi)), (tau**2, 0.25), (v**2, 0.25)):
        mean, error = mean_and_error(draws)
        assert abs(mean - truth) < Z * error


def schools(y, sigma):
    """The eight schools (Rubin 1981), under site names of its own, with a heavy-tailed group."""
    centre = numpyro.sample("centre", dist.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        effect = numpyro.sample("effect", dist.StudentT(5.0, 0.0, spread))
        numpyro.sample("y", dist.Normal(centre + effect, sigma), obs=y)


def test_other_programs_are_served_by_naming_their_sites():
    y = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    sites = {"group": "effect", "scale": "spread"}
    result = whitened_nuts(schools, y, sigma, num_chains=2, num_samples=200, **sites)
    assert result.settings["fallback"] == ""
    assert result.samples["effect"].shape == (2, 200, 8)
    with pytest.raises(ValueError, match="no latent site 'v'"):
        whitened_nuts(schools, y, sigma)


def with_shares(y, hits):
    """A group and its scale, and apart from them two shares whose posteriors are known."""
    tau = numpyro.sample("tau_E", dist.HalfNormal(1.0))
    v = numpyro.sample("v", dist.Normal(0.0, tau).expand([y.size]).to_event(1))
    share = numpyro.sample("share", dist.Beta(1.0, 2.0).expand([hits.size]).to_event(1))
    numpyro.sample("y", dist.Normal(v, 1.0).to_event(1), obs=y)
    numpyro.sample("hits", dist.Binomial(4, share).to_event(1), obs=hits)


def test_a_site_between_0_and_1_is_sampled_on_its_logit():
    y, hits = jnp.array([1.0, -0.5, 2.0]), jnp.array([0, 3])
    # At the default step size one draw in thousands diverges, on some processors and seeds.
    settings = {"num_chains": 2, "num_samples": 3000, "rng_seed": 1, "target_accept": 0.98}
    result = whitened_nuts(with_shares, y, hits, **settings)
    assert result.settings["fallback"] == ""
    assert result.status.converged, result.status
    for i, count in enumerate((0, 3)):
        draws = np.asarray(result.samples["share"], np.float64)[..., i]
        exact = stats.beta(1 + count, 2 + 4 - count)
        for moment in (1, 2):
            mean, error = mean_and_error(draws**moment)
            assert abs(mean - exact.moment(moment)) < Z * error
        # What the change of variables would give if its volume were forgotten.
        if count:
            mean, error = mean_and_error(draws)
            assert abs(mean - stats.beta(count, 1 + 4 - count).mean()) > Z * error


def positive_too(y):
    tau = numpyro.sample("tau_E", dist.HalfNormal(1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    v = numpyro.sample("v", dist.Normal(0.0, tau).expand([y.size]).to_event(1))
    numpyro.sample("y", dist.Normal(v, noise + 0.1).to_event(1), obs=y)


def other_scale(y):
    tau = numpyro.sample("tau_E", dist.HalfNormal(1.0))
    v = numpyro.sample("v", dist.Normal(0.0, 2.0 * tau).expand([y.size]).to_event(1))
    numpyro.sample("y", dist.Normal(v, 1.0).to_event(1), obs=y)


SHORT = {"num_chains": 2, "num_warmup": 50, "num_samples": 50, "rng_seed": 1}


def test_a_further_scale_is_left_to_plain_nuts():
    y = jnp.array([1.0, -0.5, 2.0])
    result = whitened_nuts(positive_too, y, **SHORT)
    assert "nuts, because 'noise' is a further site" in str(result.settings["fallback"])
    assert result.settings["engine"] == "whitened_nuts"
    assert result.settings["decenter"] == "v"
    assert result.samples["noise"].shape == (2, 50)


def test_a_group_of_another_scale_is_left_to_plain_nuts():
    result = whitened_nuts(other_scale, jnp.array([1.0, -0.5, 2.0]), **SHORT)
    assert "'v' has not location 0" in str(result.settings["fallback"])
    assert result.samples["v"].shape == (2, 50, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_chains": 1}, "at least 2, got 1"),
        ({"num_warmup": 0}, "at least 1, got 0"),
        ({"trajectory_length": 0.0}, "positive, got 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        whitened_hmc(figure2, data, HIERARCHICAL, **settings)


class TestLaplace:
    precision = np.array([[2.0, 0.6, 0.3], [0.6, 1.5, -0.2], [0.3, -0.2, 4.0]])
    mean = np.array([0.5, -1.0, 0.3])

    def gaussian(self, x):
        pull = self.precision @ (x - self.mean)
        return 0.5 * (x - self.mean) @ pull, pull, self.precision

    def test_is_exact_for_a_gaussian(self):
        found = laplace(self.gaussian, np.zeros(3), 1)
        np.testing.assert_allclose(found.covariance, np.linalg.inv(self.precision), atol=1e-8)
        # The outer search stops within a quarter of a standard deviation, by design.
        assert np.abs(found.mode - self.mean).max() < 0.3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda v, g, h: (np.nan, g, h), "not finite"),
            (lambda v, g, h: (v, g, -h), "not positive definite"),
        ],
    )
    def test_fails_by_name(self, change, message):
        with pytest.raises(LaplaceError, match=message):
            laplace(lambda x: change(*self.gaussian(x)), np.zeros(3), 1)
