"""Evidence on disk: a netCDF-4 file that is written whole, compressed and sealed by a hash."""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bayesmeta.atomic import atomic_write
from bayesmeta.evidence_check import validate
from bayesmeta.evidence_schema import COORDINATES, VARIABLES, EvidenceError

#: A chunk holds the rows of some tasks and about this many bytes: small enough for HDF5's chunk
#: cache, so that reading consecutive tasks inflates each chunk once.
_CHUNK_BYTES = 2**18
_HASH = "content_hash"
_LONG_TEXTS = tuple(n for n, v in VARIABLES.items() if v.optional and v.dtype == "text")


def content_hash(evidence: xr.Dataset) -> str:
    """SHA-256 of all variables, coordinates and attributes but ``content_hash`` itself, as hex.

    It depends on the content only, not on the order of variables, on byte order or on padding in
    the file. Arrays are fed in slices, so nothing large is copied.
    """
    digest = hashlib.sha256()
    names = sorted(map(str, evidence.variables))
    for name in names:
        array = _canonical(name, evidence.variables[name].values)
        head = [name, list(map(str, evidence.variables[name].dims)), array.dtype.str, array.shape]
        digest.update(_canonical_json(head))
        for piece in _pieces(array):
            digest.update(piece)
    digest.update(_canonical_json(_plain_attributes(evidence)))
    return digest.hexdigest()


def save(evidence: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Validate evidence and write it as netCDF-4, replacing ``path`` at once or not at all.

    The file can be read by anything that reads netCDF. The attribute ``content_hash`` is computed
    afresh; the dataset passed in is not changed.

    Raises:
      EvidenceError: the evidence breaks its schema.
      OSError: the disk is full or the folder cannot be written; an older file stays as it was.
    """
    validate(evidence)
    # HDF5 does not survive a full disk, so it writes into memory, and plain file calls to disk.
    image = io.BytesIO()
    _write_netcdf(evidence, image, _plain_attributes(evidence) | {_HASH: content_hash(evidence)})

    def write(part: Path) -> None:
        with open(part, "wb") as file:
            file.write(image.getbuffer())

    return atomic_write(path, write)


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read evidence into memory and check its schema and its hash.

    Text comes back as arrays of Python strings, so a long trace does not pad the others.

    Raises:
      FileNotFoundError: there is no such file.
      EvidenceError: the file is damaged, is not netCDF, breaks the schema, is of another schema
        version, or differs from its hash.
    """
    path = _existing(path)
    try:
        evidence = _read_netcdf(path)
    except EvidenceError:
        raise
    except PermissionError:
        raise
    # A damaged file can surface in HDF5's bindings as nearly any exception.
    except Exception as error:
        raise EvidenceError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as netCDF-4: {error}. It is "
            "truncated, damaged or of another format. Get it again or observe again."
        ) from error
    try:
        return validate(evidence, check_hash=True)
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}") from error


