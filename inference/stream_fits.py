"""Three ways to the Gaussian that stands for an episode's posterior. See `streaming`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer import NUTS

from bayesmeta.inference.diagnose import diagnose_chains
from bayesmeta.inference.status import Outcome, Status
from bayesmeta.inference.svi_fit import matched_noise
from bayesmeta.inference.svi_judge import judge
from bayesmeta.inference.svi_natural import Direction, Gaussian

#: Nats of ELBO or of log density to be had below which nothing is worth another step.
_CLOSE = 1e-6
#: No rate of a step is tried below this.
_LEAST_RATE = 1e-3
_NEWTON_STEPS = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A Gaussian and how it was found.

    Attributes:
      loc, covariance: [P], [P, P], float64.
      draws: [chain, draw, P] over unconstrained coordinates.
      stats: name -> [chain, draw].
      status: whether to believe it.
    """

    loc: np.ndarray
    covariance: np.ndarray
    draws: np.ndarray
    stats: dict[str, np.ndarray]
    status: Status


def vcl(
    stream: Any,
    arrays: list[Any],
    prior: tuple[Any, ...],
    centre: np.ndarray,
    *,
    rng_seed: int,
    num_samples: int,
    num_steps: int = 100,
) -> Found:
    """The Gaussian of smallest KL(q || target), by natural gradients on fixed noise."""
    guide = Gaussian(centre, _root(prior[1], len(centre)))
    guide, _, gain = climb(lambda z: _many(stream, z, arrays, prior), guide, num_steps)
    covariance = guide_covariance(guide)
    return _gaussian(stream, arrays, prior, guide.loc, covariance, rng_seed, num_samples, gain)


def climb(
    evaluate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    guide: Gaussian,
    num_steps: int,
) -> tuple[Gaussian, float, float]:
    """Raise the ELBO on fixed noise, which never falls on the way.

    Args:
      evaluate: z [draw, P] -> log densities [draw] in nats and gradients [draw, P].
      guide: where to begin.
      num_steps: the most natural-gradient steps.

    Returns:
      The guide, its ELBO, and the nats of ELBO that a further step would about gain.
    """
    noise = fixed_noise(len(guide.loc))

    def look(guide: Gaussian) -> tuple[float, Direction]:
        z = guide.place(noise)
        values, slopes = evaluate(z)
        elbo = float((values - guide.log_density(noise)).mean())
        return elbo, Direction.of(guide.surplus(slopes, noise), noise)

    elbo, way = look(guide)
    for _ in range(num_steps):
        if not way.gain() > _CLOSE:
            break
        rate = 1.0
        while rate > _LEAST_RATE:
            moved = guide.moved(way, rate)
            new_elbo, new_way = look(moved)
            if new_elbo > elbo:
                break
            rate /= 2
        else:
            break  # rounding hides what is left
        guide, elbo, way = moved, new_elbo, new_way
    return guide, elbo, way.gain()


def guide_covariance(guide: Gaussian) -> np.ndarray:
    """[P, P]."""
    inverse = np.linalg.inv(guide.root)
    return inverse.T @ inverse


