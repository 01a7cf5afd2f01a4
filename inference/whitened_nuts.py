"""The No-U-Turn sampler in coordinates that a Laplace approximation has made about standard.

Three things make hierarchical models with thousands of tasks slow to sample, and each has its
remedy here, none of which changes the posterior:

* correlated parameters: x = mode + L z, where L L^T is the Laplace covariance;
* the funnel of group effects and their scale: each effect is centred by c, the share of its
  precision that the data supply (Papaspiliopoulos, Roberts & Skold 2007; Gorinova, Moore &
  Hoffman 2020). Rich groups come out centred, poor ones not;
* compilation: warm-up, draws and deterministic sites are one XLA program, compiled in a thread
  while the mode is sought.
"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro import handlers
from numpyro.distributions import Distribution
from numpyro.infer import NUTS
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import constrain_fn, potential_energy

from bayesmeta.inference.diagnose import diagnose_chains
from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.group_effects import base_of, latent_of, obstacle, shape_params
from bayesmeta.inference.laplace import LaplaceError, laplace
from bayesmeta.inference.nuts import nuts
from bayesmeta.inference.svi import array_leaves


def whitened_nuts(
    model: Callable[..., Any],
    *model_args: Any,
    rng_seed: int = 0,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 1000,
    target_accept: float = 0.9,
    group: str = "v",
    scale: str = "tau_E",
    progress: bool = False,
) -> FitResult:
    """Draw from the posterior of ``model(*model_args)``: as `nuts`, faster where tasks are many.

    Draws target p(latent sites | observed sites) exactly, as the number of draws grows. The
    approximation only chooses coordinates: a bad one costs time, never correctness. Where there is
    none, plain `nuts` runs instead and the setting ``fallback`` says why; it is empty otherwise.

    Args:
      model: a NumPyro program whose latent sites are real, but for ``scale``.
      model_args: arrays, or pytrees of arrays.
      rng_seed: seed of chains, initial points included.
      num_chains: at least 2, or R-hat cannot be computed. Chains run side by side, one on each
        device where JAX has as many devices.
      num_warmup, num_samples: steps per chain, adaptation not kept.
      target_accept: mean acceptance probability that the step size is adapted to.
      group: site of effects with location 0 and standard deviation (or other scale) ``scale``.
      scale: the positive site that all effects of ``group`` share as their scale.
      progress: show NumPyro's bar should plain `nuts` run; here everything is one call.

    Raises:
      ValueError: fewer than two chains, or no latent site of that name.
    """
    if num_chains < 2:
        raise ValueError(f"num_chains must be at least 2, got {num_chains}: R-hat compares chains.")
    start = time.perf_counter()
    sites = latent_of(model, model_args)
    for name in (group, scale):
        if name not in sites:
            raise ValueError(
                f"the program has no latent site {name!r}; it has {sorted(sites)}. Pass the names "
                "of the group effects and of their scale as group= and scale=."
            )
    settings: dict[str, Any] = dict(
        rng_seed=rng_seed,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_samples=num_samples,
        target_accept=target_accept,
    )
    fallback = obstacle(sites, group, scale)
    if not fallback:
        try:
            samples, stats = _Whitened(model, model_args, sites, group, scale).sample(**settings)
        except LaplaceError as error:
            fallback = str(error)
        else:
            named = {"engine": "whitened_nuts", **settings, "group": group, "scale": scale}
            return FitResult(
                samples=samples,
                sample_stats=stats,
                status=diagnose_chains(samples, stats, sites),
                seconds=time.perf_counter() - start,
                settings={**named, "fallback": ""},
            )
    decenter = (group,) if set(base_of(sites[group]).arg_constraints) == {"loc", "scale"} else ()
    result = nuts(model, *model_args, **settings, decenter=decenter, progress=progress)
    named = {**result.settings, "engine": "whitened_nuts", "group": group, "scale": scale}
    return dataclasses.replace(
        result,
        seconds=time.perf_counter() - start,
        settings={**named, "fallback": f"nuts, because {fallback}"},
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Whitened:
    """A program as a density over flat vectors, sites in order of ``sites``.

    Arrays are passed, not closed over: as constants XLA would spend long folding them.
    """

    model: Callable[..., Any]
    model_args: tuple[Any, ...]
    sites: dict[str, Distribution]
    group: str
    scale: str

    def sample(
        self, *, rng_seed, num_chains, num_warmup, num_samples, target_accept
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Samples and statistics, [chain, draw, *shape]. Raises LaplaceError."""
        dtype, size = np.dtype(jnp.result_type(float)), self.size
        arrays = array_leaves(self.model_args)
        keys = jax.random.split(jax.random.key(rng_seed), num_chains)
        noise = np.random.default_rng(rng_seed).normal(size=(num_chains, size)).astype(dtype)
        group_shape = self.sites[self.group].shape()

        def chain(rng_key, z, mode, axes, centring, arrays):
            partly = LocScaleReparam(centring, shape_params(self.sites[self.group]))
            program = handlers.reparam(self.model, config={self.group: partly})
            args = self._rebuild(arrays)

            def place(z):
                params = self._params(mode + axes @ z)
                params[f"{self.group}_decentered"] = params.pop(self.group)
                return params

            kernel = NUTS(
                potential_fn=lambda z: potential_energy(program, args, {}, place(z)),
                target_accept_prob=target_accept,
            )

            def step(state, _):
                state = kernel.sample(state, (), {})
                kept = (state.diverging, state.energy, state.num_steps, state.accept_prob)
                return state, (state.z, *kept, -state.potential_energy)

            state = kernel.init(rng_key, num_warmup, z, (), {})
            # One scan for warm-up and draws: two would compile the sampler twice.
            _, out = lax.scan(step, state, length=num_warmup + num_samples)
            z, *stats = jax.tree.map(lambda v: v[num_warmup:], out)
            names = ("diverging", "energy", "n_steps", "acceptance_rate", "lp")
            constrain = jax.vmap(
                lambda z: constrain_fn(program, args, {}, place(z), return_deterministic=True)
            )
            return constrain(z), dict(zip(names, stats, strict=True))

        in_axes = (0, 0, None, None, None, None)
        if jax.local_device_count() >= num_chains:
            spread: Any = jax.pmap(chain, in_axes=in_axes)
        else:
            spread = jax.jit(jax.vmap(chain, in_axes))
        blank = (np.zeros(size, dtype), np.eye(size, dtype=dtype), np.ones(group_shape, dtype))
        lowered = spread.lower(keys, noise, *blank, arrays)
        lowered_curvature = jax.jit(self._curvature).lower(blank[0], arrays)
        with ThreadPoolExecutor(1) as pool:
            compiling = pool.submit(lowered.compile)
            coordinates = self._coordinates(lowered_curvature.compile(), arrays, dtype)
            run = compiling.result()
        samples, stats = jax.device_get(run(keys, noise, *coordinates, arrays))
        return {k: v for k, v in samples.items() if not k.endswith("_decentered")}, stats

    def _coordinates(self, curvature, arrays, dtype):
        """Mode [size], axes [size, size] and centring [*group shape] of the whitened sampler."""
        log_tau = self.slices[self.scale].start
        on_device = jax.device_put(arrays)

        def evaluate(x):
            *found, mismatch = curvature(x.astype(dtype), on_device)
            if not mismatch < 1e-3:
                raise LaplaceError(f"{self.group!r} has not location 0 and scale {self.scale!r}")
            value, gradient, hessian = (np.asarray(part, np.float64) for part in found)
            return float(value), gradient, hessian

        approximation = laplace(evaluate, np.zeros(self.size), log_tau)
        mode, axes, centring = approximation.partly_centred(log_tau, self.slices[self.group])
        group_shape = self.sites[self.group].shape()
        return mode.astype(dtype), axes.astype(dtype), centring.reshape(group_shape).astype(dtype)

    def _curvature(self, x, arrays):
        """Negative log density, gradient, Hessian, and how far the group is from N(0, tau^2)."""
        args = self._rebuild(arrays)
        slopes = jax.value_and_grad(
            lambda x: potential_energy(self.model, args, {}, self._params(x))
        )
        (value, gradient), push = jax.linearize(slopes, x)
        hessian = lax.map(lambda direction: push(direction)[1], jnp.eye(x.size, dtype=x.dtype))
        values = self._params(x)
        tau = values[self.scale] = jnp.exp(values[self.scale])
        trace = handlers.trace(handlers.substitute(self.model, data=values)).get_trace(*args)
        effects: Any = base_of(trace[self.group]["fn"])
        mismatch = jnp.abs(effects.loc).max() + jnp.abs(effects.scale / tau - 1).max()
        return value, gradient, hessian, mismatch

    @property
    def slices(self) -> dict[str, slice]:
        """Where each site lies in a flat vector."""
        ends = np.cumsum([0, *(int(np.prod(fn.shape())) for fn in self.sites.values())]).tolist()
        return {k: slice(*ends[i : i + 2]) for i, k in enumerate(self.sites)}

    @property
    def size(self) -> int:
        return max(own.stop for own in self.slices.values())

    def _params(self, x) -> dict[str, Any]:
        return {k: x[own].reshape(self.sites[k].shape()) for k, own in self.slices.items()}

    def _rebuild(self, arrays) -> tuple[Any, ...]:
        leaves, structure = jax.tree.flatten(self.model_args)
        rest, replaced = iter(arrays), {id(leaf) for leaf in array_leaves(self.model_args)}
        return structure.unflatten([next(rest) if id(v) in replaced else v for v in leaves])
