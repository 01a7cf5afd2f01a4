"""What a prior says before any answer is seen."""

from typing import Any

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

    from bayesmeta.inference.structure import prior_draws
    from bayesmeta.models.figure2 import HIERARCHICAL, figure2
    from bayesmeta.posterior import DIMS

    prior = HIERARCHICAL if prior is None else prior
    encoding = Encoding.of(evidence)
    data = figure2_data(evidence, encoding, beta=beta, keep_scores="beta" in prior.sites)
    draws, answers = prior_draws(figure2, data, prior, num_samples=num_samples, rng_seed=rng_seed)
    return az.from_dict(
        {"prior": draws, "prior_predictive": answers},
        coords={
            "skill": list(encoding.skill),
            "domain": list(encoding.domain),
            "feature": list(encoding.feature),
            "task": list(map(str, evidence["task"].values)),
        },
        dims=DIMS,
    )
