"""Engines against importance sampling from the prior, which needs no engine at all."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FALSE_ALARM
from scipy import stats
from simulate import simulate_figure2

from bayesmeta.inference.diagnose import diagnose_chains
from bayesmeta.inference.nuts import nuts
from bayesmeta.inference.nuts_batch import nuts_batch
from bayesmeta.inference.status import Outcome
from bayesmeta.models.contrasts import contrast
from bayesmeta.models.figure2 import HIERARCHICAL, figure2

Z = stats.norm.ppf(1 - FALSE_ALARM / 2)


@pytest.fixture(scope="module")
def small():
    data, _ = simulate_figure2(
        np.random.default_rng(3), num_tasks=24, num_skills=2, num_domains=2, num_features=1
    )
    return data


@pytest.fixture(scope="module")
def exact(small):
    """Posterior mean of F[0, 0] and of tau_E by 400,000 weighted prior draws, with errors."""
    rng, size = np.random.default_rng(0), 400_000
    C = contrast(2)[:, 0]
    basis = contrast(2)[:, 0]  # two domains sum to zero
    u, U = rng.normal(0, 1.5, size), rng.normal(0, 0.5, size)
    tau = np.abs(rng.normal(0, 0.5, size))
    v = rng.normal(0, 1, size) * tau
    log_weight = np.zeros(size)
    p = np.exp(np.asarray(small.log_likelihood, np.float64))
    for n in range(p.shape[1]):
        shift = u + U * float(small.x[n, 0]) + v * basis[int(small.domain[n])]
        first = 1 / (1 + np.exp((C[1] - C[0]) * shift))
        log_weight += np.log(first * p[0, n] + (1 - first) * p[1, n])
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    quantities = {"F": 1 / (1 + np.exp((C[1] - C[0]) * (u + v * basis[0]))), "tau_E": tau}
    return {
        name: (weight @ q, np.sqrt(np.square(weight) @ np.square(q - weight @ q)))
        for name, q in quantities.items()
    }


def chain_estimate(samples):
    import arviz as az

    tree = az.from_dict({"posterior": {"q": samples}})
    return samples.mean(), float(az.mcse(tree)["q"])


def check(result, exact, truth_shift=0.0):
    for name, pick in (("F", lambda s: s[:, :, 0, 0]), ("tau_E", lambda s: s)):
        mean, error = chain_estimate(np.asarray(pick(result.samples[name]), np.float64))
        truth, truth_error = exact[name]
        assert abs(mean - truth - truth_shift) < Z * np.hypot(error, truth_error), name


@pytest.fixture(scope="module")
def nuts_fit(small):
    return nuts(figure2, small, HIERARCHICAL, num_chains=4, num_samples=1000, decenter=("v",))


def test_nuts_agrees_with_importance_sampling(nuts_fit, exact):
    assert nuts_fit.status.converged, nuts_fit.status
    check(nuts_fit, exact)
    with pytest.raises(AssertionError):
        check(nuts_fit, exact, truth_shift=0.05)


def test_a_wrong_prior_is_noticed(small, exact):
    from bayesmeta.models.prior import SitePrior

    wrong = HIERARCHICAL.replace("wrong", tau_E=SitePrior("HalfNormal", {"scale": 1.0}))
    result = nuts(figure2, small, wrong, num_chains=2, num_samples=1000, decenter=("v",))
    with pytest.raises(AssertionError):
        check(result, exact)


def test_centred_and_decentred_coordinates_have_one_posterior(small, exact):
    # The centred funnel mixes slowly; the point is only that its target is the same.
    result = nuts(
        figure2, small, HIERARCHICAL, num_chains=2, num_samples=3000, target_accept=0.98, rng_seed=5
    )
    mean, error = chain_estimate(np.asarray(result.samples["F"][:, :, 0, 0], np.float64))
    assert abs(mean - exact["F"][0]) < Z * np.hypot(error, exact["F"][1])


def test_batch_of_posteriors_agrees_one_by_one(small, exact):
    def program(scale, data):
        figure2(dataclasses.replace(data, scale=scale), HIERARCHICAL)

    scales = jnp.stack([jnp.ones(24), jnp.zeros(24)])
    full, empty = nuts_batch(
        program, scales, small, num_samples=1000, target_accept=0.95, decenter=("v",)
    )
    assert full.status.converged, full.status
    check(full, exact)
    # Weight zero on every task leaves the prior, E tau_E = 0.5 sqrt(2/pi).
    mean, error = chain_estimate(np.asarray(empty.samples["tau_E"], np.float64))
    assert abs(mean - 0.5 * np.sqrt(2 / np.pi)) < Z * error


def test_one_chain_is_refused(small):
    with pytest.raises(ValueError, match="at least 2, got 1"):
        nuts(figure2, small, HIERARCHICAL, num_chains=1)


class TestDiagnose:
    rng = np.random.default_rng(0)
    good = {"diverging": np.zeros((4, 500), bool), "energy": rng.normal(size=(4, 500))}

    def test_independent_draws_pass(self):
        status = diagnose_chains({"a": self.rng.normal(size=(4, 500))}, self.good, ["a"])
        assert status.outcome is Outcome.CONVERGED

    def test_chains_in_different_places_fail_by_rhat(self):
        shifted = self.rng.normal(size=(4, 500)) + np.arange(4)[:, None]
        assert diagnose_chains({"a": shifted}, self.good, ["a"]).outcome is Outcome.RHAT

    def test_few_draws_fail_by_ess(self):
        few = {k: v[:, :40] for k, v in self.good.items()}
        status = diagnose_chains({"a": self.rng.normal(size=(4, 40))}, few, ["a"], max_rhat=1.1)
        assert status.outcome is Outcome.ESS

    def test_a_divergence_fails(self):
        stats_ = {**self.good, "diverging": np.eye(4, 500, dtype=bool)}
        status = diagnose_chains({"a": self.rng.normal(size=(4, 500))}, stats_, ["a"])
        assert status.outcome is Outcome.DIVERGENCES and "4 of 2000" in status.detail

    def test_slow_energy_fails_by_bfmi(self):
        slow = {**self.good, "energy": np.cumsum(self.rng.normal(size=(4, 500)), axis=1)}
        status = diagnose_chains({"a": self.rng.normal(size=(4, 500))}, slow, ["a"])
        assert status.outcome is Outcome.BFMI

    def test_a_nan_fails(self):
        draws = self.rng.normal(size=(4, 500))
        draws[0, 0] = np.nan
        assert diagnose_chains({"a": draws}, self.good, ["a"]).outcome is Outcome.NOT_FINITE
