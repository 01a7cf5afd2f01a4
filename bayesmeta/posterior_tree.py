"""Draws of any program as an ArviZ DataTree."""

import importlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

_PACKAGES = ("bayesmeta", "jax", "numpyro", "arviz", "xarray")
#: Language of a program -> the module that runs it, and the packages that it needs besides.
_STRUCTURE = {
    "numpyro": ("bayesmeta.inference.structure", ()),
    "pyro": ("bayesmeta.inference.pyro_structure", ("torch", "pyro-ppl")),
}


def datatree(
    result: Any,
    model: Callable[..., Any],
    model_args: tuple[Any, ...],
    *,
    observed: Mapping[str, Any],
    constant: Mapping[str, Any],
    coords: Mapping[str, Sequence[Any]],
    dims: Mapping[str, list[str]],
    attributes: Mapping[str, Any],
    language: Literal["numpyro", "pyro"] = "numpyro",
) -> xr.DataTree:
    """Assemble every group that ArviZ can use from an engine's draws.

    Args:
      result: a `bayesmeta.inference.fit_result.FitResult`.
      model, model_args: the program and the arrays it was fitted to.
      observed, constant: variables of the groups ``observed_data`` and ``constant_data``.
      coords, dims: for all groups, as for ``arviz.from_dict``.
      attributes: what identifies the fit; settings, status, versions, time and device are added.
      language: what the program is written in.
    """
    import arviz as az
    import jax

    module, packages = _STRUCTURE[language]
    structure = importlib.import_module(module)
    latent = structure.latent_sites(model, *model_args)
    draws = {name: result.samples[name] for name in latent}
    log_prior, log_likelihood, deterministic = structure.site_log_probs(model, draws, *model_args)
    predictive = structure.posterior_predictive(
        model, draws, *model_args, rng_seed=result.settings["rng_seed"]
    )
    tree = az.from_dict(
        {
            "posterior": {**draws, **deterministic},
            "posterior_predictive": predictive,
            "log_likelihood": log_likelihood,
            "sample_stats": dict(result.sample_stats),
            "observed_data": {name: np.asarray(value) for name, value in observed.items()},
            "constant_data": {name: np.asarray(value) for name, value in constant.items()},
        },
        coords=dict(coords),
        dims=dict(dims),
    )
    # On its own, because its variables have the names of the sites but not their dimensions.
    tree["log_prior"] = az.from_dict({"log_prior": log_prior})["log_prior"]
    tree.attrs = {
        **attributes,
        **{f"setting_{name}": value for name, value in result.settings.items()},
        "status": result.status.outcome.name,
        "status_detail": result.status.detail,
        "diagnostics": json.dumps(result.status.diagnostics, sort_keys=True),
        "seconds": result.seconds,
        "device": result.settings.get("device", jax.devices()[0].platform),
        "packages": json.dumps({p: importlib.metadata.version(p) for p in (*_PACKAGES, *packages)}),
    }
    return tree
