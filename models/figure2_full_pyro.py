"""Figure 2 of Yan et al. (ICML 2025) in full, every arrow a switch, in Pyro.

The twin of `bayesmeta.models.figure2_full`: the same sites under the same names, in the same
order, with the same density. It reads down the figure: internal view I, external view E, strategy
F, then reasoning A and outcome O, which are one factor because what is latent in A is summed out.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.figure2 import SLAB, domain_basis
from bayesmeta.models.figure2_pyro import horseshoe_scale
from bayesmeta.models.full_data import Answers, Steps
from bayesmeta.models.full_sites import SUPPORTS, sites_of
from bayesmeta.models.graph import WORKING, Graph
from bayesmeta.models.prior import Prior
from bayesmeta.models.pyro_composition import log_answer
from bayesmeta.models.pyro_data import check_tensors
from bayesmeta.models.pyro_outcomes import (
    LLMCategorical,
    SkillMixture,
    TraceCategorical,
    VerifierCount,
)
from bayesmeta.models.pyro_prior import draw


def figure2_full(data: Any, prior: Prior, graph: Graph = WORKING) -> None:
    """The Pyro program. `bayesmeta.models.full_sites.sites_of` lists its sites.

    Args:
      data: `bayesmeta.models.full_data.FullData` of tensors, which
        `bayesmeta.models.pyro_data.to_torch` makes.
      prior, graph: the same objects as NumPyro's.
    """
    check_tensors(data)
    prior.require(*sites_of(graph, data, prior))
    prior.require_support(**{site: SUPPORTS[site] for site in prior.sites})
    mu, W_x = internal_view(data, prior, graph)
    delta, V_e = external_view(data, prior)
    eta = mu[:, None] + W_x + delta.T[:, data.domain] + V_e
    log_F = strategy(eta, mu + delta, data, prior, graph)
    if data.log_available is not None:
        log_F = log_F + data.log_available
    distribution, observed = outcome(log_F, data, prior, graph)
    with pyro.plate("task", data.num_tasks):
        pyro.sample("O", distribution, obs=observed)


def internal_view(data: Any, prior: Prior, graph: Graph) -> tuple[Tensor, Tensor]:
    """Theta_I -> I: mu [K], and W x [K, N], zero where no arrow leads from G to F."""
    x = data.x
    C = torch.from_numpy(contrast(data.num_skills)).to(x)
    mu = C @ draw("u", prior, (data.num_skills - 1,), like=x)
    pyro.deterministic("mu", mu)
    if not (graph.g_to_f and x.shape[1]):
        return mu, x.new_zeros((data.num_skills, data.num_tasks))
    W = C @ draw("U", prior, (data.num_skills - 1, x.shape[1]), like=x)
    pyro.deterministic("W", W)
    return mu, W @ x.T


def external_view(data: Any, prior: Prior) -> tuple[Tensor, Tensor]:
    """Theta_E -> E: delta [D, K], and V e [K, N] of what was recalled."""
    x = data.x
    C = torch.from_numpy(contrast(data.num_skills)).to(x)
    B = torch.from_numpy(domain_basis(data.num_domains)).to(x)
    tau_E = draw("tau_E", prior, like=x)
    delta = x.new_zeros((data.num_domains, data.num_skills))
    if data.num_domains > 1 and prior["tau_E"].fixed != 0:
        v_shape = (B.shape[1], data.num_skills - 1)
        scales = {"tau_E": tau_E}
        if "lambda_E" in prior.sites:
            lambda_E = draw("lambda_E", prior, v_shape, like=x)
            scales["local_E"] = horseshoe_scale(tau_E, lambda_E, SLAB)
        delta = B @ draw("v", prior, v_shape, like=x, **scales) @ C.T
    pyro.deterministic("delta", delta)
    if data.e is None or "V" not in prior.sites:
        return delta, x.new_zeros((data.num_skills, data.num_tasks))
    e = data.e
    return delta, C @ draw("V", prior, (data.num_skills - 1, e.shape[1]), like=x) @ e.T


def strategy(eta: Tensor, eta_domain: Tensor, data: Any, prior: Prior, graph: Graph) -> Tensor:
    """I, E -> F: log-weights of the strategy of each task [K, N], up to a constant per task.

    Args:
      eta: [K, N], logits of each task.
      eta_domain: [D, K], logits of each domain.
    """
    pyro.deterministic("F", torch.softmax(eta_domain, -1))
    if graph.strategy == "categorical":
        return eta
    # One simplex per row: a task, or a domain whose tasks share it.
    per_domain = graph.strategy_per == "domain"
    rows = eta_domain if per_domain else eta.T
    num_coordinates = data.num_skills - 1
    if graph.strategy == "dirichlet":
        kappa_F = draw("kappa_F", prior, like=eta)
        concentration = kappa_F * torch.softmax(rows, -1)
        F = pyro.sample("F_n", dist.Dirichlet(concentration).to_event(1))
        log_F = torch.log(F.clamp(min=torch.finfo(F.dtype).tiny))
    else:
        C = torch.from_numpy(contrast(data.num_skills)).to(eta)
        L_F = torch.diag(draw("sigma_F", prior, (num_coordinates,), like=eta))
        if num_coordinates > 1:
            L_F = L_F @ draw("corr_F", prior, (num_coordinates, num_coordinates), like=eta)
        zeros = eta.new_zeros((rows.shape[0], num_coordinates))
        eps = pyro.sample("eps", dist.Normal(zeros, 1.0).to_event(2))
        log_F = torch.log_softmax(rows + eps @ L_F.T @ C.T, -1)
    return log_F.T[:, data.domain] if per_domain else log_F.T


def outcome(
    log_F: Tensor, data: Any, prior: Prior, graph: Graph
) -> tuple[dist.TorchDistribution, Tensor]:
    """F -> A -> O <- G, E: the distribution of each task's outcome, and the outcome."""
    seen, scale = data.outcome, data.scale
    if isinstance(data.outcome, Steps):
        log_weights = torch.log_softmax(log_F, 0)
        log_p = log_answer(
            log_weights, seen, graph.composition, f_to_o=graph.f_to_o, g_to_a=graph.g_to_a
        )
        return TraceCategorical(log_p, scale), seen.gold
    if isinstance(data.outcome, Answers):
        gold = seen.gold
        log_p = answer_table(seen, data, prior, graph)
        log_likelihood = torch.take_along_dim(log_p, gold[None, None, :], 0)[0]
        return LLMCategorical(log_F, log_p, log_likelihood, scale), gold
    log_odds = success_log_odds(seen, data, prior, graph)
    attempts = seen.attempts.to(log_odds)
    if graph.outcome == "verifier":
        eps_minus = draw("eps_minus", prior, like=log_odds)
        eps_plus = draw("eps_plus", prior, like=log_odds)
        components = VerifierCount(log_odds, eps_minus, eps_plus, attempts)
        return SkillMixture(log_F, components, scale), seen.successes
    phi = draw("phi", prior, like=log_odds)
    p = torch.sigmoid(log_odds)
    if graph.skill_per == "attempt":
        # Every attempt draws its own skill, so only the mean over skills is left.
        p = (torch.softmax(log_F, 0) * p).sum(0, keepdim=True)
        log_F = torch.zeros_like(p)
    components = dist.BetaBinomial(phi * p, phi * (1 - p), attempts)
    return SkillMixture(log_F, components, scale), seen.successes


