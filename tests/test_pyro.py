"""The programs written in Pyro against those in NumPyro: priors, outcomes, whole densities."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from conftest import FALSE_ALARM
from scipy import stats
from scipy.special import softmax
from simulate import simulate_figure2
from simulate_full import GRAPHS
from two_languages import disagreements, full_case

from bayesmeta.models import figure2_full_pyro, figure2_pyro, pyro_outcomes, pyro_prior
from bayesmeta.models.contrasts import contrast
from bayesmeta.models.figure2 import HIERARCHICAL, HIERARCHICAL_BETA, figure2
from bayesmeta.models.figure2_full import figure2_full
from bayesmeta.models.graph import WORKING
from bayesmeta.models.prior import FAMILIES, SitePrior
from bayesmeta.models.priors import FLAT_WEIGHTS, HORSESHOE, PRIORS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.usefixtures("double_precision")
class TestOneDensity:
    @pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
    def test_of_every_graph(self, graph):
        args, rng = full_case(graph), np.random.default_rng(1)
        assert not disagreements(figure2_full, figure2_full_pyro.figure2_full, args, rng)

    @pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
    def test_of_the_working_model_under_every_prior(self, prior):
        rng = np.random.default_rng(2)
        data, _ = simulate_figure2(rng, num_tasks=12, num_domains=3, num_features=1)
        assert not disagreements(figure2, figure2_pyro.figure2, (data, prior), rng)

    @pytest.mark.parametrize("prior", [HORSESHOE, FLAT_WEIGHTS], ids=lambda p: p.name)
    def test_of_the_full_program_under_priors_with_sites_of_their_own(self, prior):
        from bayesmeta.models.priors import prior_for

        data, _, graph = full_case(WORKING)
        args = data, prior_for(graph, data, prior), graph
        rng = np.random.default_rng(3)
        assert not disagreements(figure2_full, figure2_full_pyro.figure2_full, args, rng)

    @pytest.mark.parametrize(
        "sizes",
        [{"num_domains": 1}, {"num_domains": 8}, {"num_features": 0}, {"num_skills": 2}],
        ids=str,
    )
    def test_at_the_edges(self, sizes):
        rng = np.random.default_rng(4)
        shape = {"num_tasks": 12, "num_domains": 3, "num_features": 1} | sizes
        data, _ = simulate_figure2(rng, **shape)
        mask = np.zeros(data.log_likelihood.shape)
        mask[1, 2] = -np.inf
        data = dataclasses.replace(data, log_available=jnp.asarray(mask))
        assert not disagreements(figure2, figure2_pyro.figure2, (data, HIERARCHICAL), rng)

    def test_where_beta_is_inferred(self):
        rng = np.random.default_rng(5)
        data, _ = simulate_figure2(rng, num_tasks=12, num_domains=3, num_features=1)
        data = dataclasses.replace(
            data,
            scores=jnp.asarray(rng.normal(size=(4, 2, 3, 12))),
            log_trace_weight=jnp.full((2, 3, 12), -np.log(2.0)),
        )
        args = data, HIERARCHICAL_BETA
        assert not disagreements(figure2, figure2_pyro.figure2, args, rng)

    def test_also_of_traces_that_end_early(self):
        rng = np.random.default_rng(6)
        data, prior, graph = full_case(GRAPHS["steps_in_context"])
        used = np.ones(data.outcome.used.shape)
        used[2, ::2] = 0.0
        steps = dataclasses.replace(data.outcome, used=jnp.asarray(used))
        args = dataclasses.replace(data, outcome=steps), prior, graph
        assert not disagreements(figure2_full, figure2_full_pyro.figure2_full, args, rng)


@pytest.mark.usefixtures("double_precision")
class TestAWrongProgramIsNoticed:
    @pytest.fixture
    def args(self):
        data, _ = simulate_figure2(np.random.default_rng(7), num_tasks=12, num_domains=3)
        return data, HIERARCHICAL

    def check(self, wrong, args, *sites):
        found = disagreements(figure2, wrong, args, np.random.default_rng(8), num_points=1)
        assert {name for name in found if not name.startswith("gradient")} == set(sites)
        assert any(name.startswith("gradient") for name in found) or sites == ("order",)

    def test_another_prior_by_its_site(self, args):
        wide = HIERARCHICAL.replace("wide", tau_E=SitePrior("HalfNormal", {"scale": 0.51}))
        self.check(lambda data, _: figure2_pyro.figure2(data, wide), args, "tau_E")

    def test_another_domain(self, args):
        def wrong(data, prior):
            moved = dataclasses.replace(data, domain=(data.domain + 1) % 3)
            figure2_pyro.figure2(moved, prior)

        self.check(wrong, args, "O")

    def test_a_skill_tempered_inside_the_sum(self, args, monkeypatch):
        def tempered(logits, log_likelihood):
            return torch.logsumexp(torch.log_softmax(logits, 0) + 0.999 * log_likelihood, 0)

        monkeypatch.setattr(pyro_outcomes, "log_mixture", tempered)
        self.check(figure2_pyro.figure2, args, "O")

    def test_a_site_more(self, args):
        def wrong(data, prior):
            figure2_pyro.figure2(data, prior)
            pyro.deterministic("extra", torch.zeros(()))

        found = disagreements(figure2, wrong, args, np.random.default_rng(8), num_points=1)
        assert set(found) == {"order"}

    def test_the_right_density_with_a_wrong_gradient(self, args, monkeypatch):
        right = pyro_outcomes.log_mixture
        monkeypatch.setattr(pyro_outcomes, "log_mixture", lambda a, b: right(a.detach(), b))
        found = disagreements(
            figure2, figure2_pyro.figure2, args, np.random.default_rng(8), num_points=1
        )
        assert found and all(name.startswith("gradient of") for name in found)


class TestPriors:
    @pytest.mark.usefixtures("double_precision")
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family_and_what_it_assumes(self, family):
        needed = {
            "StudentT": {"df": 3.0},
            "Gamma": {"concentration": (0.7, 2.0)},
            "InverseGamma": {"concentration": 3.0},
            "Beta": {"concentration1": 2.0, "concentration0": (0.5, 3.0)},
        }
        self.compare(SitePrior(family, needed.get(family, {})), (3, 2))

    @pytest.mark.usefixtures("double_precision")
    @pytest.mark.parametrize("size", [2, 3, 5])
    @pytest.mark.parametrize("concentration", [0.5, 1.0, 4.0])
    def test_of_correlations(self, size, concentration):
        prior = SitePrior("LKJCholesky", {"concentration": concentration})
        self.compare(prior, (size, size))

    @pytest.mark.usefixtures("double_precision")
    @pytest.mark.parametrize("shape", [(2,), (4, 3)])
    def test_of_weights(self, shape):
        self.compare(SitePrior("LogisticDirichlet", {"concentration": 0.6}), shape)

    def compare(self, prior, shape):
        like = torch.zeros((), dtype=torch.float64)
        ours, theirs = prior.over(shape), pyro_prior.over(prior, shape, like=like)
        assert theirs.event_shape == shape == ours.event_shape
        torch.manual_seed(0)
        values = theirs.sample(torch.Size([5]))
        assert np.asarray(ours.support(values.numpy())).all()
        found, wanted = theirs.log_prob(values).numpy(), ours.log_prob(values.numpy())
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)

    def test_parameters_that_do_not_fit_are_refused(self):
        like = torch.zeros(())
        with pytest.raises(ValueError, match=r"parameters of shape \(3,\)"):
            pyro_prior.over(SitePrior("Normal", {"loc": (0.0, 1.0, 2.0)}), (2,), like=like)
        with pytest.raises(ValueError, match="refers to site 'tau'"):
            pyro_prior.over(SitePrior("Normal", {"scale": "tau"}), (2,), like=like)

    def test_drawn_weights_are_dirichlet(self):
        torch.manual_seed(0)
        prior = SitePrior("LogisticDirichlet", {"concentration": 0.4})
        u = pyro_prior.over(prior, (2,), like=torch.zeros(())).sample(torch.Size([5000])).numpy()
        first = softmax(u @ contrast(3).T, axis=1)[:, 0]
        assert stats.kstest(first, stats.beta(0.4, 0.8).cdf).pvalue > FALSE_ALARM
        assert stats.kstest(first, stats.beta(0.5, 1.0).cdf).pvalue < FALSE_ALARM


class TestOutcomes:
    logits = torch.tensor([[0.3, -1.0], [0.0, 0.5], [-0.2, 0.1]], dtype=torch.float64)
    count = torch.tensor([3.0, 3.0], dtype=torch.float64)

    def distributions(self):
        torch.manual_seed(1)
        table = torch.log_softmax(torch.randn(4, 3, 2, dtype=torch.float64), 0)
        rate = torch.rand(3, 2, dtype=torch.float64)
        yield pyro_outcomes.LLMCategorical(self.logits, table)
        yield pyro_outcomes.TraceCategorical(table[:, 0])
        success = pyro_dist.BetaBinomial(5 * rate, 5 * (1 - rate), self.count)
        yield pyro_outcomes.SkillMixture(self.logits, success)
        error = torch.tensor(0.2, dtype=torch.float64)
        verdicts = pyro_outcomes.VerifierCount(self.logits, error, error / 2, self.count)
        yield pyro_outcomes.SkillMixture(self.logits, verdicts)

    @pytest.mark.parametrize("index", range(4))
    def test_normalise_and_sample_in_proportion(self, index):
        outcome = list(self.distributions())[index]
        values = torch.arange(4)
        p = np.array([outcome.log_prob(torch.stack([c, c])).exp().numpy() for c in values])
        np.testing.assert_allclose(p.sum(0), 1, atol=1e-12)
        draws = outcome.sample(torch.Size([10_000])).numpy()
        share = np.array([(draws == c).mean(0) for c in range(4)])
        z = stats.norm.ppf(1 - FALSE_ALARM / 2)
        error = np.sqrt(p * (1 - p) / 10_000)
        assert (np.abs(share - p) < z * error).all()
        assert not (np.abs(share - p[::-1]) < z * error).all()


def test_arrays_of_another_library_are_refused():
    data, _ = simulate_figure2(np.random.default_rng(0), num_tasks=4)
    with pytest.raises(TypeError, match=r"Convert them with .*to_torch\(data\)"):
        figure2_pyro.figure2(data)


def test_nothing_else_imports_it():
    code = (
        "import sys, bayesmeta, bayesmeta.fitting, bayesmeta.models.figure2_full\n"
        "import bayesmeta.models.priors, bayesmeta.inference.nuts\n"
        "print(sorted({'pyro', 'torch'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
