"""Priors that are data, as Pyro distributions: the same entries, families and shapes."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.prior import FAMILIES, Prior, SitePrior, check_broadcast

#: What NumPyro assumes of a parameter that is not given, and Pyro wants to be told.
_DEFAULTS: dict[str, dict[str, float]] = {
    "Normal": {"loc": 0.0, "scale": 1.0},
    "StudentT": {"loc": 0.0, "scale": 1.0},
    "Laplace": {"loc": 0.0, "scale": 1.0},
    "HalfNormal": {"scale": 1.0},
    "HalfCauchy": {"scale": 1.0},
    "Gamma": {"rate": 1.0},
    "InverseGamma": {"rate": 1.0},
    "LogNormal": {"loc": 0.0, "scale": 1.0},
    "Exponential": {"rate": 1.0},
    "Uniform": {"low": 0.0, "high": 1.0},
    "LKJCholesky": {"concentration": 1.0},
    "LogisticDirichlet": {"concentration": 1.0},
}


def draw(
    name: str, prior: Prior, shape: tuple[int, ...] = (), *, like: torch.Tensor, **sites: Any
) -> torch.Tensor:
    """A site of the program, of this shape, from its entry in the prior.

    A site that the prior fixes is recorded as deterministic. ``sites`` are the earlier sites that
    the entry may refer to. Numbers take the precision and the device of ``like``.
    """
    entry = prior[name]
    if entry.fixed is not None:
        value = torch.as_tensor(entry.fixed, dtype=like.dtype, device=like.device)
        check_broadcast("Fixed", tuple(value.shape), shape)
        return pyro.deterministic(name, value.expand(shape))
    return pyro.sample(name, over(entry, shape, like=like, **sites))


def over(
    entry: SitePrior, shape: tuple[int, ...], *, like: torch.Tensor, **sites: Any
) -> dist.TorchDistribution:
    """The Pyro distribution of a whole site of this shape, as `SitePrior.over` for NumPyro.

    Raises:
      ValueError: a parameter's shape does not broadcast to ``shape``, or it names a site that the
        model does not offer.
    """
    given = _DEFAULTS.get(entry.family, {}) | entry.arguments(**sites)
    parameters: dict[str, Any] = {
        name: torch.as_tensor(value, dtype=like.dtype, device=like.device)
        for name, value in given.items()
    }
    if entry.family == "LogisticDirichlet":
        whole = LogisticDirichlet(**parameters, num_coordinates=shape[-1])
        return whole.expand(shape[:-1]).to_event(len(shape) - 1)
    if entry.family == "LKJCholesky":
        return dist.LKJCholesky(shape[-1], **parameters)
    if entry.family not in FAMILIES:
        raise ValueError(f"{entry.family} is no distribution; use draw(), which records its value.")
    one = getattr(dist, entry.family)(**parameters)
    check_broadcast(entry.family, tuple(one.batch_shape), shape)
    return one.expand(shape).to_event(len(shape))


class LogisticDirichlet(dist.TorchDistribution):
    """Coordinates u of a strategy w = softmax(C u), where w ~ Dirichlet(concentration).

    log p(u) = log Dirichlet(w) + sum_k log w_k + log(K) / 2, see
    `bayesmeta.models.logistic_dirichlet.LogisticDirichlet`.
    """

    arg_constraints: Any = {"concentration": constraints.positive}
    support: Any = constraints.real_vector

    def __init__(
        self,
        concentration: torch.Tensor,
        num_coordinates: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration, self.num_coordinates = concentration, num_coordinates
        super().__init__(
            concentration.shape, torch.Size([num_coordinates]), validate_args=validate_args
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LogisticDirichlet":
        return LogisticDirichlet(self.concentration.expand(batch_shape), self.num_coordinates)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        a, num_skills = self.concentration, self.num_coordinates + 1
        C = torch.from_numpy(contrast(num_skills)).to(value)
        log_w = torch.log_softmax(value @ C.T, -1)
        normaliser = torch.lgamma(num_skills * a) - num_skills * torch.lgamma(a)
        return normaliser + a * log_w.sum(-1) + 0.5 * math.log(num_skills)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        num_skills = self.num_coordinates + 1
        shape = (*sample_shape, *self.batch_shape, num_skills)
        a = self.concentration[..., None].expand(shape)
        # The logarithm of a gamma draw, because draws of a small concentration underflow.
        log_w = torch.log(dist.Gamma(a + 1, 1.0).sample()) + torch.log(torch.rand_like(a)) / a
        return log_w @ torch.from_numpy(contrast(num_skills)).to(log_w)
