"""A Laplace approximation that handles one scale parameter apart from everything else.

Group effects v ~ N(0, tau^2) and their scale tau have no useful joint mode: the density grows
without bound as both go to zero. Given tau there is one, so the other coordinates x are
maximised out with their Gaussian volume,

    log p(s | data) = log p(x(s), s, data) - log det H(s) / 2 + const,   s = log tau,

as in integrated nested Laplace approximations (Rue, Martino & Chopin 2009). The maximum of that
over s, the covariance C there and the slope m' = dx/ds give the joint covariance C + var m' m'^T.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.linalg import cho_factor, cho_solve

#: Where a Newton step would gain less than this many nats, the mode is found.
_CLOSE = 0.02
_NEWTON_STEPS = 30
#: Steps over log tau, their largest size, and the spacing of finite differences.
_OUTER_STEPS, _LARGEST, _SPACING = 8, 0.7, 0.2

#: x [size] -> value [], gradient [size] and Hessian [size, size] of the negative log density.
Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]]


class LaplaceError(ArithmeticError):
    """The density has no usable Gaussian approximation; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Laplace:
    """A Gaussian approximation in unconstrained coordinates.

    Attributes:
      mode: [size], the best log scale and the mode of the rest given it.
      covariance: [size, size], positive definite.
      conditional_variance: [size], given the log scale; 0 for the log scale itself.
    """

    mode: np.ndarray
    covariance: np.ndarray
    conditional_variance: np.ndarray

    def partly_centred(self, scale: int, group: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same approximation for tau^(c - 1) v in place of the effects v in ``group``.

        Returns:
          Mode [size]; lower triangular axes L [size, size], the covariance being L L^T; and c
          [group], the share of each effect's precision that data supply: 1 where they decide it,
          0 where the prior does. Taken at a small tau, one standard deviation of log tau below its
          mode, because that is where a funnel that is centred too much gets narrow.

        Raises:
          LaplaceError: the covariance is not positive definite.
        """
        tau, centring = np.exp(self.mode[scale]), np.ones(self.mode.size)
        # Data have (tau^2 / var - 1) times the precision of the prior, which is 1 / tau^2.
        odds = np.maximum(tau**2 / self.conditional_variance[group] - 1, 0)
        odds *= np.exp(-2 * np.sqrt(self.covariance[scale, scale]))
        centring[group] = odds / (1 + odds)
        mode = self.mode * tau ** (centring - 1)
        jacobian = np.diag(tau ** (centring - 1))
        jacobian[:, scale] += (centring - 1) * mode
        try:
            axes = np.linalg.cholesky(jacobian @ self.covariance @ jacobian.T)
        except np.linalg.LinAlgError:
            raise LaplaceError("the Laplace covariance is not positive definite") from None
        return mode, axes, centring[group]


@dataclasses.dataclass(frozen=True, slots=True)
class _Given:
    """The approximation given the log scale; C and m' have no entry for it."""

    x: np.ndarray
    log_marginal: float
    covariance: np.ndarray
    slope: np.ndarray


def laplace(evaluate: Evaluate, start: np.ndarray, scale: int) -> Laplace:
    """Approximate a density from ``start`` [size], coordinate ``scale`` being log tau.

    Raises:
      LaplaceError: values that are not finite, or a curvature that is not positive definite.
    """
    rest = np.delete(np.arange(start.size), scale)
    best, variance = _given_scale(evaluate, start, scale, rest), 1.0

    def at(shift: float) -> _Given:
        x = best.x.copy()
        x[scale] += shift
        # Following the mode's slope leaves Newton little to do.
        x[rest] += best.slope * shift
        return _given_scale(evaluate, x, scale, rest)

    for _ in range(_OUTER_STEPS):
        above, below = at(_SPACING).log_marginal, at(-_SPACING).log_marginal
        gradient = (above - below) / (2 * _SPACING)
        curvature = (above - 2 * best.log_marginal + below) / _SPACING**2
        # Where the marginal curves upwards, one unit is as good a guess as any.
        variance = -1.0 / curvature if curvature < 0 else 1.0
        step = float(np.clip(gradient * variance, -_LARGEST, _LARGEST))
        # A quarter of a standard deviation off costs a whitened sampler nothing.
        if abs(step) < 0.25 * np.sqrt(variance):
            break
        best = at(step)

    covariance = np.zeros((start.size, start.size))
    covariance[np.ix_(rest, rest)] = best.covariance + variance * np.outer(best.slope, best.slope)
    covariance[scale, rest] = covariance[rest, scale] = variance * best.slope
    covariance[scale, scale] = variance
    conditional = np.zeros(start.size)
    conditional[rest] = np.diag(best.covariance)
    return Laplace(best.x, covariance, conditional)


def _given_scale(evaluate: Evaluate, x: np.ndarray, scale: int, rest: np.ndarray) -> _Given:
    """Newton's method over ``rest``, then the Gaussian volume there."""
    value, gradient, hessian = _finite(evaluate, x)
    for _ in range(_NEWTON_STEPS):
        step = -_solve(hessian[np.ix_(rest, rest)], gradient[rest])
        if -gradient[rest] @ step < _CLOSE:
            break
        fraction = 1.0
        while True:
            moved = x.copy()
            moved[rest] += fraction * step
            found = _finite(evaluate, moved)
            # Rounding in 32 bit makes the value of thousands of tasks uncertain by this much.
            if found[0] < value + 0.01 or fraction < 0.01:
                break
            fraction /= 3
        x, (value, gradient, hessian) = moved, found
    inner = hessian[np.ix_(rest, rest)]
    try:
        factor = cho_factor(inner, lower=True)
    except np.linalg.LinAlgError:
        raise LaplaceError(f"the Hessian at log {scale=} is not positive definite") from None
    covariance = cho_solve(factor, np.eye(rest.size))
    # What the last Newton step would still gain belongs to the maximum.
    value -= 0.5 * gradient[rest] @ covariance @ gradient[rest]
    log_volume = -np.log(np.diag(factor[0])).sum()
    return _Given(x, float(log_volume - value), covariance, -covariance @ hessian[rest, scale])


def _finite(evaluate: Evaluate, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    value, gradient, hessian = evaluate(x)
    if not (np.isfinite(value) and np.isfinite(gradient).all() and np.isfinite(hessian).all()):
        raise LaplaceError("the log density or a derivative of it is not finite")
    return value, gradient, hessian


def _solve(hessian: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Newton's step, or one along absolute curvatures where the density is not log-concave."""
    try:
        return cho_solve(cho_factor(hessian), gradient)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(hessian)
        return vectors @ ((vectors.T @ gradient) / np.maximum(np.abs(values), 1.0))
