"""Simulated evidence for the posterior benchmark, drawn from the model that is then fitted.

Generative equations, with ``C`` an orthonormal contrast (K x (K-1), columns orthogonal to 1):
  mu = C u, u ~ N(0, 1.5^2);  W = C U, U ~ N(0, 0.5^2);  delta_d = tau_E C v_d, v_d ~ N(0, I)
  w_n = softmax(mu + W x_n + delta_{d(n)});  z_n ~ Categorical(w_n)
  o_n ~ p(o | n, z_n), a normalised predictive over four candidate answers
so that L[n, k] = log p(o_n | n, k) is a proper likelihood and the posterior is calibrated.
"""

import dataclasses

import numpy as np

#: Standard deviations of the priors of u and U, and the scale of the half-normal prior of tau_E.
MU_SCALE, W_SCALE, TAU_SCALE = 1.5, 0.5, 0.5
NUM_CANDIDATES = 4


@dataclasses.dataclass(frozen=True)
class Simulation:
    """Arrays a model needs, and the parameters they were drawn from.

    Attributes:
      log_likelihood: [N, K], nats, log probability of the observed answer under each skill.
      features: [N, P], standard normal.
      domain: [N] int, index of the domain of each task.
      contrast: [K, K-1], orthonormal columns orthogonal to the vector of ones.
      truth: mu [K], W [K, P], delta [D, K] and tau_E [] that generated the data.
    """

    log_likelihood: np.ndarray
    features: np.ndarray
    domain: np.ndarray
    contrast: np.ndarray
    truth: dict[str, np.ndarray]

    @property
    def num_domains(self) -> int:
        return len(self.truth["delta"])


def orthonormal_contrast(num_skills: int) -> np.ndarray:
    """Helmert contrast, [K, K-1] float64: column j weighs skills 0..j against skill j+1."""
    contrast = np.zeros((num_skills, num_skills - 1))
    for column in range(num_skills - 1):
        contrast[: column + 1, column] = 1.0
        contrast[column + 1, column] = -(column + 1.0)
        contrast[:, column] /= np.sqrt((column + 1.0) * (column + 2.0))
    return contrast


def simulate(
    num_tasks: int = 4000,
    num_skills: int = 6,
    num_domains: int = 8,
    num_features: int = 4,
    tau: float = 0.5,
    sharpness: float = 2.0,
    seed: int = 0,
) -> Simulation:
    """Draws parameters from the prior (``tau`` is fixed) and one answer per task.

    Args:
      sharpness: standard deviation, in nats, of the candidates' logits under each skill; the
        larger it is, the more an observed answer says about the skill behind it.
      seed: of every random draw.
    """
    rng = np.random.default_rng(seed)
    contrast = orthonormal_contrast(num_skills)
    mu = contrast @ rng.normal(0.0, MU_SCALE, num_skills - 1)
    w = contrast @ rng.normal(0.0, W_SCALE, (num_skills - 1, num_features))
    delta = tau * rng.normal(size=(num_domains, num_skills - 1)) @ contrast.T

    features = rng.normal(size=(num_tasks, num_features))
    domain = rng.integers(num_domains, size=num_tasks)
    skill = _categorical(rng, mu + features @ w.T + delta[domain])
    logits = rng.normal(0.0, sharpness, (num_tasks, num_skills, NUM_CANDIDATES))
    log_predictive = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    tasks = np.arange(num_tasks)
    answer = _categorical(rng, log_predictive[tasks, skill])
    return Simulation(
        log_likelihood=log_predictive[tasks, :, answer],
        features=features,
        domain=domain,
        contrast=contrast,
        truth={"mu": mu, "W": w, "delta": delta, "tau_E": np.asarray(tau)},
    )


def _categorical(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    """One index per row of ``logits`` [N, J], drawn by adding Gumbel noise."""
    return np.argmax(logits + rng.gumbel(size=logits.shape), axis=-1)
