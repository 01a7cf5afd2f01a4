"""Variational inference with a Gaussian guide on fixed noise, judged by Pareto k-hat."""

import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.reparametrise import reparametrise
from bayesmeta.inference.svi_fit import fit_guide
from bayesmeta.inference.svi_guides import choose_guide
from bayesmeta.inference.svi_judge import judge
from bayesmeta.inference.svi_target import Target, array_leaves


def svi(
    model: Callable[..., Any],
    *model_args: Any,
    rng_seed: int = 0,
    num_steps: int = 300,
    num_samples: int = 2000,
    num_particles: int = 256,
    guide: Literal["auto", "full_rank", "low_rank"] = "auto",
    decenter: tuple[str, ...] = (),
    gaussianise: tuple[str, ...] = (),
) -> FitResult:
    """Fit a Gaussian to the posterior in unconstrained space by maximising the ELBO.

    Draws target the best Gaussian, not the posterior: trust them only where the status says that
    Pareto k-hat is small (Yao et al. 2018, arXiv 1802.02538). For hierarchical models of few
    tasks it often is not. Each task's mixture likelihood is bounded from below, so where data are
    weak the posterior's tail is the prior's, heavier than that of the fitted Gaussian, and a
    scale parameter is skewed. Means may then still be good, but tails are not.

    Args:
      model, model_args: a NumPyro program and its arrays.
      rng_seed: seed of the fixed noise and of the draws.
      num_steps: most steps of L-BFGS; usually a few dozen suffice.
      num_samples: draws returned, in one chain; k-hat is computed on them, never on the noise
        that was fitted to.
      num_particles: fixed draws in the objective, and at least 8 for each parameter: a guide
        with as many parameters as it has draws to fit would fit the draws.
      guide: full covariance, low rank plus diagonal, or full up to 200 parameters.
      decenter, gaussianise: sites to sample in other coordinates, see `reparametrise`.
    """
    start = time.perf_counter()
    key_init, key_noise, key_draw = jax.random.split(jax.random.key(rng_seed), 3)
    target = Target.of(reparametrise(model, decenter, gaussianise), model_args, key_init)
    family_name = choose_guide(guide, target.size)
    arrays = array_leaves(model_args)
    family, params, gain = fit_guide(
        target,
        arrays,
        family_name,
        key_noise,
        num_steps=num_steps,
        num_particles=max(num_particles, 8 * target.size),
    )
    draws = jax.random.normal(key_draw, (num_samples, family.num_noise))
    z = family.place(params, draws)
    log_p = target.log_joint_of(z, arrays)
    log_q = np.asarray(family.density(params).log_prob(z), np.float64)
    return FitResult(
        samples=target.constrain(z, arrays),
        sample_stats={"lp": log_p[None], "log_ratio": (log_p - log_q)[None]},
        status=judge(log_p - log_q, gain),
        seconds=time.perf_counter() - start,
        settings={
            "engine": "svi",
            "guide": family_name,
            "rng_seed": rng_seed,
            "num_steps": num_steps,
            "num_samples": num_samples,
            "num_particles": num_particles,
            "decenter": ",".join(decenter),
            "gaussianise": ",".join(gaussianise),
        },
    )
