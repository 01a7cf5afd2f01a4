"""Simulation-based calibration: does an engine's posterior hold the truth as often as it says?

Parameters are drawn from the prior, data from the program given them, and the engine is asked for
draws given those data. Where everything is right, the rank of each true value among independent
posterior draws is uniform (Talts et al. 2018, arXiv 1804.06788). That holds for likelihoods that
are probability distributions of the data: not for tempered or unnormalised ones, for which
intervals have no coverage to check. The log-likelihood is a quantity worth ranking too, because
it sees a posterior that ignores the data (Modrak et al. 2023, arXiv 2211.02383).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from bayesmeta.inference.calibration import Calibration
from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.kept_programs import keeping_programs
from bayesmeta.inference.nuts_batch import NutsBatch
from bayesmeta.inference.structure import latent_sites, merge_chains

#: The name under which the log-likelihood of all observed sites is ranked.
LOG_LIKELIHOOD = "log_likelihood"
#: (program, drawn, *shared, rng_seed=) -> one fit for each replication, where ``program(drawn[r],
#: *shared)`` is the model given the data of replication r.
Engine = Callable[..., list[FitResult]]


@dataclasses.dataclass(frozen=True, slots=True)
class Simulated:
    """Truths and data: leading axes are replications.

    Attributes:
      truth: latent and deterministic site -> [replication, *shape].
      drawn: observed site -> [replication, *shape].
    """

    truth: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """A program that takes its observations as first argument, apart from its other data.

    Equal for equal fields, so that what is compiled for one can be found again for its equal.
    """

    model: Callable[..., Any]
    with_observations: Callable[[Any, Mapping[str, Any]], Any]

    def __call__(self, drawn: Mapping[str, Any], data: Any, *shared: Any) -> None:
        self.model(self.with_observations(data, drawn), *shared)


def simulate(
    model: Callable[..., Any], *model_args: Any, num_replications: int, rng_seed: int = 0
) -> Simulated:
    """Draw every site of the program, the observed ones included, independently many times."""
    observed = _observed_sites(model, *model_args)

    def once(key):
        program = handlers.seed(handlers.uncondition(model), key)
        trace = handlers.trace(program).get_trace(*model_args)
        kept = ("sample", "deterministic")
        return {name: site["value"] for name, site in trace.items() if site["type"] in kept}

    keys = jax.random.split(jax.random.key(rng_seed), num_replications)
    sites = jax.tree.map(np.asarray, jax.jit(jax.vmap(once))(keys))
    return Simulated(
        {k: v for k, v in sites.items() if k not in observed},
        {k: v for k, v in sites.items() if k in observed},
    )


def sbc(
    model: Callable[..., Any],
    data: Any,
    *shared: Any,
    with_observations: Callable[[Any, Mapping[str, Any]], Any],
    engine: Engine,
    quantities: Sequence[str],
    num_replications: int = 200,
    num_draws: int = 99,
    rng_seed: int = 0,
) -> Calibration:
    """Simulate, fit and rank.

    Args:
      model: a NumPyro program, called as ``model(data, *shared)``, whose observed sites can be
        drawn from.
      data: what it conditions on; its observations are never looked at.
      shared: further arguments, such as the prior.
      with_observations: (data, observed site -> value) -> the same data with those observations.
        Here a fit can be made to differ from the simulation on purpose.
      engine: for instance `batched_nuts` or `one_by_one` of any engine.
      quantities: what to rank: ``"tau_E"`` for a scalar site, ``"u[0]"`` or ``"F[0,1]"`` for an
        entry of a site, random or deterministic, and ``"log_likelihood"``, in nats.
      num_replications: fits. All of them enter the result, converged or not.
      num_draws: draws of each fit among which the truth is ranked, evenly spaced among all.
      rng_seed: fixes truths, data and the engine's own randomness.

    Returns:
      A `Calibration`.

    Raises:
      ValueError: no such quantity, too few draws to choose from, or no observed site.
    """
    start = time.perf_counter()
    simulated = simulate(model, data, *shared, num_replications=num_replications, rng_seed=rng_seed)
    if not simulated.drawn:
        raise ValueError(
            "the program has no observed site, so no data can be drawn. Pass obs= at one site."
        )

    program = Given(model, with_observations)
    fits = engine(program, simulated.drawn, data, *shared, rng_seed=rng_seed)
    if len(fits) != num_replications:
        raise ValueError(f"the engine returned {len(fits)} fits for {num_replications} data sets.")
    latent = latent_sites(model, data, *shared)
    measure = _measure(program, tuple(quantities), data, *shared)
    truth = {k: v[:, None] for k, v in simulated.truth.items() if k in latent}
    draws = {k: np.stack([merge_chains(fit.samples[k]) for fit in fits]) for k in latent}
    true_values = measure(simulated.drawn, truth)[:, 0]
    values = measure(simulated.drawn, draws)
    return Calibration.of(
        quantities,
        true_values,
        values.reshape(num_replications, -1, values.shape[1] // _chains(fits), len(quantities)),
        statuses=[fit.status for fit in fits],
        num_draws=num_draws,
        seconds=time.perf_counter() - start,
        rng_seed=rng_seed,
    )


def batched_nuts(**settings: Any) -> Engine:
    """All replications as one vectorised run of `bayesmeta.inference.nuts_batch.NutsBatch`."""

    def engine(program, drawn, *shared, rng_seed):
        batch = _batch_of(program, tuple(sorted(settings.items())))
        return batch(jax.tree.map(jnp.asarray, drawn), *shared, rng_seed=rng_seed)

    return engine


@functools.lru_cache(maxsize=4)
def _batch_of(program: Given, settings: tuple[tuple[str, Any], ...]) -> NutsBatch:
    """Kept, so that fits of one program to several sets of inputs compile it once."""
    return NutsBatch.of(program, **dict(settings))


def one_by_one(fit: Callable[..., FitResult], **settings: Any) -> Engine:
    """Any engine with the signature of `bayesmeta.inference.nuts.nuts`, once per replication.

    Engines that ask `bayesmeta.inference.kept_programs.kept` compile once for all replications.
    """

    def engine(program, drawn, *shared, rng_seed):
        size = len(jax.tree.leaves(drawn)[0])
        with keeping_programs():
            return [
                fit(
                    program,
                    jax.tree.map(lambda leaf, r=r: jnp.asarray(leaf[r]), drawn),
                    *shared,
                    rng_seed=rng_seed + r,
                    **settings,
                )
                for r in range(size)
            ]

    return engine


def entry(name: str) -> tuple[str, tuple[int, ...]]:
    """``"F[0,1]"`` as ``("F", (0, 1))``. Raises ValueError where the text is not of that form."""
    site, bracket, rest = name.partition("[")
    try:
        if bracket and not rest.endswith("]"):
            raise ValueError
        return site, tuple(int(part) for part in rest[:-1].split(",")) if bracket else ()
    except ValueError:
        raise ValueError(
            f"a quantity is {name!r}; wanted a site such as 'tau_E', or an entry such as 'F[0,1]'."
        ) from None


def _measure(program, quantities, data, *shared):
    """(observed sites [r, ...], latent sites [r, draw, ...]) -> values [r, draw, quantity]."""
    wanted = [entry(name) for name in quantities]

    def at_draw(drawn, draw):
        run = handlers.substitute(handlers.seed(program, jax.random.key(0)), data=draw)
        trace = handlers.trace(run).get_trace(drawn, data, *shared)
        observed = [s for s in trace.values() if s["type"] == "sample" and s["is_observed"]]
        values = []
        for site, index in wanted:
            if site == LOG_LIKELIHOOD:
                values.append(sum(s["fn"].log_prob(s["value"]).sum() for s in observed))
                continue
            if site not in trace:
                raise ValueError(
                    f"the program has no site {site!r} to rank; it has {sorted(trace)} "
                    f"and {LOG_LIKELIHOOD!r}."
                )
            value = trace[site]["value"]
            if len(index) != jnp.ndim(value):
                raise ValueError(
                    f"site {site!r} has shape {jnp.shape(value)}; name one entry of it, with "
                    f"{jnp.ndim(value)} numbers in brackets."
                )
            values.append(value[index])
        return jnp.stack([jnp.asarray(v, jnp.result_type(float)) for v in values])

    over_draws = jax.vmap(at_draw, in_axes=(None, 0))
    over_all = jax.jit(lambda d, s: jax.lax.map(lambda item: over_draws(*item), (d, s)))
    return lambda drawn, samples: np.asarray(over_all(drawn, samples), np.float64)


def _observed_sites(model, *model_args) -> set[str]:
    trace = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(*model_args)
    return {k for k, s in trace.items() if s["type"] == "sample" and s["is_observed"]}


def _chains(fits: Sequence[FitResult]) -> int:
    """How many chains every fit has."""
    counts = {next(iter(fit.samples.values())).shape[0] for fit in fits}
    if len(counts) != 1:
        raise ValueError(f"fits have different numbers of chains: {sorted(counts)}.")
    return counts.pop()
