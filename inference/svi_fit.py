"""The ELBO on fixed noise, and its maximum.

The expectation in the ELBO is replaced once and for all by a mean over fixed draws of the guide's
noise, which leaves a smooth deterministic objective for L-BFGS (Giordano et al. 2024, arXiv
2304.05527). Here the draws come in pairs of opposite sign and have exactly unit covariance, so
that the mean of a quadratic is exact: a Gaussian posterior is recovered exactly.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

from bayesmeta.inference.svi_guides import FullRank, LowRank
from bayesmeta.inference.svi_target import Target

#: Factors of a low-rank guide.
RANK = 10
#: Steps for the diagonal guide, which only prepares the other: it need not converge.
_FIRST_STEPS = 40


def fit_guide(
    target: Target,
    arrays: list[Any],
    guide: str,
    rng_key: jax.Array,
    *,
    num_steps: int,
    num_particles: int,
) -> tuple[FullRank | LowRank, dict[str, jax.Array], float]:
    """The guide, the parameters that maximise its ELBO, and the nats that were left to gain.

    A diagonal guide comes first: it is quick, it is safe far from the mode, and the curvature
    that it meets gives the full-rank guide coordinates in which few steps are needed.
    """
    key_noise, key_factors = jax.random.split(rng_key)
    family = LowRank.start(target.centre, 0, key_factors)
    noise = matched_noise(key_noise, 64, family.num_noise)
    params, _ = _maximise(target, family, noise, arrays, min(num_steps, _FIRST_STEPS))
    if guide == "full_rank":
        _, slopes = target.slopes(family.place(params, noise), arrays)
        # Stein's identity: the mean of slope x noise' is the mean Hessian times the scale.
        precision = -(slopes.T @ np.asarray(noise)) / len(noise) * np.exp(-params["log_scale"])
        family = FullRank.start(params["loc"], jnp.asarray(precision + precision.T) / 2)
    else:
        family = LowRank.start(params["loc"], RANK, key_factors, params["log_scale"])
    noise = matched_noise(key_noise, num_particles, family.num_noise)
    return family, *_maximise(target, family, noise, arrays, num_steps)


def matched_noise(rng_key: jax.Array, num_draws: int, size: int) -> jax.Array:
    """Normal draws [num_draws, size] with mean exactly 0 and covariance exactly the identity.

    At least 2 * size draws are made: fewer cannot have full covariance.
    """
    half = jax.random.normal(rng_key, (max(num_draws // 2, size + 1), size))
    # Few draws more than parameters have nearly singular covariance, which QR does not mind.
    basis, root = jnp.linalg.qr(half)
    half = basis * jnp.sign(jnp.diag(root)) * np.sqrt(len(half))
    return jnp.concatenate([half, -half])


def _maximise(target, family, noise, arrays, num_steps):
    """Params at which the ELBO on this noise is largest, and the gain left in nats."""
    flat, unravel = ravel_pytree(family.params)

    def objective(x):
        params = unravel(jnp.asarray(x, flat.dtype))
        values, slopes = target.slopes(_place(family, params, noise), arrays)
        entropy, slope = _pull_back(family, params, noise, slopes)
        elbo = float(values.mean(dtype=np.float64) + entropy)
        return -elbo, -np.asarray(ravel_pytree(slope)[0], np.float64)

    found = minimize(
        objective,
        np.asarray(flat, np.float64),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": num_steps, "maxcor": 30, "ftol": 1e-12, "gtol": 1e-4},
    )
    # The inverse Hessian that L-BFGS has built up says what a last Newton step would gain.
    gain = 0.5 * float(found.jac @ found.hess_inv.dot(found.jac))
    return unravel(jnp.asarray(found.x, flat.dtype)), gain


# Functions of the module, so that fits of as many parameters share one compilation.
@jax.jit
def _place(family, params, noise):
    return family.place(params, noise)


@jax.jit
def _pull_back(family, params, noise, slopes):
    """The entropy, and the ELBO's gradient given the log density's gradient at every draw."""

    def elbo(params):
        entropy = family.entropy(params)
        return (slopes * family.place(params, noise)).sum(-1).mean() + entropy, entropy

    (_, entropy), slope = jax.value_and_grad(elbo, has_aux=True)(params)
    return entropy, slope
