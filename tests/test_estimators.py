"""Estimators of the likelihood of a skill, against a language model that can be enumerated."""

import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import FALSE_ALARM
from numpyro.infer.util import log_density
from scipy.special import log_softmax, logsumexp

from bayesmeta.llm.base import ScoreRequest
from bayesmeta.llm.tabular import TabularLLM
from bayesmeta.models.contrasts import contrast
from bayesmeta.models.figure2 import Figure2Data, temper
from bayesmeta.models.mixture import LLMCategorical, log_mixture
from bayesmeta.trace_estimators import (
    balance_log_ratio,
    log_bias,
    plain_log_marginal,
    pooled_log_marginal,
)

pytestmark = pytest.mark.usefixtures("double_precision")

Z = statistics.NormalDist().inv_cdf(1 - FALSE_ALARM / 2)
ANSWERS = ("A", "B", "C")


def enumerate_oracle(num_tasks, num_skills, *, max_length=2, seed=3, scale=1.5):
    """Every trace: log p_k(a | n) as [N, K, A], and log p(c | n, a, k) as [N, K, A, C]."""
    llm = TabularLLM(seed, alphabet="αβ", max_length=max_length, answers=ANSWERS, scale=scale)
    log_prob, log_likelihood = [], []
    for n, k in itertools.product(range(num_tasks), range(num_skills)):
        context = llm.render(f"Task {n}, skill {k}.", "")
        traces = llm.traces(context)
        requests = [
            ScoreRequest(f"{context}{trace}\nAnswer:", f" {c}{llm.end_of_answer}")
            for trace in traces
            for c in ANSWERS
        ]
        scores = [score.log_likelihood for score in llm.log_likelihood(requests)]
        log_prob.append(list(traces.values()))
        log_likelihood.append(np.reshape(scores, (-1, len(ANSWERS))))
    shape = (num_tasks, num_skills, -1)
    log_likelihood = np.reshape(log_likelihood, (num_tasks, num_skills, -1, len(ANSWERS)))
    return np.reshape(log_prob, shape), log_likelihood


@pytest.fixture(scope="module")
def oracle():
    return enumerate_oracle(5, 3)


@pytest.fixture(scope="module")
def exact(oracle):
    """log p(c | n, k), [N, K, C]."""
    log_prob, log_likelihood = oracle
    return np.asarray(logsumexp(log_prob[..., None] + log_likelihood, axis=2))


