"""Variational inference over minibatches, for more tasks than fit into memory.

The guide is a Gaussian with location m and precision P, moved by natural gradients (Hoffman et
al. 2013; Khan & Rue 2023, arXiv 2107.04562). With z = m + noise of covariance 1/P, a batch whose
log density is l says

    P <- (1 - rho) P + rho E[-Hessian of l(z)]        m <- m + rho (new P)^-1 E[gradient of l(z)]

With rho = 4/t the guide is about an average of what all batches say, weighted by the cube of t,
because later batches see a better guide; so there is no learning rate to tune. The Hessian is
estimated from gradients by Stein's identity, less what the guide itself would give, so that the
estimate has no variance where guide and batch agree.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_triangular

from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.reparametrise import reparametrise
from bayesmeta.inference.svi import Target, array_leaves, fit_guide, judge

#: The guide fitted to the first batch alone counts as much as this many batches.
_FIRST_WEIGHT = 4
#: Batch t counts in proportion to t to the power of this less one. 1 would average evenly and
#: remember a bad beginning for long; chosen from single runs, which disagree on 2 or 4.
_FORGETTING = 4


def minibatch_svi(
    model: Callable[..., Any],
    epoch: Callable[[np.random.Generator], Iterator[Any]],
    *shared: Any,
    num_epochs: int = 10,
    rng_seed: int = 0,
    num_samples: int = 2000,
    num_particles: int = 16,
    num_checked: int = 200,
    guide: Literal["full_rank", "diagonal"] = "full_rank",
    decenter: tuple[str, ...] = (),
    gaussianise: tuple[str, ...] = (),
) -> FitResult:
    """Fit a Gaussian to the posterior, seeing the data one minibatch at a time.

    With a hundred batches or more, each says so little that the first steps go far astray: allow
    many epochs, and believe the status. Where the data fit into memory, prefer
    `bayesmeta.inference.svi.svi`.

    Draws target the best Gaussian, not the posterior, as those of `bayesmeta.inference.svi.svi`.
    After the last epoch one more pass over the data gives the exact log density, and from it
    Pareto k-hat, at fresh draws of the guide: nothing is judged on a subsample.

    Args:
      model: a NumPyro program, called as ``model(batch, *shared)``.
      epoch: called for each pass over the data, with the generator to shuffle by; yields
        batches, pytrees that all have one structure and the same shapes. The mean over an epoch
        of the program's log density must be the log density given all data: every task in one
        batch, its log likelihood multiplied by the number of batches, N/B where B divides N.
        Short batches are padded by tasks of weight zero; let them be about equally long, since
        the first is where the fit starts. It is called once more at the start, for one batch,
        and once at the end.
      shared: further arguments, the same for all batches.
      num_epochs: passes over the data that take gradient steps.
      rng_seed: fixes everything, the order of batches included.
      num_samples: draws returned, in one chain. Deterministic sites are computed with the first
        batch, so one with an entry for each task speaks of that batch only.
      num_particles: draws of the guide for each step; even.
      num_checked: draws at which the fit is judged, at least 100. ``sample_stats`` holds the log
        ratios of these, not of the draws returned.
      guide: full covariance, or a diagonal one, which understates how uncertain correlated
        parameters are. A full one costs memory and time for the square of the parameters.
      decenter, gaussianise: sites to sample in other coordinates, see `reparametrise`.

    Raises:
      ValueError: an epoch yields no batch, or batches differ in shape.
    """
    _check_settings(num_epochs, num_particles, num_checked, guide)
    start = time.perf_counter()
    key_init, key_start = jax.random.split(jax.random.key(rng_seed))
    rng = np.random.default_rng(rng_seed)
    first = next(iter(epoch(rng)), None)
    if first is None:
        raise ValueError("epoch(rng) yielded no batch. Yield at least one on every call.")
    program = reparametrise(model, decenter, gaussianise)
    target = Target.of(program, (first, *shared), key_init)
    arrays_first = array_leaves((first, *shared))
    shapes = [np.shape(leaf) for leaf in arrays_first]

    def batches() -> Iterator[list[Any]]:
        for batch in epoch(rng):
            arrays = array_leaves((batch, *shared))
            if (found := [np.shape(leaf) for leaf in arrays]) != shapes:
                raise ValueError(
                    f"a batch has arrays of shapes {found}, the first one had {shapes}. Pad "
                    "short batches with tasks of weight zero: one compilation serves them all."
                )
            yield arrays

    family, params, _ = fit_guide(
        target, arrays_first, "full_rank", key_start, num_steps=50, num_particles=64
    )
    density = family.density(params)
    loc = np.asarray(density.mean, np.float64)
    precision = np.linalg.inv(np.asarray(density.covariance_matrix, np.float64))
    if guide == "diagonal":
        precision = np.diag(np.diag(precision))

    num_steps = 0
    for _ in range(num_epochs):
        for arrays in batches():
            num_steps += 1
            rho = _FORGETTING / (num_steps + _FORGETTING * _FIRST_WEIGHT)
            half = rng.normal(size=(num_particles // 2, target.size))
            noise = np.concatenate([half, -half])
            loc, precision = _step(target, arrays, loc, precision, noise, rho, guide)

    z, _ = _place(loc, precision, rng.normal(size=(num_samples, target.size)))
    log_ratios, gain = _compare(
        target, batches(), loc, precision, rng.normal(size=(num_checked, target.size))
    )
    return FitResult(
        samples=target.constrain(jnp.asarray(z, target.centre.dtype), arrays_first),
        sample_stats={"log_ratio": log_ratios[None]},
        status=judge(log_ratios, gain),
        seconds=time.perf_counter() - start,
        settings={
            "engine": "minibatch_svi",
            "guide": guide,
            "rng_seed": rng_seed,
            "num_epochs": num_epochs,
            "num_steps": num_steps,
            "num_samples": num_samples,
            "num_particles": num_particles,
            "num_checked": num_checked,
            "decenter": ",".join(decenter),
            "gaussianise": ",".join(gaussianise),
        },
    )


def _place(loc, precision, noise):
    """Draws [draw, size] of the guide from standard normal noise, and the root of precision."""
    root = np.linalg.cholesky(precision)
    return loc + solve_triangular(root, noise.T, lower=True, trans=1).T, root


def _surplus(target, arrays, z, noise, root):
    """Log density [draw], and its gradient minus the guide's [draw, size], whitened."""
    values, slopes = target.slopes(jnp.asarray(z, target.centre.dtype), arrays)
    slopes = slopes.astype(np.float64)
    whitened = solve_triangular(root, slopes.T, lower=True, check_finite=False).T
    return values.astype(np.float64), whitened + noise