def answer_table(answers: Any, data: Any, prior: Prior, graph: Graph) -> Tensor:
    """log p(c | n, k) in nats, [candidate, skill, task], with or without instruction, memory."""
    with_e, without_e = answers.tables(graph.f_to_o)
    if graph.e_to_o == "on":
        return answers.need(with_e, graph)
    if graph.e_to_o == "off":
        return answers.need(without_e, graph)
    # Knowledge conflict: with probability vartheta_d the answer follows what was recalled.
    vartheta = draw("vartheta", prior, (data.num_domains,), like=data.x)
    vartheta = vartheta[data.domain]
    return torch.logaddexp(
        torch.log(vartheta) + answers.need(with_e, graph),
        torch.log1p(-vartheta) + answers.need(without_e, graph),
    )


def success_log_odds(attempts: Any, data: Any, prior: Prior, graph: Graph) -> Tensor:
    """log-odds [K, N] that an attempt under each skill succeeds: ability minus difficulty."""
    x, log_odds = data.x, attempts.log_odds
    if graph.i_to_o:
        log_odds = log_odds + draw("theta", prior, (data.num_skills,), like=x)[:, None]
    if graph.e_to_o == "on" and data.num_domains > 1:
        B = torch.from_numpy(domain_basis(data.num_domains)).to(x)
        tau_gamma = draw("tau_gamma", prior, like=x)
        gamma_shape = (B.shape[1], data.num_skills)
        gamma = B @ draw("gamma", prior, gamma_shape, like=x, tau_gamma=tau_gamma)
        log_odds = log_odds + gamma.T[:, data.domain]
    if x.shape[1]:
        log_odds = log_odds - x @ draw("difficulty", prior, (x.shape[1],), like=x)
    return log_odds
