"""A NumPyro program taken apart: log prior site by site, and log likelihood, over flat vectors.

Streaming needs the parts, because forgetting raises the prior and what was learned before to
powers that differ between sites.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from bayesmeta.inference.structure import trace_sites


@dataclasses.dataclass(frozen=True, slots=True)
class StreamProgram:
    """A program over unconstrained vectors z [P], its latent sites one after another.

    Attributes:
      model: the program, in the coordinates that it is sampled in.
      sites: (name, unconstrained shape) of each latent site, in the order of z.
    """

    model: Callable[..., Any]
    sites: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, model: Callable[..., Any], *model_args: Any) -> "StreamProgram":
        """Raises ValueError where a latent site is discrete, or there is none."""
        sites = []
        for name, site in trace_sites(model, *model_args).items():
            if site["type"] != "sample" or site["is_observed"]:
                continue
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"latent site {name!r} is discrete, which no Gaussian describes. Sum it out "
                    "in the program, one factor per task."
                )
            shape = biject_to(site["fn"].support).inverse_shape(site["fn"].shape())
            sites.append((name, tuple(shape)))
        if not sites:
            raise ValueError("the program has no latent site, so there is nothing to learn.")
        return cls(model, tuple(sites))

    @property
    def slices(self) -> dict[str, slice]:
        """Where each site lies in z."""
        ends = np.cumsum([0, *(int(np.prod(shape)) for _, shape in self.sites)]).tolist()
        return {name: slice(*ends[i : i + 2]) for i, (name, _) in enumerate(self.sites)}

    @property
    def size(self) -> int:
        """P."""
        return sum(int(np.prod(shape)) for _, shape in self.sites)

    def per_coordinate(self, values: dict[str, float]) -> np.ndarray:
        """[P] with each site's value at all its coordinates."""
        return np.concatenate(
            [np.full(int(np.prod(shape)), values[name]) for name, shape in self.sites]
        )

    def trace(self, z: Float[Array, " P"], *model_args: Any) -> dict[str, dict[str, Any]]:
        """One run of the program with its latent sites at z."""
        named = {
            name: z[self.slices[name]].reshape(shape)  # static slices, so cheap when traced
            for name, shape in self.sites
        }

        def value(site):
            if site["type"] == "sample" and site["name"] in named:
                return biject_to(site["fn"].support)(named[site["name"]])
            return None

        seeded = handlers.seed(self.model, jax.random.key(0))
        return handlers.trace(handlers.substitute(seeded, substitute_fn=value)).get_trace(
            *model_args
        )

    def log_terms(
        self, z: Float[Array, " P"], *model_args: Any
    ) -> tuple[Float[Array, " sites"], Float[Array, ""]]:
        """Log prior density of z, site by site, change of variables included, and log likelihood.

        All in nats. The sum of both is the log joint density over z.
        """
        log_prior, log_likelihood = {}, jnp.zeros((), z.dtype)
        for name, site in self.trace(z, *model_args).items():
            if site["type"] != "sample":
                continue
            term = jnp.sum(site["fn"].log_prob(site["value"]))
            if site["scale"] is not None:
                term = term * site["scale"]
            if name in self.slices:
                to = biject_to(site["fn"].support)
                raw = z[self.slices[name]].reshape(dict(self.sites)[name])
                log_prior[name] = term + jnp.sum(to.log_abs_det_jacobian(raw, site["value"]))
            else:
                log_likelihood = log_likelihood + term
        return jnp.stack([log_prior[name] for name, _ in self.sites]), log_likelihood

    def constrained(self, z: Float[Array, " P"], *model_args: Any) -> dict[str, Array]:
        """Latent and deterministic sites at z, without raw coordinates of reparametrised ones."""
        return {
            name: site["value"]
            for name, site in self.trace(z, *model_args).items()
            if (name in self.slices or site["type"] == "deterministic")
            and not name.endswith("_decentered")
        }
