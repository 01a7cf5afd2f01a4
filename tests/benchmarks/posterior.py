"""Posterior sampling: minimum effective draws per second, against two general tools.

Run: python tests/benchmarks/posterior.py [--seeds 11 12 13]. Needs the extra bench.
One data set of 4,000 tasks, 6 skills, 8 domains and 4 features is fitted by the engine
``whitened_hmc`` on the package's own `figure2` program, by plain NumPyro and by PyMC with nutpie,
with two chains, 500 warm-up steps and 500 draws each; JAX in 32 bit, nutpie in 64, its default.
Every fit runs in a fresh process; tools take turns, so that whatever else the machine does falls on
all alike.
Seconds are those a user waits after the imports: model building, compilation, sampling, and
convergence diagnostics by one function for all. All tools compile: JAX as it is, without its cache
on disk, and PyMC's numba with empty ones, as in a first fit of a model. A later fit of the very
same model finds numba's code on disk; it is measured as well, as ``nutpie-again``. ESS is ArviZ's
bulk value, the smallest over all entries of mu, W, delta and tau_E. Chains that alternate around a
mean estimate it better than independent draws would, but not the spread around it; hence the ESS of
squared deviations beside.

The last line is one JSON object: ``ratio_numpyro``, ``ratio_nutpie`` and ``ratio_nutpie_again``
(times more minimum ESS per second; ESS and seconds are summed over seeds), ``leapfrog_ms`` (one
gradient and step of the package's program, in ms), ``max_abs_z`` (differences of posterior means
over their Monte Carlo error, the largest over all entries and tools) and ``num_seeds``. Exits with
1 if means disagree.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from posterior_data import Simulation, simulate
from posterior_peers import (
    NUM_CHAINS,
    NUM_SAMPLES,
    NUM_WARMUP,
    PEERS,
    Posterior,
    minimum_ess,
    use_two_cpu_devices,
)

OURS = "bayesmeta"
#: The same fit once more, with what numba compiled in the fit before it.
AGAIN = "nutpie-again"
#: Neither the data nor the chains' seeds are those that settings of the engine were chosen on.
DATA_SEED, SEEDS = 1, (11, 12, 13)
#: Largest difference of means, in Monte Carlo errors, that chance explains among some 250.
MAX_ABS_Z = 4.5
#: `AGAIN` has none: it does not compile.
TARGETS = {"numpyro": 5.0, "nutpie": 25.0}


def figure2_arrays(data: Simulation) -> Any:
    """The simulation as the package's program takes it."""
    from bayesmeta.models.figure2 import Figure2Data

    table = np.ascontiguousarray(data.log_likelihood.T, np.float32)
    num_tasks = table.shape[1]
    return Figure2Data(
        # Only the observed answer's column is known; the engine looks at no other.
        log_p=table[None],
        log_likelihood=table,
        gold=np.zeros(num_tasks, np.int32),
        domain=data.domain.astype(np.int32),
        x=data.features.astype(np.float32),
        scale=np.ones(num_tasks, np.float32),
        num_domains=data.num_domains,
    )


def run_ours(data: Simulation, seed: int = 0) -> tuple[Posterior, float]:
    import arviz  # noqa: F401  # the peers' imports are not timed either

    from bayesmeta.inference.whitened_hmc import whitened_hmc
    from bayesmeta.models.figure2 import HIERARCHICAL, figure2

    start = time.perf_counter()
    result = whitened_hmc(
        figure2,
        figure2_arrays(data),
        HIERARCHICAL,
        rng_seed=seed,
        num_chains=NUM_CHAINS,
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
    )
    seconds = time.perf_counter() - start
    if fallback := result.settings["fallback"]:
        raise RuntimeError(f"the engine was not used: {fallback}")
    return {name: result.samples[name] for name in ("mu", "W", "delta", "tau_E")}, seconds


