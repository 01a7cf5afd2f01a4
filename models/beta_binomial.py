"""How many of several attempts succeed, where attempts at one task go together (beta-binomial).

The chance of success is drawn once for all attempts: p ~ Beta(phi p, phi (1 - p)). Summed out,

    p(y | m) = (m choose y) rise(phi p, y) rise(phi (1 - p), m - y) / rise(phi, m),

with rise(a, y) = a (a + 1) ... (a + y - 1). Written in log-odds, so that chances near zero and one
keep their digits.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array

#: Up to this many attempts, products are several times cheaper than gamma functions.
FEW_ATTEMPTS = 8
#: Factors per product: in float32 four stay in range up to a concentration of 1e9.
_AT_ONCE = 4


def log_beta_binomial(
    log_odds: Array, concentration: Any, successes: Array, attempts: Any, max_attempts: int | None
) -> Array:
    """log p(y | m) in nats without the number of ways to choose y of m, which has no parameter.

    Args:
      log_odds: of the success of an attempt.
      concentration: phi; large where attempts are nearly independent.
      successes, attempts: y and m, broadcast against the rest.
      max_attempts: at least the largest entry of ``attempts``; None where it is not known, which
        costs gamma functions.
    """
    log_q = -jax.nn.softplus(log_odds)
    log_p, log_phi, failures = log_odds + log_q, jnp.log(concentration), attempts - successes
    # The first factor of each product on its own: it can be tiny, and others are at least one.
    first = (
        jnp.where(successes > 0, log_p, 0.0)
        + jnp.where(failures > 0, log_q, 0.0)
        + jnp.where((successes > 0) & (failures > 0), log_phi, 0.0)
    )
    a = concentration * jax.nn.sigmoid(log_odds)
    b = concentration - a
    if max_attempts is None or max_attempts > FEW_ATTEMPTS:
        return (
            first
            + _log_rest(a, successes)
            + _log_rest(b, failures)
            - _log_rest(concentration, attempts)
        )
    rest = jnp.zeros((), first.dtype)
    for start in range(1, max_attempts, _AT_ONCE):
        product = jnp.ones((), first.dtype)
        for i in range(start, min(start + _AT_ONCE, max_attempts)):
            above = jnp.where(i < successes, a + i, 1.0) * jnp.where(i < failures, b + i, 1.0)
            product = product * (above / jnp.where(i < attempts, concentration + i, 1.0))
        rest = rest + jnp.log(product)
    return first + rest


def log_ways(successes: Array, attempts: Any, max_attempts: int | None) -> Array:
    """log (m choose y); NaN where m is above ``max_attempts``, lest a density be wrong unseen."""
    failures = attempts - successes
    if max_attempts is None or max_attempts > FEW_ATTEMPTS:
        return gammaln(attempts + 1.0) - gammaln(successes + 1.0) - gammaln(failures + 1.0)
    ways = jnp.ones(jnp.shape(failures), jnp.result_type(float))
    for i in range(2, max_attempts + 1):
        below = jnp.where(i <= successes, i, 1.0) * jnp.where(i <= failures, i, 1.0)
        ways = ways * (jnp.where(i <= attempts, i, 1.0) / below)
    return jnp.where(attempts > max_attempts, jnp.nan, jnp.log(ways))


def _log_rest(a: Any, count: Any) -> Array:
    """log (a + 1) ... (a + count - 1)."""
    return gammaln(a + jnp.maximum(count, 1)) - gammaln(a + 1.0)
