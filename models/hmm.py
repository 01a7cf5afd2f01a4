"""Hidden Markov chains of known parameters: evidence, marginals and the most probable path.

All in nats and by log-sum-exp, in O(T K^2) (Rabiner 1989). A step of log-likelihood zero under
every state, as one that was not seen has, is summed over like any other.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from bayesmeta.models.log_sum_exp import log_sum_exp


def sticky(log_weight: Float[Array, " K"], switch: ArrayLike) -> Float[Array, "K K"]:
    """Log transitions that stay with probability 1 - switch, or else draw a state afresh."""
    stay = jnp.log1p(-jnp.asarray(switch)) + jnp.log(jnp.eye(len(log_weight)))
    return jnp.logaddexp(stay, jnp.log(jnp.asarray(switch)) + log_weight[None, :])


def log_evidence(
    log_initial: Float[Array, " K"],
    log_transition: Float[Array, "K K"],
    log_likelihood: Float[Array, "T K *chain"],
) -> Float[Array, "*chain"]:
    """log p(observations), states summed out by the forward pass.

    Args:
      log_initial: of the first state.
      log_transition: [i, j] from state i to state j.
      log_likelihood: of each step's observation under each state. Many chains at once come last,
        where loops over them are fast.
    """
    return log_sum_exp(_forward(log_initial, log_transition, log_likelihood)[-1], 0)


def smoothed(
    log_initial: Float[Array, " K"],
    log_transition: Float[Array, "K K"],
    log_likelihood: Float[Array, "T K"],
) -> Float[Array, "T K"]:
    """Log probability of each state at each step, given all steps."""
    forward = _forward(log_initial, log_transition, log_likelihood)

    def back(after, step):
        before = jax.nn.logsumexp(log_transition + (step + after)[None, :], axis=1)
        return before, before

    last = jnp.zeros_like(log_initial)
    _, earlier = jax.lax.scan(back, last, log_likelihood[1:], reverse=True)
    joint = forward + jnp.concatenate([earlier, last[None]])
    return jax.nn.log_softmax(joint, axis=1)


def most_probable(
    log_initial: Float[Array, " K"],
    log_transition: Float[Array, "K K"],
    log_likelihood: Float[Array, "T K"],
) -> Int[Array, " T"]:
    """The most probable path of states (Viterbi 1967)."""

    def step(best, observed):
        through = best[:, None] + log_transition
        return through.max(0) + observed, through.argmax(0)

    last, came_from = jax.lax.scan(step, log_initial + log_likelihood[0], log_likelihood[1:])

    def back(state, where):
        return where[state], where[state]

    end = last.argmax()
    _, path = jax.lax.scan(back, end, came_from, reverse=True)
    return jnp.concatenate([path, end[None]])


def _forward(log_initial, log_transition, log_likelihood) -> Float[Array, "T K *chain"]:
    """log p(steps up to t, state at t)."""
    every = (1,) * (log_likelihood.ndim - 2)
    log_transition = log_transition.reshape(log_transition.shape + every)

    def step(before, observed):
        now = log_sum_exp(before[:, None] + log_transition, 0) + observed
        return now, now

    first = log_initial.reshape(log_initial.shape + every) + log_likelihood[0]
    _, rest = jax.lax.scan(step, first, log_likelihood[1:])
    return jnp.concatenate([first[None], rest])
