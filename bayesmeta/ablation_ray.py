"""The cells of an ablation on the processes of a Ray cluster, or of this machine."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesmeta.ablation import Job


def require_ray() -> Any:
    """The module ``ray``. Raises ModuleNotFoundError, with the remedy, where it is absent."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "ray is not installed, so the cells cannot run in parallel. Install it with: "
            "pip install 'bayesmeta[ray]', or run without it, one cell after another.",
            name="ray",
        ) from error
    return ray


def compute_with_ray(jobs: "Sequence[Job]") -> "Iterator[Job]":
    """Compute every job, as many at once as there are processors; yield each as it is done.

    A cluster that is running is used, otherwise one is started on this machine and stopped
    afterwards. Every process writes its own cells, so that a kill loses only unfinished ones.
    """
    ray = require_ray()
    # Ray warns of this choice otherwise: without accelerators asked for, it hides none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    started = not ray.is_initialized()
    if started:
        with warnings.catch_warnings():
            # Ray forks to start its servers, which take nothing of JAX with them.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        remote = ray.remote(max_retries=2)(_compute)
        waiting = {remote.remote(job): job for job in jobs}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            ray.get(ready[0])
            yield waiting.pop(ready[0])
    finally:
        if started:
            ray.shutdown()


def _compute(job: "Job") -> None:
    from bayesmeta.ablation import compute

    compute(job)
