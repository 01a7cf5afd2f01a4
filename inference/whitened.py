"""Sampling in coordinates that a Laplace approximation has made about standard.

Three things make hierarchical models with thousands of tasks slow to sample, and each has its
remedy here, none of which changes the posterior:

* correlated parameters: x = mode + L z, where L L^T is the Laplace covariance;
* the funnel of group effects and their scale: each effect is centred by c, the share of its
  precision that the data supply (Papaspiliopoulos, Roberts & Skold 2007; Gorinova, Moore &
  Hoffman 2020). Rich groups come out centred, poor ones not;
* compilation: warm-up, draws and deterministic sites are one XLA program that holds the density
  once. It is traced and compiled while another thread seeks the mode.

The engines `whitened_nuts` and `whitened_hmc` differ only in the kernel that they bring.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.stages import Compiled, Lowered
from numpyro import handlers
from numpyro.distributions import Distribution, biject_to, constraints
from numpyro.infer.hmc import HMC
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import ParamInfo, log_density
from threadpoolctl import threadpool_limits

from bayesmeta.inference.array_args import ArrayArgs
from bayesmeta.inference.compilation import compiler_options
from bayesmeta.inference.diagnose import diagnose_chains
from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.group_effects import base_of, obstacle, shape_params
from bayesmeta.inference.kept_programs import kept
from bayesmeta.inference.laplace import LaplaceError, laplace
from bayesmeta.inference.nuts import nuts
from bayesmeta.inference.sharding import is_sharded
from bayesmeta.inference.structure import latent_of

#: Makes a NumPyro kernel for a potential function of a flat vector. Equal for equal settings, where
#: compiled programs are to be shared (see `bayesmeta.inference.kept_programs`).
MakeKernel = Callable[[Callable[[Any], Any]], HMC]

#: The made-up energy of a starting point, in nats: higher than any real one, see `Whitened.chain`.
_UNKNOWN_ENERGY = 1e30


def fit_whitened(
    engine: str,
    make_kernel: MakeKernel,
    model: Callable[..., Any],
    model_args: tuple[Any, ...],
    *,
    group: str,
    scale: str,
    progress: bool,
    plain: dict[str, Any],
    special: dict[str, float],
) -> FitResult:
    """Fit by a kernel in whitened coordinates, or by plain `nuts` where there are none.

    Args:
      engine: name for the settings.
      group, scale, progress: see `whitened_nuts`.
      plain: the settings that plain `nuts` understands too.
      special: the kernel's own settings, for the record.

    Raises:
      ValueError: fewer than two chains or no warm-up, or no latent site of that name.
    """
    if plain["num_chains"] < 2:
        raise ValueError(
            f"num_chains must be at least 2, got {plain['num_chains']}: R-hat compares chains."
        )
    if plain["num_warmup"] < 1:
        raise ValueError(
            f"num_warmup must be at least 1, got {plain['num_warmup']}: the first step only finds "
            "the energy of the starting point. Ask for some hundred."
        )
    start = time.perf_counter()
    sites = latent_of(model, *model_args)
    for name in (group, scale):
        if name not in sites:
            raise ValueError(
                f"the program has no latent site {name!r}; it has {sorted(sites)}. Pass the names "
                "of the group effects and of their scale as group= and scale=."
            )
    named = {"engine": engine, "group": group, "scale": scale, **special}
    fallback = obstacle(sites, group, scale)
    if not fallback:
        try:
            args, arrays = ArrayArgs.of(model_args)
            samples, stats = Whitened(model, args, group, scale, sites).sample(
                make_kernel, arrays, **{k: v for k, v in plain.items() if k != "target_accept"}
            )
        except LaplaceError as error:
            fallback = str(error)
        else:
            return FitResult(
                samples=samples,
                sample_stats=stats,
                status=diagnose_chains(samples, stats, sites),
                seconds=time.perf_counter() - start,
                settings={**plain, **named, "fallback": ""},
            )
    decenter = (group,) if set(base_of(sites[group]).arg_constraints) == {"loc", "scale"} else ()
    result = nuts(model, *model_args, **plain, decenter=decenter, progress=progress)
    return dataclasses.replace(
        result,
        seconds=time.perf_counter() - start,
        settings={**result.settings, **named, "fallback": f"nuts, because {fallback}"},
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Whitened:
    """A program as a density over flat vectors, sites in order of ``sites``.

    Arrays are passed, not closed over: as constants XLA would spend long folding them, and what
    is compiled could serve no others. The sites follow from the rest, so they are not compared.
    """

    model: Callable[..., Any]
    args: ArrayArgs
    group: str
    scale: str
    sites: dict[str, Distribution] = dataclasses.field(compare=False)

    def sample(
        self,
        make_kernel: MakeKernel,
        arrays: list[Any],
        *,
        rng_seed: int,
        num_chains: int,
        num_warmup: int,
        num_samples: int,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Samples and statistics, [chain, draw, *shape]. Raises LaplaceError."""
        dtype, size = np.dtype(jnp.result_type(float)), self.size
        # Drawn on the host: each small JAX function would be compiled on its own.
        keys = np.random.SeedSequence(rng_seed).generate_state(2 * num_chains).reshape(-1, 2)
        noise = np.random.default_rng(rng_seed).normal(size=(num_chains, size)).astype(dtype)
        group_shape = self.sites[self.group].shape()
        blank = (np.zeros(size, dtype), np.eye(size, dtype=dtype), np.ones(group_shape, dtype))

        def chain(key, z, mode, axes, centring, arrays):
            return self.chain(
                make_kernel, num_warmup, num_samples, key, z, mode, axes, centring, arrays
            )

        def sampler():
            in_axes = (0, 0, None, None, None, None)
            spread: Any = (
                jax.pmap(chain, in_axes=in_axes) if apart else jax.jit(jax.vmap(chain, in_axes))
            )
            return spread.lower(keys, noise, *blank, arrays).compile(compiler_options())

        apart = jax.local_device_count() >= num_chains and not is_sharded(arrays)
        settings = (make_kernel, num_chains, num_warmup, num_samples, apart)
        # Traced here, compiled in the thread: NumPyro's handlers are one stack for all threads.
        curvature = kept(
            ("curvature", self, dtype),
            lambda: _Curvature(jax.jit(self.curvature).lower(blank[0], arrays)),
        )
        with ThreadPoolExecutor(1) as pool:
            coordinates = pool.submit(self.coordinates, curvature, arrays, dtype)
            run = kept(("sampler", self, dtype, settings), sampler)
            out = run(keys, noise, *coordinates.result(), arrays)
        return jax.device_get(out)

    def chain(
        self, make_kernel, num_warmup, num_samples, key, z, mode, axes, centring, arrays
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One chain from ``z`` [size]: sites and statistics, [draw, *shape]."""
        partly = LocScaleReparam(centring, shape_params(self.sites[self.group]))
        program = handlers.reparam(self.model, config={self.group: partly})
        args = self.args.filled(arrays)

        def evaluate(z):
            return self._potential(program, args, mode + axes @ z, f"{self.group}_decentered")

        def step(state, _):
            state = kernel.sample(state, (), {})
            kept = (state.diverging, state.energy, state.num_steps, state.accept_prob)
            return state, (state.z, *kept, -state.potential_energy)

        kernel = make_kernel(lambda z: evaluate(z)[0])
        # To compute the energy of the starting point would compile the density a second time.
        # With one that is made up and very high the first step of the warm-up always moves.
        first = ParamInfo(z, jnp.asarray(_UNKNOWN_ENERGY, z.dtype), jnp.zeros_like(z))
        state = kernel.init(jax.random.wrap_key_data(key), num_warmup, first, (), {})
        # One scan for warm-up and draws: two would compile the sampler twice.
        _, out = lax.scan(step, state, length=num_warmup + num_samples)
        z, *stats = jax.tree.map(lambda v: v[num_warmup:], out)
        names = ("diverging", "energy", "n_steps", "acceptance_rate", "lp")
        return jax.vmap(lambda z: self._kept(evaluate(z)[1]))(z), dict(
            zip(names, stats, strict=True)
        )

    def coordinates(
        self, program: "_Curvature", arrays: list[Any], dtype: np.dtype
    ) -> tuple[Any, ...]:
        """Mode [size], axes [size, size] and centring [*group shape] of the whitened sampler."""
        log_tau = self.slices[self.scale].start
        on_device, curvature = jax.device_put(arrays), program.compiled

        def evaluate(x):
            *found, mismatch = jax.device_get(curvature(x.astype(dtype), on_device))
            if not mismatch < 1e-3:
                raise LaplaceError(f"{self.group!r} has not location 0 and scale {self.scale!r}")
            value, gradient, hessian = (np.asarray(part, np.float64) for part in found)
            return float(value), gradient, hessian

        # Matrices are small: BLAS threads would take the compiler's cores and gain nothing.
        with threadpool_limits(1, user_api="blas"):
            approximation = laplace(evaluate, np.zeros(self.size), log_tau)
            mode, axes, centring = approximation.partly_centred(log_tau, self.slices[self.group])
        group_shape = self.sites[self.group].shape()
        return mode.astype(dtype), axes.astype(dtype), centring.reshape(group_shape).astype(dtype)

    def curvature(self, x: Any, arrays: list[Any]) -> tuple[Any, ...]:
        """Negative log density, gradient, Hessian, and how far the group is from N(0, tau^2)."""
        args = self.args.filled(arrays)

        def potential(x):
            value, trace = self._potential(self.model, args, x, self.group)
            effects: Any = base_of(trace[self.group]["fn"])
            tau = trace[self.scale]["value"]
            mismatch = jnp.abs(effects.loc).max() + jnp.abs(effects.scale / tau - 1).max()
            return value, (value, mismatch)

        slope = jax.grad(potential, has_aux=True)
        gradient, push, (value, mismatch) = jax.linearize(slope, x, has_aux=True)
        hessian = lax.map(push, jnp.eye(x.size, dtype=x.dtype))
        return value, gradient, hessian, mismatch

    def _potential(self, program, args, x, group: str) -> tuple[Any, dict[str, Any]]:
        """Negative log density at x [size], in coordinates without bounds, and the trace there."""
        values, log_volume = {}, jnp.zeros((), x.dtype)
        for name, own in self.slices.items():
            value = x[own].reshape(self.sites[name].shape())
            support = base_of(self.sites[name]).support
            if support is not constraints.real:
                bounded = biject_to(support)
                free, value = value, bounded(value)
                log_volume += bounded.log_abs_det_jacobian(free, value).sum()
            values[group if name == self.group else name] = value
        log_joint, trace = log_density(program, args, {}, values)
        return -(log_joint + log_volume), trace

    def _kept(self, trace: dict[str, Any]) -> dict[str, Any]:
        names = [k for k, site in trace.items() if k in self.sites or _is_deterministic(site)]
        return {k: trace[k]["value"] for k in names}

    @property
    def slices(self) -> dict[str, slice]:
        """Where each site lies in a flat vector."""
        ends = np.cumsum([0, *(int(np.prod(fn.shape())) for fn in self.sites.values())]).tolist()
        return {k: slice(*ends[i : i + 2]) for i, k in enumerate(self.sites)}

    @property
    def size(self) -> int:
        return max(own.stop for own in self.slices.values())


class _Curvature:
    """`Whitened.curvature`, compiled by whoever asks first."""

    def __init__(self, lowered: Lowered) -> None:
        self._lowered = lowered

    @functools.cached_property
    def compiled(self) -> Compiled:
        return self._lowered.compile(compiler_options())


def _is_deterministic(site: dict[str, Any]) -> bool:
    return site["type"] == "deterministic"
