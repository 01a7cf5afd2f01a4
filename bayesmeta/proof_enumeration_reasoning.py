"""Joint densities of the models of learning and of observed reasoning, in plain loops.

Slow twins of the programs, as in `bayesmeta.proof_enumeration`: float64, no JAX, one trace, one
path of skills, one comparison, one assignment, one point of a fine grid at a time.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import expit

from bayesmeta.models.bradley_terry import PreferenceData
from bayesmeta.models.contrasts import contrast
from bayesmeta.models.inverse_planning import TraceData
from bayesmeta.models.prior import Prior
from bayesmeta.models.prompt_pool import PoolData
from bayesmeta.models.solvability import SolvabilityData
from bayesmeta.proof_enumeration import log_prior_of, site_value

_Sites = Mapping[str, np.ndarray]


def inverse_planning_log_joint(sites: _Sites, data: TraceData, prior: Prior) -> float:
    """log p(sites, steps) in nats, every goal and path of skills summed one by one."""
    raised = np.exp(contrast(data.log_q.shape[-1]) @ np.asarray(sites["u"], np.float64))
    switch = float(site_value(sites, prior, "switch")) if "switch" in prior.sites else None
    beta_a = float(site_value(sites, prior, "beta_a"))
    probabilities = trace_evidence(data, raised / raised.sum(), beta_a, switch)
    return log_prior_of(sites, prior) + float(np.log(probabilities).sum())


def trace_joint(
    data: TraceData, n: int, weight: np.ndarray, beta_a: float, switch: float | None = None
) -> dict[tuple[int, tuple[int, ...]], float]:
    """(goal, path of skills) -> p(goal, path, steps of trace n): probabilities, not their logs."""
    log_q, seen = np.asarray(data.log_q, np.float64), np.asarray(data.seen)
    _, G, T, _, K = log_q.shape
    if switch is None:
        paths = [(k,) * T for k in range(K)]
    else:
        paths = list(itertools.product(range(K), repeat=T))
    last = max((t for t in range(T) if seen[n, t]), default=None)
    found = {}
    for g, path in itertools.product(range(G), paths):
        p = math.exp(float(data.log_goal[n, g])) * weight[path[0]]
        if switch is not None:
            for before, after in itertools.pairwise(path):
                p *= (1 - switch) * (before == after) + switch * weight[after]
        for t, k in enumerate(path):
            if seen[n, t]:
                powers = np.exp(beta_a * log_q[n, g, t, :, k])
                p *= powers[int(data.chosen[n, t])] / powers.sum()
            if t == last:
                p *= math.exp(float(data.log_outcome[n, g, k]))
        found[g, path] = float(p)
    return found


def trace_evidence(
    data: TraceData, weight: np.ndarray, beta_a: float, switch: float | None = None
) -> np.ndarray:
    """[N] probability of each trace's steps."""
    return np.array(
        [
            sum(trace_joint(data, n, weight, beta_a, switch).values())
            for n in range(len(data.chosen))
        ]
    )


def bradley_terry_log_joint(sites: _Sites, data: PreferenceData, prior: Prior) -> float:
    """log p(sites, winners) in nats, one comparison at a time."""
    total = log_prior_of(sites, prior)
    rewards = contrast(data.num_items) @ np.asarray(sites["u"], np.float64)
    for c in range(len(data.winner)):
        j = int(data.judge[c])
        gap = rewards[int(data.item_1[c])] - rewards[int(data.item_2[c])]
        for p in range(data.x.shape[1]):
            gap += float(data.x[c, p]) * float(site_value(sites, prior, "zeta")[p])
        if data.num_judges > 1:
            sharpness = contrast(data.num_judges)[j] @ site_value(sites, prior, "log_a")
            gap *= math.exp(float(sharpness))
        if data.has_order:
            gap += float(site_value(sites, prior, "g")[j]) * float(data.order[c])
        weight = {1: math.exp(gap / 2), 2: math.exp(-gap / 2), 0: 0.0}
        if data.has_ties:
            weight[0] = math.exp(float(site_value(sites, prior, "log_nu")[j]))
        total += math.log(weight[int(data.winner[c])] / sum(weight.values()))
    return float(total)


