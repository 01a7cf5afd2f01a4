"""Figure 2 in full in plain loops: every skill, every trace and every assignment is enumerated."""

import itertools
import math

import numpy as np
from scipy import special, stats

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.full_data import Answers, Attempts, Steps


def log_joint(data, prior, graph, sites) -> float:
    """log p(sites, O) in nats; ``sites`` holds the drawn ones, fixed ones come from the prior."""
    values = {name: np.asarray(value, float) for name, value in sites.items()}
    for name, entry in prior.sites.items():
        if entry.family == "Fixed":
            values[name] = np.asarray(entry.parameters["value"], float)
    total = sum(
        log_prior(prior.sites[name], values[name], values) for name in sites if name in prior.sites
    )
    total += log_random_strategies(data, graph, values)
    for n in range(data.num_tasks):
        total += float(data.scale[n]) * math.log(likelihood(n, data, graph, values))
    return total


def log_prior(entry, value, sites) -> float:
    """log p of one site, all entries independent."""
    numbers = {}
    for name, given in entry.parameters.items():
        if given == "local_E":
            reach = sites["tau_E"] * sites["lambda_E"]
            numbers[name] = 2.0 * reach / np.sqrt(4.0 + reach**2)
        else:
            numbers[name] = sites[given] if isinstance(given, str) else np.asarray(given)
    if entry.family == "LKJCholesky":
        # Two dimensions: the correlation r has density (1 - r^2)^(a - 1) / (2^(2a - 1) B(a, a)).
        a = float(numbers["concentration"])
        normaliser = (2 * a - 1) * math.log(2) + special.betaln(a, a)
        return (a - 1) * math.log(1 - value[1, 0] ** 2) - normaliser
    distribution = {
        "Normal": lambda: stats.norm(numbers["loc"], numbers["scale"]),
        "HalfNormal": lambda: stats.halfnorm(0, numbers["scale"]),
        "HalfCauchy": lambda: stats.halfcauchy(0, numbers["scale"]),
        "Gamma": lambda: stats.gamma(numbers["concentration"], scale=1 / numbers["rate"]),
        "Beta": lambda: stats.beta(numbers["concentration1"], numbers["concentration0"]),
    }[entry.family]()
    return float(np.sum(distribution.logpdf(value)))


def logits(n, data, graph, sites) -> np.ndarray:
    """eta of task n, one skill at a time."""
    C, d = contrast(data.num_skills), int(data.domain[n])
    eta = C @ sites["u"] + domain_effect(d, data, sites)
    for p in range(data.x.shape[1] if graph.g_to_f else 0):
        eta = eta + float(data.x[n, p]) * (C @ sites["U"])[:, p]
    for q in range(data.num_evidence_features):
        eta = eta + float(data.e[n, q]) * (C @ sites["V"])[:, q]
    return eta


def domain_effect(d, data, sites) -> np.ndarray:
    """delta of one domain."""
    if "v" not in sites or data.num_domains == 1:
        return np.zeros(data.num_skills)
    few = data.num_domains < 8
    basis = contrast(data.num_domains) if few else np.eye(data.num_domains)
    effect = np.zeros(data.num_skills)
    for row, coordinates in zip(basis[d], sites["v"], strict=True):
        effect += row * (contrast(data.num_skills) @ coordinates)
    return effect


def softmax(eta) -> np.ndarray:
    return np.exp(eta) / np.exp(eta).sum()


def centres(data, graph, sites) -> list[np.ndarray]:
    """The logits around which random strategies lie: one per task, or one per domain."""
    if graph.strategy_per == "task":
        return [logits(n, data, graph, sites) for n in range(data.num_tasks)]
    mu = contrast(data.num_skills) @ sites["u"]
    return [mu + domain_effect(d, data, sites) for d in range(data.num_domains)]


