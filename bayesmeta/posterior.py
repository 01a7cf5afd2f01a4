"""The posterior as an ArviZ DataTree: made, judged, saved and loaded."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from bayesmeta.arrays import Encoding
from bayesmeta.atomic import atomic_write
from bayesmeta.posterior_tree import datatree

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
    """Draws of Figure 2 with the names of its skills, domains, features and tasks.

    Args:
      result: a `bayesmeta.inference.fit_result.FitResult`.
      model, model_args: the program and the arrays it was fitted to.
      evidence: the tasks that were fitted, for coordinates and hashes.
      encoding: names of skills, domains and features.
      attributes: what identifies the fit: ``model``, ``prior``, ``beta``, ``evidence_hash``.
      language: what the program is written in.
    """
    data = model_args[0]
    return datatree(
        result,
        model,
        model_args,
        observed={"O": _observed(data)},
        constant={
            "x": encoding.standardise(evidence),
            "domain_of_task": data.domain,
            "feature_mean": encoding.feature_mean,
            "feature_scale": encoding.feature_scale,
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
        attributes={**attributes, "llm": str(evidence.attrs.get("model", ""))},
        language=language,
    )


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
