"""A pool of instructions: brute force, what the posterior is good for, and what it is not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import stats
from simulate import planted_evidence

from bayesmeta.baselines import best_single, complete_pooling
from bayesmeta.heldout import heldout_table
from bayesmeta.models.prompt_pool import (
    PROMPT_POOL,
    SEPARATE_DOMAINS,
    PoolData,
    PooledAnswers,
    prompt_pool,
)
from bayesmeta.prompt_pool import fit_pool, pool_posterior, pool_strategies, prompt_skills
from bayesmeta.skill_scores import SkillScores


def pool(rng, num_tasks=7, num_prompts=3, num_domains=3, num_candidates=4):
    logits = 1.5 * rng.normal(size=(num_tasks, num_prompts, num_candidates))
    return PoolData(
        log_p=jax.nn.log_softmax(jnp.asarray(logits), -1),
        gold=jnp.asarray(rng.integers(0, num_candidates, num_tasks)),
        domain=jnp.asarray(np.arange(num_tasks) % num_domains),
        num_domains=num_domains,
    )


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("omega", [1.0, 0.5])
def test_flat_pool_equals_brute_force(omega):
    """T5.5: a product of likelihoods, instruction by instruction."""
    rng = np.random.default_rng(0)
    log_likelihood = np.log(rng.random((6, 4)))
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    found = pool_posterior(log_likelihood, np.log(prior), omega)
    by_hand = prior.copy()
    for n, r in itertools.product(range(6), range(4)):
        by_hand[r] *= np.exp(log_likelihood[n, r]) ** omega
    np.testing.assert_allclose(found, by_hand / by_hand.sum(), atol=1e-12)
    assert not np.allclose(found, pool_posterior(log_likelihood, omega=omega), atol=1e-3)


@pytest.mark.parametrize("omega", [1.0, 0.6])
def test_hierarchical_pool_equals_the_sum_over_all_assignments(x64, omega):
    data = pool(np.random.default_rng(1))
    log_pi = np.log([0.5, 0.3, 0.2])
    answers = PooledAnswers(jnp.asarray(log_pi), omega, data)
    p = np.exp(np.asarray(data.log_p))
    gold, domain = np.asarray(data.gold), np.asarray(data.domain)
    total, marginal = 0.0, np.zeros((3, 3))
    for rho in itertools.product(range(3), repeat=3):
        joint = np.exp(log_pi[list(rho)].sum())
        for n in range(len(gold)):
            joint *= p[n, rho[domain[n]], gold[n]] ** omega
        total += joint
        for d, r in enumerate(rho):
            marginal[d, r] += joint
    assert float(answers.log_prob(data.gold)) == pytest.approx(np.log(total), abs=1e-10)
    rho = jax.nn.softmax(answers.log_joint(data.gold), -1)
    np.testing.assert_allclose(rho, marginal / total, atol=1e-10)
    # One instruction for every task anew, as in Figure 2, is another model.
    mixed = np.log([np.exp(log_pi) @ p[n, :, gold[n]] ** omega for n in range(len(gold))]).sum()
    assert abs(mixed - np.log(total)) > 1e-2


def test_draws_have_the_probabilities_of_the_density(x64):
    data = pool(np.random.default_rng(2), num_tasks=2, num_domains=1, num_candidates=2)
    answers = PooledAnswers(jnp.log(jnp.array([0.6, 0.3, 0.1])), 1.0, data)
    num = 20_000
    drawn = np.asarray(answers.sample(jax.random.key(0), (num,)))
    limit = stats.norm.isf(1e-6)
    for value in itertools.product(range(2), repeat=2):
        p = float(jnp.exp(answers.log_prob(jnp.asarray(value))))
        share = (drawn == value).all(1).mean()
        assert abs(share - p) < limit * np.sqrt(p * (1 - p) / num)


def test_priors_in_one_line(x64):
    data = pool(np.random.default_rng(3))
    value, trace = log_density(prompt_pool, (data, SEPARATE_DOMAINS), {}, {})
    np.testing.assert_allclose(trace["pi"]["value"], 1 / 3)
    sites = {"u": jnp.array([0.3, -0.5])}
    other, _ = log_density(prompt_pool, (data, PROMPT_POOL), {}, sites)
    assert abs(float(value - other)) > 1e-3


def scores(log_likelihood, domain):
    """Two candidates; the gold one is the first."""
    p = np.exp(log_likelihood)
    log_p = np.log(np.stack([p, 1 - p], -1))
    shape = p.shape
    return SkillScores(
        log_p=log_p,
        gold=np.zeros(shape[0], int),
        domain=np.asarray(domain),
        features=np.zeros((shape[0], 0)),
        tokens=np.ones(shape),
        skills=tuple(f"p{r}" for r in range(shape[1])),
    )


def test_stacking_beats_selection_where_two_experts_share_the_tasks():
    """T5.5: the posterior of a single instruction collapses on one expert, though neither is
    right; weights fitted to the predictive mixture do not."""
    rng = np.random.default_rng(0)
    right = np.where(rng.random(400) < 0.55, 0, 1)  # which expert knows the answer
    p = np.where(right[:, None] == np.arange(2), 0.95, 0.05)
    reflect, heldout = (scores(np.log(half), ["d"] * 200) for half in (p[:200], p[200:]))
    one = pool_posterior(reflect.log_likelihood)
    assert one.max() > 0.999
    mixed = {
        "posterior": np.tile(one, (200, 1)),
        "stacking": complete_pooling(reflect, heldout),
        "best": best_single(reflect, heldout),
    }
    score = {
        name: np.log((weights * np.exp(heldout.log_likelihood)).sum(1)).mean()
        for name, weights in mixed.items()
    }
    assert score["stacking"] > score["posterior"] + 0.5
    assert score["posterior"] == pytest.approx(score["best"], abs=1e-3)
    softer = pool_posterior(reflect.log_likelihood, omega=0.005)
    assert 0.3 < softer.max() < 0.9  # each task counts for less: no collapse


def test_pool_of_evidence():
    """In every domain another instruction is the best."""
    evidence = planted_evidence(num_tasks=240, num_domains=4)
    tree = fit_pool(evidence, num_chains=2, num_warmup=200, num_samples=300)
    assert tree.attrs["status"] in ("CONVERGED", "ESS")
    rho = tree["posterior"]["rho"].mean(("chain", "draw"))
    np.testing.assert_allclose(rho.sum("prompt"), 1, atol=1e-5)
    for d in range(4):
        found = rho.sel(domain=f"d{d}")
        assert str(found["prompt"].values[found.values.argmax()]) == "abc"[d % 3]
    from bayesmeta.skill_scores import skill_scores

    reflect, heldout = (
        skill_scores(evidence.sel(task=evidence["split"] == split))
        for split in ("reflect", "held_out")
    )
    table = heldout_table(reflect, heldout, pool_strategies(tree, reflect, heldout))
    assert {"posterior", "one prompt for all, posterior"} <= set(table.index)
    assert len(table) > 6
    found = table["log_score"].to_dict()
    assert found["posterior"] > found["one prompt for all, posterior"] + 0.2


def test_bad_pools():
    assert [skill.name for skill in prompt_skills(["A.", "B."])] == ["prompt_0", "prompt_1"]
    assert prompt_skills({"short": "A.", "long": "B."})[1].instruction == "B."
    with pytest.raises(ValueError, match="at least two"):
        prompt_skills(["only one"])
    with pytest.raises(ValueError, match="twice"):
        prompt_skills(["same", "same "])
