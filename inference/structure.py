"""What can be learned of a NumPyro program by running it once or once per draw."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import Distribution


def trace_sites(model: Callable[..., Any], *model_args: Any) -> dict[str, dict[str, Any]]:
    """Every site of one run of the program, by name."""
    return handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(*model_args)


def latent_of(model: Callable[..., Any], *model_args: Any) -> dict[str, Distribution]:
    """The latent sites' distributions, in the order in which they are drawn.

    Found without computing anything: run as it is, every operation would be compiled on its own.
    Their supports and shapes can be read, their parameters hold no numbers.
    """
    found: dict[str, Distribution] = {}

    def run():
        for name, site in trace_sites(model, *model_args).items():
            if site["type"] == "sample" and not site["is_observed"]:
                found[name] = site["fn"]

    jax.eval_shape(run)
    return found


def latent_sites(model: Callable[..., Any], *model_args: Any) -> list[str]:
    """Names of the unobserved random sites, in the order in which they are drawn."""
    return list(latent_of(model, *model_args))


def merge_chains(values: np.ndarray) -> np.ndarray:
    """[chain, draw, *shape] as [chain * draw, *shape], also where shape holds a zero."""
    return values.reshape((values.shape[0] * values.shape[1],) + values.shape[2:])


def _batch_size(num_draws: int) -> int:
    """The largest divisor up to 64: a last batch of another size would be compiled as well."""
    return max(size for size in range(1, 65) if num_draws % size == 0)


def site_log_probs(
    model: Callable[..., Any], samples: Mapping[str, np.ndarray], *model_args: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Evaluate the program at every draw.

    Args:
      samples: latent site -> [num_chains, num_samples, *shape].

    Returns:
      ``log_prior``: latent site -> [chain, draw], nats, summed over the site;
      ``log_likelihood``: observed site -> [chain, draw, *batch shape], nats;
      ``deterministic``: site -> [chain, draw, *shape].
    """

    def evaluate(draw):
        program = handlers.substitute(handlers.seed(model, jax.random.key(0)), data=draw)
        trace = handlers.trace(program).get_trace(*model_args)
        prior, likelihood, deterministic = {}, {}, {}
        for name, site in trace.items():
            if site["type"] == "deterministic":
                deterministic[name] = site["value"]
            elif site["type"] == "sample":
                log_prob = site["fn"].log_prob(site["value"])
                if site["is_observed"]:
                    likelihood[name] = log_prob
                else:
                    prior[name] = jnp.sum(log_prob)
        return prior, likelihood, deterministic

    leading = next(iter(samples.values())).shape[:2]
    flat = {k: jnp.asarray(merge_chains(v)) for k, v in samples.items()}
    size = _batch_size(leading[0] * leading[1])
    evaluated = jax.jit(lambda draws: jax.lax.map(evaluate, draws, batch_size=size))(flat)
    return jax.tree.map(lambda v: np.asarray(v).reshape(leading + v.shape[1:]), evaluated)


def prior_draws(
    model: Callable[..., Any], *model_args: Any, num_samples: int, rng_seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Run the program afresh, drawing what is observed too.

    Returns:
      Unobserved or deterministic site -> [1, num_samples, *shape], as one chain;
      observed site -> the same.
    """

    def run(key):
        # Two keys: one that is split for the sites and folded for answers gives some of them twice.
        key, key_observed = jax.random.split(key)
        trace = handlers.trace(handlers.seed(model, key)).get_trace(*model_args)
        unobserved = {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] == "deterministic"
            or (site["type"] == "sample" and not site["is_observed"])
        }
        return unobserved, _redraw_observed(trace, key_observed)

    keys = jax.random.split(jax.random.key(rng_seed), num_samples)
    # One by one: sampling in batches takes longer to compile than all draws take to run.
    drawn = jax.jit(lambda k: jax.lax.map(run, k))(keys)
    return jax.tree.map(lambda v: np.asarray(v)[None], drawn)


def _redraw_observed(trace: Mapping[str, dict[str, Any]], key: Any) -> dict[str, Any]:
    """Every observed site of a run, drawn given the other sites' values."""
    return {
        name: site["fn"].sample(jax.random.fold_in(key, index))
        for index, (name, site) in enumerate(trace.items())
        if site["type"] == "sample" and site["is_observed"]
    }


def posterior_predictive(
    model: Callable[..., Any],
    samples: Mapping[str, np.ndarray],
    *model_args: Any,
    rng_seed: int = 0,
) -> dict[str, np.ndarray]:
    """Draw every observed site anew at every posterior draw.

    Returns:
      Observed site -> [num_chains, num_samples, *shape].
    """
    leading = next(iter(samples.values())).shape[:2]
    flat = {k: jnp.asarray(merge_chains(v)) for k, v in samples.items()}

    def replicate(key_and_draw):
        key, draw = key_and_draw
        program = handlers.substitute(handlers.seed(model, key), data=draw)
        return _redraw_observed(handlers.trace(program).get_trace(*model_args), key)

    num_draws = leading[0] * leading[1]
    keys, size = jax.random.split(jax.random.key(rng_seed), num_draws), _batch_size(num_draws)
    drawn = jax.jit(lambda k, d: jax.lax.map(replicate, (k, d), batch_size=size))(keys, flat)
    return {k: np.asarray(v).reshape(leading + v.shape[1:]) for k, v in drawn.items()}