def laplace(
    stream: Any,
    arrays: list[Any],
    prior: tuple[Any, ...],
    centre: np.ndarray,
    *,
    rng_seed: int,
    num_samples: int,
) -> Found:
    """Mode and inverse curvature, by Newton's method."""
    slopes = stream.compiled["slopes"]
    dtype = jnp.result_type(float)

    def at(z: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        value, slope, hessian = jax.device_get(slopes(jnp.asarray(z, dtype), arrays, prior))
        return float(value), np.asarray(slope, np.float64), -np.asarray(hessian, np.float64)

    z = centre
    value, slope, curvature = at(z)
    gain = np.inf
    for _ in range(_NEWTON_STEPS):
        values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
        # Where the density is not log-concave the absolute curvature still leads uphill.
        step = vectors @ ((vectors.T @ slope) / np.maximum(np.abs(values), 1e-3))
        gain = 0.5 * float(slope @ step)
        if not gain > _CLOSE:
            break
        rate = 1.0
        while rate > _LEAST_RATE:
            new = at(z + rate * step)
            if new[0] > value:
                break
            rate /= 2
        else:
            break  # rounding hides what is left
        z, (value, slope, curvature) = z + rate * step, new
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    if not values.min() > 0:
        bad = np.full((len(z), len(z)), np.nan)
        draws = np.tile(z, (1, num_samples, 1))
        status = Status(
            Outcome.NOT_FINITE, "the curvature at the mode is not positive definite.", {}
        )
        return Found(z, bad, draws, {}, status)
    covariance = (vectors / values) @ vectors.T
    return _gaussian(stream, arrays, prior, z, covariance, rng_seed, num_samples, gain)


def moments(
    stream: Any,
    arrays: list[Any],
    prior: tuple[Any, ...],
    centre: np.ndarray,
    *,
    rng_seed: int,
    num_samples: int,
    num_warmup: int = 300,
    num_chains: int = 4,
) -> Found:
    """Mean and covariance of NUTS draws from the target, in coordinates whitened by the prior."""
    size, dtype = len(centre), jnp.result_type(float)
    length = -(-num_samples // num_chains)
    run = _sampler(stream.compiled["log_target"], num_warmup, length, num_chains)
    axes = np.linalg.inv(_root(prior[1], size)).T
    keys = jax.random.split(jax.random.key(rng_seed), num_chains)
    start = jax.random.normal(jax.random.key(rng_seed + 1), (num_chains, size), dtype)
    draws, stats = jax.device_get(
        run(keys, start, jnp.asarray(centre, dtype), jnp.asarray(axes, dtype), arrays, prior)
    )
    status = diagnose_chains({"z": draws}, stats, ["z"])
    flat = draws.reshape(-1, size).astype(np.float64)
    return Found(flat.mean(0), np.cov(flat.T).reshape(size, size), draws, stats, status)


#: Method of `streaming.Stream.update` -> what finds the Gaussian.
FITS: dict[str, Callable[..., Found]] = {"vcl": vcl, "laplace": laplace, "moments": moments}

_SAMPLERS: dict[Any, Any] = {}


def _sampler(log_target: Any, num_warmup: int, length: int, num_chains: int) -> Any:
    """Kept for as long as its density is, so that episodes share one compilation."""
    key = (id(log_target), num_warmup, length, num_chains)
    if key not in _SAMPLERS:

        def chain(rng_key, y, centre, axes, arrays, prior):
            kernel = NUTS(potential_fn=lambda y: -log_target(centre + axes @ y, arrays, prior))
            state = kernel.init(rng_key, num_warmup, y, (), {})

            def step(state, _):
                state = kernel.sample(state, (), {})
                kept = (state.diverging, state.energy, state.num_steps, state.accept_prob)
                return state, (centre + axes @ state.z, *kept)

            # One scan for warm-up and draws: two would compile the sampler twice.
            _, out = lax.scan(step, state, length=num_warmup + length)
            z, *stats = jax.tree.map(lambda v: v[num_warmup:], out)
            names = ("diverging", "energy", "n_steps", "acceptance_rate")
            return z, dict(zip(names, stats, strict=True))

        # The density is kept beside, or its id could come to stand for another.
        run = jax.jit(jax.vmap(chain, (0, 0, None, None, None, None)))
        _SAMPLERS[key] = (run, log_target)
    return _SAMPLERS[key][0]


def _gaussian(stream, arrays, prior, loc, covariance, rng_seed, num_samples, gain) -> Found:
    """Draws from a Gaussian, and whether it covers the target, by Pareto k-hat."""
    noise = np.random.default_rng(rng_seed).normal(size=(num_samples, len(loc)))
    root = np.linalg.cholesky(covariance)
    draws = loc + noise @ root.T
    log_p, _ = _many(stream, draws, arrays, prior)
    log_volume = np.log(np.diag(root)).sum()
    log_q = -0.5 * (noise**2 + np.log(2 * np.pi)).sum(1) - log_volume
    stats = {"lp": log_p[None], "log_ratio": (log_p - log_q)[None]}
    if not (np.isfinite(log_p).all() and np.isfinite(gain)):
        detail = "the log density is not finite at every draw of the belief."
        return Found(loc, covariance, draws[None], stats, Status(Outcome.NOT_FINITE, detail, {}))
    return Found(loc, covariance, draws[None], stats, judge(log_p - log_q, gain))


def _many(stream, z, arrays, prior) -> tuple[np.ndarray, np.ndarray]:
    values, slopes = stream.compiled["many"](jnp.asarray(z, jnp.result_type(float)), arrays, prior)
    return np.asarray(values, np.float64), np.asarray(slopes, np.float64)


def fixed_noise(size: int) -> np.ndarray:
    """[draw, size], the same every time, at least eight draws for each coordinate.

    Their mean is exactly zero and their covariance exactly the identity.
    """
    return np.asarray(matched_noise(jax.random.key(0), max(256, 8 * size), size), np.float64)


def _root(precision: Any, size: int) -> np.ndarray:
    """Cholesky factor of what is remembered, or the identity where nothing is."""
    precision = np.asarray(precision, np.float64)
    return np.linalg.cholesky(precision) if precision.any() else np.eye(size)
