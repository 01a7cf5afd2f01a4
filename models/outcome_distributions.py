"""What is observed of a task, with the skill or the reasoning behind it summed out (node O)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints

from bayesmeta.models.beta_binomial import log_beta_binomial, log_ways
from bayesmeta.models.mixture import log_mixture


class SkillMixture(dist.Distribution):
    """An outcome whose distribution depends on a skill that is drawn from a strategy.

    log p(o_n) = logsumexp_k(log w_nk + log p_k(o_n)), w_n = softmax(logits_n).

    Args:
      logits: [skill, task].
      components: a univariate distribution with batch shape [skill, task].
      scale: [task] factor on each log-probability, outside the sum over skills.
    """

    arg_constraints = {}
    support: Any = constraints.nonnegative_integer
    pytree_data_fields = ("logits", "components", "scale")

    def __init__(self, logits, components, scale=1.0, *, validate_args=None):
        self.logits, self.components, self.scale = logits, components, scale
        super().__init__(batch_shape=(logits.shape[-1],), validate_args=validate_args)

    def log_prob(self, value: Any) -> Array:
        return self.scale * log_mixture(self.logits, self.components.log_prob(value))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        key_skill, key_outcome = jax.random.split(key)
        shape = sample_shape + self.batch_shape
        skill = jax.random.categorical(key_skill, self.logits, axis=0, shape=shape)
        outcomes = self.components.sample(key_outcome, sample_shape)
        return jnp.take_along_axis(outcomes, skill[..., None, :], axis=-2)[..., 0, :]


class BetaBinomialCount(dist.Distribution):
    """How many of several attempts succeed, see `bayesmeta.models.beta_binomial`.

    Args:
      log_odds: of the success of an attempt.
      concentration: phi; the larger, the less attempts go together.
      total_count: how many attempts there are.
      max_count: at least the largest ``total_count``, where that is known: few attempts are
        cheaper. The density is NaN above it.
    """

    arg_constraints = {}
    pytree_data_fields = ("log_odds", "concentration", "total_count")
    pytree_aux_fields = ("max_count",)

    def __init__(self, log_odds, concentration, total_count, max_count=None, *, validate_args=None):
        self.log_odds, self.concentration = jnp.asarray(log_odds), jnp.asarray(concentration)
        self.total_count, self.max_count = jnp.asarray(total_count), max_count
        shape = jnp.broadcast_shapes(
            self.log_odds.shape, self.concentration.shape, self.total_count.shape
        )
        super().__init__(batch_shape=shape, validate_args=validate_args)

    @property
    def support(self):
        return constraints.integer_interval(0, self.total_count)

    def log_prob(self, value: Any) -> Array:
        value = jnp.asarray(value)
        given = log_beta_binomial(
            self.log_odds, self.concentration, value, self.total_count, self.max_count
        )
        return log_ways(value, self.total_count, self.max_count) + given

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        key_chance, key_count = jax.random.split(key)
        p, q = jax.nn.sigmoid(self.log_odds), jax.nn.sigmoid(-self.log_odds)
        phi, shape = self.concentration, sample_shape + self.batch_shape
        chance = jax.random.beta(key_chance, phi * p, phi * q, shape)
        return dist.Binomial(self.total_count, chance).sample(key_count)


class VerifierCount(dist.Distribution):
    """How many of R verdicts on one answer say that it is correct.

    The answer is correct with probability p; a verdict says so with probability
    1 - false_negative if it is, and false_positive if it is not. Verdicts on one answer share its
    correctness, which is summed out.
    """

    arg_constraints = {}
    support: Any = constraints.nonnegative_integer
    pytree_data_fields = ("log_odds", "false_negative", "false_positive", "total_count")

    def __init__(
        self, log_odds, false_negative, false_positive, total_count, *, validate_args=None
    ):
        self.log_odds, self.total_count = jnp.broadcast_arrays(log_odds, total_count)
        self.false_negative, self.false_positive = false_negative, false_positive
        super().__init__(batch_shape=jnp.shape(log_odds), validate_args=validate_args)

    def _verdicts(self):
        count = self.total_count
        return dist.Binomial(count, 1 - self.false_negative), dist.Binomial(
            count, self.false_positive
        )

    def log_prob(self, value: Any) -> Array:
        if_correct, if_wrong = self._verdicts()
        return jnp.logaddexp(
            jax.nn.log_sigmoid(self.log_odds) + if_correct.log_prob(value),
            jax.nn.log_sigmoid(-self.log_odds) + if_wrong.log_prob(value),
        )

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        key_answer, key_correct, key_wrong = jax.random.split(key, 3)
        shape = sample_shape + self.batch_shape
        correct = jax.random.bernoulli(key_answer, jax.nn.sigmoid(self.log_odds), shape)
        if_correct, if_wrong = (d.expand(self.batch_shape) for d in self._verdicts())
        return jnp.where(
            correct,
            if_correct.sample(key_correct, sample_shape),
            if_wrong.sample(key_wrong, sample_shape),
        )


class TraceCategorical(dist.Distribution):
    """Which answer is given, with the traces of reasoning summed out.

    Args:
      log_p: [candidate, task], log p(c | n) in nats. An estimate from sampled traces need not sum
        to one; its value at the observed answer is unbiased before the logarithm.
      scale: [task] factor on each log-probability.
      log_likelihood: [task], ``log_p`` at the observed answer, where that is already known: the
        other candidates then cost nothing.
    """

    arg_constraints = {}
    pytree_data_fields = ("log_p", "scale", "log_likelihood")

    def __init__(self, log_p, scale=1.0, log_likelihood=None, *, validate_args=None):
        self.log_p, self.scale, self.log_likelihood = log_p, scale, log_likelihood
        super().__init__(batch_shape=(log_p.shape[-1],), validate_args=validate_args)

    @property
    def support(self):
        return constraints.integer_interval(0, self.log_p.shape[0] - 1)

    def log_prob(self, value) -> Array:
        if self.log_likelihood is not None:
            return self.scale * self.log_likelihood
        at_value = jnp.take_along_axis(self.log_p, jnp.atleast_2d(value), 0)
        return self.scale * at_value.reshape(jnp.shape(value))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return jax.random.categorical(
            key, self.log_p, axis=0, shape=sample_shape + self.batch_shape
        )
