"""How XLA is asked to compile samplers."""

from typing import Any

import jax


def compiler_options() -> dict[str, Any]:
    """For `jax.jit` and for compiling what it has lowered.

    On CPUs the second of LLVM's three levels, which compiles a sampler sooner; that it then runs
    slower was not seen. Results differ between levels by rounding.
    """
    return {"xla_backend_optimization_level": 2} if jax.default_backend() == "cpu" else {}
