"""Hamiltonian Monte Carlo with trajectories of one length, in whitened coordinates."""

import dataclasses
from collections.abc import Callable
from typing import Any

from numpyro.infer import HMC

from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.whitened import fit_whitened


def whitened_hmc(
    model: Callable[..., Any],
    *model_args: Any,
    rng_seed: int = 0,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 1000,
    target_accept: float = 0.85,
    trajectory_length: float = 2.3,
    group: str = "v",
    scale: str = "tau_E",
    progress: bool = False,
) -> FitResult:
    """Draw from the posterior of ``model(*model_args)``: the fastest engine where tasks are many.

    As `whitened_nuts`, with which it shares all but the following. The No-U-Turn sampler finds at
    every step how far to go, and pays for that with gradients that it does not use. Where all
    coordinates are about standard normal the distance is known beforehand: after a time T a
    draw has correlation cos(s T) with the one before it, s being the ratio of a direction's
    standard deviation as approximated to its true one. Half the gradients then give as many
    effective draws, and the program compiles in half the time.

    The price is robustness. Where the approximation is poor, because tasks are few, draws are
    correlated (s far below 1), or directions are swept there and back (s T near pi). The effective
    sample size in the status shows both; use `whitened_nuts` then.

    Args:
      trajectory_length: T. 1.57 = pi / 2 suits a Gaussian; longer ones suit directions that are
        wider than approximated, and make draws of location alternate around their mean, which
        gives means a larger effective sample size than variances.
      model, model_args, rng_seed, num_chains, num_warmup, num_samples, target_accept, group,
        scale, progress: see `whitened_nuts`.

    Raises:
      ValueError: fewer than two chains, no warm-up, a trajectory that is not longer than 0, or no
        latent site of that name.
    """
    if not trajectory_length > 0:
        raise ValueError(
            f"trajectory_length must be positive, got {trajectory_length}. About 2 is usual."
        )
    return fit_whitened(
        "whitened_hmc",
        _Kernel(target_accept, trajectory_length),
        model,
        model_args,
        group=group,
        scale=scale,
        progress=progress,
        plain=dict(
            rng_seed=rng_seed,
            num_chains=num_chains,
            num_warmup=num_warmup,
            num_samples=num_samples,
            target_accept=target_accept,
        ),
        special={"trajectory_length": trajectory_length},
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Kernel:
    """Equal for equal settings, so that equal fits can share what is compiled."""

    target_accept: float
    trajectory_length: float

    def __call__(self, potential: Callable[[Any], Any]) -> HMC:
        return HMC(
            potential_fn=potential,
            target_accept_prob=self.target_accept,
            trajectory_length=self.trajectory_length,
            # Coordinates have unit scale by construction; an estimate would only add noise.
            adapt_mass_matrix=False,
        )
