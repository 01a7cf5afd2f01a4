"""Variational inference over minibatches, for more tasks than fit into memory.

The guide is a Gaussian, moved by natural gradients in two stages.

One pass over the data takes a step for each batch (Hoffman et al. 2013), at falling rates. A
batch says so little about a posterior from very many tasks that this ends near the best guide,
not at it: one standard deviation off in each of a hundred parameters is fifty nats of ELBO.

Each later pass adds up what all batches say of one and the same guide, and takes one full step.
Nothing is left of the noise of batches, and where the posterior is nearly Gaussian, as it is
from many tasks, such a step all but lands on the optimum. A pass that finds a lower ELBO than
the one before goes half of the way back; once passes differ by their draws of the guide only,
their steps are averaged. So there is no rate to tune: those of the first stage decide how many
passes are needed, not what comes out.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.reparametrise import reparametrise
from bayesmeta.inference.status import Outcome, Status
from bayesmeta.inference.svi_fit import fit_guide
from bayesmeta.inference.svi_judge import SETTLED_WITHIN, judge
from bayesmeta.inference.svi_natural import Gaussian
from bayesmeta.inference.svi_passes import Passes
from bayesmeta.inference.svi_target import Target, array_leaves

#: A pass that finds less than this to gain, in nats, is the last: its own step gains most of it.
_ENOUGH = 0.1 * SETTLED_WITHIN
#: Share of looks at a batch that may be skipped as not finite before the fit is not believed.
MAX_SKIPPED = 0.01


def minibatch_svi(
    model: Callable[..., Any],
    epoch: Callable[[np.random.Generator], Iterator[Any]],
    *shared: Any,
    num_epochs: int = 10,
    rng_seed: int = 0,
    num_samples: int = 2000,
    num_particles: int = 16,
    num_checked: int = 200,
    decenter: tuple[str, ...] = (),
    gaussianise: tuple[str, ...] = (),
) -> FitResult:
    """Fit a Gaussian to the posterior, seeing the data one minibatch at a time.

    Memory does not grow with the data, but with the square of the number of parameters. Where the
    data fit into memory, prefer `bayesmeta.inference.svi.svi`. Where a batch has fewer than some
    ten tasks for each parameter, its own best guide is too far from that of all data, and the fit
    may not settle.

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
      num_epochs: most passes over the data that take steps. Where the posterior is nearly
        Gaussian four are enough, and no more are made.
      rng_seed: fixes everything, the order of batches included.
      num_samples: draws returned, in one chain. Deterministic sites are computed with the first
        batch, so one with an entry for each task speaks of that batch only.
      num_particles: draws of the guide at which a batch is looked at; even. At least two for
        each parameter are taken, and more where batches are few.
      num_checked: draws at which the fit is judged, at least 100. ``sample_stats`` holds the log
        ratios of these, not of the draws returned.
      decenter, gaussianise: sites to sample in other coordinates, see `reparametrise`.

    Returns:
      Beside those of `svi`, the diagnostics of the status are ``epochs``, the last one for the
      check included, and ``skipped_steps``, looks at a batch that were left out because the log
      density or its gradient was not finite. If they are more than 1 %, the status says so.

    Raises:
      ValueError: an epoch yields no batch, or batches differ in shape.
    """
    _check_settings(num_epochs, num_particles, num_checked)
    start = time.perf_counter()
    key_init, key_start = jax.random.split(jax.random.key(rng_seed))
    rng = np.random.default_rng(rng_seed)
    first = next(iter(epoch(rng)), None)
    if first is None:
        raise ValueError("epoch(rng) yielded no batch. Yield at least one on every call.")
    target = Target.of(reparametrise(model, decenter, gaussianise), (first, *shared), key_init)
    arrays_first = array_leaves((first, *shared))
    passes = Passes(target, epoch, shared, rng, num_particles, arrays_first)

    fitted = _first_guide(target, arrays_first, key_start)
    fitted = _climb(passes, passes.stochastic(fitted), num_epochs - 1)

    noise = rng.normal(size=(num_checked, target.size))
    log_ratios, gain = passes.compare(fitted, noise)
    z = fitted.place(rng.normal(size=(num_samples, target.size)))
    return FitResult(
        samples=target.constrain(jnp.asarray(z, target.centre.dtype), arrays_first),
        sample_stats={"log_ratio": log_ratios[None]},
        status=_judge(log_ratios, gain, passes),
        seconds=time.perf_counter() - start,
        settings={
            "engine": "minibatch_svi",
            "guide": "full_rank",
            "rng_seed": rng_seed,
            "num_epochs": num_epochs,
            "num_samples": num_samples,
            "num_particles": num_particles,
            "num_checked": num_checked,
            "decenter": ",".join(decenter),
            "gaussianise": ",".join(gaussianise),
        },
    )


def _first_guide(target: Target, arrays: list[Any], rng_key: jax.Array) -> Gaussian:
    """The guide that fits the first batch, or a standard normal where nothing does."""
    family, params, _ = fit_guide(
        target, arrays, "full_rank", rng_key, num_steps=50, num_particles=64
    )
    density = family.density(params)
    loc = np.asarray(density.mean, np.float64)
    covariance = np.asarray(density.covariance_matrix, np.float64)
    try:
        guide = Gaussian(loc, np.linalg.cholesky(np.linalg.inv(covariance)))
    except np.linalg.LinAlgError:
        guide = None
    if guide is None or not (np.isfinite(loc).all() and np.isfinite(guide.root).all()):
        return Gaussian(np.asarray(target.centre, np.float64), np.eye(target.size))
    return guide


def _climb(passes: Passes, guide: Gaussian, num_passes: int) -> Gaussian:
    """The guide after whole passes, each of which takes one step, until little is to be gained."""
    best, rate, stalled = None, 1.0, 0
    for _ in range(num_passes):
        elbo, way = passes.whole(guide)
        rise = np.inf if best is None else elbo - best[0]
        if best is not None and not rise >= -SETTLED_WITHIN:
            rate /= 2
            guide = best[1].moved(best[2], rate)
            continue
        # Without a rise worth the name, what passes differ in is their draws: average them.
        stalled += rise < SETTLED_WITHIN
        rate = 1 / (1 + stalled) if stalled else min(1.0, 2 * rate)
        best = elbo, guide, way
        guide = guide.moved(way, rate)
        if way.gain() < _ENOUGH:
            break
    return guide


def _judge(log_ratios: np.ndarray, gain: float, passes: Passes) -> Status:
    status = judge(log_ratios, gain)
    counts = {"epochs": float(passes.epochs), "skipped_steps": float(passes.skipped)}
    status = dataclasses.replace(status, diagnostics=status.diagnostics | counts)
    if passes.skipped <= MAX_SKIPPED * passes.steps:
        return status
    return Status(
        Outcome.NOT_FINITE,
        f"{passes.skipped} of {passes.steps} looks at a batch found a log density or gradient "
        f"that was not finite, and were skipped; at most {MAX_SKIPPED:.0%} may be.",
        status.diagnostics,
    )


def _check_settings(num_epochs, num_particles, num_checked):
    if num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, got {num_epochs}.")
    if num_particles < 2 or num_particles % 2:
        raise ValueError(f"num_particles must be even, got {num_particles}: draws come in pairs.")
    if num_checked < 100:
        raise ValueError(
            f"num_checked must be at least 100, got {num_checked}: k-hat needs a tail."
        )
