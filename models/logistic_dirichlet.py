"""The Dirichlet distribution, in the coordinates in which strategies are written."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro import distributions as dist
from numpyro.distributions import constraints

from bayesmeta.models.contrasts import contrast


class LogisticDirichlet(dist.Distribution):
    """Coordinates u of a strategy w = softmax(C u), where w ~ Dirichlet(concentration).

    With C the orthonormal contrast for K skills the volume element is dw = sqrt(K) prod_k w_k du,
    so log p(u) = log Dirichlet(w) + sum_k log w_k + log(K) / 2. Concentration 1 makes every
    strategy equally likely: the flat prior on weights, which is not flat on logits.

    Args:
      concentration: > 0, the same for every skill.
      num_coordinates: K - 1, the length of u.
    """

    arg_constraints = {"concentration": constraints.positive}
    support: Any = constraints.real_vector
    reparametrized_params = []
    pytree_data_fields = ("concentration",)
    pytree_aux_fields = ("num_coordinates",)

    def __init__(self, concentration=1.0, num_coordinates=1, *, validate_args=None):
        self.concentration = concentration
        self.num_coordinates = num_coordinates
        super().__init__(
            batch_shape=jnp.shape(concentration),
            event_shape=(num_coordinates,),
            validate_args=validate_args,
        )

    def log_prob(self, value: Any) -> Array:
        num_skills = self.num_coordinates + 1
        C = jnp.asarray(contrast(num_skills), value.dtype)
        log_w = jax.nn.log_softmax(value @ C.T, -1)
        a = self.concentration
        normaliser = jax.lax.lgamma(num_skills * jnp.asarray(a, value.dtype)) - (
            num_skills * jax.lax.lgamma(jnp.asarray(a, value.dtype))
        )
        return normaliser + a * log_w.sum(-1) + 0.5 * math.log(num_skills)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        num_skills = self.num_coordinates + 1
        # Log-gamma draws, because those of a small concentration underflow.
        shape = (*sample_shape, *self.batch_shape, num_skills)
        log_w = jax.random.loggamma(key, jnp.asarray(self.concentration)[..., None], shape)
        return log_w @ jnp.asarray(contrast(num_skills), log_w.dtype)
