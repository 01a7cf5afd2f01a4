"""The joint densities once more, in plain loops that enumerate everything discrete.

A slow twin of the programs: float64, no JAX, one task, one skill assignment, one trace and one
sequence of skills at a time. What the programs sum by formulas is summed here one by one.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.figure2 import Figure2Data, domain_basis
from bayesmeta.models.full_data import Answers, Attempts, FullData, Steps
from bayesmeta.models.graph import Graph
from bayesmeta.models.prior import Prior, SitePrior

_Sites = Mapping[str, np.ndarray]


def figure2_log_joint(sites: _Sites, data: Figure2Data, prior: Prior) -> float:
    """log p(sites, O) in nats of `bayesmeta.models.figure2.figure2`, all K^N skill assignments
    summed one by one. Sites are given in their own space, so there is no change of variables."""
    num_skills, num_tasks = np.shape(data.log_likelihood)
    eta, _ = _logits(sites, data, num_skills, g_to_f=True)
    probability = np.exp(np.asarray(data.log_p, np.float64))
    per_skill = np.array(
        [
            [probability[int(data.gold[n]), k, n] for n in range(num_tasks)]
            for k in range(num_skills)
        ]
    )
    weights = np.array([_softmax(eta[:, n]) for n in range(num_tasks)]).T
    return log_prior_of(sites, prior) + _log_sum_over_assignments(weights, per_skill)


def full_log_joint(sites: _Sites, data: FullData, prior: Prior, graph: Graph) -> float:
    """log p(sites, O) in nats of `bayesmeta.models.figure2_full.figure2_full`."""
    eta, eta_domain = _logits(sites, data, data.num_skills, g_to_f=graph.g_to_f)
    log_prior = log_prior_of(sites, prior)
    per_domain = graph.strategy_per == "domain"
    rows = eta_domain if per_domain else eta
    if graph.strategy == "dirichlet":
        F = np.asarray(sites["F_n"], np.float64).T
        for r in range(F.shape[1]):
            concentration = float(site_value(sites, prior, "kappa_F")) * _softmax(rows[:, r])
            log_prior += stats.dirichlet(concentration).logpdf(F[:, r] / F[:, r].sum())
    elif graph.strategy == "logistic_normal":
        eps = np.asarray(sites["eps"], np.float64)
        log_prior += stats.norm.logpdf(eps).sum()
        L_F = np.diag(np.broadcast_to(site_value(sites, prior, "sigma_F"), eps.shape[1]))
        if eps.shape[1] > 1:
            L_F = L_F @ site_value(sites, prior, "corr_F")
        C = contrast(data.num_skills)
        F = np.array([_softmax(rows[:, r] + C @ L_F @ eps[r]) for r in range(len(eps))]).T
    else:
        F = np.array([_softmax(row) for row in rows.T]).T
    if per_domain:
        F = F[:, np.asarray(data.domain)]
    seen = data.outcome
    if isinstance(seen, Steps):
        log_likelihood = sum(
            np.log(_answer_by_steps(F[:, n], seen, graph, n)) for n in range(data.num_tasks)
        )
        return log_prior + float(log_likelihood)
    if isinstance(seen, Attempts) and graph.skill_per == "attempt":
        p = _chances(sites, seen, data, prior, graph)
        phi = float(site_value(sites, prior, "phi"))
        for n in range(data.num_tasks):
            mean = float(F[:, n] @ p[:, n])
            log_prior += stats.betabinom.logpmf(
                int(seen.successes[n]), int(seen.attempts[n]), phi * mean, phi * (1 - mean)
            )
        return float(log_prior)
    if isinstance(seen, Answers):
        per_skill = _answer_chances(sites, seen, data, prior, graph)
    else:
        per_skill = _count_chances(sites, seen, data, prior, graph)
    return log_prior + _log_sum_over_assignments(F, per_skill)


def _logits(sites, data, num_skills, *, g_to_f):
    """eta [skill, task] and its part that every task of a domain shares [skill, domain]."""
    C, B = contrast(num_skills), domain_basis(data.num_domains)
    mu = C @ np.asarray(sites["u"], np.float64)
    delta = np.zeros((data.num_domains, num_skills))
    if "v" in sites:
        delta = B @ np.asarray(sites["v"], np.float64) @ C.T
    eta = np.empty((num_skills, len(data.domain)))
    for n, d in enumerate(np.asarray(data.domain)):
        eta[:, n] = mu + delta[d]
        if g_to_f and "U" in sites:
            eta[:, n] += C @ np.asarray(sites["U"], np.float64) @ np.asarray(data.x)[n]
        if "V" in sites:
            eta[:, n] += C @ np.asarray(sites["V"], np.float64) @ np.asarray(data.e)[n]
    return eta, mu[:, None] + delta.T


def _log_sum_over_assignments(weights: np.ndarray, per_skill: np.ndarray) -> float:
    """log of the sum over all K^N assignments of a skill to each task; arrays [skill, task]."""
    num_skills, num_tasks = weights.shape
    total = 0.0
    for assignment in itertools.product(range(num_skills), repeat=num_tasks):
        chosen = np.asarray(assignment), np.arange(num_tasks)
        total += float(np.prod(weights[chosen] * per_skill[chosen]))
    return float(np.log(total))


def _answer_chances(sites, seen: Answers, data, prior, graph) -> np.ndarray:
    """p(o_n | n, k) as [skill, task]."""
    tables = {
        (True, True): seen.log_p,
        (True, False): seen.log_p_without_e,
        (False, True): seen.log_p_without_skill,
        (False, False): seen.log_p_plain,
    }
    found = np.empty((data.num_skills, data.num_tasks))
    for n in range(data.num_tasks):
        informed, plain = (
            np.exp(np.asarray(tables[graph.f_to_o, with_e], np.float64)[int(seen.gold[n]), :, n])
            for with_e in (True, False)
        )
        share = {"on": 1.0, "off": 0.0}.get(graph.e_to_o)
        if share is None:
            share = float(site_value(sites, prior, "vartheta")[int(data.domain[n])])
        found[:, n] = share * informed + (1 - share) * plain
    return found


def _answer_by_steps(F: np.ndarray, seen: Steps, graph: Graph, n: int) -> float:
    """p(o_n) by every trace and, where skills are latent, every skill or sequence of skills."""
    pi = seen.log_pi if graph.g_to_a else seen.log_pi_without_question
    pi = np.exp(np.asarray(pi, np.float64)[..., n])  # [choice, step, trace, skill]
    chosen = np.asarray(seen.chosen)[..., n]
    gold, (_, T, S, K) = int(seen.gold[n]), pi.shape
    if graph.f_to_o:
        answers = np.exp(np.asarray(seen.log_p, np.float64)[..., n])  # [candidate, trace, skill]
    else:
        plain = np.exp(np.asarray(seen.log_p_without_skill, np.float64)[..., n])
        answers = np.repeat(plain[..., None], K, axis=-1)
    total = 0.0
    for s in range(S):
        steps = [t for t in range(T) if np.asarray(seen.used)[t, s, n] > 0]
        weight = np.exp(float(np.asarray(seen.log_weight)[s, n]))
        if graph.composition == "trace_mixture":
            for k in range(K):
                product = F[k] * answers[gold, s, k]
                for t in steps:
                    product *= pi[chosen[t, s], t, s, k]
                total += weight * product
        elif graph.composition == "step_composition":
            for skills in itertools.product(range(K), repeat=len(steps) + 1):
                product = F[skills[-1]] * answers[gold, s, skills[-1]]
                for t, k in zip(steps, skills[:-1], strict=True):
                    product *= F[k] * pi[chosen[t, s], t, s, k]
                total += weight * product
        else:
            product = _pooled(answers[:, s], F)[gold] if graph.f_to_o else answers[gold, s, 0]
            for t in steps:
                product *= _pooled(pi[:, t, s], F)[chosen[t, s]]
            total += weight * product
    return total


def _pooled(probabilities: np.ndarray, F: np.ndarray) -> np.ndarray:
    """[option] proportional to prod_k p_k^F_k, from [option, skill]."""
    raised = np.prod(probabilities**F, axis=1)
    return raised / raised.sum()


def _chances(sites, seen: Attempts, data, prior, graph) -> np.ndarray:
    """Probability [skill, task] that one attempt succeeds."""
    log_odds = np.array(seen.log_odds, np.float64)
    for n, d in enumerate(np.asarray(data.domain)):
        if graph.i_to_o:
            log_odds[:, n] += site_value(sites, prior, "theta")
        if graph.e_to_o == "on" and data.num_domains > 1:
            log_odds[:, n] += (domain_basis(data.num_domains) @ site_value(sites, prior, "gamma"))[
                d
            ]
        if data.x.shape[1]:
            log_odds[:, n] -= np.asarray(data.x)[n] @ site_value(sites, prior, "difficulty")
    return 1 / (1 + np.exp(-log_odds))


def _count_chances(sites, seen: Attempts, data, prior, graph) -> np.ndarray:
    """p(count_n | n, k) as [skill, task]."""
    p = _chances(sites, seen, data, prior, graph)
    found = np.empty_like(p)
    for k, n in np.ndindex(*p.shape):
        count, attempts = int(seen.successes[n]), int(seen.attempts[n])
        if graph.outcome == "success":
            phi = float(site_value(sites, prior, "phi"))
            a, b = phi * p[k, n], phi * (1 - p[k, n])
            found[k, n] = stats.betabinom.pmf(count, attempts, a, b)
            continue
        found[k, n] = 0.0
        for correct in (0, 1):
            if correct:
                says_yes = 1 - float(site_value(sites, prior, "eps_minus"))
            else:
                says_yes = float(site_value(sites, prior, "eps_plus"))
            chance = p[k, n] if correct else 1 - p[k, n]
            found[k, n] += chance * stats.binom.pmf(count, attempts, says_yes)
    return found


def site_value(sites: _Sites, prior: Prior, name: str) -> np.ndarray:
    """The value of a site, drawn or known."""
    known = prior.sites[name].fixed if name in prior.sites else None
    return np.asarray(sites[name] if known is None else known, np.float64)


def log_prior_of(sites: _Sites, prior: Prior) -> float:
    """Sum over the sites that the prior has and the program drew."""
    return sum(
        _log_density(np.asarray(sites[name], np.float64), entry, sites)
        for name, entry in prior.sites.items()
        if name in sites and entry.fixed is None
    )


def _log_density(value: np.ndarray, entry: SitePrior, sites: _Sites) -> float:
    of = {
        k: np.asarray(sites[v] if isinstance(v, str) else v, np.float64)
        for k, v in entry.parameters.items()
    }
    if entry.family == "LKJCholesky":
        if value.shape != (2, 2):
            raise NotImplementedError("enumeration knows correlations of two coordinates only.")
        # The density of the one correlation r, proportional to (1 - r^2)^(concentration - 1).
        a = float(of["concentration"])
        return float(stats.beta.logpdf((value[1, 0] + 1) / 2, a, a) - np.log(2))
    if entry.family == "LogisticDirichlet":
        # The weights are Dirichlet; dw = sqrt(K) prod_k w_k du.
        w = _softmax(contrast(len(value) + 1) @ value)
        law = stats.dirichlet(np.full(len(w), float(of["concentration"])))
        return float(law.logpdf(w) + np.log(w).sum() + np.log(len(w)) / 2)
    laws: dict[str, Any] = {
        "Normal": lambda x: stats.norm.logpdf(x, of["loc"], of["scale"]),
        "LogNormal": lambda x: stats.lognorm.logpdf(x, of["scale"], scale=np.exp(of["loc"])),
        "HalfNormal": lambda x: stats.halfnorm.logpdf(x, scale=of["scale"]),
        "HalfCauchy": lambda x: stats.halfcauchy.logpdf(x, scale=of["scale"]),
        "Gamma": lambda x: stats.gamma.logpdf(x, of["concentration"], scale=1 / of["rate"]),
        "Beta": lambda x: stats.beta.logpdf(x, of["concentration1"], of["concentration0"]),
    }
    return float(np.sum(laws[entry.family](value)))


def _softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max())
    return raised / raised.sum()