def log_random_strategies(data, graph, sites) -> float:
    """log-density of the strategies that are themselves random."""
    if graph.strategy == "dirichlet":
        return sum(
            stats.dirichlet(float(sites["kappa_F"]) * softmax(centre)).logpdf(F / F.sum())
            for centre, F in zip(centres(data, graph, sites), sites["F_n"], strict=True)
        )
    if graph.strategy == "logistic_normal":
        return float(stats.norm(0, 1).logpdf(sites["eps"]).sum())
    return 0.0


def strategy(n, data, graph, sites) -> np.ndarray:
    """F of task n, a point of the simplex."""
    if graph.strategy == "categorical":
        return softmax(logits(n, data, graph, sites))
    row = n if graph.strategy_per == "task" else int(data.domain[n])
    if graph.strategy == "dirichlet":
        return sites["F_n"][row]
    spread = np.broadcast_to(sites["sigma_F"], (data.num_skills - 1,))[:, None] * sites["corr_F"]
    moved = centres(data, graph, sites)[row]
    return softmax(moved + contrast(data.num_skills) @ (spread @ sites["eps"][row]))


def likelihood(n, data, graph, sites) -> float:
    """p(o_n | everything above it), skills and traces summed out."""
    F = strategy(n, data, graph, sites)
    seen = data.outcome
    if isinstance(seen, Attempts):
        return p_count(n, F, seen, data, graph, sites)
    if isinstance(seen, Steps):
        return p_answer(n, int(seen.gold[n]), F, seen, graph)
    total = 0.0
    for k in range(data.num_skills):
        total += F[k] * p_scored_answer(n, k, int(seen.gold[n]), seen, data, graph, sites)
    return total


def p_scored_answer(n, k, c, answers: Answers, data, graph, sites) -> float:
    """p(c | n, k) as the language model scored it, in the context that the graph names."""
    names = ("log_p", "log_p_without_e") if graph.f_to_o else ("log_p_without_skill", "log_p_plain")
    tables = [getattr(answers, name) for name in names]
    if graph.e_to_o != "reliability":
        return math.exp(float(tables[graph.e_to_o == "off"][c, k, n]))
    trust = float(sites["vartheta"][int(data.domain[n])])
    with_e, without_e = (math.exp(float(table[c, k, n])) for table in tables)
    return trust * with_e + (1 - trust) * without_e


def p_count(n, F, attempts: Attempts, data, graph, sites) -> float:
    """p of the number of successes, or of verdicts that say yes."""
    y, many = int(attempts.successes[n]), int(attempts.attempts[n])
    chances = []
    for k in range(data.num_skills):
        odds = float(attempts.log_odds[k, n])
        if graph.i_to_o:
            odds += sites["theta"][k]
        if graph.e_to_o == "on" and data.num_domains > 1:
            basis = contrast(data.num_domains) if data.num_domains < 8 else np.eye(data.num_domains)
            odds += basis[int(data.domain[n])] @ sites["gamma"][:, k]
        if data.x.shape[1]:
            odds -= np.asarray(data.x)[n] @ sites["difficulty"]
        chances.append(1 / (1 + math.exp(-odds)))
    if graph.outcome == "verifier":
        misses, lies = float(sites["eps_minus"]), float(sites["eps_plus"])
        return sum(
            F[k]
            * (
                chances[k] * stats.binom(many, 1 - misses).pmf(y)
                + (1 - chances[k]) * stats.binom(many, lies).pmf(y)
            )
            for k in range(data.num_skills)
        )
    phi = float(sites["phi"])
    if graph.skill_per == "attempt":
        mean = sum(F[k] * chances[k] for k in range(data.num_skills))
        return stats.betabinom(many, phi * mean, phi * (1 - mean)).pmf(y)
    return sum(
        F[k] * stats.betabinom(many, phi * chances[k], phi * (1 - chances[k])).pmf(y)
        for k in range(data.num_skills)
    )


def p_answer(n, c, F, steps: Steps, graph) -> float:
    """p(answer c | n), one trace after another."""
    total = 0.0
    for s in range(np.asarray(steps.log_weight).shape[0]):
        weight = math.exp(float(steps.log_weight[s, n]))
        if weight:
            total += weight * p_trace_and_answer(n, s, c, F, steps, graph)
    return total


