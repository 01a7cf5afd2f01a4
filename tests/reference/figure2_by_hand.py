"""The joint density of the Figure 2 model in plain loops, every latent skill enumerated."""

import itertools

import numpy as np
from scipy import stats

from bayesmeta.models.contrasts import contrast


def log_joint(data, u, U, tau_E, v) -> float:
    """log p(u, U, tau_E, v, O) in nats, the K^N skill assignments summed one by one."""
    num_skills, num_tasks = np.asarray(data.log_likelihood).shape
    C = contrast(num_skills)
    prior = (
        stats.norm(0, 1.5).logpdf(u).sum()
        + stats.norm(0, 0.5).logpdf(U).sum()
        + stats.halfnorm(0, 0.5).logpdf(tau_E)
        + stats.norm(0, tau_E).logpdf(v).sum()
    )
    total = 0.0
    for assignment in itertools.product(range(num_skills), repeat=num_tasks):
        probability = 1.0
        for n, skill in enumerate(assignment):
            logits = C @ u + (C @ U) @ np.asarray(data.x)[n] + C @ v[int(data.domain[n])]
            weights = np.exp(logits) / np.exp(logits).sum()
            probability *= weights[skill] * np.exp(np.asarray(data.log_likelihood)[skill, n])
        total += probability
    return prior + float(np.log(total))


def log_mixture(logits, log_likelihood) -> np.ndarray:
    """log sum_k softmax(logits)_k exp(log_likelihood_k) per task, one task at a time."""
    values = []
    for column in range(logits.shape[1]):
        weights = np.exp(logits[:, column]) / np.exp(logits[:, column]).sum()
        values.append(np.log(np.sum(weights * np.exp(log_likelihood[:, column]))))
    return np.array(values)