def _step(target, arrays, loc, precision, noise, rho, guide):
    z, root = _place(loc, precision, noise)
    _, surplus = _surplus(target, arrays, z, noise, root)
    if not np.isfinite(surplus).all():
        return loc, precision  # nothing to learn here; if it never ends, the check says so
    # What the batch's precision exceeds the guide's by, in coordinates where the guide's is 1.
    excess = -surplus.T @ noise / len(noise)
    if guide == "diagonal":
        excess = np.diag(np.diag(excess))
    values, vectors = np.linalg.eigh((excess + excess.T) / 2)
    # A precision cannot fall below 0, so no average over batches falls faster than this. Cutting
    # off noise that would have it so makes the guide forget too high a precision slowly.
    values = np.maximum(1.0 + rho * values, 1.0 - rho)
    move = rho * vectors @ ((vectors.T @ surplus.mean(0)) / values)
    # One batch of very many may lie far off, where its quadratic model no longer holds.
    move *= min(1.0, np.sqrt(move.size) / max(np.linalg.norm(move), 1e-300))
    axes = root @ vectors
    return loc + solve_triangular(root, move, lower=True, trans=1), (axes * values) @ axes.T


def _compare(target, batches, loc, precision, noise):
    """Log ratios [draw] given all data, and the nats of ELBO that a Newton step would gain."""
    z, root = _place(loc, precision, noise)
    log_p, surplus, count = np.zeros(len(z)), np.zeros(z.shape), 0
    for arrays in batches:
        values, more = _surplus(target, arrays, z, noise, root)
        log_p, surplus, count = log_p + values, surplus + more, count + 1
    surplus /= count
    log_q = np.log(np.diag(root)).sum() - 0.5 * (noise**2 + np.log(2 * np.pi)).sum(1)
    # At a good fit the curvature is 1 for each whitened coordinate and 2 for each log scale.
    by_loc, by_scale = surplus.mean(0), (surplus * noise).mean(0)
    return log_p / count - log_q, float(0.5 * by_loc @ by_loc + 0.25 * by_scale @ by_scale)


def _check_settings(num_epochs, num_particles, num_checked, guide):
    if num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, got {num_epochs}.")
    if num_particles < 2 or num_particles % 2:
        raise ValueError(f"num_particles must be even, got {num_particles}: draws come in pairs.")
    if num_checked < 100:
        raise ValueError(
            f"num_checked must be at least 100, got {num_checked}: k-hat needs a tail."
        )
    if guide not in ("full_rank", "diagonal"):
        raise ValueError(f"guide must be 'full_rank' or 'diagonal', got {guide!r}.")
