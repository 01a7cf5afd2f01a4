"""From evidence to a posterior over strategies, in one call."""

import importlib
from collections.abc import Callable
from typing import Any, Literal

import xarray as xr

from bayesmeta.tasks import REFLECT

#: The engines `fit` knows by name. Each is `bayesmeta.inference.<name>.<name>`.
ENGINES = ("nuts", "svi", "whitened_nuts")


def fit(
    evidence: xr.Dataset,
    prior: Any = None,
    *,
    engine: Literal["nuts", "svi", "whitened_nuts"] | Callable[..., Any] = "nuts",
    beta: float | Literal["held_out", "infer"] = 1.0,
    rng_seed: int = 0,
    **settings: Any,
) -> xr.DataTree:
    """Fit the Figure 2 model to the reflect tasks of some evidence.

    Args:
      evidence: validated evidence; held-out tasks are never looked at. Evidence without any
        reflect task is refused.
      prior: a `bayesmeta.models.prior.Prior`; None for the hierarchical default.
      engine: ``"nuts"`` (the reference), ``"whitened_nuts"`` (the same posterior, faster for
        thousands of tasks), ``"svi"`` (fast, approximate), or a callable with the signature of
        `bayesmeta.inference.nuts.nuts`.
      beta: inverse temperature of the language model's scores. A number; ``"held_out"``, chosen
        by cross-validated log score on the reflect tasks; or ``"infer"``, given a prior and
        inferred, which is sound because scores are renormalised over candidates.
      rng_seed: fixes every draw.
      settings: passed to the engine (``num_chains``, ``num_samples``, ...).

    Returns:
      A DataTree for ArviZ: ``posterior``, ``posterior_predictive``, ``log_likelihood`` by task,
      ``log_prior`` by site, ``sample_stats``, ``observed_data``, ``constant_data``. The attribute
      ``status`` says whether to believe it; ask `bayesmeta.posterior.check_converged`.
    """
    from bayesmeta.arrays import Encoding, figure2_data
    from bayesmeta.evidence_io import content_hash
    from bayesmeta.models.figure2 import HIERARCHICAL, HIERARCHICAL_BETA, figure2
    from bayesmeta.posterior import to_datatree
    from bayesmeta.temperature import choose_beta

    reflect = reflect_part(evidence)
    if reflect.sizes["task"] == 0:
        raise ValueError(
            f"no task of the evidence has split {REFLECT!r}, so there is nothing to fit. "
            "Mark the tasks to learn from with split='reflect'."
        )
    if prior is None:
        prior = HIERARCHICAL_BETA if beta == "infer" else HIERARCHICAL
    infer_beta = "beta" in prior.sites
    if (beta == "infer") != infer_beta:
        raise ValueError(
            f"beta={beta!r} does not go with prior {prior.name!r}, which "
            f"{'infers' if infer_beta else 'does not infer'} beta. Use beta='infer' with a prior "
            "that has a site 'beta', such as HIERARCHICAL_BETA."
        )
    if beta == "held_out":
        beta = choose_beta(reflect)
    fixed_beta = 1.0 if beta == "infer" else float(beta)
    encoding = Encoding.of(reflect)
    data = figure2_data(reflect, encoding, beta=fixed_beta, keep_scores=infer_beta)
    if engine in ("nuts", "svi"):
        # Domains with few tasks make a funnel, which raw coordinates straighten.
        settings.setdefault("decenter", ("v",))
    result = _engine(engine)(figure2, data, prior, rng_seed=rng_seed, **settings)
    return to_datatree(
        result,
        figure2,
        (data, prior),
        evidence=reflect,
        encoding=encoding,
        attributes={
            "model": "figure2",
            "prior": prior.to_json(),
            "beta": "infer" if infer_beta else fixed_beta,
            "evidence_hash": content_hash(reflect),
        },
    )


def reflect_part(evidence: xr.Dataset) -> xr.Dataset:
    """The tasks that a fit learns from; their hash identifies what a posterior has seen."""
    return evidence.isel(task=evidence["split"].values == REFLECT)


def _engine(engine: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(engine):
        return engine
    if engine in ENGINES:
        return getattr(importlib.import_module(f"bayesmeta.inference.{engine}"), engine)
    raise ValueError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}, or pass a callable.")
