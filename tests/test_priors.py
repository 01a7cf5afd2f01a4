"""Priors as data: checked where they are made and where they meet a model, swapped in one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy.stats import dirichlet
from simulate import simulate_figure2
from simulate_full import GRAPHS, simulate_full

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.figure2 import HIERARCHICAL, figure2
from bayesmeta.models.figure2_full import figure2_full
from bayesmeta.models.logistic_dirichlet import LogisticDirichlet
from bayesmeta.models.prior import Prior, SitePrior
from bayesmeta.models.priors import EXTRA, PRIORS, named_prior, prior_for


@pytest.fixture(scope="module")
def data():
    return simulate_figure2(np.random.default_rng(0), num_tasks=12)[0]


def _sites(model, *args):
    return handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(*args)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
class TestRegistry:
    def test_survives_json(self, prior):
        assert Prior.from_json(prior.to_json()) == prior
        assert hash(Prior.from_json(prior.to_json())) == hash(prior)

    def test_fits_the_working_model(self, prior, data):
        trace = _sites(figure2, data, prior)
        values = {k: v["value"] for k, v in trace.items() if v["type"] == "sample"}
        assert np.isfinite(log_density(figure2, (data, prior), {}, values)[0])

    def test_is_compiled_with_its_numbers_as_arguments(self, prior, data):
        values = {k: v["value"] for k, v in _sites(figure2, data, prior).items()}
        compiled = jax.jit(lambda p: log_density(figure2, (data, p), {}, values)[0])
        direct = log_density(figure2, (data, prior), {}, values)[0]
        np.testing.assert_allclose(compiled(prior), direct, rtol=1e-5)


def test_priors_of_one_structure_share_a_compilation(data):
    traced = 0

    @jax.jit
    def density(prior):
        nonlocal traced
        traced += 1
        values = {"u": jnp.zeros(2), "U": jnp.zeros((2, 2)), "tau_E": 1.0, "v": jnp.zeros((8, 2))}
        return log_density(figure2, (data, prior), {}, values)[0]

    wide = HIERARCHICAL.replace("wide", tau_E=SitePrior("HalfNormal", {"scale": 3.0}))
    assert density(HIERARCHICAL) != density(wide)
    assert density(PRIORS["sceptical"]) != density(wide)
    assert traced == 1
    density(PRIORS["horseshoe"].without("plain", "lambda_E").replace("p", v=HIERARCHICAL["v"]))
    assert traced == 2  # another family for tau_E is another program


def test_what_the_named_priors_say(data):
    """Each differs from the default in what its name says."""
    N = 4000

    def draws(name):
        prior = named_prior(name)
        seeded = lambda key: handlers.trace(handlers.seed(figure2, key)).get_trace(data, prior)  # noqa: E731
        keys = jax.random.split(jax.random.key(1), N)
        return jax.vmap(
            lambda key: {
                k: v["value"] for k, v in seeded(key).items() if k in ("mu", "W", "delta", "F")
            }
        )(keys)

    drawn = {name: draws(name) for name in PRIORS}
    spread = {name: float(d["delta"].std()) for name, d in drawn.items()}
    assert spread["complete_pooling"] == 0
    assert spread["sceptical"] < spread["hierarchical"] < spread["no_pooling"]
    assert not np.any(drawn["no_features"]["W"]) and not np.any(drawn["literal_figure2"]["W"])
    top = {name: float(d["F"].max(-1).mean()) for name, d in drawn.items()}
    assert top["sceptical"] < top["hierarchical"] < top["overconfident"]
    assert float(np.mean(drawn["overconfident"]["F"].max(-1) > 0.9)) > 0.75
    # Flat weights: on a uniform simplex some weight exceeds 0.9 with probability 3 (1 - 0.9)^2;
    # a binomial error of 5 standard deviations is allowed, which the normal prior exceeds.
    expected, error = 0.03, 5 * np.sqrt(0.03 * 0.97 / N)
    share = {
        name: float((jax.nn.softmax(drawn[name]["mu"], -1).max(-1) > 0.9).mean())
        for name in ("flat_weights", "hierarchical")
    }
    assert abs(share["flat_weights"] - expected) < error
    assert abs(share["hierarchical"] - expected) > error


class TestLogisticDirichlet:
    @pytest.mark.parametrize("concentration", [0.5, 1.0, 4.0])
    def test_density_is_that_of_the_weights(self, concentration):
        """p(u) du = Dirichlet(w) dw, with dw/du taken by automatic differentiation."""
        C = jnp.asarray(contrast(4))
        with jax.enable_x64(True):
            u = jnp.asarray([0.3, -0.8, 1.1], jnp.float64)
            to_weights = lambda u: jax.nn.softmax(jnp.asarray(contrast(4)) @ u)[:3]  # noqa: E731
            volume = jnp.abs(jnp.linalg.det(jax.jacfwd(to_weights)(u)))
            w = np.asarray(jax.nn.softmax(jnp.asarray(contrast(4)) @ u))
            expected = dirichlet.logpdf(w, np.full(4, concentration)) + np.log(volume)
            got = LogisticDirichlet(concentration, 3).log_prob(u)
            np.testing.assert_allclose(got, expected, rtol=1e-10)
        assert C.shape == (4, 3)

    def test_draws_have_dirichlet_moments(self):
        a, K, N = 0.7, 3, 40_000
        u = LogisticDirichlet(a, K - 1).sample(jax.random.key(0), (N,))
        w = np.asarray(jax.nn.softmax(u @ jnp.asarray(contrast(K), u.dtype).T, -1), np.float64)
        variance = (K - 1) / K**2 / (K * a + 1)
        error = 5 * np.sqrt(variance / N)
        np.testing.assert_allclose(w.mean(0), 1 / K, atol=error)
        squared = (w - 1 / K) ** 2
        np.testing.assert_allclose(
            squared.mean(0), variance, atol=float(5 * squared.std() / np.sqrt(N))
        )


class TestBadPriors:
    def test_a_missing_site(self, data):
        with pytest.raises(ValueError, match="missing sites \\['tau_E'\\].*prior.replace"):
            _sites(figure2, data, HIERARCHICAL.without("short", "tau_E"))

    def test_an_unknown_site(self, data):
        with pytest.raises(ValueError, match="unknown sites \\['kappa_F'\\].*prior.without"):
            _sites(figure2, data, HIERARCHICAL.replace("long", kappa_F=EXTRA["kappa_F"]))

    def test_a_wrong_shape(self, data):
        wrong = HIERARCHICAL.replace(
            "wrong", u=SitePrior("Normal", {"loc": (0.0, 0.0, 0.0), "scale": 1.5})
        )
        with pytest.raises(ValueError, match="shape \\(3,\\), but its site has shape \\(2,\\)"):
            _sites(figure2, data, wrong)

    def test_one_number_per_entry_is_a_right_shape(self, data):
        skewed = HIERARCHICAL.replace(
            "skewed", u=SitePrior("Normal", {"loc": (3.0, -3.0), "scale": 1e-6})
        )
        np.testing.assert_allclose(_sites(figure2, data, skewed)["u"]["value"], [3, -3], atol=1e-4)
        assert Prior.from_json(skewed.to_json()) == skewed

    @pytest.mark.parametrize(
        ("site", "entry", "message"),
        [
            ("tau_E", SitePrior("Normal", {"loc": 0.0, "scale": 1.0}), "must be positive.*Normal"),
            ("tau_E", SitePrior("Uniform", {"low": -1.0, "high": 1.0}), "support is interval"),
            ("u", SitePrior("LKJCholesky", {"concentration": 1.0}), "must be real"),
        ],
    )
    def test_a_support_that_the_site_does_not_have(self, site, entry, message):
        graph = GRAPHS["working"]
        data, prior, _ = simulate_full(graph, np.random.default_rng(0))
        with pytest.raises(ValueError, match=message):
            _sites(figure2_full, data, prior.replace("wrong", **{site: entry}), graph)

    @pytest.mark.parametrize(
        ("family", "parameters", "message"),
        [
            ("Cauchy", {"scale": 1.0}, "unknown prior family 'Cauchy'"),
            ("Normal", {"mean": 0.0}, "no parameter 'mean'"),
            ("HalfNormal", {"scale": -1.0}, "needs scale in .* got -1.0"),
            ("Normal", {"loc": float("inf"), "scale": 1.0}, "needs loc in .* got inf"),
            ("Normal", {"loc": ((0.0,), (1.0, 2.0)), "scale": 1.0}, "rectangular"),
            ("LogisticDirichlet", {"concentration": 0.0}, "positive numbers, got 0.0"),
            ("Fixed", {"value": float("nan")}, "finite numbers, got nan"),
        ],
    )
    def test_a_family_used_wrongly(self, family, parameters, message):
        with pytest.raises(ValueError, match=message):
            SitePrior(family, parameters)

    def test_an_unknown_name(self):
        with pytest.raises(ValueError, match="no prior named 'flat'; known: hierarchical"):
            named_prior("flat")


class TestFixedSites:
    def test_a_fixed_site_is_known_and_not_drawn(self, data):
        fixed = HIERARCHICAL.replace("fixed", tau_E=SitePrior("Fixed", {"value": 0.7}))
        trace = _sites(figure2, data, fixed)
        assert trace["tau_E"]["type"] == "deterministic"
        assert float(trace["v"]["fn"].base_dist.variance.max()) == pytest.approx(0.49)

    def test_no_spread_means_no_domain_effects(self, data):
        trace = _sites(figure2, data, PRIORS["complete_pooling"])
        assert "v" not in trace and not np.any(trace["delta"]["value"])


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_every_graph_has_a_default_prior(graph):
    data, _, sites = simulate_full(graph, np.random.default_rng(1), num_evidence_features=2)
    prior = prior_for(graph, data)
    trace = _sites(figure2_full, data, prior, graph)
    drawn = {k for k, v in trace.items() if v["type"] == "sample" and not v["is_observed"]}
    assert drawn - {"eps", "F_n"} <= set(prior.sites)
    with pytest.raises(ValueError, match="missing sites"):
        _sites(figure2_full, data, prior.without("short", "u"), graph)
    assert dataclasses.is_dataclass(data) and "O" in sites
