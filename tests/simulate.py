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
