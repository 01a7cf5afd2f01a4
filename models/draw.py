"""Drawing a site of a program from a prior that is data."""

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array

from bayesmeta.models.prior import Prior, check_broadcast


def draw(name: str, prior: Prior, shape: tuple[int, ...] = (), **sites: Any) -> Array:
    """A site of the program, of this shape, from its entry in the prior.

    A site that the prior fixes is recorded as deterministic. ``sites`` are the earlier sites that
    the entry may refer to.
    """
    entry = prior[name]
    if entry.fixed is not None:
        value = jnp.asarray(entry.fixed, jnp.result_type(float))
        check_broadcast("Fixed", value.shape, shape)
        return jnp.asarray(numpyro.deterministic(name, jnp.broadcast_to(value, shape)))
    return draw_from(name, entry.over(shape, **sites))


def draw_from(name: str, distribution: dist.Distribution) -> Array:
    """``numpyro.sample``, whose result is an array and nothing else."""
    return jnp.asarray(numpyro.sample(name, distribution))
