"""Figure 2 of Yan et al. (ICML 2025) in full, every arrow a switch, in NumPyro.

The program reads down the figure: internal view I, external view E, strategy F, then reasoning A
and outcome O, which are one factor because what is latent in A is summed out. `Graph` says which
arrows are drawn and what each node is; `bayesmeta.models.figure2` is the reading of it that is
fitted by default, written for speed. `bayesmeta.models.figure2_full_pyro` is this program in Pyro.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from bayesmeta.models.composition import log_answer
from bayesmeta.models.contrasts import contrast
from bayesmeta.models.draw import draw, draw_from
from bayesmeta.models.figure2 import SLAB, domain_basis, horseshoe_scale
from bayesmeta.models.full_data import Answers, Attempts, FullData, Steps
from bayesmeta.models.full_sites import SUPPORTS, sites_of
from bayesmeta.models.graph import WORKING, Graph
from bayesmeta.models.mixture import LLMCategorical, log_mixture
from bayesmeta.models.outcome_distributions import (
    BetaBinomialCount,
    SkillMixture,
    TraceCategorical,
    VerifierCount,
)
from bayesmeta.models.prior import Prior


def figure2_full(data: FullData, prior: Prior, graph: Graph = WORKING) -> None:
    """The NumPyro program. `bayesmeta.models.full_sites.sites_of` lists its sites.

    Deterministic sites: mu [K], W [K, P], delta [D, K], F [D, K] (the strategy of a domain).
    """
    prior.require(*sites_of(graph, data, prior))
    prior.require_support(**{site: SUPPORTS[site] for site in prior.sites})
    mu, W_x = internal_view(data, prior, graph)
    delta, V_e = external_view(data, prior)
    eta = mu[:, None] + W_x + delta.T[:, data.domain] + V_e
    log_F = strategy(eta, mu + delta, data, prior, graph)
    if data.log_available is not None:
        log_F = log_F + data.log_available
    distribution, observed = outcome(log_F, data, prior, graph)
    with numpyro.plate("task", data.num_tasks):
        numpyro.sample("O", distribution, obs=observed)


def internal_view(data: FullData, prior: Prior, graph: Graph) -> tuple[Array, Array]:
    """Theta_I -> I: mu [K], and W x [K, N], zero where no arrow leads from G to F."""
    C = jnp.asarray(contrast(data.num_skills), data.x.dtype)
    mu = C @ draw("u", prior, (data.num_skills - 1,))
    numpyro.deterministic("mu", mu)
    if not (graph.g_to_f and data.x.shape[1]):
        return mu, jnp.zeros((data.num_skills, data.num_tasks), data.x.dtype)
    W = C @ draw("U", prior, (data.num_skills - 1, data.x.shape[1]))
    numpyro.deterministic("W", W)
    return mu, W @ data.x.T


def external_view(data: FullData, prior: Prior) -> tuple[Array, Array]:
    """Theta_E -> E: delta [D, K], and V e [K, N] of what was recalled."""
    C = jnp.asarray(contrast(data.num_skills), data.x.dtype)
    B = jnp.asarray(domain_basis(data.num_domains), data.x.dtype)
    tau_E = draw("tau_E", prior)
    delta = jnp.zeros((data.num_domains, data.num_skills), data.x.dtype)
    if data.num_domains > 1 and prior["tau_E"].fixed != 0:
        v_shape = (B.shape[1], data.num_skills - 1)
        scales = {"tau_E": tau_E}
        if "lambda_E" in prior.sites:
            scales["local_E"] = horseshoe_scale(tau_E, draw("lambda_E", prior, v_shape), SLAB)
        delta = B @ draw("v", prior, v_shape, **scales) @ C.T
    numpyro.deterministic("delta", delta)
    if data.e is None or "V" not in prior.sites:
        return delta, jnp.zeros((data.num_skills, data.num_tasks), data.x.dtype)
    return delta, C @ draw("V", prior, (data.num_skills - 1, data.e.shape[1])) @ data.e.T


def strategy(
    eta: Float[Array, "skill task"],
    eta_domain: Float[Array, "domain skill"],
    data: FullData,
    prior: Prior,
    graph: Graph,
) -> Float[Array, "skill task"]:
    """I, E -> F: log-weights of the strategy of each task, up to a constant per task."""
    numpyro.deterministic("F", jax.nn.softmax(eta_domain, -1))
    if graph.strategy == "categorical":
        return eta
    # One simplex per row: a task, or a domain whose tasks share it.
    per_domain = graph.strategy_per == "domain"
    rows = eta_domain if per_domain else eta.T
    num_coordinates = data.num_skills - 1
    if graph.strategy == "dirichlet":
        kappa_F = draw("kappa_F", prior)
        concentration = kappa_F * jax.nn.softmax(rows, -1)
        F = draw_from("F_n", dist.Dirichlet(concentration).to_event(1))
        log_F = jnp.log(jnp.maximum(F, jnp.finfo(F.dtype).tiny))
    else:
        C = jnp.asarray(contrast(data.num_skills), data.x.dtype)
        L_F = jnp.diag(draw("sigma_F", prior, (num_coordinates,)))
        if num_coordinates > 1:
            L_F = L_F @ draw("corr_F", prior, (num_coordinates, num_coordinates))
        shape = (rows.shape[0], num_coordinates)
        eps = draw_from("eps", dist.Normal(0.0, 1.0).expand(shape).to_event(2))
        log_F = jax.nn.log_softmax(rows + eps @ L_F.T @ C.T, -1)
    return log_F.T[:, data.domain] if per_domain else log_F.T


def outcome(
    log_F: Float[Array, "skill task"], data: FullData, prior: Prior, graph: Graph
) -> tuple[dist.Distribution, Array]:
    """F -> A -> O <- G, E: the distribution of each task's outcome, and the outcome."""
    seen = data.outcome
    if isinstance(seen, Steps):
        log_weights = jax.nn.log_softmax(log_F, 0)
        log_p, log_likelihood = (
            log_answer(
                log_weights,
                seen,
                graph.composition,
                f_to_o=graph.f_to_o,
                g_to_a=graph.g_to_a,
                answer=answer,
            )
            for answer in (None, seen.gold)
        )
        return TraceCategorical(log_p, data.scale, log_likelihood), seen.gold
    if isinstance(seen, Answers):
        log_p, log_likelihood = answer_table(seen, data, prior, graph)
        return LLMCategorical(log_F, log_p, log_likelihood, data.scale), seen.gold
    log_odds = success_log_odds(seen, data, prior, graph)
    if graph.outcome == "verifier":
        components = VerifierCount(
            log_odds, draw("eps_minus", prior), draw("eps_plus", prior), seen.attempts
        )
        return SkillMixture(log_F, components, data.scale), seen.successes
    phi = draw("phi", prior)
    if graph.skill_per == "attempt":
        # Every attempt draws its own skill, so only the mean over skills is left.
        log_odds = log_mixture(log_F, jax.nn.log_sigmoid(log_odds)) - log_mixture(
            log_F, jax.nn.log_sigmoid(-log_odds)
        )
        log_odds = log_odds[None]
        log_F = jnp.zeros_like(log_odds)
    components = BetaBinomialCount(log_odds, phi, seen.attempts, seen.max_attempts)
    return SkillMixture(log_F, components, data.scale), seen.successes


