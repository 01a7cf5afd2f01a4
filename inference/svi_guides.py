"""Gaussian guides: full rank, and low rank plus diagonal.

A guide turns standard normal noise into draws by a linear map. ``place`` is that map for given
params, ``entropy`` its log volume in nats, both differentiable; ``density`` is the normal
distribution that the draws have.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

#: Above this many parameters a full covariance costs more than it explains.
FULL_RANK_UP_TO = 200


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class FullRank:
    """z = origin + axes (loc + scale noise), with a lower triangular scale to be fitted.

    In the coordinates that ``origin`` and ``axes`` define, the posterior is about standard normal.
    """

    origin: jax.Array
    axes: jax.Array
    num_noise: int = dataclasses.field(metadata={"static": True})
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class LowRank:
    """z = loc + exp(log_scale) noise + factors more noise; rank 0 is the diagonal guide."""

    num_noise: int = dataclasses.field(metadata={"static": True})
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
