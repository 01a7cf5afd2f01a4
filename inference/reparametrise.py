"""Other coordinates for the same posterior."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import ndtr
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam, Reparam


def reparametrise(
    model: Callable[..., Any], decenter: tuple[str, ...] = (), gaussianise: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """The same program in other coordinates; the prior and posterior of every site unchanged.

    Args:
      model: a NumPyro program.
      decenter: location-scale sites to sample as loc + scale * raw. Worth it where data per
        group are few: there the scale and the group effects form a funnel. Leave centred where
        they are many.
      gaussianise: sites to sample as quantile(Phi(raw)) with raw ~ N(0, 1). For Gaussian guides:
        on a log scale a scale parameter has an exponential tail towards zero that no Gaussian
        covers.
    """
    config: dict[str, Reparam] = {name: LocScaleReparam(0.0) for name in decenter}
    config |= {name: QuantileReparam() for name in gaussianise}
    return handlers.reparam(model, config=config)


class QuantileReparam(Reparam):
    """Sample a site as the quantile of a standard normal draw."""

    def __call__(self, name, fn, obs):
        if obs is not None:
            raise ValueError(f"site {name!r} is observed; only latent sites can be reparametrised.")
        fn, expand_shape, event_dim = self._unwrap(fn)
        raw = numpyro.sample(
            f"{name}_decentered",
            self._wrap(dist.Normal(jnp.zeros(()), 1.0), expand_shape, event_dim),
        )
        # Beyond five standard deviations float32 cannot tell the probability from 0 or 1.
        return None, fn.icdf(ndtr(jnp.clip(raw, -5.0, 5.0)))