def test_the_oracle_is_a_distribution(oracle, exact):
    np.testing.assert_allclose(logsumexp(oracle[0], axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(logsumexp(exact, axis=-1), 0, atol=1e-12)
    llm = TabularLLM(3, alphabet="αβ", max_length=2, answers=ANSWERS, scale=1.5)
    context = llm.render("Task 1, skill 2.", "")
    assert llm.exact_log_marginal(context, "B") == pytest.approx(exact[1, 2, 1], abs=1e-12)


def draw_traces(rng, log_prob, size):
    return rng.choice(len(log_prob), p=np.exp(log_prob) / np.exp(log_prob).sum(), size=size)


def deviation(estimates, truth):
    """How many Monte Carlo standard errors the mean of ``estimates`` is from the truth."""
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    return abs(estimates.mean() - truth) / error


def test_gradient_is_responsibilities_minus_weights(exact):
    rng, gold = np.random.default_rng(0), np.array([0, 2, 1, 1, 0])
    logits, scale = rng.normal(size=(3, 5)), np.array([1.0, 0.5, 2.0, 1.0, 0.0])
    log_p = jnp.asarray(exact.transpose(2, 1, 0))

    def total(logits):
        return LLMCategorical(logits, log_p, scale=jnp.asarray(scale)).log_prob(gold).sum()

    L = np.take_along_axis(exact, gold[:, None, None], 2)[..., 0].T
    identity = scale * (np.exp(log_softmax(logits + L, 0)) - np.exp(log_softmax(logits, 0)))
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(logits)), identity, atol=1e-10)
    fast = jax.grad(lambda e: (scale * log_mixture(e, jnp.asarray(L))).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(fast, identity, atol=1e-10)
    step = 1e-5
    for k, n in itertools.product(range(3), range(5)):
        moved = np.zeros((3, 5))
        moved[k, n] = step
        slope = (total(jnp.asarray(logits + moved)) - total(jnp.asarray(logits - moved))) / 2 / step
        assert abs(float(slope) - identity[k, n]) < 1e-6
    # Weighting the task inside the sum over skills would give another gradient.
    inside = np.exp(log_softmax(logits + scale * L, 0)) - np.exp(log_softmax(logits, 0))
    assert np.abs(inside - identity).max() > 1e-2


def test_explicit_sum_equals_enumeration_by_numpyro_and_by_hand(exact):
    funsor = pytest.importorskip("numpyro.contrib.funsor")
    rng, gold = np.random.default_rng(1), np.array([1, 0, 2, 2, 1])
    u, C = rng.normal(size=2), contrast(3)
    L = np.take_along_axis(exact, gold[:, None, None], 2)[..., 0]  # task, skill

    def explicit(u):
        with numpyro.plate("task", 5):
            logits = jnp.broadcast_to((C @ u)[:, None], (3, 5))
            numpyro.sample("O", LLMCategorical(logits, jnp.asarray(exact.transpose(2, 1, 0))),
                           obs=jnp.asarray(gold))  # fmt: skip

    def latent(u):
        with numpyro.plate("task", 5) as n:
            z = jnp.asarray(numpyro.sample("z", dist.Categorical(logits=C @ u)))
            numpyro.sample("O", dist.Categorical(logits=jnp.asarray(exact)[n, z]), obs=gold)

    ours, _ = log_density(explicit, (u,), {}, {})
    theirs, _ = funsor.log_density(funsor.enum(funsor.config_enumerate(latent), -2), (u,), {}, {})
    weights = np.exp(log_softmax(C @ u))
    total = sum(
        np.prod([weights[k] * np.exp(L[n, k]) for n, k in enumerate(assignment)])
        for assignment in itertools.product(range(3), repeat=5)
    )
    assert abs(float(ours) - np.log(total)) < 1e-8
    assert abs(float(theirs) - np.log(total)) < 1e-8


def test_estimates_are_unbiased_before_the_logarithm(oracle, exact):
    log_prob, log_likelihood = oracle[0][0], oracle[1][0, :, :, 1]
    rng, repeats, S, k = np.random.default_rng(2), 40_000, 4, 0
    truth = np.exp(exact[0, k, 1])
    traces = draw_traces(rng, log_prob[k], (repeats, S))
    plain = np.exp(plain_log_marginal(log_likelihood[k][traces]))
    assert deviation(plain, truth) < Z
    # All skills' traces, each scored under every skill.
    pool = np.stack([draw_traces(rng, log_prob[j], (repeats, S)) for j in range(3)], 1)
    pooled = np.exp(
        pooled_log_marginal(
            log_likelihood[:, pool].transpose(1, 0, 2, 3), log_prob[:, pool].transpose(1, 0, 2, 3)
        )
    )
    for j in range(3):
        assert deviation(pooled[:, j], np.exp(exact[0, j, 1])) < Z
    assert pooled[:, k].std() < plain.std()
    # Another skill's traces without their ratios estimate something else, and so does a sum.
    foreign = draw_traces(rng, log_prob[1], (repeats, S))
    assert deviation(np.exp(plain_log_marginal(log_likelihood[k][foreign])), truth) > 2 * Z
    ratio = log_prob[k][foreign] - log_prob[1][foreign]
    weighted = np.exp(plain_log_marginal(log_likelihood[k][foreign], ratio))
    assert deviation(weighted, truth) < Z
    mixed = np.exp(plain_log_marginal(log_likelihood[k][pool].reshape(repeats, -1)))
    assert deviation(mixed, truth) > 2 * Z


def test_the_bias_of_the_logarithm_is_as_predicted(oracle, exact):
    log_prob, log_likelihood = oracle[0][0], oracle[1][0, :, :, 1]
    rng, repeats, S = np.random.default_rng(3), 60_000, 64
    p, terms = np.exp(log_prob), np.exp(log_likelihood)
    mean = (p * terms).sum(1)
    squared_cv = (p * terms**2).sum(1) / mean**2 - 1
    k = int(squared_cv.argmax())
    predicted = -squared_cv[k] / (2 * S)
    traces = draw_traces(rng, log_prob[k], (repeats, S))
    estimates = plain_log_marginal(log_likelihood[k][traces])
    error = 4 * estimates.std(ddof=1) / np.sqrt(repeats)
    bias = estimates.mean() - exact[0, k, 1]
    assert abs(bias - predicted) < error + 0.15 * abs(predicted)
    # The test could tell half and twice that bias apart from it.
    for wrong in (0.5 * predicted, 2 * predicted):
        assert abs(bias - wrong) > error + 0.15 * abs(wrong)
    # What one sample says of its own bias.
    assert np.mean(log_bias(log_likelihood[k][traces[:2000]])) == pytest.approx(predicted, rel=0.1)


def test_a_free_temperature_collapses_unless_scores_are_renormalised():
    rng, num_tasks, truth = np.random.default_rng(4), 200, 2.0
    _, log_likelihood = enumerate_oracle(num_tasks, 2, max_length=0, scale=1.0)
    scores = log_likelihood.transpose(3, 2, 1, 0)  # candidate, trace, skill, task
    tempered = np.exp(log_softmax(truth * scores[:, 0], 0))
    skill = rng.integers(2, size=num_tasks)
    gold = np.array(
        [rng.choice(3, p=tempered[:, k, n] / tempered[:, k, n].sum()) for n, k in enumerate(skill)]
    )
    zeros = np.zeros(num_tasks)
    data = Figure2Data(
        log_p=jnp.asarray(scores[:, 0]),
        log_likelihood=jnp.zeros((2, num_tasks)),
        gold=jnp.asarray(gold),
        domain=jnp.zeros(num_tasks, int),
        x=jnp.asarray(zeros[:, None]),
        scale=jnp.asarray(zeros + 1),
        num_domains=1,
        scores=jnp.asarray(scores),
        log_trace_weight=jnp.zeros((1, 2, num_tasks)),
    )
    logits, grid = jnp.zeros((2, num_tasks)), np.linspace(0.02, 6.0, 300)

    def at_gold(table):
        return jnp.take_along_axis(table, data.gold[None, None], 0)[0]

    @jax.jit
    def curves(beta):
        normalised = log_mixture(logits, at_gold(temper(beta, data))).sum()
        return normalised, log_mixture(logits, beta * at_gold(data.log_p)).sum()

    normalised, raw = (np.asarray(curve) for curve in jax.lax.map(curves, jnp.asarray(grid)))
    assert raw.argmax() == 0 and (np.diff(raw) < 0).all()
    posterior = np.exp(normalised - normalised.max())
    posterior /= posterior.sum()
    mean = float(posterior @ grid)
    sd = float(np.sqrt(posterior @ (grid - mean) ** 2))
    assert abs(mean - truth) < 3 * sd
    prior_variance = grid.var()
    assert 1 - sd**2 / prior_variance > 0.5


def grid_posterior_sd(log_likelihood):
    """Posterior sd of the weight of the first of two skills; the prior of u is N(0, 1.5^2).

    ``log_likelihood`` is [K, factors].
    """
    u = np.linspace(-6, 6, 601)
    logits = np.stack([u, -u]) / np.sqrt(2)
    log_w = log_softmax(logits, 0)
    fit = logsumexp(log_w[:, :, None] + log_likelihood[:, None, :], axis=0).sum(-1)
    posterior = np.exp(log_softmax(fit - 0.5 * (u / 1.5) ** 2))
    w = np.exp(log_w[0])
    return np.sqrt(posterior @ w**2 - (posterior @ w) ** 2)


def test_more_traces_do_not_make_the_posterior_narrower_and_traces_as_data_do():
    rng, num_tasks, S = np.random.default_rng(5), 40, 16
    log_prob, log_likelihood = enumerate_oracle(num_tasks, 2, scale=2.0)
    exact = logsumexp(log_prob[..., None] + log_likelihood, axis=2)
    skill = (rng.uniform(size=num_tasks) < 0.3).astype(int)
    gold = np.array([rng.choice(3, p=np.exp(exact[n, k])) for n, k in enumerate(skill)])
    at_gold = np.take_along_axis(log_likelihood, gold[:, None, None, None], 3)[..., 0]
    drawn = np.empty((2, num_tasks, 2 * S))
    for n, k in itertools.product(range(num_tasks), range(2)):
        drawn[k, n] = at_gold[n, k][draw_traces(rng, log_prob[n, k], 2 * S)]
    few = grid_posterior_sd(plain_log_marginal(drawn[..., :S]))
    many = grid_posterior_sd(plain_log_marginal(drawn))
    truth = grid_posterior_sd(np.take_along_axis(exact, gold[:, None, None], 2)[..., 0].T)
    assert abs(many / few - 1) < 0.1 and abs(many / truth - 1) < 0.1
    # The wrong version takes every trace for a task of its own.
    counted = grid_posterior_sd(drawn[..., :S].reshape(2, -1))
    assert counted < few / 2.5


def test_bad_input_is_refused():
    good = np.zeros((2, 2, 3))
    with pytest.raises(ValueError, match=r"NaN|nan at \(0, 1, 2\)"):
        plain_log_marginal(np.where(np.arange(12).reshape(2, 2, 3) == 5, np.nan, good))
    with pytest.raises(ValueError, match="inf at"):
        plain_log_marginal(good, good + np.inf)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 3\), wanted \(2, 3\)"):
        plain_log_marginal(good[0], good)
    with pytest.raises(ValueError, match="no empty one"):
        plain_log_marginal(np.zeros((2, 0)))
    with pytest.raises(ValueError, match="of 2 skills under 3"):
        balance_log_ratio(np.zeros((3, 2, 4)))
    with pytest.raises(ValueError, match=r"trace at \(0, 1, 2\) has probability 0"):
        balance_log_ratio(np.where(np.arange(12).reshape(1, 2, 2, 3)[0] % 6 == 5, -np.inf, good))
    with pytest.raises(ValueError, match="spread needs 2"):
        log_bias(np.zeros(1))


def test_an_impossible_outcome_has_no_likelihood_and_no_warning():
    assert np.isneginf(plain_log_marginal(np.full((2, 3), -np.inf))).all()
    assert log_bias(np.full(3, -np.inf)) == 0
    assert (balance_log_ratio(np.zeros((2, 2, 3))) == 0).all()
