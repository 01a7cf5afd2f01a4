"""How XLA is asked to compile samplers."""

from typing import Any

import jax


def compiler_options() -> dict[str, Any]:
    """For `jax.jit` and for compiling what it has lowered.

    On CPUs the second of LLVM's three levels: samplers then compile in well under half the time
    and run no slower, as their loops are short and mostly wait for memory.
    """
    return {"xla_backend_optimization_level": 2} if jax.default_backend() == "cpu" else {}
