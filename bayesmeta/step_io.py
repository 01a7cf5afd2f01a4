"""Observed steps on disk: a netCDF-4 file, written whole."""

import os
from pathlib import Path

import numpy as np
import xarray as xr

from bayesmeta.atomic import atomic_write
from bayesmeta.evidence_schema import EvidenceError


def save_steps(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write what `observe_steps` returned, replacing ``path`` at once or not at all.

    Log-probabilities are stored in double precision, because they are renormalised.

    Raises:
      OSError: the disk is full or the folder cannot be written; an older file stays as it was.
    """
    packed = {name: {"zlib": True} for name in dataset if dataset[name].dtype.kind in "fib"}
    image = bytes(dataset.to_netcdf(engine="h5netcdf", encoding=packed))

    def write(part: Path) -> None:
        part.write_bytes(image)

    return atomic_write(path, write)


def load_steps(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read what `save_steps` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      EvidenceError: the file is damaged, is not netCDF-4, or does not hold steps.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file of steps {path}. Check the name, or make one with observe_steps and "
            "bayesmeta.step_io.save_steps."
        )
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf", decode_times=False)
    except PermissionError:
        raise
    # A damaged file can surface in HDF5's bindings as nearly any exception.
    except Exception as error:
        raise EvidenceError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as netCDF-4: {error}. It is "
            "truncated, damaged or of another format. Observe the steps again."
        ) from error
    if "log_pi" not in dataset:
        raise EvidenceError(
            f"{path} holds {sorted(map(str, dataset.data_vars))} and no log_pi, so it is "
            "not a file of steps. For whole answers use bayesmeta.load_evidence."
        )
    return dataset.assign(
        {n: dataset[n].astype(bool) for n in ("used", "seen") if n in dataset}
    ).assign_coords(
        {n: dataset[n].astype(str).astype(np.object_) for n in ("task", "skill") if n in dataset}
    )
