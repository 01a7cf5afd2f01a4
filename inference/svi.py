"""Variational inference with a Gaussian guide on fixed noise, judged by Pareto k-hat.

The expectation in the ELBO is replaced once and for all by a mean over fixed draws of the guide's
noise, which leaves a smooth deterministic objective for L-BFGS (Giordano et al. 2024, arXiv
2304.05527). Here the draws come in pairs of opposite sign and have exactly unit covariance, so
that the mean of a quadratic is exact: a Gaussian posterior is recovered exactly.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro.infer import init_to_median, initialize_model
from scipy.optimize import minimize

from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.pareto import max_pareto_k, pareto_smooth
from bayesmeta.inference.reparametrise import reparametrise
from bayesmeta.inference.status import Outcome, Status

#: Above this many parameters a full covariance costs more than it explains.
FULL_RANK_UP_TO = 200
#: Gains still to be had that would not change a conclusion, in nats of the ELBO.
SETTLED_WITHIN = 0.1
#: Factors of a low-rank guide.
RANK = 10
#: Draws that one vectorised evaluation of the program handles: bounds memory.
_AT_ONCE = 16
#: Steps for the diagonal guide, which only prepares the other: it need not converge.
_FIRST_STEPS = 40


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


def fit_guide(
    target: "Target",
    arrays: list[Any],
    guide: str,
    rng_key: jax.Array,
    *,
    num_steps: int,
    num_particles: int,
) -> tuple[Any, dict[str, jax.Array], float]:
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


def array_leaves(model_args: tuple[Any, ...]) -> list[Any]:
    """The arrays among the leaves of some arguments; the rest (a prior, say) never changes."""
    return [leaf for leaf in jax.tree.leaves(model_args) if _is_array(leaf)]


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A program as a density over flat unconstrained vectors z [draw, size].

    Attributes:
      evaluate: (z, arrays) -> log densities [draw] in nats, change of variables included, and
        their gradients [draw, size]; compiled once, so always given `_AT_ONCE` draws.
      sites: (z, arrays) -> site -> values, latent and deterministic sites.
      centre: [size], where to begin.
    """

    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    sites: Callable[..., dict[str, jax.Array]]
    centre: jax.Array

    @property
    def size(self) -> int:
        return self.centre.size

    @classmethod
    def of(cls, program: Callable[..., Any], model_args: tuple, rng_key: jax.Array) -> "Target":
        leaves, structure = jax.tree.flatten(model_args)

        def rebuild(arrays):
            rest = iter(arrays)
            return structure.unflatten([next(rest) if _is_array(x) else x for x in leaves])

        info = initialize_model(
            rng_key,
            program,
            model_args=model_args,
            init_strategy=init_to_median,
            dynamic_args=True,
            validate_grad=False,
        )
        centre, unravel = ravel_pytree(info.param_info.z)

        def log_joint(z, arrays):
            return -info.potential_fn(*rebuild(arrays))(unravel(z))

        def constrain(z, arrays):
            return info.postprocess_fn(*rebuild(arrays))(unravel(z))

        return cls(
            jax.jit(jax.vmap(jax.value_and_grad(log_joint), (0, None))),
            jax.jit(jax.vmap(constrain, (0, None))),
            centre,
        )

    def slopes(self, z: jax.Array, arrays: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Log densities [draw] and their gradients [draw, size] at z [draw, size]."""
        return _in_blocks(lambda block: self.evaluate(block, arrays), z)

    def log_joint_of(self, z: jax.Array, arrays: list[Any]) -> np.ndarray:
        """Log densities [draw] at z [draw, size], in nats."""
        return self.slopes(z, arrays)[0].astype(np.float64)

    def constrain(self, z: jax.Array, arrays: list[Any]) -> dict[str, np.ndarray]:
        """Site -> [1, draw, *shape], without the raw coordinates of reparametrised sites."""
        sites = _in_blocks(lambda block: self.sites(block, arrays), z)
        return {k: v[None] for k, v in sites.items() if not k.endswith("_decentered")}


@dataclasses.dataclass(frozen=True, slots=True)
class FullRank:
    """z = origin + axes (loc + scale noise), with a lower triangular scale to be fitted.

    In the coordinates that ``origin`` and ``axes`` define, the posterior is about standard normal.
    """

    origin: jax.Array
    axes: jax.Array
    num_noise: int
    params: dict[str, jax.Array]

    @classmethod
    def start(cls, origin: jax.Array, precision: jax.Array) -> "FullRank":
        values, vectors = jnp.linalg.eigh(precision)
        # Only coordinates, not an answer: any positive number will do where curvature is negative.
        values = jnp.maximum(jnp.abs(values), 1e-6 * jnp.abs(values).max())
        axes = vectors / jnp.sqrt(values)
        size = origin.size
        zeros = jnp.zeros((size, size), origin.dtype)
        return cls(origin, axes, size, {"loc": jnp.zeros_like(origin), "scale": zeros})

    def scale(self, params):
        return jnp.tril(params["scale"], -1) + jnp.diag(jnp.exp(jnp.diag(params["scale"])))

    def place(self, params, noise):
        return self.origin + (params["loc"] + noise @ self.scale(params).T) @ self.axes.T

    def entropy(self, params):
        return jnp.trace(params["scale"]) + jnp.linalg.slogdet(self.axes)[1]

    def density(self, params):
        root = self.axes @ self.scale(params)
        loc = self.origin + self.axes @ params["loc"]
        triangular = jnp.linalg.qr(root.T, mode="r").T
        triangular = triangular * jnp.sign(jnp.diag(triangular))
        return dist.MultivariateNormal(loc, scale_tril=triangular)


@dataclasses.dataclass(frozen=True, slots=True)
class LowRank:
    """z = loc + exp(log_scale) noise + factors more noise; rank 0 is the diagonal guide."""

    num_noise: int
    params: dict[str, jax.Array]

    @classmethod
    def start(cls, loc, rank, rng_key, log_scale=None) -> "LowRank":
        log_scale = jnp.full_like(loc, -1.0) if log_scale is None else log_scale
        # Zero factors would be a saddle point.
        factors = 0.3 * jnp.exp(log_scale)[:, None] * jax.random.normal(rng_key, (loc.size, rank))
        params = {"loc": loc, "log_scale": log_scale, "factors": factors}
        return cls(loc.size + rank, params)

    def place(self, params, noise):
        size = params["loc"].size
        own, common = noise[..., :size], noise[..., size:]
        return params["loc"] + own * jnp.exp(params["log_scale"]) + common @ params["factors"].T

    def entropy(self, params):
        scaled = params["factors"] * jnp.exp(-params["log_scale"])[:, None]
        inner = jnp.eye(scaled.shape[1]) + scaled.T @ scaled
        return params["log_scale"].sum() + 0.5 * jnp.linalg.slogdet(inner)[1]

    def density(self, params):
        return dist.LowRankMultivariateNormal(
            params["loc"], params["factors"], jnp.exp(2 * params["log_scale"])
        )


def choose_guide(guide: str, size: int) -> str:
    """The name of the guide for this many parameters. Raises ValueError for an unknown name."""
    if guide == "auto":
        return "full_rank" if size <= FULL_RANK_UP_TO else "low_rank"
    if guide not in ("full_rank", "low_rank"):
        raise ValueError(f"guide must be 'auto', 'full_rank' or 'low_rank', got {guide!r}.")
    return guide


def matched_noise(rng_key: jax.Array, num_draws: int, size: int) -> jax.Array:
    """Normal draws [num_draws, size] with mean exactly 0 and covariance exactly the identity.

    At least 2 * size draws are made: fewer cannot have full covariance.
    """
    half = jax.random.normal(rng_key, (max(num_draws // 2, size + 1), size))
    covariance = half.T @ half / len(half)
    half = jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(covariance), half.T, lower=True).T
    return jnp.concatenate([half, -half])


def judge(log_ratios: np.ndarray, gain: float) -> Status:
    """Whether a Gaussian fit may be believed.

    Args:
      log_ratios: [draw] log p(z, data) - log q(z) in nats at fresh draws of the guide.
      gain: nats of ELBO that the optimiser left, by a quadratic model.
    """
    _, pareto_k = pareto_smooth(log_ratios)
    limit = max_pareto_k(len(log_ratios))
    diagnostics = {
        "elbo": float(log_ratios.mean()),
        "pareto_k": pareto_k,
        "log_ratio_sd": float(log_ratios.std()),
        "gain_left": gain,
    }
    if not (np.isfinite(log_ratios.mean()) and np.isfinite(gain)):
        return Status(Outcome.NOT_FINITE, "the ELBO is not finite.", diagnostics)
    if gain > SETTLED_WITHIN:
        return Status(
            Outcome.NOT_SETTLED, f"about {gain:.2g} nats of ELBO were left to gain.", diagnostics
        )
    if pareto_k >= limit:
        return Status(Outcome.PARETO_K, f"Pareto k-hat {pareto_k:.2f} >= {limit:.2f}.", diagnostics)
    return Status(Outcome.CONVERGED, f"Pareto k-hat {pareto_k:.2f} < {limit:.2f}.", diagnostics)


def _maximise(target, family, noise, arrays, num_steps):
    """Params at which the ELBO on this noise is largest, and the gain left in nats."""
    flat, unravel = ravel_pytree(family.params)
    place = jax.jit(lambda flat: family.place(unravel(flat), noise))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def pull_back(flat, slopes):
        # Its gradient is the ELBO's, given the log density's gradient at every draw.
        linear = (slopes * family.place(unravel(flat), noise)).sum(-1).mean()
        entropy = family.entropy(unravel(flat))
        return linear + entropy, entropy

    def objective(x):
        flat_x = jnp.asarray(x, flat.dtype)
        values, slopes = target.slopes(place(flat_x), arrays)
        (_, entropy), slope = pull_back(flat_x, slopes)
        return -float(values.mean(dtype=np.float64) + entropy), -np.asarray(slope, np.float64)

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


def _in_blocks(function, z):
    """The function's outputs over all rows of z, computed in blocks of one fixed size."""
    padded = jnp.pad(z, ((0, -len(z) % _AT_ONCE), (0, 0)), mode="edge")
    blocks = [function(padded[i : i + _AT_ONCE]) for i in range(0, len(z), _AT_ONCE)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(z)], *blocks)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))
