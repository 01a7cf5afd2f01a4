"""Many posteriors of one program side by side: one compilation, one vectorised run.

For learning curves and simulation studies, where hundreds of data sets of the same shape are
fitted. Chains of all data sets advance together, so that the cost of a small operation is paid
once for all of them.
"""

import dataclasses
import functools
import math
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax import lax
from numpyro import handlers
from numpyro.distributions import Distribution
from numpyro.infer import NUTS, DiscreteHMCGibbs, init_to_median

from bayesmeta.inference.compilation import compiler_options
from bayesmeta.inference.diagnose_batch import diagnose_batch
from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.reparametrise import reparametrise
from bayesmeta.inference.simplex_reparam import DirichletReparam
from bayesmeta.inference.structure import latent_of


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
    simplex: tuple[str, ...] = (),
    max_tree_depth: int = 10,
    indicators: bool = False,
    at_once: int | None = None,
    threads: int = 1,
    max_rhat: float = 1.05,
    min_ess: float = 100.0,
) -> list[FitResult]:
    """Draw from the posterior of ``model(batched[b], *shared)`` for every b.

    Args:
      model: a NumPyro program whose first argument differs between data sets.
      batched: pytree of arrays with a leading axis of length B.
      shared: what all data sets have in common.
      rng_seed, num_warmup, num_samples, target_accept, decenter: as for
        `bayesmeta.inference.nuts.nuts`; the mass matrix is diagonal.
      simplex: Dirichlet sites to sample in the coordinates of `DirichletReparam`.
      num_chains: per data set. One is enough where many posteriors are compared with truth;
        R-hat then compares its halves.
      max_tree_depth: all chains wait for the one with the longest trajectory, of at most
        2 ** max_tree_depth - 1 steps.
      indicators: whether the program has binary sites that cannot be summed out. Every draw then
        proposes the other value of each one once, and takes it as Metropolis says (Liu 1996);
        what is continuous moves by NUTS. Convergence is judged by each such site's sum.
      at_once: data sets that advance together; all of a thread's by default, which is fastest
        where the program is small. A costly one gains from fewer: they wait less for the longest
        trajectory among them, and their numbers stay in the processor's cache. Every data set keeps
        its random key; but arrays of another shape round otherwise, and chains part, so that
        results agree within Monte Carlo error only.
      threads: blocks that run at the same time. XLA uses one core for programs as small as these;
        `free_cores` says how many there are.
      max_rhat, min_ess: what counts as converged; by default looser than for a single fit,
        because means over many fits are wanted, not tails of one.

    Returns:
      One `FitResult` per data set; ``seconds`` is the time of the whole run divided by B.
    """
    batch = NutsBatch.of(
        model,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_samples=num_samples,
        target_accept=target_accept,
        decenter=decenter,
        simplex=simplex,
        max_tree_depth=max_tree_depth,
        indicators=indicators,
        at_once=at_once,
        threads=threads,
    )
    return batch(batched, *shared, rng_seed=rng_seed, max_rhat=max_rhat, min_ess=min_ess)