def leapfrog_ms(data: Simulation, num_steps: int = 2000, repeats: int = 5) -> float:
    """Milliseconds of one leapfrog step of the package's program on one core, best of repeats."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer.util import initialize_model

    from bayesmeta.models.figure2 import HIERARCHICAL, figure2

    arrays = figure2_arrays(data)
    info = initialize_model(
        jax.random.key(0), figure2, model_args=(arrays, HIERARCHICAL), dynamic_args=True
    )

    @jax.jit
    def run(z, arrays):
        slope = jax.grad(info.potential_fn(arrays, HIERARCHICAL))

        def step(state, _):
            z, momentum = state
            momentum = jax.tree.map(lambda p, g: p - 1e-3 * g, momentum, slope(z))
            return (jax.tree.map(lambda q, p: q + 1e-3 * p, z, momentum), momentum), None

        return jax.lax.scan(step, (z, jax.tree.map(jnp.zeros_like, z)), length=num_steps)[0]

    took = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run(info.param_info.z, arrays))
        took.append(time.perf_counter() - start)
    return min(took[1:]) / num_steps * 1e3


def measure(tool: str, data: Simulation, seed: int, file: Path) -> None:
    """One fit in this process: its draws to a file, its cost to standard output."""
    use_two_cpu_devices()
    run = run_ours if tool == OURS else PEERS[tool.removesuffix("-again")]
    before = time.process_time()
    posterior, seconds = run(data, seed=seed)
    cpu = time.process_time() - before
    np.savez(file, **{name: np.asarray(value) for name, value in posterior.items()})
    squares = {k: np.square(v - v.mean((0, 1), dtype=float)) for k, v in posterior.items()}
    found = {"seconds": seconds, "cpu": cpu}
    found |= {"ess": minimum_ess(posterior), "ess_squares": minimum_ess(squares)}
    if tool == OURS:
        found["leapfrog_ms"] = leapfrog_ms(data)
    print(json.dumps(found))


def environment(caches: Path) -> dict[str, str]:
    """That of a fit whose compilers keep what they make in ``caches``, and JAX nothing."""
    flags = [flag for flag in (os.environ.get("PYTENSOR_FLAGS"),) if flag]
    return {
        **{k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
        "NUMBA_CACHE_DIR": str(caches / "numba"),
        "PYTENSOR_FLAGS": ",".join([*flags, f"base_compiledir={caches / 'pytensor'}"]),
    }


def means_and_errors(posteriors: list[Posterior]) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means of all entries and their Monte Carlo errors, over all runs of a tool."""
    import arviz as az
    import xarray as xr

    means, errors = [], []
    for name in sorted(posteriors[0]):
        # Runs are further chains.
        draws = np.concatenate([p[name] for p in posteriors]).astype(np.float64)
        flat = xr.Dataset({"q": (("chain", "draw", "entry"), draws.reshape(*draws.shape[:2], -1))})
        means.append(draws.mean((0, 1)).ravel())
        errors.append(az.mcse(flat)["q"].values)
    return np.concatenate(means), np.concatenate(errors)


def largest_z(ours: list[Posterior], theirs: list[Posterior]) -> float:
    (a, error_a), (b, error_b) = means_and_errors(ours), means_and_errors(theirs)
    return float((np.abs(a - b) / np.hypot(error_a, error_b)).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--num-tasks", type=int, default=4000)
    parser.add_argument("--without-nutpie", action="store_true")
    parser.add_argument("--measure", choices=(OURS, *PEERS, AGAIN), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        data = simulate(num_tasks=options.num_tasks, seed=DATA_SEED)
        measure(options.measure, data, options.seeds[0], options.file)
        return 0

    tools = [OURS, "numpyro", *([] if options.without_nutpie else ["nutpie", AGAIN])]
    rows: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
    draws: dict[str, list[Posterior]] = {tool: [] for tool in tools}
    print("tool         | seed | seconds | CPU s | min ESS | squares | ESS/s | load", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for tool in tools:
                file = Path(folder) / f"{tool}-{seed}.npz"
                command = [sys.executable, __file__, "--measure", tool, "--file", str(file)]
                command += ["--seeds", str(seed), "--num-tasks", str(options.num_tasks)]
                done = subprocess.run(
                    command,
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment(Path(folder) / f"caches-{seed}"),
                )
                row = json.loads(done.stdout.splitlines()[-1])
                rows[tool].append(row)
                draws[tool].append(dict(np.load(file)))
                print(
                    f"{tool:12} | {seed:4d} | {row['seconds']:7.2f} | {row['cpu']:5.1f} | "
                    f"{row['ess']:7.0f} | {row['ess_squares']:7.0f} | "
                    f"{row['ess'] / row['seconds']:5.1f} | "
                    f"{os.getloadavg()[0]:.1f}",
                    flush=True,
                )

    def rate(tool: str, clock: str = "seconds", ess: str = "ess") -> float:
        return sum(row[ess] for row in rows[tool]) / sum(row[clock] for row in rows[tool])

    peers = tools[1:]
    z = {peer: largest_z(draws[OURS], draws[peer]) for peer in peers}
    for peer in peers:
        ratio = rate(OURS) / rate(peer)
        per_cpu = rate(OURS, "cpu") / rate(peer, "cpu")
        of_squares = rate(OURS, ess="ess_squares") / rate(peer, ess="ess_squares")
        verdict = "no target"
        if peer in TARGETS:
            reached = "reached" if ratio >= TARGETS[peer] else "MISSED"
            verdict = f"target {TARGETS[peer]:.0f}: {reached}"
        print(
            f"{peer}: {ratio:.1f} times its minimum ESS per second ({verdict}); "
            f"{per_cpu:.1f} times per CPU second; {of_squares:.1f} times its ESS of squares; "
            f"largest |z| of means {z[peer]:.2f}"
        )
    result = {
        f"ratio_{peer.replace('-', '_')}": round(rate(OURS) / rate(peer), 2) for peer in peers
    }
    result["leapfrog_ms"] = round(min(row["leapfrog_ms"] for row in rows[OURS]), 4)
    result["max_abs_z"] = round(max(z.values()), 2)
    print(json.dumps({**result, "num_seeds": len(options.seeds)}))
    return int(not max(z.values()) <= MAX_ABS_Z)


if __name__ == "__main__":
    sys.exit(main())
