"""A Gaussian guide and its natural-gradient steps.

For a guide N(m, 1/P) and a log density l, the ELBO is stationary where E[gradient of l] = 0 and
P = E[-Hessian of l]. A step of some rate goes there (Khan & Rue 2023, arXiv 2107.04562):

    P <- P + rate (E[-Hessian of l] - P)        m <- m + rate (new P)^-1 E[gradient of l]

Take coordinates in which the guide is standard normal, and call surplus = gradient of l + noise
what l's gradient has beyond the guide's own. Then E[gradient] is ``force`` = E[surplus] and, by
Stein's identity, E[-Hessian] - P is ``excess`` = -E[surplus noise']. As means over draws both
have no variance where l is the guide's log density.
"""

import dataclasses

import numpy as np
from scipy.linalg import solve_triangular

#: No step makes a precision smaller than by this factor.
_LARGEST_FALL = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class Direction:
    """Where the ELBO rises, in whitened coordinates of the guide that it was seen from.

    Attributes:
      force: [size], the mean surplus of gradient.
      excess: [size, size], symmetric, what the mean curvature exceeds the guide's precision by.
    """

    force: np.ndarray
    excess: np.ndarray

    @classmethod
    def of(cls, surplus: np.ndarray, noise: np.ndarray) -> "Direction":
        """From surplus [draw, size] at noise [draw, size]."""
        excess = -surplus.T @ noise / len(noise)
        return cls(surplus.mean(0), (excess + excess.T) / 2)

    def gain(self, other: "Direction | None" = None) -> float:
        """Nats of ELBO to be had, where the guide is close to its best.

        Squares of noisy numbers are too large on average. Given another direction from
        independent draws of the same guide, their products are used instead, which are not.
        """
        other = other or self
        return float(0.5 * (self.force @ other.force) + 0.25 * np.sum(self.excess * other.excess))


@dataclasses.dataclass(frozen=True, slots=True)
class Gaussian:
    """A normal distribution.

    Attributes:
      loc: [size].
      root: [size, size], lower Cholesky factor of the precision.
    """

    loc: np.ndarray
    root: np.ndarray

    def place(self, noise: np.ndarray) -> np.ndarray:
        """Draws [draw, size] from standard normal noise [draw, size]."""
        return self.loc + solve_triangular(self.root, noise.T, lower=True, trans=1).T

    def log_density(self, noise: np.ndarray) -> np.ndarray:
        """Log density [draw] in nats at the draws that `place` makes of noise [draw, size]."""
        log_volume = np.log(np.diag(self.root)).sum()
        return log_volume - 0.5 * (noise**2 + np.log(2 * np.pi)).sum(1)

    def surplus(self, slopes: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Surplus [draw, size] of gradients [draw, size] at the draws of noise [draw, size]."""
        slopes = slopes.astype(np.float64)
        return solve_triangular(self.root, slopes.T, lower=True, check_finite=False).T + noise

    def moved(self, way: Direction, rate: float) -> "Gaussian":
        """The guide after a step."""
        values, vectors = np.linalg.eigh(way.excess)
        # Noise, or a density that is not log-concave, may ask for a precision below zero.
        factors = np.maximum(1 + rate * values, _LARGEST_FALL)
        move = rate * vectors @ ((vectors.T @ way.force) / factors)
        axes = self.root @ vectors * np.sqrt(factors)
        upper = np.linalg.qr(axes.T, mode="r")
        return Gaussian(
            self.loc + solve_triangular(self.root, move, lower=True, trans=1),
            upper.T * np.sign(np.diag(upper)),
        )