def open_lazy(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open evidence without reading it, for evidence larger than memory.

    Use as a context manager. A slice of consecutive tasks is read when it is asked for:

        with open_lazy(path) as evidence:
            block = evidence["log_likelihood"].isel(task=slice(i, j)).values

    Consecutive tasks share chunks, so visit blocks in random order rather than single tasks.
    Task ids, domains and splits are read at once; questions, candidates and traces as text are
    left out. Neither the cells nor the hash are checked: `load` does that, once, beforehand.

    Raises:
      FileNotFoundError: there is no such file.
      EvidenceError: the file is not netCDF-4.
    """
    path = _existing(path)
    try:
        _probe(path)
        return xr.open_dataset(
            path,
            engine="h5netcdf",
            drop_variables=_LONG_TEXTS,
            cache=False,
            decode_times=False,
            mask_and_scale=False,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EvidenceError(
            f"{path} cannot be opened as netCDF-4: {error}. It is truncated, damaged or of "
            "another format. Get it again or observe again."
        ) from error


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no evidence file {path}. Check the name, or make one with "
            "`bayesmeta observe`."
        )
    return path


def _canonical(name: str, values: np.ndarray) -> np.ndarray:
    """The values in the type that files hold; text as an object array of str."""
    wanted = VARIABLES[name].dtype if name in VARIABLES else COORDINATES.get(name)
    if wanted is None:  # a variable of the user's own
        wanted = values.dtype.name if values.dtype.kind in "biuf" else "text"
    if wanted == "text":
        return np.asarray(values, dtype=object)
    return np.ascontiguousarray(values, dtype=np.dtype(wanted).newbyteorder("<"))


def _pieces(array: np.ndarray, size: int = 2**16) -> Iterator[bytes | memoryview]:
    flat = array.reshape(-1)
    if array.dtype != object:
        yield memoryview(flat.view(np.uint8))
        return
    for start in range(0, len(flat), size):
        texts = [text.encode() for text in flat[start : start + size].tolist()]
        # The length of each text keeps ("ab", "c") apart from ("a", "bc").
        yield b"".join([len(text).to_bytes(8, "little") + text for text in texts])


def _canonical_json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _plain_attributes(evidence: xr.Dataset) -> dict[str, str | int | float]:
    plain: dict[str, str | int | float] = {}
    for name, value in evidence.attrs.items():
        if name == _HASH:
            continue
        if isinstance(value, (bool, int, np.integer)):
            value = int(value)
        elif isinstance(value, (float, np.floating)):
            value = float(value)
        plain[str(name)] = value if isinstance(value, (int, float)) else str(value)
    return plain


def _write_netcdf(evidence: xr.Dataset, target: io.BytesIO, attrs: dict) -> None:
    import h5netcdf
    import h5py

    rows = _chunk_rows(evidence)
    with h5netcdf.File(target, "w") as file:
        file.dimensions = {str(dim): size for dim, size in evidence.sizes.items()}
        for name in sorted(map(str, evidence.variables)):
            variable = evidence.variables[name]
            values = _canonical(name, variable.values)
            text = values.dtype == object
            settings: dict[str, Any] = {}
            if values.size and values.ndim:
                settings = {
                    "chunks": (min(rows, len(values)), *values.shape[1:]),
                    "compression": "gzip",
                    "compression_opts": 4,
                    "shuffle": not text,
                }
            stored = values.astype(np.int8) if values.dtype == bool else values
            made = file.create_variable(
                name,
                tuple(map(str, variable.dims)),
                dtype=h5py.string_dtype() if text else stored.dtype,
                **settings,
            )
            if values.dtype == bool:
                made.attrs["dtype"] = "bool"  # xarray's own mark for truth values in netCDF
            if values.size:
                made[...] = stored
        file.attrs.update(attrs)


def _chunk_rows(evidence: xr.Dataset) -> int:
    """Tasks to a chunk: one power of two for all variables, so that blocks of tasks align."""
    row = max(1, evidence["log_likelihood"].nbytes // max(1, evidence.sizes["task"]))
    return 2 ** max(10, int(np.log2(_CHUNK_BYTES / row)) if row < _CHUNK_BYTES else 0)


def _read_netcdf(path: Path) -> xr.Dataset:
    import h5netcdf

    _probe(path)
    variables: dict[str, xr.Variable] = {}
    with h5netcdf.File(path, "r", decode_vlen_strings=True) as file:
        attrs = {name: _plain(value) for name, value in file.attrs.items()}
        for name, found in file.variables.items():
            values = found[...]
            if found.attrs.get("dtype") == "bool":
                values = values.astype(bool)
            if COORDINATES.get(name) == "text" and not values.size:
                values = values.astype(object)
            variables[name] = xr.Variable(found.dimensions, values)
    coords = {name: variables.pop(name) for name in COORDINATES if name in variables}
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def _probe(path: Path) -> None:
    """Raise if the head of the file is damaged: h5netcdf's object could not even be closed then."""
    import h5py

    with h5py.File(path, "r") as file:
        dict(file.attrs)


def _plain(value: Any) -> Any:
    """A NumPy scalar, or an array with one element, as the Python value in it."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    return value.item() if isinstance(value, np.generic) else value
