"""The observation factor: a language model's likelihoods, mixed over skills.

For task n with strategy weights w_n = softmax(eta_n) and the language model's probabilities
p(o | n, k) of outcome o under skill k, the latent skill is summed out:

    log p(o_n) = logsumexp_k(log w_nk + log p(o_n | n, k)).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpyro.distributions import Distribution, constraints


@jax.custom_jvp
def log_mixture(
    logits: Float[Array, "skill task"], log_likelihood: Float[Array, "skill task"]
) -> Float[Array, " task"]:
    """log sum_k softmax(logits)_k exp(log_likelihood_k), per task, in nats.

    Its derivative is written by hand, because it is known: with responsibilities
    r = softmax(logits + log_likelihood) and weights w = softmax(logits) it is r - w for the
    logits (Fisher's identity) and r for the log-likelihoods. One pass over the table yields the
    value and both, at two exponentials per cell. Skills come first so that each reduction runs
    over contiguous tasks. A task whose every skill has probability zero has value -inf.
    """
    return _value_and_derivatives(logits, log_likelihood)[0]


@log_mixture.defjvp
def _log_mixture_jvp(primals, tangents):
    value, by_logits, by_log_likelihood = _value_and_derivatives(*primals)
    return value, (by_logits * tangents[0]).sum(0) + (by_log_likelihood * tangents[1]).sum(0)


def _value_and_derivatives(logits, log_likelihood):
    joint = logits + log_likelihood
    top_joint = joint.max(0)
    top_joint = jnp.where(jnp.isfinite(top_joint), top_joint, 0.0)
    top = logits.max(0)
    responsibility = jnp.exp(joint - top_joint)
    weight = jnp.exp(logits - top)
    sum_joint, sum_weight = responsibility.sum(0), weight.sum(0)
    value = (jnp.log(sum_joint) + top_joint) - (jnp.log(sum_weight) + top)
    # Where nothing has positive probability there is no direction to move in either.
    responsibility = responsibility / jnp.where(sum_joint > 0, sum_joint, 1.0)
    return value, responsibility - weight / sum_weight, responsibility


class LLMCategorical(Distribution):
    """Which candidate answer is given, when the skill is drawn from a strategy (node O).

    A real `Distribution` rather than a bare factor, so that posterior predictive draws and
    observed data exist.

    Args:
      logits: [skill, task], log strategy weights up to a constant per task.
      log_p: [candidate, skill, task], the language model's log-probabilities in nats,
        normalised over candidates; -inf marks padding.
      log_likelihood: [skill, task], ``log_p`` at the observed candidate, where that is already
        known: gathering it at every leapfrog step would cost as much as the mixture itself.
      scale: factor on each task's log-probability, outside the sum over skills: a task weight
        or a minibatch scale. Never inside, which would temper the skills instead.
    """

    arg_constraints = {}
    pytree_data_fields = ("logits", "log_p", "log_likelihood", "scale")

    def __init__(self, logits, log_p, log_likelihood=None, scale=1.0, *, validate_args=None):
        self.logits = logits
        self.log_p = log_p
        self.log_likelihood = log_likelihood
        self.scale = scale
        super().__init__(batch_shape=(logits.shape[-1],), validate_args=validate_args)

    @property
    def support(self):
        return constraints.integer_interval(0, self.log_p.shape[0] - 1)

    def log_prob(self, value: Int[Array, "*sample task"]) -> Float[Array, "*sample task"]:
        if self.log_likelihood is not None:
            return self.scale * log_mixture(self.logits, self.log_likelihood)
        table = self.candidate_log_probs()
        return self.scale * jnp.take_along_axis(table, jnp.atleast_2d(value), 0).reshape(
            jnp.shape(value)
        )

    def candidate_log_probs(self) -> Float[Array, "candidate task"]:
        """log p(c | n) of every candidate, the skill summed out."""
        log_weights = jax.nn.log_softmax(self.logits, 0)
        return jax.nn.logsumexp(log_weights + self.log_p, axis=1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return jax.random.categorical(
            key, self.candidate_log_probs(), axis=0, shape=sample_shape + self.batch_shape
        )
