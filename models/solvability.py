"""Which skill solves which task: a hierarchical model of right and wrong, the skill being known.

    Theta_I: level, theta_k     what has long been known: how good skills are in general
    Theta_E: delta_d, gamma_dk  what is particular to domain d: how hard it is, and which skills
                                suit it better than elsewhere, shrunk towards nothing by tau_gamma
    b_n ~ Normal(0, sigma_b)    difficulty of task n, which all skills share
    eta_nk = level + theta_k + delta_d(n) + gamma_d(n)k + W_k x_n
    y_nk | m_nk attempts ~ BetaBinomial(m_nk, phi p_nk, phi (1 - p_nk)),
    p_nk = logistic(eta_nk - b_n)

Node A of Figure 2 of Yan et al. (ICML 2025) is observed here only through its verdict, and the
skill that was tried is known, so nothing discrete is left to sum out. The difficulty is integrated
out task by task, which leaves one factor per task. With single attempts phi plays no part, and
the verdict is Bernoulli.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.distributions import constraints

from bayesmeta.models.beta_binomial import log_beta_binomial, log_ways
from bayesmeta.models.contrasts import contrast
from bayesmeta.models.draw import draw, draw_from
from bayesmeta.models.log_sum_exp import log_sum_exp
from bayesmeta.models.prior import Prior, SitePrior

#: Weakly informative: every kind of effect has a scale on logits that is learned, and is thought
#: to be of order one or less.
SOLVABILITY = Prior(
    "solvability",
    {
        "level": SitePrior("Normal", {"loc": 0.0, "scale": 1.5}),
        "tau_theta": SitePrior("HalfNormal", {"scale": 1.0}),
        "u": SitePrior("Normal", {"loc": 0.0, "scale": "tau_theta"}),
        "tau_delta": SitePrior("HalfNormal", {"scale": 1.0}),
        "a": SitePrior("Normal", {"loc": 0.0, "scale": "tau_delta"}),
        "tau_gamma": SitePrior("HalfNormal", {"scale": 1.0}),
        "v": SitePrior("Normal", {"loc": 0.0, "scale": "tau_gamma"}),
        "tau_W": SitePrior("HalfNormal", {"scale": 1.0}),
        "W": SitePrior("Normal", {"loc": 0.0, "scale": "tau_W"}),
        "sigma_b": SitePrior("HalfNormal", {"scale": 1.0}),
        "phi": SitePrior("LogNormal", {"loc": 1.0, "scale": 1.5}),
    },
)
_ZERO = SitePrior("Fixed", {"value": 0.0})
#: All domains alike: the skills' general success is all there is.
POOLED_DOMAINS = SOLVABILITY.replace("pooled_domains", tau_delta=_ZERO, tau_gamma=_ZERO)
#: Some domains are harder, but the same skills are best in all of them.
POOLED_CHOICE = SOLVABILITY.replace("pooled_choice", tau_gamma=_ZERO)
#: Every domain and skill for itself.
SEPARATE_DOMAINS = SOLVABILITY.replace(
    "separate_domains",
    tau_delta=SitePrior("Fixed", {"value": 3.0}),
    tau_gamma=SitePrior("Fixed", {"value": 3.0}),
)
#: Tasks of a domain are equally hard: verdicts of one task under several skills are independent.
NO_DIFFICULTY = SOLVABILITY.replace("no_difficulty", sigma_b=_ZERO)
#: Attempts at one task share its difficulty and nothing else: they are binomial.
INDEPENDENT_ATTEMPTS = SOLVABILITY.without("independent_attempts", "phi")

#: Name -> prior.
SOLVABILITY_PRIORS: dict[str, Prior] = {
    prior.name: prior
    for prior in (
        SOLVABILITY,
        POOLED_DOMAINS,
        POOLED_CHOICE,
        SEPARATE_DOMAINS,
        NO_DIFFICULTY,
        INDEPENDENT_ATTEMPTS,
    )
}

#: Effects and the scale of each; they sample better as multiples of it.
SCALE_OF = {"u": "tau_theta", "a": "tau_delta", "v": "tau_gamma", "W": "tau_W"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class SolvabilityData:
    """What the model conditions on: N tasks (or rows standing for equal tasks), K skills.

    Attributes:
      correct: [N, K] attempts that were right.
      tried: [N, K] attempts; 0 where the skill was not tried on the task.
      domain: [N] index of each task's domain, below ``num_domains``. A domain without tasks is
        allowed; its effects keep their prior.
      x: [N, P] standardised features.
      weight: [N] tasks a row stands for; 0 leaves it out.
      num_domains: D.
      max_attempts: the largest entry of ``tried``; above 1 attempts share the spread phi.
      num_nodes: of the quadrature over difficulty.
    """

    correct: Int[Array, "task skill"]
    tried: Int[Array, "task skill"]
    domain: Int[Array, " task"]
    x: Float[Array, "task feature"]
    weight: Float[Array, " task"]
    num_domains: int = dataclasses.field(metadata={"static": True})
    max_attempts: int = dataclasses.field(default=1, metadata={"static": True})
    num_nodes: int = dataclasses.field(default=7, metadata={"static": True})


def solvability(data: SolvabilityData, prior: Prior = SOLVABILITY) -> None:
    """The NumPyro program.

    Sites: level; tau_theta, u; tau_delta, a; tau_gamma, v; sigma_b; tau_W and W with features; phi
    where a skill was tried on a task more than once and the prior names it; the verdicts ``y``. u,
    a and v are coordinates of the deterministic sites theta [K], delta [D] and gamma [D, K], which
    sum to zero over skills and over domains. ``eta`` [D, K] is what they add up to: the logit of
    success on a task of difficulty 0 with average features. A scale that the prior fixes at 0
    removes its effects; one domain has none.

    Raises:
      ValueError: fewer than two skills, or a prior that lacks a site or adds one.
    """
    num_skills, num_features = data.tried.shape[1], data.x.shape[1]
    optional = [name for name in ("phi",) if name in prior.sites]
    prior.require(*(name for name in SOLVABILITY.sites if name != "phi"), *optional)
    scales = ("tau_theta", "tau_delta", "tau_gamma", "tau_W", "sigma_b", *optional)
    prior.require_support(**dict.fromkeys(scales, "positive"))
    C = jnp.asarray(contrast(num_skills), data.x.dtype)

    # Theta_I, the internal view.
    level = draw("level", prior)
    theta = C @ _effects("u", "tau_theta", prior, (num_skills - 1,))
    numpyro.deterministic("theta", theta)

    # Theta_E, the external view of each domain.
    delta = jnp.zeros(data.num_domains, data.x.dtype)
    gamma = jnp.zeros((data.num_domains, num_skills), data.x.dtype)
    if data.num_domains > 1:
        # Were the domains' mean free, level and theta could hardly be told from it.
        B = jnp.asarray(contrast(data.num_domains), data.x.dtype)
        delta = B @ _effects("a", "tau_delta", prior, (B.shape[1],))
        gamma = B @ _effects("v", "tau_gamma", prior, (B.shape[1], num_skills - 1)) @ C.T
    numpyro.deterministic("delta", delta)
    numpyro.deterministic("gamma", gamma)
    eta = level + theta + delta[:, None] + gamma
    numpyro.deterministic("eta", eta)

    logits = eta[data.domain]
    if num_features:
        W = _effects("W", "tau_W", prior, (num_skills, num_features))
        logits = logits + data.x @ W.T
    sigma_b = draw("sigma_b", prior)
    phi = draw("phi", prior) if optional and data.max_attempts > 1 else None
    verdicts = Verdicts(
        logits,
        data.tried,
        None if prior["sigma_b"].fixed == 0 else sigma_b,
        phi,
        data.weight,
        max_attempts=data.max_attempts,
        num_nodes=data.num_nodes,
    )
    with numpyro.plate("task", data.tried.shape[0]):
        numpyro.sample("y", verdicts, obs=data.correct)


def _effects(name: str, scale: str, prior: Prior, shape: tuple[int, ...]) -> Array:
    """Effects of a scale that the prior gives; zero, and no site, where it gives zero."""
    width = draw(scale, prior)
    if prior[scale].fixed == 0:
        return jnp.zeros(shape)
    return draw_from(name, prior[name].over(shape, **{scale: width}))


class Verdicts(dist.Distribution):
    """How often each skill is right on a task whose difficulty they share, and nobody knows.

    p(y_n) = int N(b | 0, sigma_b^2) prod_k BetaBinomial(y_nk | m_nk, phi p_nk, phi (1 - p_nk)) db,
    p_nk = logistic(logits_nk - b), by adaptive Gauss-Hermite quadrature: nodes are placed around
    the mode of each task's integrand (Liu & Pierce 1994), because many verdicts on one task make
    it too narrow for nodes that are placed by the prior.

    Args:
      logits: [task, skill].
      tried: [task, skill] numbers of attempts m.
      sigma_b: spread of the difficulty on logits; None for no difficulty.
      phi: concentration of repeated attempts; None for independent ones.
      weight: [task] factor on each log-probability, outside the integral.
      max_attempts: at least the largest entry of ``tried``; the density is NaN above it.
      num_nodes: of the quadrature. With 7 the error is about 1e-3 nats per task in hard cases.
    """

    arg_constraints = {}
    support: Any = constraints.independent(constraints.nonnegative_integer, 1)
    pytree_data_fields = ("logits", "tried", "sigma_b", "phi", "weight")
    pytree_aux_fields = ("max_attempts", "num_nodes")

    def __init__(
        self,
        logits,
        tried,
        sigma_b,
        phi,
        weight=1.0,
        *,
        max_attempts=1,
        num_nodes=7,
        validate_args=None,
    ):
        self.logits, self.tried, self.sigma_b, self.phi = logits, tried, sigma_b, phi
        self.weight = weight
        self.max_attempts, self.num_nodes = max_attempts, num_nodes
        super().__init__(logits.shape[:1], logits.shape[1:], validate_args=validate_args)

    def log_prob(self, value: Any) -> Array:
        # Tasks last from here on: loops over many run several times faster than over few skills.
        logits, value, tried = (
            jnp.swapaxes(jnp.asarray(v, self.logits.dtype), -1, -2)
            for v in (self.logits, value, self.tried)
        )
        ways = log_ways(value, tried, self.max_attempts).sum(-2)
        if self.sigma_b is None:
            return self.weight * (ways + self._given(logits, value, tried).sum(-2))
        centre, width = self._centre(logits, value, tried)
        z, weight = np.polynomial.hermite_e.hermegauss(self.num_nodes)
        z = z.astype(value.dtype)[:, None]
        log_weight = np.log(weight).astype(value.dtype)[:, None]
        b = centre + width * z
        given = self._given(logits - b[:, None, :], value, tried).sum(-2)
        # Weights are for N(z | 0, 1); what is integrated is N(b | 0, sigma_b^2) db.
        change = 0.5 * (z**2 - (b / self.sigma_b) ** 2) + jnp.log(width / self.sigma_b)
        total = log_sum_exp(log_weight + change + given, 0)
        return self.weight * (ways + total - 0.5 * np.log(2 * np.pi).astype(value.dtype))

    def _given(self, logits: Array, value: Array, tried: Array) -> Array:
        """log p(y | difficulty) by skill and task, without the number of ways to choose y of m."""
        if self.phi is None:
            return value * logits - tried * jax.nn.softplus(logits)
        return log_beta_binomial(logits, self.phi, value, tried, self.max_attempts)

    def _centre(self, logits: Array, value: Array, tried: Array) -> tuple[Array, Array]:
        """Mode and width of each task's integrand, roughly: any will do, good ones do with less."""
        logits, sigma = jax.lax.stop_gradient((logits, jnp.asarray(self.sigma_b)))
        # Attempts that go together count as fewer.
        shared = 0.0 if self.phi is None else 1 / (1 + jax.lax.stop_gradient(self.phi))
        worth = 1 / (1 + jnp.maximum(tried - 1, 0) * shared)
        right, all_ = value * worth, tried * worth

        def newton(b, _):
            p = jax.nn.sigmoid(logits - b)
            slope = (all_ * p - right).sum(0) - b / sigma**2
            curvature = (all_ * p * (1 - p)).sum(0) + 1 / sigma**2
            return b + jnp.clip(slope / curvature, -2, 2), None

        b, _ = jax.lax.scan(newton, jnp.zeros(value.shape[1], logits.dtype), length=5)
        p = jax.nn.sigmoid(logits - b)
        return b, 1 / jnp.sqrt((all_ * p * (1 - p)).sum(0) + 1 / sigma**2)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        key_difficulty, key_chance, key_verdict = jax.random.split(key, 3)
        shape = sample_shape + self.batch_shape
        logits = jnp.broadcast_to(self.logits, shape + self.event_shape)
        if self.sigma_b is not None:
            logits = logits - self.sigma_b * jax.random.normal(key_difficulty, (*shape, 1))
        p = jax.nn.sigmoid(logits)
        if self.phi is not None:
            p = jax.random.beta(key_chance, self.phi * p + 1e-12, self.phi * (1 - p) + 1e-12)
        return dist.Binomial(self.tried, p).sample(key_verdict)
