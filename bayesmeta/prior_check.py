"""What a prior says before any answer is seen."""

from typing import Any

import numpy as np
import xarray as xr

from bayesmeta.arrays import Encoding, figure2_data


def prior_predictive(
    evidence: xr.Dataset,
    prior: Any = None,
    *,
    beta: float = 1.0,
    num_samples: int = 500,
    rng_seed: int = 0,
) -> xr.DataTree:
    """Draw strategies and answers from a prior, for the tasks of some evidence.

    Only the tasks' domains and features and the skills' predictions enter, never the answers.

    Args:
      evidence: validated evidence.
      prior: a `bayesmeta.models.prior.Prior`; None for the hierarchical default.
      beta: inverse temperature of the scores, where the prior does not infer it.
      num_samples: draws.
      rng_seed: fixes them.

    Returns:
      DataTree with ``prior`` (every latent and deterministic site) and ``prior_predictive``
      (``O``, dims chain, draw, task), for ArviZ.
    """
    import arviz as az
    import jax
    from numpyro.infer import Predictive

    from bayesmeta.inference.structure import (
        latent_sites,
        posterior_predictive,
        site_log_probs,
    )
    from bayesmeta.models.figure2 import HIERARCHICAL, figure2
    from bayesmeta.posterior import DIMS

    prior = HIERARCHICAL if prior is None else prior
    encoding = Encoding.of(evidence)
    data = figure2_data(evidence, encoding, beta=beta, keep_scores="beta" in prior.sites)
    sites = latent_sites(figure2, data, prior)
    drawn = Predictive(figure2, num_samples=num_samples, return_sites=sites)(
        jax.random.key(rng_seed), data, prior
    )
    draws = {name: np.asarray(value)[None] for name, value in drawn.items()}
    _, _, deterministic = site_log_probs(figure2, draws, data, prior)
    return az.from_dict(
        {
            "prior": {**draws, **deterministic},
            "prior_predictive": posterior_predictive(
                figure2, draws, data, prior, rng_seed=rng_seed
            ),
        },
        coords={
            "skill": list(encoding.skill),
            "domain": list(encoding.domain),
            "feature": list(encoding.feature),
            "task": list(map(str, evidence["task"].values)),
        },
        dims=DIMS,
    )
