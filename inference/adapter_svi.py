"""Stochastic variational inference for programs whose likelihood is a live language model.

Mean-field in the coordinates of `bayesmeta.inference.data_directions`, in which the linearised
posterior is a product of normals: along the directions that observations can move, the guide is
fitted; across them it is the prior.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.optim import PyroLRScheduler

from bayesmeta.inference.data_directions import AlongData, DataDirections
from bayesmeta.inference.linear_softmax import softmax_map
from bayesmeta.inference.pyro_nuts import seeded
from bayesmeta.inference.status import Outcome, Status
from bayesmeta.models.adapter_pyro import AdapterData, adapted_llm
from bayesmeta.models.prior import Prior

#: By how much the step size shrinks over the run.
_SHRINK = 0.05
#: A last fifth of the steps that is better than the fifth before by more standard errors than
#: this was still improving.
_LIMIT = 3.0


@dataclasses.dataclass(frozen=True)
class AdapterPosterior:
    """Mean and sd along data directions; see `bayesmeta.adapter.AdapterFit`."""

    tau: np.ndarray
    directions: DataDirections
    loc: torch.Tensor
    sd: torch.Tensor
    elbo: np.ndarray
    status: Status


def adapter_svi(
    data: AdapterData,
    prior: Prior,
    jacobian: Any,
    *,
    num_steps: int,
    learning_rate: float,
    rng_seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> AdapterPosterior:
    """
    Args:
      data: see `bayesmeta.models.adapter_pyro.AdapterData`.
      prior: of tau and B.
      jacobian: a `bayesmeta.adapter.Jacobian`, which says where the data can move the weights, and
        where the linearised posterior has its mode: the guide begins there.
    """
    if num_steps < 20:
        raise ValueError(f"num_steps must be at least 20 to be judged, got {num_steps}.")
    device = str(data.gold.device)
    with seeded(rng_seed, device), pyro.get_param_store().scope():
        size = int(data.module_sizes.sum())
        typical = _typical_scale(prior, len(data.module_sizes))
        scale = torch.repeat_interleave(typical, data.module_sizes).numpy()
        directions = DataDirections.of(jacobian.rows(scale))
        mode = linear_mode(jacobian, scale, directions, data.gold.cpu().numpy())
        directions = DataDirections(directions.basis.to(device), directions.scale.to(device))
        program = poutine.reparam(adapted_llm, config={"B": AlongData(directions)})
        start = {"B": torch.from_numpy(mode).to(device), "tau": typical.to(device)}
        along = AutoNormal(
            poutine.block(program, hide=["B_rest"]),
            init_loc_fn=init_to_value(values=start),
            init_scale=1.0 if prior["tau"].fixed is not None else 0.1,
        )

        def guide(*args: Any) -> None:
            zero = torch.zeros(size, device=device)
            pyro.sample("B_rest", dist.Normal(zero, zero + 1).to_event(1))
            along(*args)

        optimiser: Any = PyroLRScheduler(
            torch.optim.lr_scheduler.ExponentialLR,
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": learning_rate},
                "gamma": _SHRINK ** (1 / num_steps),
            },
        )
        svi = SVI(program, guide, optimiser, TraceMeanField_ELBO())
        elbo = []
        for step in range(num_steps):
            with warnings.catch_warnings():
                # The guide's sites are independent, so that their order does not matter.
                warnings.filterwarnings("ignore", "Failed to verify mean field")
                loss: Any = svi.step(data, prior)
            elbo.append(-float(loss))
            optimiser.step()
            if progress:
                progress(step + 1, num_steps)
        medians = along.median(data, prior)
        sites = {
            name: pyro.param(f"AutoNormal.{kind}.B_data").detach()
            for name, kind in (("loc", "locs"), ("sd", "scales"))
        }
    tau = medians["tau"] if "tau" in medians else typical
    return AdapterPosterior(
        tau=tau.detach().cpu().numpy(),
        directions=directions,
        loc=sites["loc"],
        sd=sites["sd"],
        elbo=np.array(elbo),
        status=_settled(np.array(elbo)),
    )


def linear_mode(
    jacobian: Any, scale: np.ndarray, directions: DataDirections, gold: np.ndarray
) -> np.ndarray:
    """[weight] posterior mode were the model linear in its weights."""
    d, basis = directions.scale.cpu().numpy(), directions.basis.cpu().numpy()
    x = (jacobian.slopes * scale) @ (d[:, None] * basis).T
    z_data = softmax_map(jacobian.logits, x, gold, 1 / d)
    return (scale * ((d * z_data) @ basis)).astype(np.float32)


def _typical_scale(prior: Prior, num_modules: int) -> torch.Tensor:
    """[module] tau: what it is fixed to, or the prior's median."""
    fixed = prior["tau"].fixed
    if fixed is not None:
        return torch.as_tensor(fixed, dtype=torch.float32).expand(num_modules).clone()
    from bayesmeta.models.pyro_prior import over

    drawn = over(prior["tau"], (num_modules,), like=torch.zeros(())).sample(torch.Size([501]))
    return drawn.median(0).values


def _settled(elbo: np.ndarray) -> Status:
    fifth = len(elbo) // 5
    late, before = elbo[-fifth:], elbo[-2 * fifth : -fifth]
    gain = float(late.mean() - before.mean())
    se = float(np.sqrt((late.var(ddof=1) + before.var(ddof=1)) / fifth))
    found = {"gain": gain, "gain_se": se}
    if not np.isfinite(elbo).all():
        return Status(Outcome.NOT_FINITE, "an ELBO was not finite.", found)
    detail = f"the last fifth of steps gained {gain:.2f} nats (SE {se:.2f}), limit {_LIMIT:g} SE."
    return Status(Outcome.NOT_SETTLED if gain > _LIMIT * se else Outcome.CONVERGED, detail, found)
