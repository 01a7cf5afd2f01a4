"""Coordinates for random points of a simplex, also where most of their mass is at the corners."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr
from numpyro.distributions import transforms
from numpyro.infer.reparam import Reparam


class DirichletReparam(Reparam):
    """Sample a Dirichlet site through what its concentration does not shape.

    Gamma variables of shape a, normalised, are Dirichlet(a), and Gamma(a) is Gamma(a + 1) times
    U^(1/a) with U uniform (Marsaglia & Tsang 2000). Here U = Phi(r) with r ~ N(0, 1), and Gamma
    enters by its logarithm, standardised. Concentrations below 1 put points so near to an edge
    that neither stick-breaking nor its gradient survives rounding; these coordinates stay of order
    one, and an unknown concentration makes no funnel with the points. Twice as many coordinates
    is the price.
    """

    def __call__(self, name, fn, obs):
        if obs is not None:
            raise ValueError(f"site {name!r} is observed; only latent sites can be reparametrised.")
        base = fn
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if not isinstance(base, dist.Dirichlet):
            raise ValueError(
                f"site {name!r} has a {type(base).__name__} distribution; only Dirichlet sites "
                "can be named here."
            )
        concentration = jnp.broadcast_to(base.concentration, fn.shape())
        dims = concentration.ndim
        # About the mean and sd of the logarithm of a Gamma variable of this shape.
        shape = concentration + 1.0
        standardise = transforms.AffineTransform(
            jnp.log(shape) - 0.5 / shape, 1 / jnp.sqrt(shape - 0.4)
        )
        law = dist.TransformedDistribution(
            dist.Gamma(shape), [transforms.ExpTransform().inv, standardise.inv]
        )
        y = numpyro.sample(f"{name}_gamma_decentered", law.to_event(dims))
        log_gamma = standardise(jnp.asarray(y))
        r = numpyro.sample(
            f"{name}_uniform_decentered",
            dist.Normal(jnp.zeros_like(concentration), 1.0).to_event(dims),
        )
        return None, jax.nn.softmax(log_gamma + log_ndtr(jnp.asarray(r)) / concentration, -1)
