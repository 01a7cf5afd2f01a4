"""XLA's settings for programs of our own: commands and tests. A library does not touch them."""

import os

_LEVEL = "--xla_backend_optimization_level"


def compile_quickly() -> None:
    """Have everything compiled as `bayesmeta.inference.compilation` has samplers compiled.

    Unless the environment variable ``XLA_FLAGS`` already sets a level. Call it before JAX computes
    anything, which is when that is read.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _LEVEL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_LEVEL}=2".strip()
