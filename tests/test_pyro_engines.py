"""Pyro's engines, and what becomes of a Pyro fit."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from conftest import FALSE_ALARM
from scipy import stats
from simulate import planted_evidence, simulate_figure2
from simulate_full import GRAPHS
from two_languages import full_case

import bayesmeta
from bayesmeta.arrays import figure2_data
from bayesmeta.fitting import reflect_part
from bayesmeta.inference import pyro_structure, structure
from bayesmeta.inference.nuts import nuts
from bayesmeta.inference.pyro_nuts import pyro_nuts
from bayesmeta.inference.pyro_svi import pyro_svi
from bayesmeta.inference.status import Outcome
from bayesmeta.models import figure2_full_pyro, figure2_pyro
from bayesmeta.models.figure2 import HIERARCHICAL, figure2
from bayesmeta.models.figure2_full import figure2_full
from bayesmeta.models.graph import LITERAL
from bayesmeta.models.pyro_data import to_torch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("graph", [LITERAL, GRAPHS["attempts"]], ids=lambda g: g.name)
def test_what_is_computed_of_draws_is_the_same(graph):
    args = full_case(graph)
    names = structure.latent_sites(figure2_full, *args)
    assert pyro_structure.latent_sites(figure2_full_pyro.figure2_full, *args) == names
    torch.manual_seed(9)
    runs = [pyro_structure.run(figure2_full_pyro.figure2_full, to_torch(args)) for _ in range(6)]
    draws = {
        k: np.stack([r[k]["value"].numpy() for r in runs]).reshape(2, 3, *runs[0][k]["value"].shape)
        for k in names
    }
    ours = structure.site_log_probs(figure2_full, draws, *args)
    theirs = pyro_structure.site_log_probs(figure2_full_pyro.figure2_full, draws, *args)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-8, atol=1e-8, err_msg=name)


def test_replicated_outcomes_have_the_probabilities_of_their_draw():
    data, _ = simulate_figure2(np.random.default_rng(10), num_tasks=6, num_domains=2)
    program = figure2_pyro.figure2
    torch.manual_seed(0)
    args = to_torch((data, HIERARCHICAL))
    sites = pyro_structure.run(program, args)
    names = pyro_structure.latent_sites(program, *args)
    draws = {
        k: np.broadcast_to(sites[k]["value"], (1, 4000, *sites[k]["value"].shape)) for k in names
    }
    drawn = pyro_structure.posterior_predictive(program, draws, data, HIERARCHICAL, rng_seed=1)["O"]
    p = sites["O"]["fn"].base_dist.candidate_log_probs().exp().numpy()
    share = np.array([(drawn[0] == c).mean(0) for c in range(4)])
    error = np.sqrt(p * (1 - p) / 4000)
    assert (np.abs(share - p) < stats.norm.ppf(1 - FALSE_ALARM / 2) * error).all()


@pytest.fixture(scope="module")
def evidence():
    return planted_evidence(num_tasks=32, num_domains=2)


@pytest.fixture(scope="module")
def pyro_tree(evidence):
    return bayesmeta.fit(
        evidence, engine="pyro_nuts", num_chains=2, num_warmup=150, num_samples=250
    )


class TestNuts:
    def estimate(self, values):
        values = np.asarray(values, np.float64)
        return values.mean(), float(az.mcse(az.from_dict({"posterior": {"q": values}}))["q"])

    def test_both_languages_have_one_posterior(self, evidence, pyro_tree):
        data = figure2_data(reflect_part(evidence))
        in_numpyro = nuts(figure2, data, HIERARCHICAL, num_samples=500, decenter=("v",)).samples
        z = stats.norm.ppf(1 - FALSE_ALARM / 2)
        for name in ("mu", "W", "tau_E", "F"):
            entry = (0,) * (in_numpyro[name].ndim - 2)
            a, error_a = self.estimate(in_numpyro[name][(..., *entry)])
            draws = pyro_tree["posterior"][name].values[(..., *entry)]
            b, error_b = self.estimate(draws)
            limit = z * np.hypot(error_a, error_b)
            assert abs(a - b) < limit, name
            assert limit < draws.std(), name  # so that a shift by a standard deviation would fail

    def test_the_tree_has_the_same_groups_and_coordinates(self, pyro_tree):
        assert {"posterior_predictive", "log_likelihood", "log_prior", "sample_stats"} <= set(
            pyro_tree.children
        )
        assert pyro_tree["posterior"]["F"].dims == ("chain", "draw", "domain", "skill")
        assert pyro_tree["log_likelihood"]["O"].dims == ("chain", "draw", "task")
        assert set(pyro_tree["log_prior"].data_vars) == {"u", "U", "tau_E", "v"}
        assert pyro_tree.attrs["setting_engine"] == "pyro_nuts"
        assert "pyro-ppl" in pyro_tree.attrs["packages"]

    def test_arviz_takes_it(self, pyro_tree):
        summary = az.summary(pyro_tree, var_names=["u", "tau_E"], round_to="none")
        assert np.isfinite(summary["mean"]).all()
        assert np.isfinite(az.loo(pyro_tree).elpd)
        table = az.psense_summary(pyro_tree, var_names=["tau_E"])
        assert np.isfinite(table[["prior", "likelihood"]].to_numpy(float)).all()

    def test_statistics_are_those_of_the_draws(self, pyro_tree):
        # Energy is minus the log density of a draw in unconstrained space plus half a chi-square.
        stats_ = pyro_tree["sample_stats"]
        kinetic = stats_["energy"].values[:, 1:] + stats_["lp"].values[:, :-1]
        size = 2 + 4 + 1 + 2
        error = np.sqrt(size / 2 / kinetic.size)
        assert abs(kinetic.mean() - size / 2) < stats.norm.ppf(1 - FALSE_ALARM / 2) * error
        assert (kinetic > 0).all()
        assert 0.6 < float(stats_["acceptance_rate"].mean()) < 1
        assert not (stats_["diverging"].values.all())

    def test_the_same_seed_gives_the_same_draws_and_leaves_the_generator_alone(self):
        data, _ = simulate_figure2(np.random.default_rng(0), num_tasks=4, num_domains=1)
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        first, second = (
            pyro_nuts(
                figure2_pyro.figure2,
                data,
                HIERARCHICAL,
                num_chains=2,
                num_warmup=4,
                num_samples=4,
                jit=jit,
            )
            for jit in (True, False)
        )
        np.testing.assert_allclose(first.samples["u"], second.samples["u"], rtol=1e-6)
        assert torch.equal(before, torch.random.get_rng_state())
        assert not first.status.converged

    def test_one_chain_is_refused(self):
        with pytest.raises(ValueError, match="at least 2, got 1"):
            pyro_nuts(figure2_pyro.figure2, num_chains=1)


def regression(design, outcome):
    a = pyro.sample("a", pyro_dist.Normal(design.new_zeros(2), 3.0).to_event(1))
    b = pyro.sample("b", pyro_dist.Normal(design.new_zeros(()), 3.0))
    mean = design @ torch.cat([a, b[None]])
    pyro.sample("y", pyro_dist.Normal(mean, 1.0).to_event(1), obs=outcome)


def funnel():
    scale = pyro.sample("a", pyro_dist.Normal(torch.zeros((), dtype=torch.float64), 2.0)).exp()
    pyro.sample("b", pyro_dist.Normal(torch.zeros(4).to(scale), scale).to_event(1))


class TestSvi:
    rng = np.random.default_rng(0)
    design, outcome = rng.normal(size=(30, 3)) * [1.0, 3.0, 0.3], rng.normal(size=30)

    def test_a_gaussian_posterior_is_recovered(self):
        result = pyro_svi(regression, self.design, self.outcome, num_steps=300, learning_rate=0.1)
        assert result.status.converged, result.status
        covariance = np.linalg.inv(self.design.T @ self.design + np.eye(3) / 9)
        mean = covariance @ self.design.T @ self.outcome
        draws = np.concatenate([result.samples["a"][0], result.samples["b"][0][:, None]], 1)
        white = np.linalg.solve(np.linalg.cholesky(covariance), (draws - mean).T)
        limit = stats.chi2.ppf(1 - FALSE_ALARM, 3)
        assert len(draws) * np.square(white.mean(1)).sum() < limit
        assert np.abs(white @ white.T / len(draws) - np.eye(3)).max() < 0.15
        assert np.linalg.norm(mean) ** 2 * len(draws) > limit  # so that zero would not pass
        assert result.sample_stats["log_ratio"].std() < 0.1

    def test_the_elbo_of_an_exact_fit_is_the_evidence(self):
        result = pyro_svi(
            regression,
            self.design,
            self.outcome,
            num_steps=300,
            learning_rate=0.1,
            guide="low_rank",
            rng_seed=1,
        )
        evidence = stats.multivariate_normal(
            cov=9.0 * self.design @ self.design.T + np.eye(30)
        ).logpdf(self.outcome)
        assert abs(result.status.diagnostics["elbo"] - evidence) < 0.05

    def test_a_funnel_is_flagged(self):
        assert pyro_svi(funnel, num_steps=150).status.outcome is Outcome.PARETO_K

    def test_too_few_steps_are_reported(self):
        # So far from where it starts that it is still on the way.
        short = pyro_svi(regression, self.design, 30 + self.outcome, num_steps=50)
        assert short.status.outcome is Outcome.NOT_SETTLED, short.status
        with pytest.raises(ValueError, match="at least 20 to be judged, got 5"):
            pyro_svi(funnel, num_steps=5)

    def test_it_gives_the_same_tree(self, evidence):
        tree = bayesmeta.fit(evidence, engine="pyro_svi", num_steps=100, num_samples=200)
        assert tree.attrs["setting_engine"] == "pyro_svi"
        assert tree["posterior"]["F"].dims == ("chain", "draw", "domain", "skill")
        assert tree["log_likelihood"]["O"].shape[:2] == (1, 200)
