"""The posterior as an ArviZ DataTree: made, judged, saved and loaded."""

import importlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from bayesmeta.arrays import Encoding
from bayesmeta.atomic import atomic_write

#: Site -> names of its dimensions after (chain, draw).
DIMS = {
    "u": ["contrast"],
    "U": ["contrast", "feature"],
    "v": ["domain_coordinate", "contrast"],
    "mu": ["skill"],
    "W": ["skill", "feature"],
    "delta": ["domain", "skill"],
    "F": ["domain", "skill"],
    "lambda_E": ["domain_coordinate", "contrast"],
    "V": ["contrast", "evidence_feature"],
    "sigma_F": ["contrast"],
    "corr_F": ["contrast", "other_contrast"],
    "vartheta": ["domain"],
    "O": ["task"],
}
_PACKAGES = ("bayesmeta", "jax", "numpyro", "arviz", "xarray")
#: Language of a program -> the module that runs it, and the packages that it needs besides.
_STRUCTURE = {
    "numpyro": ("bayesmeta.inference.structure", ()),
    "pyro": ("bayesmeta.inference.pyro_structure", ("torch", "pyro-ppl")),
}


class NotConvergedError(RuntimeError):
    """A fit that must not be used; the message says why and what to do."""


def to_datatree(
    result: Any,
    model: Callable[..., Any],
    model_args: tuple[Any, ...],
    *,
    evidence: xr.Dataset,
    encoding: Encoding,
    attributes: Mapping[str, Any],
    language: Literal["numpyro", "pyro"] = "numpyro",
) -> xr.DataTree:
    """Assemble every group that ArviZ can use from an engine's draws.

    Args:
      result: a `bayesmeta.inference.fit_result.FitResult`.
      model, model_args: the program and the arrays it was fitted to.
      evidence: the tasks that were fitted, for coordinates and hashes.
      encoding: names of skills, domains and features.
      attributes: what identifies the fit: ``model``, ``prior``, ``beta``, ``evidence_hash``.
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
    data = model_args[0]
    tree = az.from_dict(
        {
            "posterior": {**draws, **deterministic},
            "posterior_predictive": predictive,
            "log_likelihood": log_likelihood,
            "sample_stats": dict(result.sample_stats),
            "observed_data": {"O": np.asarray(_observed(data))},
            "constant_data": {
                "x": encoding.standardise(evidence),
                "domain_of_task": np.asarray(data.domain),
                "feature_mean": encoding.feature_mean,
                "feature_scale": encoding.feature_scale,
            },
        },
        coords={
            "skill": list(encoding.skill),
            "domain": list(encoding.domain),
            "feature": list(encoding.feature),
            "task": list(map(str, evidence["task"].values)),
        },
        dims={
            **DIMS,
            "x": ["task", "feature"],
            "domain_of_task": ["task"],
            "feature_mean": ["feature"],
            "feature_scale": ["feature"],
        },
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
        "llm": str(evidence.attrs.get("model", "")),
        "device": result.settings.get("device", jax.devices()[0].platform),
        "packages": json.dumps({p: importlib.metadata.version(p) for p in (*_PACKAGES, *packages)}),
    }
    return tree


def _observed(data: Any) -> Any:
    """What was observed of each task: an answer, or a count."""
    seen = getattr(data, "outcome", data)
    return seen.successes if hasattr(seen, "successes") else seen.gold


def check_converged(tree: xr.DataTree) -> None:
    """Raise `NotConvergedError` with advice unless the fit converged."""
    from bayesmeta.inference.status import Outcome, Status

    status = Status(
        Outcome[tree.attrs["status"]],
        tree.attrs["status_detail"],
        json.loads(tree.attrs["diagnostics"]),
    )
    if not status.converged:
        raise NotConvergedError(str(status))


def save_posterior(tree: xr.DataTree, path: str | Path) -> None:
    """Write a posterior to netCDF, atomically."""
    # HDF5 itself must not meet a full disk: it can take the process down. Bytes can.
    image = bytes(tree.to_netcdf(engine="h5netcdf"))
    atomic_write(Path(path), lambda part: _write(part, image))


def _write(part: Path, image: bytes) -> None:
    part.write_bytes(image)


def load_posterior(path: str | Path) -> xr.DataTree:
    """Read a posterior from netCDF.

    Raises:
      ValueError: the file is not a posterior that `save_posterior` wrote.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no posterior at {path}. Make one with `bayesmeta fit`.")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as opened:
            tree = opened.load()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is not a readable posterior ({error}). Fit again with `bayesmeta fit`."
        ) from error
    if "posterior" not in tree.children or "status" not in tree.attrs:
        raise ValueError(
            f"{path} is netCDF but holds no posterior of this package: groups "
            f"{sorted(tree.children)}. Fit again with `bayesmeta fit`."
        )
    return tree


def group(tree: xr.DataTree, name: str) -> xr.Dataset:
    """One group of the tree as a plain dataset."""
    return tree.children[name].to_dataset()


def encoding_of(tree: xr.DataTree) -> Encoding:
    """The encoding that the posterior was fitted with."""
    posterior, constant = group(tree, "posterior"), group(tree, "constant_data")
    return Encoding(
        skill=tuple(map(str, posterior["skill"].values)),
        domain=tuple(map(str, posterior["domain"].values)),
        feature=tuple(map(str, constant["feature"].values)),
        feature_mean=constant["feature_mean"].values,
        feature_scale=constant["feature_scale"].values,
    )
