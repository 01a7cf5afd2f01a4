"""Small simulated data sets from the Figure 2 model, for tests of models and engines."""

import jax.numpy as jnp
import numpy as np

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.figure2 import Figure2Data


def simulate_figure2(
    rng: np.random.Generator,
    num_tasks: int = 60,
    num_skills: int = 3,
    num_candidates: int = 4,
    num_domains: int = 8,
    num_features: int = 2,
    sharpness: float = 1.5,
) -> tuple[Figure2Data, dict[str, np.ndarray]]:
    """Draw parameters from the default prior and data from the model.

    Returns the data and the true values of mu, W, delta and tau_E.
    """
    C = contrast(num_skills)
    u = rng.normal(0, 1.5, num_skills - 1)
    U = rng.normal(0, 0.5, (num_skills - 1, num_features))
    tau = abs(rng.normal(0, 0.5))
    v = rng.normal(0, tau, (num_domains, num_skills - 1))
    x = rng.normal(size=(num_tasks, num_features))
    domain = np.arange(num_tasks) % num_domains
    logits = C @ u + x @ (C @ U).T + (v @ C.T)[domain]
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    log_p = sharpness * rng.normal(size=(num_candidates, num_skills, num_tasks))
    log_p -= np.log(np.exp(log_p).sum(0))
    gold = np.empty(num_tasks, np.int32)
    for n in range(num_tasks):
        skill = rng.choice(num_skills, p=weights[n])
        gold[n] = rng.choice(num_candidates, p=np.exp(log_p[:, skill, n]))
    data = Figure2Data(
        log_p=jnp.asarray(log_p, float),
        log_likelihood=jnp.asarray(np.take_along_axis(log_p, gold[None, None], 0)[0], float),
        gold=jnp.asarray(gold),
        domain=jnp.asarray(domain),
        x=jnp.asarray(x, float),
        scale=jnp.ones(num_tasks, float),
        num_domains=num_domains,
    )
    return data, {"mu": C @ u, "W": C @ U, "delta": v @ C.T, "tau_E": np.asarray(tau)}


def planted_evidence(num_tasks: int = 120, num_domains: int = 4, seed: int = 0, temper: float = 1):
    """Evidence of three skills, of which another predicts the answers of each domain.

    Answers are drawn from the right skill's predictive; the scores recorded are that predictive's
    log-probabilities times ``temper``, renormalised, so that beta = 1 / temper undoes it.
    """
    from scipy.special import logsumexp

    from bayesmeta.evidence_build import from_log_probabilities

    rng = np.random.default_rng(seed)
    domain = np.arange(num_tasks) % num_domains
    log_p = 2.0 * rng.normal(size=(num_tasks, 3, 4))
    log_p -= logsumexp(log_p, axis=2, keepdims=True)
    right = np.exp(log_p[np.arange(num_tasks), domain % 3])
    gold = np.array([rng.choice(4, p=p / p.sum()) for p in right])
    log_p *= temper
    log_p -= logsumexp(log_p, axis=2, keepdims=True)
    return from_log_probabilities(
        log_p,
        gold=gold,
        task=[f"t{i}" for i in range(num_tasks)],
        skill=["a", "b", "c"],
        domain=[f"d{d}" for d in domain],
        split=["held_out" if (i // num_domains) % 4 == 0 else "reflect" for i in range(num_tasks)],
        features=rng.normal(size=(num_tasks, 2)),
        feature=["length", "digits"],
    )
