"""Every cell of the table of proofs, and the code that each depends on."""

import ast
import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
from pathlib import Path

from bayesmeta.proof_cells import ProofCell

#: Modules with a function ``cells()``, in the order of the table.
MODULES = ("bayesmeta.proof_cells", "bayesmeta.proof_reasoning", "bayesmeta.proof_selection")
#: Packages outside this one that a result may depend on.
_PACKAGES = ("jax", "numpyro")


def catalogue() -> list[ProofCell]:
    """All cells, each with the module that it comes from."""
    return [
        dataclasses.replace(cell, source=name)
        for name in MODULES
        for cell in importlib.import_module(name).cells()
    ]


@functools.cache
def fingerprint(module: str) -> str:
    """Of the source of a module and of all that it imports from this package, at whatever depth
    and however late, and of the versions below.

    So a cell is computed again when code that it may run has changed, and only then.
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    digest = hashlib.sha256(" ".join(versions).encode())
    for name in sorted(imported_from_here(module)):
        digest.update(name.encode() + _source(name))
    return digest.hexdigest()


def imported_from_here(module: str) -> set[str]:
    """The module and every module of this package that it imports, directly or not."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(_source(name))
    return found


def _imports(source: bytes) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            # What is imported may be a module itself.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    package = __name__.partition(".")[0]
    return [name for name in names if name.startswith(f"{package}.") and _file(name) is not None]


@functools.cache
def _file(module: str) -> Path | None:
    """Where a module's source is; None for what is no module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent is a module, not a package
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _source(module: str) -> bytes:
    file = _file(module)
    if file is None:
        raise ModuleNotFoundError(f"no module {module!r} in this package.")
    return file.read_bytes()
