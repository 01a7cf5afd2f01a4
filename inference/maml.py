"""Model-agnostic meta-learning as hierarchical Bayes, where both have a closed form.

For a quadratic loss with Hessian H, k gradient steps of size alpha from theta end where the mode
of loss + (phi - theta)' P (phi - theta) / 2 lies, with the prior precision
P = H (I - alpha H)^k [I - (I - alpha H)^k]^-1 (Grant et al. 2018, arXiv 1801.08930). So early
stopping is a prior around the initialisation, and learning theta is empirical Bayes.
"""

import numpy as np


def implied_precision(hessian: np.ndarray, step_size: float, num_steps: int) -> np.ndarray:
    """[P, P] precision of the prior around the initialisation that gradient descent stands for.

    Args:
      hessian: [P, P] of the loss, symmetric and positive definite.
      step_size: alpha, in (0, 1 / largest eigenvalue).
      num_steps: k, at least 1.

    Raises:
      ValueError: a Hessian that is not positive definite, or steps that overshoot.
    """
    values, vectors = np.linalg.eigh(hessian)
    if not values.min() > 0:
        raise ValueError(
            f"the Hessian's smallest eigenvalue is {values.min():.3g}, wanted > 0: descent along a "
            "flat direction never ends, and no prior describes that."
        )
    if num_steps < 1 or not 0 < step_size * values.max() < 1:
        raise ValueError(
            f"step_size {step_size} times the largest eigenvalue {values.max():.3g} must be in "
            f"(0, 1), and num_steps ({num_steps}) at least 1: longer steps overshoot."
        )
    left = (1 - step_size * values) ** num_steps
    return (vectors * (values * left / (1 - left))) @ vectors.T


def adapt(
    theta: np.ndarray, hessian: np.ndarray, optimum: np.ndarray, step_size: float, num_steps: int
) -> np.ndarray:
    """[P] where gradient descent on (phi - optimum)' H (phi - optimum) / 2 ends, from theta."""
    phi = np.asarray(theta, np.float64)
    for _ in range(num_steps):
        phi = phi - step_size * hessian @ (phi - optimum)
    return phi


def map_estimate(
    theta: np.ndarray, precision: np.ndarray, hessian: np.ndarray, optimum: np.ndarray
) -> np.ndarray:
    """[P] mode of the same loss with a N(theta, precision^-1) prior."""
    return np.linalg.solve(hessian + precision, hessian @ optimum + precision @ theta)


def best_initialisation(
    precisions: np.ndarray, hessians: np.ndarray, optima: np.ndarray
) -> np.ndarray:
    """[P] theta that maximises the marginal likelihood of D tasks: empirical Bayes.

    Args:
      precisions: [D, P, P], from `implied_precision`.
      hessians: [D, P, P] of the tasks' losses.
      optima: [D, P] where they are smallest. With its own parameters integrated out, task d's is
        N(theta, precision_d^-1 + hessian_d^-1).
    """
    size = optima.shape[-1]
    total, pull = np.zeros((size, size)), np.zeros(size)
    for precision, hessian, optimum in zip(precisions, hessians, optima, strict=True):
        weight = np.linalg.inv(np.linalg.inv(precision) + np.linalg.inv(hessian))
        total, pull = total + weight, pull + weight @ optimum
    return np.linalg.solve(total, pull)
