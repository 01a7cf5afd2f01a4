"""A NumPyro program as a log density over flat unconstrained vectors, many at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer import init_to_median, initialize_model

from bayesmeta.inference.array_args import ArrayArgs

#: Draws that one vectorised evaluation of the program handles: bounds memory.
_AT_ONCE = 16


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
        args, _ = ArrayArgs.of(model_args)
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
            return -info.potential_fn(*args.filled(arrays))(unravel(z))

        def constrain(z, arrays):
            return info.postprocess_fn(*args.filled(arrays))(unravel(z))

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


def array_leaves(model_args: tuple[Any, ...]) -> list[Any]:
    """The arrays among the leaves of some arguments; the rest (a prior, say) never changes."""
    return ArrayArgs.of(model_args)[1]


def _in_blocks(function, z):
    """The function's outputs over all rows of z, computed in blocks of one fixed size."""
    padded = jnp.pad(z, ((0, -len(z) % _AT_ONCE), (0, 0)), mode="edge")
    blocks = [function(padded[i : i + _AT_ONCE]) for i in range(0, len(z), _AT_ONCE)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(z)], *blocks)
