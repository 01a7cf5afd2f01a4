"""Many posteriors of one program side by side: one compilation, one vectorised run.

For learning curves and simulation studies, where hundreds of data sets of the same shape are
fitted. Chains of all data sets advance together, so that the cost of a small operation is paid
once for all of them.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from numpyro.infer import NUTS

from bayesmeta.inference.diagnose import diagnose_chains
from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.reparametrise import reparametrise
from bayesmeta.inference.structure import latent_sites


def nuts_batch(
    model: Callable[..., Any],
    batched: Any,
    *shared: Any,
    rng_seed: int = 0,
    num_chains: int = 2,
    num_warmup: int = 300,
    num_samples: int = 300,
    target_accept: float = 0.8,
    decenter: tuple[str, ...] = (),
    max_rhat: float = 1.05,
    min_ess: float = 100.0,
) -> list[FitResult]:
    """Draw from the posterior of ``model(batched[b], *shared)`` for every b.

    Args:
      model: a NumPyro program whose first argument differs between data sets.
      batched: pytree of arrays with a leading axis of length B.
      shared: what all data sets have in common.
      rng_seed, num_chains, num_warmup, num_samples, target_accept, decenter: as for
        `bayesmeta.inference.nuts.nuts`; the mass matrix is diagonal.
      max_rhat, min_ess: what counts as converged; by default looser than for a single fit,
        because means over many fits are wanted, not tails of one.

    Returns:
      One `FitResult` per data set; ``seconds`` is the time of the whole run divided by B.
    """
    start = time.perf_counter()
    program = reparametrise(model, decenter)
    size = len(jax.tree.leaves(batched)[0])
    first = jax.tree.map(lambda leaf: leaf[0], batched)
    sites = latent_sites(model, first, *shared)

    def run_chain(rng_key, item, *rest):
        kernel = NUTS(program, target_accept_prob=target_accept, dense_mass=False)
        args = (item, *rest)
        state = kernel.init(rng_key, num_warmup, None, args, {})

        def advance(state, _):
            return kernel.sample(state, args, {}), None

        def record(state, _):
            state = kernel.sample(state, args, {})
            return state, (state.z, state.diverging, state.energy, state.num_steps)

        state, _ = lax.scan(advance, state, length=num_warmup)
        _, (z, diverging, energy, steps) = lax.scan(record, state, length=num_samples)
        constrained = jax.vmap(kernel.postprocess_fn(args, {}))(z)
        return constrained, {"diverging": diverging, "energy": energy, "n_steps": steps}

    spread = [None] * len(shared)
    over_chains = jax.vmap(run_chain, in_axes=(0, None, *spread))
    over_sets = jax.jit(jax.vmap(over_chains, in_axes=(0, 0, *spread)))
    keys = jax.random.split(jax.random.key(rng_seed), (size, num_chains))
    samples, stats = jax.tree.map(np.asarray, over_sets(keys, batched, *shared))
    seconds = (time.perf_counter() - start) / size
    results = []
    for b in range(size):
        own = {k: v[b] for k, v in samples.items() if not k.endswith("_decentered")}
        own_stats = {k: v[b] for k, v in stats.items()}
        status = diagnose_chains(own, own_stats, sites, max_rhat=max_rhat, min_ess=min_ess)
        settings = {
            "engine": "nuts_batch",
            "rng_seed": rng_seed,
            "num_chains": num_chains,
            "num_warmup": num_warmup,
            "num_samples": num_samples,
            "target_accept": target_accept,
            "decenter": ",".join(decenter),
        }
        results.append(FitResult(own, own_stats, status, seconds, settings))
    return results
