"""The density of right and wrong: against brute force, in its limits, and for every prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FALSE_ALARM
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import expit

from bayesmeta.inference.structure import latent_sites
from bayesmeta.models.contrasts import contrast
from bayesmeta.models.prior import SitePrior
from bayesmeta.models.solvability import (
    NO_DIFFICULTY,
    POOLED_DOMAINS,
    SOLVABILITY,
    SOLVABILITY_PRIORS,
    SolvabilityData,
    Verdicts,
    solvability,
)
from bayesmeta.proof_enumeration_reasoning import solvability_log_joint, verdict_density


def example(rng, num_skills=3, num_domains=8, num_tasks=6, max_attempts=1):
    tried = rng.integers(0, max_attempts + 1, (num_tasks, num_skills))
    tried[0] = max_attempts
    domain = rng.integers(0, num_domains, num_tasks)
    data = SolvabilityData(
        correct=jnp.asarray(rng.binomial(tried, 0.5)),
        tried=jnp.asarray(tried),
        domain=jnp.asarray(domain),
        x=jnp.asarray(rng.normal(size=(num_tasks, 2))),
        weight=jnp.asarray(rng.integers(0, 4, num_tasks).astype(float)),
        num_domains=num_domains,
        max_attempts=max_attempts,
        num_nodes=35,
    )
    basis = contrast(num_domains)
    sites = {
        "level": 0.3,
        "tau_theta": 0.6,
        "u": rng.normal(size=num_skills - 1),
        "tau_delta": 0.8,
        "a": rng.normal(size=basis.shape[1]),
        "tau_gamma": 0.4,
        "v": rng.normal(size=(basis.shape[1], num_skills - 1)),
        "tau_W": 0.7,
        "W": rng.normal(size=(num_skills, 2)),
        "sigma_b": 1.1,
    }
    if max_attempts > 1:
        sites["phi"] = 2.5
    return data, sites


@pytest.mark.parametrize("max_attempts", [1, 3, 12])
@pytest.mark.parametrize("num_domains", [3, 8])
def test_joint_density_equals_loops_and_a_fine_grid(max_attempts, num_domains):
    data, sites = example(np.random.default_rng(0), 3, num_domains, 5, max_attempts)
    with jax.enable_x64(True):
        given = {k: jnp.asarray(v) for k, v in sites.items()}
        ours, _ = log_density(solvability, (data, SOLVABILITY), {}, given)
    slow = solvability_log_joint(sites, data, SOLVABILITY)
    assert abs(float(ours) - slow) < 1e-6
    wrong = {**sites, "sigma_b": 1.2}
    other = solvability_log_joint(wrong, data, SOLVABILITY)
    assert abs(float(ours) - other) > 1e-4


@pytest.mark.parametrize(("sigma_b", "phi"), [(None, None), (1.5, None), (1.5, 2.0), (None, 2.0)])
def test_verdict_vectors_have_probabilities_that_sum_to_one(sigma_b, phi):
    tried = np.array([2, 0, 1])
    outcomes = np.indices(tried + 1).reshape(3, -1).T
    rows = len(outcomes)
    with jax.enable_x64(True):
        verdicts = Verdicts(
            jnp.tile(jnp.array([0.4, -1.0, 2.0]), (rows, 1)),
            jnp.tile(jnp.asarray(tried), (rows, 1)),
            sigma_b,
            phi,
            max_attempts=2,
            num_nodes=31,
        )
        total = float(jnp.exp(verdicts.log_prob(jnp.asarray(outcomes))).sum())
    assert abs(total - 1) < 1e-6


def test_few_nodes_suffice_where_many_verdicts_pin_down_the_difficulty():
    rng = np.random.default_rng(1)
    tried = np.full((4, 15), 2)
    logits = rng.normal(size=(4, 15))
    value = rng.binomial(tried, expit(logits - 2 * rng.normal(size=(4, 1))))
    exact = [
        np.log(verdict_density(*row, 2.0, 3.0)) for row in zip(logits, value, tried, strict=True)
    ]
    with jax.enable_x64(True):
        verdicts = Verdicts(
            jnp.asarray(logits), jnp.asarray(tried), jnp.asarray(2.0), 3.0, max_attempts=2
        )
        ours = np.asarray(verdicts.log_prob(jnp.asarray(value)))
    assert np.abs(ours - exact).max() < 2e-3
    # Nodes placed by the prior alone would miss.
    z, weight = np.polynomial.hermite_e.hermegauss(7)
    p = expit(logits - 2.0 * z[:, None, None])
    cells = stats.betabinom.pmf(value, tried, 3 * p, 3 * (1 - p)).prod(-1)
    naive = np.log(weight / weight.sum() @ cells)
    assert np.abs(naive - exact).max() > 2e-2


def test_samples_have_the_probabilities_that_the_density_gives():
    logits, tried = jnp.array([[0.5, -0.5]]), jnp.array([[1, 2]])
    verdicts = Verdicts(logits, tried, jnp.asarray(1.5), jnp.asarray(2.0), max_attempts=2)
    num = 20_000
    drawn = np.asarray(verdicts.sample(jax.random.key(0), (num,)))[:, 0].astype(int)
    limit = stats.norm.isf(FALSE_ALARM / 12)
    skills_told_apart = False
    for first in range(2):
        for second in range(3):
            p = verdict_density(logits[0], [first, second], [1, 2], 1.5, 2.0)
            alone = verdict_density(logits[0, :1], [first], [1], 1.5, 2.0)
            alone *= verdict_density(logits[0, 1:], [second], [2], 1.5, 2.0)
            share = ((drawn[:, 0] == first) & (drawn[:, 1] == second)).mean()
            assert abs(share - p) < limit * np.sqrt(p * (1 - p) / num)
            # Verdicts of one task go together: independent ones would not pass.
            skills_told_apart |= abs(share - alone) > limit * np.sqrt(alone * (1 - alone) / num)
    assert skills_told_apart


@pytest.mark.parametrize("attempts", [1, 3, 40])
def test_gradients_are_finite_at_extreme_logits(attempts):
    tried = jnp.full((3, 2), attempts).at[2].set(0)

    def total(logits, sigma_b, phi):
        verdicts = Verdicts(logits, tried, sigma_b, phi, max_attempts=attempts)
        return verdicts.log_prob(tried.at[1].set(0)).sum()

    logits = jnp.array([[60.0, -60.0], [60.0, -60.0], [0.0, 0.0]])
    value, gradient = jax.value_and_grad(total, (0, 1, 2))(
        logits, jnp.asarray(1e-3), jnp.asarray(0.01)
    )
    leaves = [value, *gradient]
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)


def test_a_tiny_scale_tends_to_the_limit_of_none():
    data, sites = example(np.random.default_rng(5))
    with jax.enable_x64(True):
        at = {k: jnp.asarray(v) for k, v in sites.items()}
        at |= {"a": 1e-9 * at["a"], "v": 1e-9 * at["v"]}

        def outcome(prior):
            given = {k: v for k, v in at.items() if prior[k].fixed is None}
            _, trace = log_density(solvability, (data, prior), {}, given)
            return np.asarray(trace["y"]["fn"].log_prob(trace["y"]["value"]))

        none = outcome(POOLED_DOMAINS)
        small = outcome(SOLVABILITY)
        np.testing.assert_allclose(small, none, atol=1e-6)
        tiny = SOLVABILITY.replace("tiny", sigma_b=SitePrior("Fixed", {"value": 1e-5}))
        np.testing.assert_allclose(outcome(tiny), outcome(NO_DIFFICULTY), atol=1e-6)
        assert np.abs(outcome(NO_DIFFICULTY) - outcome(SOLVABILITY)).max() > 1e-2


def test_priors_are_registered_and_fit_the_program():
    data, _ = example(np.random.default_rng(9), max_attempts=2)
    assert set(SOLVABILITY_PRIORS) >= {"solvability", "pooled_domains", "no_difficulty"}
    for prior in SOLVABILITY_PRIORS.values():
        sites = latent_sites(solvability, data, prior)
        assert ("v" in sites) == (prior["tau_gamma"].fixed != 0)
        assert ("sigma_b" in sites) == (prior["sigma_b"].fixed is None)
        assert ("phi" in sites) == ("phi" in prior.sites)


def test_priors_that_do_not_fit_are_refused():
    data, _ = example(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"missing sites \['W'\]"):
        solvability(data, SOLVABILITY.without("short", "W"))
    real = SOLVABILITY.replace("real", sigma_b=SitePrior("Normal", {"loc": 0.0, "scale": 1.0}))
    with pytest.raises(ValueError, match="site 'sigma_b' must be positive"):
        solvability(data, real)
