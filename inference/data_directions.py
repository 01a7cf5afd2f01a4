"""Coordinates in which a posterior over very many weights is nearly a product of normals.

A few hundred observations can move weights of a network only along a few hundred directions: the
rows of the Jacobian of what it says. Along all others the posterior is the prior, to first order.
With the right singular vectors V of the observations' weighted Jacobian, its singular values s and
weights of unit prior scale z = (1 - V V') z_rest + V (d * z_data), d = 1 / sqrt(1 + s^2), the prior
N(0, 1) of z becomes normal in (z_rest, z_data), and the linearised posterior is independent over
the entries of z_data with unit scale. V being orthonormal, the prior of z is unchanged.
"""

import dataclasses
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import sample
from pyro.infer.reparam.reparam import Reparam


@dataclasses.dataclass(frozen=True, slots=True)
class DataDirections:
    """Where observations can move P weights, each in units of its prior standard deviation.

    Attributes:
      basis: [R, P] orthonormal rows, the transpose of V.
      scale: [R] posterior standard deviation along each, to first order.
    """

    basis: Float[torch.Tensor, "direction weight"]
    scale: Float[torch.Tensor, " direction"]

    @classmethod
    def of(cls, rows: Float[np.ndarray, "row weight"]) -> "DataDirections":
        """
        Args:
          rows: square root of the negative log-likelihood's Gauss-Newton matrix: ``rows.T @ rows``
            is the curvature in the weights.
        """
        # The eigenvectors of rows @ rows.T are found at the cost of the rows, not of the weights.
        values, vectors = np.linalg.eigh(rows.astype(np.float64) @ rows.T.astype(np.float64))
        kept = values > 1e-6 * max(values.max(), 1e-30)
        values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
        basis = (vectors / np.sqrt(values)).T @ rows
        return cls(
            torch.from_numpy(basis.astype(rows.dtype)),
            torch.from_numpy((1 / np.sqrt(1 + values)).astype(rows.dtype)),
        )

    def combine(self, rest: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        """z from z_rest [..., P] and z_data [..., R]."""
        inside = self.scale * data - rest @ self.basis.T
        return rest + inside @ self.basis


class AlongData(Reparam):
    """A Pyro reparametrisation of a site ~ Normal(0, scale): ``<site>_rest`` and ``<site>_data``.

    The density is that of the site itself: only the coordinates differ.
    """

    def __init__(self, directions: DataDirections) -> None:
        self.directions = directions

    def apply(self, msg: Any) -> Any:
        name, value, is_observed = msg["name"], msg["value"], msg["is_observed"]
        fn, event_dim = self._unwrap(msg["fn"])
        if not isinstance(fn, dist.Normal) or bool((fn.loc != 0).any()):
            raise ValueError(f"site {name!r} must be Normal(0, scale) for these coordinates.")
        one = torch.ones_like(fn.scale)
        along = self.directions.scale.to(one)
        rest = data = None
        if value is not None:  # one of the coordinates that give it
            rest = value / fn.scale
            data = self.directions.basis @ rest / along
        options: Any = {"infer": {"is_observed": is_observed}}
        rest = sample(f"{name}_rest", dist.Normal(0 * one, one).to_event(1), obs=rest, **options)
        law = dist.Normal(0 * along, 1 / along).to_event(1)
        data = sample(f"{name}_data", law, obs=data, **options)
        if value is None:
            value = fn.scale * self.directions.combine(rest, data)
        fixed = dist.Delta(value, event_dim=event_dim).mask(False)
        return {"fn": fixed, "value": value, "is_observed": True}
