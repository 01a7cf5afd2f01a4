"""Figure 2 of Yan et al. (ICML 2025) as a generative program: the working model.

    Theta_I -> I: mu, W     what has long been known: which skills suit reasoning in general,
                            and how that depends on features x_n of the question
    Theta_E -> E: delta_d   what is particular to domain d, shrunk towards nothing by tau_E
    I, E -> F               strategy: F_d = softmax(mu + delta_d) for a domain, and
                            w_n = softmax(mu + W x_n + delta_d(n)) for the task n
    F -> A -> O <- G        a skill z_n ~ Categorical(w_n), a trace a_n ~ p_LLM(. | x_n, z_n),
                            an answer o_n ~ p_LLM(. | a_n, x_n)

The skill and the traces are summed out, so O is one factor per task. The figure itself has no
edge from G to F: here the question's features do reach F, without which a strategy could not
depend on its task.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Float, Int

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.draw import draw
from bayesmeta.models.mixture import LLMCategorical
from bayesmeta.models.prior import Prior, SitePrior

#: Below this many domains their mean is confounded with mu, so domains are made to sum to zero.
ZERO_SUM_BELOW = 8

#: Under a horseshoe prior no domain effect is wider than this, on logits.
SLAB = 2.0

#: The default prior. Scales are on logits: 1.5 lets one skill dominate but does not insist.
HIERARCHICAL = Prior(
    "hierarchical",
    {
        "u": SitePrior("Normal", {"loc": 0.0, "scale": 1.5}),
        "U": SitePrior("Normal", {"loc": 0.0, "scale": 0.5}),
        "tau_E": SitePrior("HalfNormal", {"scale": 0.5}),
        "v": SitePrior("Normal", {"loc": 0.0, "scale": "tau_E"}),
    },
)

#: As `HIERARCHICAL`, with the inverse temperature of the language model's scores inferred too.
HIERARCHICAL_BETA = HIERARCHICAL.replace(
    "hierarchical_beta", beta=SitePrior("LogNormal", {"loc": 0.0, "scale": 0.5})
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Figure2Data:
    """The arrays that the model conditions on. N tasks, K skills, C candidates, D domains.

    Attributes:
      log_p: [C, K, N] log p(c | n, k) in nats, normalised over candidates, traces averaged.
      log_likelihood: [K, N], ``log_p`` at the observed answer.
      gold: [N] the observed answers.
      domain: [N] index of each task's domain.
      x: [N, P] standardised features.
      scale: [N] task weights; ones, or N/B for each of a minibatch of B, or 0 to leave out.
      num_domains: D.
      log_available: None, or [K, N]: 0 where the skill was tried on the task, -inf where it was
        not. The strategy of such a task is renormalised over the skills that were.
      scores: None, or [C, S, K, N] raw log-likelihoods of S traces in nats with the log weight
        of a trace (log importance ratio minus log S) in ``log_trace_weight`` [S, K, N]. Needed
        where beta is inferred, because tempering happens inside the sum over traces.
    """

    log_p: Float[Array, "candidate skill task"]
    log_likelihood: Float[Array, "skill task"]
    gold: Int[Array, " task"]
    domain: Int[Array, " task"]
    x: Float[Array, "task feature"]
    scale: Float[Array, " task"]
    num_domains: int = dataclasses.field(metadata={"static": True})
    log_available: Float[Array, "skill task"] | None = None
    scores: Float[Array, "candidate trace skill task"] | None = None
    log_trace_weight: Float[Array, "trace skill task"] | None = None


def figure2(data: Figure2Data, prior: Prior = HIERARCHICAL) -> None:
    """The NumPyro program. Sites: u, U, tau_E, v, O; lambda_E and beta where the prior names them.

    Sites u, U, v are coordinates of zero-sum vectors (see `contrast`); mu [K], W [K, P],
    delta [D, K] and F [D, K] are recorded as deterministic sites. Without features there is
    neither U nor W; with one domain there is no v, and tau_E keeps its prior.
    """
    num_skills, num_features = data.log_likelihood.shape[0], data.x.shape[1]
    optional = [site for site in ("lambda_E", "beta") if site in prior.sites]
    prior.require("u", "U", "tau_E", "v", *optional)
    prior.require_support(tau_E="positive", **dict.fromkeys(optional, "positive"))
    C = jnp.asarray(contrast(num_skills), data.x.dtype)
    B = jnp.asarray(domain_basis(data.num_domains), data.x.dtype)

    # Theta_I, the internal view.
    u = draw("u", prior, (num_skills - 1,))
    mu = C @ u
    numpyro.deterministic("mu", mu)
    logits = mu[:, None]
    if num_features:
        U = draw("U", prior, (num_skills - 1, num_features))
        W = C @ U
        numpyro.deterministic("W", W)
        logits = logits + W @ data.x.T

    # Theta_E, the external view of each domain.
    tau_E = draw("tau_E", prior)
    delta = jnp.zeros((data.num_domains, num_skills), data.x.dtype)
    # A single domain has no effect of its own that mu has not; tau_E = 0 means no effects at all.
    if data.num_domains > 1 and prior["tau_E"].fixed != 0:
        v_shape = (B.shape[1], num_skills - 1)
        scales = {"tau_E": tau_E}
        if "lambda_E" in prior.sites:
            scales["local_E"] = horseshoe_scale(tau_E, draw("lambda_E", prior, v_shape), SLAB)
        delta = B @ draw("v", prior, v_shape, **scales) @ C.T
    numpyro.deterministic("delta", delta)

    # F, the strategy.
    numpyro.deterministic("F", jax.nn.softmax(mu + delta, -1))
    logits = logits + delta.T[:, data.domain]
    if data.log_available is not None:
        logits = logits + data.log_available

    # O, the outcome, with skill and traces summed out.
    log_p, log_likelihood = data.log_p, data.log_likelihood
    if "beta" in prior.sites:
        beta = draw("beta", prior)
        log_p = temper(beta, data)
        log_likelihood = jnp.take_along_axis(log_p, data.gold[None, None, :], 0)[0]
    with numpyro.plate("task", data.gold.shape[0]):
        numpyro.sample(
            "O", LLMCategorical(logits, log_p, log_likelihood, data.scale), obs=data.gold
        )


def horseshoe_scale(tau: Array, local: Array, slab: float) -> Array:
    """tau * lambda where that is small, and at most ``slab``: the regularised horseshoe.

    Piironen & Vehtari 2017, arXiv 1707.01694: slab lambda / sqrt(slab^2 + tau^2 lambda^2) tau.
    """
    return tau * slab * local / jnp.sqrt(slab**2 + (tau * local) ** 2)


def temper(beta: Array, data: Figure2Data) -> Float[Array, "candidate skill task"]:
    """log p_beta(c | n, k): each trace's scores renormalised over candidates, then averaged.

    Renormalisation is what makes beta a temperature that data can identify. On raw
    log-likelihoods, all negative, the posterior of a free beta collapses to zero.
    """
    if data.scores is None or data.log_trace_weight is None:
        raise ValueError(
            "the prior infers beta, but the data hold no raw scores to temper. Build them with "
            "figure2_data(..., keep_scores=True), or use a prior without 'beta'."
        )
    per_trace = jax.nn.log_softmax(beta * data.scores, 0)
    return jax.nn.logsumexp(per_trace + data.log_trace_weight, axis=1)


def domain_basis(num_domains: int) -> Float[np.ndarray, "domain coordinate"]:
    """Identity, or a zero-sum contrast where domains are too few to learn their mean apart."""
    if 1 < num_domains < ZERO_SUM_BELOW:
        return contrast(num_domains)
    return np.eye(num_domains)