def answer_table(
    answers: Answers, data: FullData, prior: Prior, graph: Graph
) -> tuple[Float[Array, "candidate skill task"], Float[Array, "skill task"]]:
    """log p(c | n, k) in nats, read with or without the skill's instruction and memory; and its
    column of the observed answer, picked before parameters enter (see `composition`)."""

    def both(table: Array) -> tuple[Array, Array]:
        return table, jnp.take_along_axis(table, answers.gold[None, None, :], 0)[0]

    with_e, without_e = answers.tables(graph.f_to_o)
    if graph.e_to_o == "on":
        return both(answers.need(with_e, graph))
    if graph.e_to_o == "off":
        return both(answers.need(without_e, graph))
    # Knowledge conflict: with probability vartheta_d the answer follows what was recalled.
    vartheta = draw("vartheta", prior, (data.num_domains,))[data.domain]
    log_follows, log_ignores = jnp.log(vartheta), jnp.log1p(-vartheta)
    log_p, log_likelihood = (
        jnp.logaddexp(log_follows + followed, log_ignores + ignored)
        for followed, ignored in zip(
            both(answers.need(with_e, graph)), both(answers.need(without_e, graph)), strict=True
        )
    )
    return log_p, log_likelihood


def success_log_odds(
    attempts: Attempts, data: FullData, prior: Prior, graph: Graph
) -> Float[Array, "skill task"]:
    """log-odds that an attempt under each skill succeeds: ability minus difficulty."""
    log_odds = attempts.log_odds
    if graph.i_to_o:
        log_odds = log_odds + draw("theta", prior, (data.num_skills,))[:, None]
    if graph.e_to_o == "on" and data.num_domains > 1:
        B = jnp.asarray(domain_basis(data.num_domains), data.x.dtype)
        tau_gamma = draw("tau_gamma", prior)
        gamma_shape = (B.shape[1], data.num_skills)
        gamma = B @ draw("gamma", prior, gamma_shape, tau_gamma=tau_gamma)
        log_odds = log_odds + gamma.T[:, data.domain]
    if data.x.shape[1]:
        log_odds = log_odds - data.x @ draw("difficulty", prior, (data.x.shape[1],))
    return log_odds
