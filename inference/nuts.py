"""The No-U-Turn sampler (Hoffman & Gelman 2014), through NumPyro."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS

from bayesmeta.inference.diagnose import diagnose_chains
from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.reparametrise import reparametrise
from bayesmeta.inference.sharding import is_sharded, over_arrays
from bayesmeta.inference.structure import latent_sites

#: What NumPyro calls its statistics, and what ArviZ calls them.
_STATISTICS = {
    "diverging": "diverging",
    "energy": "energy",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "potential_energy": "lp",
}


def nuts(
    model: Callable[..., Any],
    *model_args: Any,
    rng_seed: int = 0,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 1000,
    target_accept: float = 0.9,
    dense_mass: bool = False,
    decenter: tuple[str, ...] = (),
    gaussianise: tuple[str, ...] = (),
    progress: bool = False,
) -> FitResult:
    """Draw from the posterior of ``model(*model_args)``.

    Draws target p(latent sites | observed sites) exactly, as the number of draws grows.

    Args:
      model: a NumPyro program. Its discrete sites must be summed out by hand.
      model_args: arrays, or pytrees of arrays. Where they are spread over devices (see
        `bayesmeta.inference.sharding.shard_tasks`), every device works on all chains.
      rng_seed: seed of chains, initial points included.
      num_chains: at least 2, or R-hat cannot be computed. Chains run side by side, one on each
        device where JAX has as many devices and the arrays are not spread over them already.
      num_warmup: adaptation steps per chain, not kept.
      num_samples: draws kept per chain.
      target_accept: mean acceptance probability that the step size is adapted to. At 0.8 a
        hierarchical posterior now and then meets a divergence, which refuses the fit.
      dense_mass: adapt a full inverse mass matrix. Worth it where tasks are many, parameters a
        hundred or so, and num_warmup at least 500; with fewer it costs more than it gains.
      decenter, gaussianise: sites to sample in other coordinates, see `reparametrise`.
      progress: show NumPyro's bar.

    Returns:
      A `FitResult`; look at its ``status`` before its ``samples``.
    """
    if num_chains < 2:
        raise ValueError(f"num_chains must be at least 2, got {num_chains}: R-hat compares chains.")
    start = time.perf_counter()
    program = reparametrise(model, decenter, gaussianise)
    sites = latent_sites(model, *model_args)
    sharded = is_sharded(*model_args)
    if sharded:
        program, model_args = over_arrays(program, model_args)
    apart = not sharded and jax.local_device_count() >= num_chains
    kernel = NUTS(program, target_accept_prob=target_accept, dense_mass=dense_mass)
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="parallel" if apart else "vectorized",
        progress_bar=progress,
        # Otherwise the arrays are written into the program, whole, for every device.
        jit_model_args=sharded,
    )
    mcmc.run(jax.random.key(rng_seed), *model_args, extra_fields=tuple(_STATISTICS))
    samples = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
    extra = mcmc.get_extra_fields(group_by_chain=True)
    stats = {ours: np.asarray(extra[theirs]) for theirs, ours in _STATISTICS.items()}
    stats["lp"] = -stats["lp"]
    return FitResult(
        samples={k: v for k, v in samples.items() if not k.endswith("_decentered")},
        sample_stats=stats,
        status=diagnose_chains(samples, stats, sites),
        seconds=time.perf_counter() - start,
        settings={
            "engine": "nuts",
            "rng_seed": rng_seed,
            "num_chains": num_chains,
            "num_warmup": num_warmup,
            "num_samples": num_samples,
            "target_accept": target_accept,
            "dense_mass": int(dense_mass),
            "decenter": ",".join(decenter),
            "gaussianise": ",".join(gaussianise),
        },
    )
