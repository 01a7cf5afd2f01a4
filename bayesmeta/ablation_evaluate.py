"""A program at every posterior draw: what it says of tasks, and what its prior said of a site."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from bayesmeta.inference.structure import merge_chains

#: Draws evaluated side by side.
_BATCH = 64


def at_draws(
    model: Callable[[Any, Any], None],
    data: Any,
    prior: Any,
    samples: Mapping[str, np.ndarray],
    *,
    local: tuple[str, ...] = (),
    rng_seed: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate a program of N tasks at draws of its latent sites, given as [chain, draw, *shape].

    The tasks need not be those that were fitted: ``local`` sites are then left out of ``samples``
    and drawn anew from their distribution given the rest.

    Returns:
      ``log_prior``, site -> [chain, draw] in nats; ``log_likelihood`` [chain, draw, N] in nats of
      the observed answers; ``log_p`` [N, C], log of the mean predictive in nats; ``weight``
      [N, K], the mean strategy.
    """
    leading = next(iter(samples.values())).shape[:2]
    flat = {name: jnp.asarray(merge_chains(v)) for name, v in samples.items() if name not in local}
    keys = jax.random.split(jax.random.key(rng_seed), leading[0] * leading[1])
    data = _untied(data)
    log_prior, log_likelihood, log_p, weight = jax.tree.map(
        np.asarray, _evaluate(model, keys, flat, data, prior)
    )
    return (
        {name: v.reshape(leading) for name, v in log_prior.items() if name in flat},
        log_likelihood.reshape(*leading, -1),
        log_p.T.astype(np.float64),
        weight.T.astype(np.float64),
    )


def prior_variance(
    model: Callable[[Any, Any], None],
    data: Any,
    prior: Any,
    names: tuple[str, ...],
    *,
    num_draws: int = 2000,
    rng_seed: int = 0,
) -> dict[str, np.ndarray]:
    """Variance of every entry of some sites, over draws from the prior: site -> [*shape].

    Raises:
      ValueError: the program has no such site.
    """
    keys = jax.random.split(jax.random.key(rng_seed), num_draws)
    draws = _from_prior(model, keys, data, prior)
    return {name: np.var(np.asarray(draws[name], np.float64), 0) for name in names if name in draws}


def _untied(data: Any) -> Any:
    """The same data with every task at its full weight."""
    import dataclasses

    return dataclasses.replace(data, scale=jnp.ones_like(data.scale))


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(model, keys, draws, data, prior):
    def one(key_and_draw):
        key, draw = key_and_draw
        program = handlers.substitute(handlers.seed(model, key), data=draw)
        trace = handlers.trace(program).get_trace(data, prior)
        outcome = trace["O"]["fn"]
        log_prior = {
            name: jnp.sum(site["fn"].log_prob(site["value"]))
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
        log_likelihood = outcome.log_prob(trace["O"]["value"])
        return (
            log_prior,
            log_likelihood,
            outcome.candidate_log_probs(),
            jax.nn.softmax(outcome.logits, 0),
        )

    log_prior, log_likelihood, log_p, weight = jax.lax.map(one, (keys, draws), batch_size=_BATCH)
    log_mean = jax.nn.logsumexp(log_p, 0) - jnp.log(log_p.shape[0])
    return log_prior, log_likelihood, log_mean, weight.mean(0)


@functools.partial(jax.jit, static_argnums=0)
def _from_prior(model, keys, data, prior):
    def one(key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(data, prior)
        return {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] in ("sample", "deterministic") and not site.get("is_observed")
        }

    return jax.vmap(one)(keys)
