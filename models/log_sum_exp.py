"""The logarithm of a sum of exponentials, with its derivative written by hand."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array


def log_sum_exp(x: Array, axis: int) -> Array:
    """log sum exp(x) along one axis, which is dropped.

    As `jax.nn.logsumexp`, of which the derivative is known to be softmax: one pass yields both,
    several times faster along short axes on CPUs. Where all terms are -inf the value is -inf and
    the derivative zero, as there is no direction to move in.
    """
    return _value_and_softmax(x, axis)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _value_and_softmax(x: Array, axis: int) -> tuple[Array, Array]:
    top = x.max(axis, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    # Never above 0, but where x is a product that XLA subtracts from unrounded: then exp overflows.
    terms = jnp.exp(jnp.minimum(x - top, 0.0))
    total = terms.sum(axis, keepdims=True)
    softmax = terms / jnp.where(total > 0, total, 1.0)
    return (jnp.log(total) + top).squeeze(axis), softmax


@_value_and_softmax.defjvp
def _value_and_softmax_jvp(axis, primals, tangents):
    value, softmax = _value_and_softmax(primals[0], axis)
    slope = (softmax * tangents[0]).sum(axis, keepdims=True)
    return (value, softmax), (slope.squeeze(axis), softmax * (tangents[0] - slope))