def solvability_log_joint(sites: _Sites, data: SolvabilityData, prior: Prior) -> float:
    """log p(sites, verdicts) in nats, difficulties summed on a fine grid."""
    total = log_prior_of(sites, prior)
    phi = float(site_value(sites, prior, "phi")) if data.max_attempts > 1 else None
    C = contrast(data.tried.shape[1])
    theta = C @ np.asarray(sites["u"], np.float64)
    delta, gamma = np.zeros(data.num_domains), np.zeros((data.num_domains, len(theta)))
    if data.num_domains > 1:
        B = contrast(data.num_domains)
        delta = B @ np.asarray(sites["a"], np.float64)
        gamma = B @ np.asarray(sites["v"], np.float64) @ C.T
    for n in range(len(data.domain)):
        d = int(data.domain[n])
        eta = float(sites["level"]) + theta + delta[d] + gamma[d]
        if data.x.shape[1]:
            eta = eta + np.asarray(sites["W"], np.float64) @ np.asarray(data.x, np.float64)[n]
        sigma_b = float(site_value(sites, prior, "sigma_b"))
        row = np.asarray(data.correct)[n], np.asarray(data.tried)[n]
        total += float(data.weight[n]) * math.log(verdict_density(eta, *row, sigma_b, phi))
    return float(total)


def verdict_density(
    logits: np.ndarray,
    correct: np.ndarray,
    tried: np.ndarray,
    sigma_b: float,
    phi: float | None,
) -> float:
    """Density of one task's verdicts [K] at success logits [K], difficulty integrated out.

    The integrand is smooth and vanishes at both ends, where a sum over a fine grid is exact.
    """
    b = np.linspace(-12, 12, 4001) * sigma_b if sigma_b else np.zeros(1)
    density = stats.norm.pdf(b, 0, sigma_b) * (b[1] - b[0]) if sigma_b else np.ones(1)
    for eta, y, m in zip(logits, correct, tried, strict=True):
        p, q = expit(float(eta) - b), expit(b - float(eta))
        if phi is None:
            density = density * stats.binom.pmf(y, m, p)
        elif m > 0:
            density = density * stats.betabinom.pmf(y, m, phi * p, phi * q)
    return float(density.sum())


def prompt_pool_log_joint(sites: _Sites, data: PoolData, prior: Prior) -> float:
    """log p(sites, answers) in nats, every assignment of instructions to domains summed."""
    p = np.exp(np.asarray(data.log_p, np.float64))
    num_prompts = p.shape[1]
    raised = np.exp(contrast(num_prompts) @ np.asarray(sites["u"], np.float64))
    pi, total = raised / raised.sum(), 0.0
    for rho in itertools.product(range(num_prompts), repeat=data.num_domains):
        product = math.prod(float(pi[r]) for r in rho)
        for n in range(len(data.gold)):
            product *= float(p[n, rho[int(data.domain[n])], int(data.gold[n])])
        total += product
    return log_prior_of(sites, prior) + math.log(total)


def linear_answers_log_joint(
    sites: _Sites, covariance: np.ndarray, answers: np.ndarray, prior: Prior
) -> float:
    """log p(sites, answers) in nats of answers linear in the weights of modules, whose covariance
    [module, row, row] is given, with noise of variance 1."""
    pi, tau = (float(site_value(sites, prior, name)) for name in ("pi", "tau"))
    total = log_prior_of(sites, prior)
    of_answers: Any = np.eye(len(answers))
    for included, part in zip(sites["s"], np.asarray(covariance, np.float64), strict=True):
        total += math.log(pi if included else 1 - pi)
        of_answers = of_answers + float(included) * tau**2 * part
    return total + float(stats.multivariate_normal.logpdf(answers, cov=of_answers))