def p_trace_and_answer(n, s, c, F, steps: Steps, graph) -> float:
    """p(trace s, answer c | F), every assignment of skills to steps enumerated."""
    table = np.asarray(steps.log_pi if graph.g_to_a else steps.log_pi_without_question)
    chosen, used = np.asarray(steps.chosen), np.asarray(steps.used)
    length = int(used[:, s, n].sum())
    pi = np.exp(table[:, :length, s, :, n])  # choice, step, skill
    if graph.f_to_o:
        answer = np.exp(np.asarray(steps.log_p)[:, s, :, n])  # candidate, skill
    else:
        answer = np.exp(np.asarray(steps.log_p_without_skill)[:, s, n])[:, None] * np.ones(len(F))
    skills = range(len(F))
    if graph.composition == "trace_mixture":
        total = 0.0
        for k in skills:
            path = F[k] * answer[c, k]
            for t in range(length):
                path *= pi[chosen[t, s, n], t, k]
            total += path
        return total
    if graph.composition == "step_composition":
        total = 0.0
        for assignment in itertools.product(skills, repeat=length + 1):
            path = F[assignment[-1]] * answer[c, assignment[-1]]
            for t in range(length):
                path *= F[assignment[t]] * pi[chosen[t, s, n], t, assignment[t]]
            total += path
        return total
    total = 1.0
    for t in range(length):
        total *= vote(F, pi[:, t])[chosen[t, s, n]]
    return float(total * (vote(F, answer)[c] if graph.f_to_o else answer[c, 0]))


def vote(F, p) -> np.ndarray:
    """Normalised geometric mean of the columns of p [choice, skill], weighted by F."""
    powered = np.array([math.prod(row[k] ** F[k] for k in range(len(F))) for row in p])
    return powered / powered.sum()


def draw(data, prior, graph, rng) -> dict[str, np.ndarray]:
    """Values for every latent site that the program draws: anywhere in its support.

    They need not follow the prior, so that each is of a size at which mistakes show.
    """
    K, D, P = data.num_skills, data.num_domains, data.x.shape[1]
    basis = D - 1 if D < 8 else D
    rows = data.num_tasks if graph.strategy_per == "task" else D
    r = rng.uniform(-0.8, 0.8)
    points = {
        "u": rng.normal(size=K - 1),
        "U": rng.normal(size=(K - 1, P)),
        "tau_E": rng.uniform(0.2, 0.9),
        "lambda_E": rng.uniform(0.5, 3.0, (basis, K - 1)),
        "v": rng.normal(size=(basis, K - 1)),
        "V": rng.normal(size=(K - 1, data.num_evidence_features)),
        "kappa_F": rng.uniform(2.0, 9.0),
        "sigma_F": rng.uniform(0.3, 1.2, K - 1),
        "corr_F": np.array([[1.0, 0.0], [r, math.sqrt(1 - r * r)]]),
        "vartheta": rng.uniform(0.2, 0.9, D),
        "theta": rng.normal(size=K),
        "tau_gamma": rng.uniform(0.2, 0.9),
        "gamma": rng.normal(size=(basis, K)),
        "difficulty": rng.normal(size=P),
        "phi": rng.uniform(3.0, 40.0),
        "eps_minus": rng.uniform(0.05, 0.3),
        "eps_plus": rng.uniform(0.05, 0.3),
    }
    known = {name for name, entry in prior.sites.items() if entry.family == "Fixed"}
    if D == 1 or ("tau_E" in known and prior.sites["tau_E"].parameters["value"] == 0):
        known |= {"v", "lambda_E"}
    values = {name: np.asarray(points[name]) for name in prior.sites if name not in known}
    if graph.strategy == "dirichlet":
        values["F_n"] = rng.dirichlet(np.ones(K), rows)
    if graph.strategy == "logistic_normal":
        values["eps"] = rng.normal(size=(rows, K - 1))
    return values
