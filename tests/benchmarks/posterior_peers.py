"""The same hierarchical skill model as two general tools' users would write it.

Both programs share the priors of `posterior_data`, mix the skills by a log-sum-exp, and leave
the sampler at its defaults: NUTS, diagonal mass matrix, non-centred domains. Each returns draws
of mu [chain, draw, K], W [chain, draw, K, P], delta [chain, draw, D, K] and tau_E [chain, draw],
and the wall seconds of everything a user waits for: building the model, compiling, sampling and
judging convergence, the last by one function for all tools.

Run as a program, this file measures one peer alone.
"""

import argparse
import json
import os
import time
from typing import Any

import numpy as np
from posterior_data import MU_SCALE, TAU_SCALE, W_SCALE, Simulation, simulate

NUM_CHAINS, NUM_WARMUP, NUM_SAMPLES = 2, 500, 500
LATENT = ("u", "U", "tau_E", "v")

Posterior = dict[str, np.ndarray]


def run_numpyro(
    data: Simulation, seed: int = 0, chain_method: str = "parallel"
) -> tuple[Posterior, float]:
    """Plain NumPyro: one row a task, gradients by automatic differentiation.

    ``chain_method="parallel"`` needs two JAX devices: call `use_two_cpu_devices` before JAX starts.
    """
    import arviz  # noqa: F401  # imports are not timed
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    from bayesmeta.inference.diagnose import diagnose_chains

    def model(log_likelihood, features, domain, contrast):
        num_features, free = features.shape[1], contrast.shape[1]
        u: Any = numpyro.sample("u", dist.Normal(0.0, MU_SCALE).expand([free]).to_event(1))
        big_u: Any = numpyro.sample(
            "U", dist.Normal(0.0, W_SCALE).expand([free, num_features]).to_event(2)
        )
        tau: Any = numpyro.sample("tau_E", dist.HalfNormal(TAU_SCALE))
        with numpyro.plate("domain", data.num_domains):
            v: Any = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([free]).to_event(1))
        mu: Any = numpyro.deterministic("mu", contrast @ u)
        w: Any = numpyro.deterministic("W", contrast @ big_u)
        delta: Any = numpyro.deterministic("delta", tau * v @ contrast.T)
        with numpyro.plate("task", len(domain)):
            log_weights = jax.nn.log_softmax(mu + features @ w.T + delta[domain], axis=-1)
            numpyro.factor("O", jax.nn.logsumexp(log_weights + log_likelihood, axis=-1))

    start = time.perf_counter()
    mcmc = MCMC(
        NUTS(model),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method=chain_method,
        progress_bar=False,
    )
    mcmc.run(
        jax.random.key(seed),
        jnp.asarray(data.log_likelihood),
        jnp.asarray(data.features),
        jnp.asarray(data.domain),
        jnp.asarray(data.contrast),
        extra_fields=("diverging", "energy"),
    )
    samples = jax.device_get(mcmc.get_samples(group_by_chain=True))
    fields = jax.device_get(mcmc.get_extra_fields(group_by_chain=True))
    diagnose_chains(samples, fields, LATENT)
    seconds = time.perf_counter() - start
    return {name: np.asarray(samples[name]) for name in ("mu", "W", "delta", "tau_E")}, seconds


def run_nutpie(data: Simulation, seed: int = 0) -> tuple[Posterior, float]:
    """PyMC, sampled by nutpie on its default (numba) backend, both chains at once."""
    import arviz  # noqa: F401  # imports are not timed
    import nutpie
    import pymc

    from bayesmeta.inference.diagnose import diagnose_chains

    pm: Any = pymc  # its tensors' operators are beyond the type checker
    free, num_features = data.contrast.shape[1], data.features.shape[1]
    start = time.perf_counter()
    with pm.Model() as model:
        u = pm.Normal("u", 0.0, MU_SCALE, shape=free)
        big_u = pm.Normal("U", 0.0, W_SCALE, shape=(free, num_features))
        tau = pm.HalfNormal("tau_E", TAU_SCALE)
        v = pm.Normal("v", 0.0, 1.0, shape=(data.num_domains, free))
        mu = pm.Deterministic("mu", data.contrast @ u)
        w = pm.Deterministic("W", data.contrast @ big_u)
        delta = pm.Deterministic("delta", tau * v @ data.contrast.T)
        logits = mu + data.features @ w.T + delta[data.domain]
        log_weights = pm.math.log_softmax(logits, axis=-1)
        pm.Potential("O", pm.math.logsumexp(log_weights + data.log_likelihood, axis=-1).sum())
    trace = nutpie.sample(
        nutpie.compile_pymc_model(model),
        draws=NUM_SAMPLES,
        tune=NUM_WARMUP,
        chains=NUM_CHAINS,
        cores=NUM_CHAINS,
        seed=seed,
        progress_bar=False,
        save_warmup=False,
    )
    posterior, stats = trace["posterior"], trace["sample_stats"]
    diagnose_chains(
        {name: np.asarray(posterior[name]) for name in LATENT},
        {name: np.asarray(stats[name]) for name in ("diverging", "energy")},
        LATENT,
    )
    seconds = time.perf_counter() - start
    return {name: np.asarray(posterior[name]) for name in ("mu", "W", "delta", "tau_E")}, seconds


def minimum_ess(posterior: Posterior) -> float:
    """Smallest bulk effective sample size over every entry of every quantity.

    All draws must be finite; the value is that of ``arviz.ess(method="bulk")``.
    """
    import arviz as az
    import xarray as xr

    dataset = xr.Dataset(
        {
            name: (("chain", "draw", *(f"{name}_{axis}" for axis in range(value.ndim - 2))), value)
            for name, value in posterior.items()
        }
    )
    ess = az.ess(dataset, method="bulk")
    return min(float(ess[name].min()) for name in ess.data_vars)


def use_two_cpu_devices() -> None:
    """Lets JAX run one chain per core; must be called before JAX is first used."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flag = f"--xla_force_host_platform_device_count={NUM_CHAINS}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


PEERS = {"numpyro": run_numpyro, "nutpie": run_nutpie}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one peer alone.")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--num-tasks", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    use_two_cpu_devices()
    posterior, seconds = PEERS[arguments.peer](
        simulate(num_tasks=arguments.num_tasks, seed=0), seed=arguments.seed
    )
    ess = minimum_ess(posterior)
    result = {"seconds": seconds, "minimum_ess": ess, "minimum_ess_per_second": ess / seconds}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
