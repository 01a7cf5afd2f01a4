"""Variational inference with Pyro's Gaussian guides, judged by Pareto k-hat."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import (
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    init_to_median,
)
from torch import Tensor
from torch.distributions import biject_to

from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.pyro_nuts import default_device, seeded, threads
from bayesmeta.inference.pyro_structure import decentred, every_site, is_deterministic, run
from bayesmeta.inference.svi_guides import choose_guide
from bayesmeta.inference.svi_judge import judge
from bayesmeta.models.pyro_data import to_torch

#: Factors of a low-rank guide.
RANK = 10
#: By how much the step size shrinks over the run: large steps first, little noise at the end.
_SHRINK = 0.02
#: Draws that one vectorised evaluation of the program handles: bounds memory.
_AT_ONCE = 256


def pyro_svi(
    model: Callable[..., Any],
    *model_args: Any,
    rng_seed: int = 0,
    num_steps: int = 1500,
    num_samples: int = 2000,
    num_particles: int = 32,
    learning_rate: float = 0.05,
    guide: Literal["auto", "full_rank", "low_rank"] = "auto",
    decenter: tuple[str, ...] = (),
    device: str | None = None,
    num_threads: int = 1,
) -> FitResult:
    """Fit a Gaussian to the posterior in unconstrained space by maximising the ELBO.

    The gradient follows the path of the draws only, not the guide's density ("sticking the
    landing", Roeder et al. 2017, arXiv 1703.09194): its noise vanishes as the guide approaches
    the posterior. Draws target the best Gaussian, not the posterior: trust them only where the
    status says that Pareto k-hat is small.

    Args:
      model, model_args: a Pyro program and its arrays or tensors.
      rng_seed: of everything. The global generator is left alone.
      num_steps: steps of Adam. The last tenth must gain no more than the tenth before.
      num_samples: draws returned, in one chain; k-hat is computed on them.
      num_particles: draws per step.
      learning_rate: first step size of Adam, on unconstrained coordinates.
      guide: full covariance, low rank plus diagonal, or full up to 200 parameters.
      decenter: location-scale sites to sample as loc + scale * raw.
      device: where torch computes; None for CUDA where there is any, else the CPU.
      num_threads: of torch, see `bayesmeta.inference.pyro_nuts.pyro_nuts`.
    """
    if num_steps < 20:
        raise ValueError(f"num_steps must be at least 20 to be judged, got {num_steps}.")
    start = time.perf_counter()
    device = device or default_device()
    args = to_torch(model_args, device)
    program = decentred(model, decenter, *model_args)
    with seeded(rng_seed, device), threads(num_threads), pyro.get_param_store().scope():
        density = Density.of(program, args)
        family_name = choose_guide(guide, density.size)
        family = _family(family_name, program, density.size)
        family(*args)
        optimiser = torch.optim.Adam(family.parameters(), learning_rate)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimiser, _SHRINK ** (1 / num_steps))
        elbos = []
        for _ in range(num_steps):
            posterior = family.get_posterior()
            z = posterior.rsample(torch.Size([num_particles]))
            elbo = (density.log_joint(z) - _constant(posterior).log_prob(z)).mean()
            optimiser.zero_grad()
            (-elbo).backward()
            optimiser.step()
            decay.step()
            elbos.append(elbo.item())
        with torch.no_grad():
            posterior = family.get_posterior()
            z = posterior.sample(torch.Size([num_samples]))
            log_p = density.log_joint(z).cpu().numpy()
            log_ratio = log_p - posterior.log_prob(z).cpu().numpy()
            sites = every_site(program, density.constrain(z), *args)
    return FitResult(
        samples={name: value.cpu().numpy()[None] for name, value in sites.items()},
        sample_stats={"lp": log_p[None], "log_ratio": log_ratio[None]},
        status=judge(log_ratio, recent_gain(elbos)),
        seconds=time.perf_counter() - start,
        settings={
            "engine": "pyro_svi",
            "guide": family_name,
            "rng_seed": rng_seed,
            "num_steps": num_steps,
            "num_samples": num_samples,
            "num_particles": num_particles,
            "learning_rate": learning_rate,
            "decenter": ",".join(decenter),
            "device": device,
            "num_threads": num_threads,
        },
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Density:
    """A program as a density over flat unconstrained vectors.

    Attributes:
      log_joint_of_one: z [size] -> log density in nats, change of variables included.
      constrain: z [draw, size] -> site -> values [draw, *shape].
      size: of z. Sites follow one another in the order in which they are drawn, which is also the
        order of Pyro's automatic guides.
    """

    log_joint_of_one: Callable[[Tensor], Tensor]
    constrain: Callable[[Tensor], dict[str, Tensor]]
    size: int

    @classmethod
    def of(cls, program: Callable[..., Any], args: tuple[Any, ...]) -> "Density":
        places, size = {}, 0
        for name, site in run(program, args).items():
            if not site["is_observed"]:
                transform: Any = biject_to(site["fn"].support)
                shape = transform.inverse_shape(site["value"].shape)
                places[name] = transform, shape, slice(size, size + shape.numel())
                size += shape.numel()

        def constrain(z):
            return {
                name: transform(z[..., place].reshape(z.shape[:-1] + shape))
                for name, (transform, shape, place) in places.items()
            }

        def log_joint(z):
            values = constrain(z)
            total = z.new_zeros(())
            for name, (transform, shape, place) in places.items():
                raw = z[place].reshape(shape)
                total = total + transform.log_abs_det_jacobian(raw, values[name]).sum()
            for site in run(program, args, values).values():
                if not is_deterministic(site):
                    total = total + site["fn"].log_prob(site["value"]).sum()
            return total

        return cls(log_joint, constrain, size)

    def log_joint(self, z: Tensor) -> Tensor:
        """Log densities [draw] at z [draw, size]. Pyro's own ELBO runs the program draw by draw."""
        with pyro.validation_enabled(False):  # which looks at values, of which there are many
            return torch.func.vmap(self.log_joint_of_one, chunk_size=_AT_ONCE)(z)


def recent_gain(elbos: Sequence[float]) -> float:
    """By how many nats the last tenth of the steps was better than the tenth before."""
    tenth = len(elbos) // 10
    return float(np.mean(elbos[-tenth:]) - np.mean(elbos[-2 * tenth : -tenth]))


def _family(guide: str, program: Callable[..., Any], size: int) -> Any:
    if guide == "full_rank":
        return AutoMultivariateNormal(program, init_loc_fn=init_to_median)
    return AutoLowRankMultivariateNormal(program, init_to_median, rank=min(RANK, size))


def _constant(posterior: Any) -> Any:
    """The same distribution, through whose parameters no gradient flows."""
    names = ("loc", "scale_tril")
    if isinstance(posterior, dist.LowRankMultivariateNormal):
        names = ("loc", "cov_factor", "cov_diag")
    return type(posterior)(**{name: getattr(posterior, name).detach() for name in names})
