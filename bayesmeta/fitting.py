"""From evidence to a posterior over strategies, in one call."""

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import xarray as xr

from bayesmeta.tasks import REFLECT

#: The engines `fit` knows by name. Each is `bayesmeta.inference.<name>.<name>`.
PYRO_ENGINES = ("pyro_nuts", "pyro_svi")
ENGINES = ("nuts", "svi", "whitened_nuts", "whitened_hmc", *PYRO_ENGINES)


def fit(
    evidence: xr.Dataset,
    prior: Any = None,
    *,
    engine: Literal["nuts", "svi", "whitened_nuts", "whitened_hmc", "pyro_nuts", "pyro_svi"]
    | Callable[..., Any] = "nuts",
    graph: Any = None,
    beta: float | Literal["held_out", "infer"] = 1.0,
    rng_seed: int = 0,
    allow_unidentified: bool = False,
    **settings: Any,
) -> xr.DataTree:
    """Fit the Figure 2 model to the reflect tasks of some evidence.

    Args:
      evidence: validated evidence; held-out tasks are never looked at. Evidence without any
        reflect task is refused.
      prior: a `bayesmeta.models.prior.Prior`, or the name of one in
        `bayesmeta.models.priors.PRIORS`; None for the hierarchical default.
      engine: ``"nuts"`` (the reference), ``"whitened_nuts"`` and ``"whitened_hmc"`` (the
        same posterior, faster and fastest for thousands of tasks), ``"svi"`` (fast, approximate),
        ``"pyro_nuts"`` or ``"pyro_svi"`` (the same model written in Pyro, an independent check),
        or a callable with the signature of `bayesmeta.inference.nuts.nuts`.
      beta: inverse temperature of the language model's scores. A number; ``"held_out"``, chosen
        by cross-validated log score on the reflect tasks; or ``"infer"``, given a prior and
        inferred, which is sound because scores are renormalised over candidates.
      graph: how Figure 2 is read: a `bayesmeta.models.graph.Graph`, or the name of one in
        ``GRAPHS`` there; None for the working model. Sites that the prior lacks get their default
        entry.
      rng_seed: fixes every draw.
      allow_unidentified: fit even where these data cannot inform a parameter, whose posterior is
        then its prior; otherwise `bayesmeta.models.identify.UnidentifiedError`.
      settings: passed to the engine (``num_chains``, ``num_samples``, ...).

    Returns:
      A DataTree for ArviZ: ``posterior``, ``posterior_predictive``, ``log_likelihood`` by task,
      ``log_prior`` by site, ``sample_stats``, ``observed_data``, ``constant_data``. The attribute
      ``status`` says whether to believe it; ask `bayesmeta.posterior.check_converged`.
    """
    from bayesmeta.evidence_io import content_hash
    from bayesmeta.models.figure2 import HIERARCHICAL, HIERARCHICAL_BETA
    from bayesmeta.models.graph import WORKING, named_graph
    from bayesmeta.models.priors import named_prior
    from bayesmeta.posterior import to_datatree
    from bayesmeta.programs import program_for
    from bayesmeta.temperature import choose_beta

    reflect = reflect_part(evidence)
    if reflect.sizes["task"] == 0:
        raise ValueError(
            f"no task of the evidence has split {REFLECT!r}, so there is nothing to fit. "
            "Mark the tasks to learn from with split='reflect'."
        )
    if prior is None:
        prior = HIERARCHICAL_BETA if beta == "infer" else HIERARCHICAL
    elif isinstance(prior, str):
        prior = named_prior(prior)
    graph = WORKING if graph is None else named_graph(graph) if isinstance(graph, str) else graph
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
    language = "pyro" if engine in ("pyro_nuts", "pyro_svi") else "numpyro"
    program = program_for(
        reflect,
        prior,
        graph,
        beta=fixed_beta,
        allow_unidentified=allow_unidentified,
        language=language,
    )
    if engine in ("nuts", "svi", "pyro_nuts", "pyro_svi") and _has_effects(program.prior):
        # Domains with few tasks make a funnel, which raw coordinates straighten.
        settings.setdefault("decenter", ("v",))
    model_args = (program.data, program.prior)
    result = _engine(engine)(program.model, *model_args, rng_seed=rng_seed, **settings)
    return to_datatree(
        result,
        program.model,
        model_args,
        evidence=reflect,
        encoding=program.encoding,
        attributes={
            "model": "figure2",
            "graph": graph.to_json(),
            "prior": program.prior.to_json(),
            "beta": "infer" if infer_beta else fixed_beta,
            "evidence_hash": content_hash(reflect),
        },
        language=language,
    )


def _has_effects(prior: Any) -> bool:
    """Whether domains have effects of a scale that is inferred."""
    return prior["tau_E"].fixed is None


def reflect_part(evidence: xr.Dataset) -> xr.Dataset:
    """The tasks that a fit learns from; their hash identifies what a posterior has seen."""
    return evidence.isel(task=evidence["split"].values == REFLECT)


def _engine(engine: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(engine):
        return engine
    if engine in PYRO_ENGINES and find_spec("pyro") is None:
        raise ImportError(
            f"engine {engine!r} needs Pyro, which is absent: install bayesmeta[pyro]."
        )
    if engine in ENGINES:
        return getattr(importlib.import_module(f"bayesmeta.inference.{engine}"), engine)
    raise ValueError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}, or pass a callable.")