def free_cores() -> int:
    """Cores that this process may use for ``threads`` of `nuts_batch`; 1 where JAX uses no CPU."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, slots=True)
class NutsBatch:
    """A sampler for many data sets that is compiled once for all calls of the same shapes.

    Attributes:
      model: a NumPyro program whose first argument differs between data sets.
      run: (rng_keys [B, num_chains], batched, *shared) -> sites and statistics, leading axes
        [B, num_chains, num_samples].
      settings: as in the signature of `nuts_batch`.
      at_once, threads: see there.
      compiled: ``run`` by the shapes that it has been compiled for.
    """

    model: Callable[..., Any]
    run: Callable[..., Any]
    settings: dict[str, Any]
    at_once: int | None = None
    threads: int = 1
    compiled: dict[Any, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        model: Callable[..., Any],
        *,
        num_chains: int = 2,
        num_warmup: int = 300,
        num_samples: int = 300,
        target_accept: float = 0.8,
        decenter: tuple[str, ...] = (),
        simplex: tuple[str, ...] = (),
        max_tree_depth: int = 10,
        indicators: bool = False,
        at_once: int | None = None,
        threads: int = 1,
    ) -> "NutsBatch":
        """See `nuts_batch`. Raises ValueError where a setting is out of range."""
        for name, value in (("num_chains", num_chains), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if at_once is not None and at_once < 1:
            raise ValueError(f"at_once must be at least 1, or None for all, got {at_once}.")
        program = handlers.reparam(
            reparametrise(model, decenter),
            config={name: DirichletReparam() for name in simplex},
        )

        def run_chain(rng_key, item, *rest):
            hmc = NUTS(
                program,
                target_accept_prob=target_accept,
                dense_mass=False,
                max_tree_depth=max_tree_depth,
                # Where a prior all but excludes a second mode, chains should not start in it.
                init_strategy=init_to_median,
            )
            kernel: Any = DiscreteHMCGibbs(hmc, modified=True) if indicators else hmc
            args = (item, *rest)
            state = kernel.init(rng_key, num_warmup, None, args, {})

            def advance(state, _):
                state = kernel.sample(state, args, {})
                moved = state.hmc_state if indicators else state
                return state, (state.z, moved.diverging, moved.energy, moved.num_steps)

            # One scan for warm-up and draws: two would compile the sampler twice.
            _, out = lax.scan(advance, state, length=num_warmup + num_samples)
            z, diverging, energy, steps = jax.tree.map(lambda v: v[num_warmup:], out)
            constrained = jax.vmap(kernel.postprocess_fn(args, {}))(z)
            return constrained, {"diverging": diverging, "energy": energy, "n_steps": steps}

        @functools.partial(jax.jit, compiler_options=compiler_options())
        def run(keys, batched, *shared):
            spread = [None] * len(shared)
            over_chains = jax.vmap(run_chain, in_axes=(0, None, *spread))
            return jax.vmap(over_chains, in_axes=(0, 0, *spread))(keys, batched, *shared)

        settings = {
            "num_chains": num_chains,
            "num_warmup": num_warmup,
            "num_samples": num_samples,
            "target_accept": target_accept,
            "decenter": ",".join(decenter),
            "simplex": ",".join(simplex),
            "max_tree_depth": max_tree_depth,
            "indicators": int(indicators),
        }
        return cls(model, run, settings, at_once, threads)

    def __call__(
        self,
        batched: Any,
        *shared: Any,
        rng_seed: int = 0,
        max_rhat: float = 1.05,
        min_ess: float = 100.0,
    ) -> list[FitResult]:
        """One `FitResult` per data set, see `nuts_batch`."""
        start = time.perf_counter()
        size = len(jax.tree.leaves(batched)[0])
        first = jax.tree.map(lambda leaf: leaf[0], batched)
        keys = jax.random.split(jax.random.key(rng_seed), (size, self.settings["num_chains"]))
        samples, stats = self._in_blocks(keys, batched, *shared)
        seconds = (time.perf_counter() - start) / size
        settings = {"engine": "nuts_batch", "rng_seed": rng_seed, **self.settings}
        samples = {k: v for k, v in samples.items() if not k.endswith("_decentered")}
        judged = _judged(samples, latent_of(self.model, first, *shared))
        statuses = diagnose_batch(judged, stats, judged, max_rhat=max_rhat, min_ess=min_ess)
        return [
            FitResult(
                {k: v[b] for k, v in samples.items()},
                {k: v[b] for k, v in stats.items()},
                status,
                seconds,
                settings,
            )
            for b, status in enumerate(statuses)
        ]

    def _in_blocks(self, keys: Any, batched: Any, *shared: Any) -> Any:
        """What ``run`` returns for all data sets, as arrays of the host."""
        size = len(keys)
        width = min(self.at_once or math.ceil(size / self.threads), size)

        def block(start: int) -> tuple[Any, ...]:
            # The last block is filled up with the last data set, as another shape would have to
            # be compiled.
            index = np.minimum(np.arange(start, start + width), size - 1)
            return keys[index], jax.tree.map(lambda leaf: leaf[index], batched), *shared

        blocks = [block(start) for start in range(0, size, width)]
        run = self._compiled_for(blocks[0])
        with ThreadPoolExecutor(self.threads) as pool:
            found = list(pool.map(lambda args: jax.device_get(run(*args)), blocks))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:size], *found)

    def _compiled_for(self, args: tuple[Any, ...]) -> Any:
        """``run`` for arguments of these shapes.

        Never compiled in a thread: NumPyro's effect handlers are one stack for all of them.
        """
        leaves, structure = jax.tree.flatten(args)
        shapes = tuple((np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves)
        key = (structure, shapes, jax.config.jax_enable_x64)
        if key not in self.compiled:
            self.compiled[key] = self.run.lower(*args).compile()
        return self.compiled[key]


def _judged(
    samples: dict[str, np.ndarray], latent: dict[str, Distribution]
) -> dict[str, np.ndarray]:
    """Latent sites [set, chain, draw, *shape]; of a discrete one its sum, as single indicators
    are too coarse for the diagnostics."""
    found = {}
    for name, fn in latent.items():
        value, support = samples[name], fn.support
        coarse = support is not None and support.is_discrete
        found[name] = value.reshape(*value.shape[:3], -1).sum(-1) if coarse else value
    return found
