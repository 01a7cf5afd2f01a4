"""The recorded evidence that ships with the package, and how it is made again."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import xarray as xr

from bayesmeta.tasks import HELD_OUT, Task

#: Changing any of these changes the recorded evidence: make it again with `make evidence`.
SEED = 20260
TASKS_PER_FAMILY = 56
HELD_OUT_FRACTION = 0.357
NUM_TRACES = 4

#: Seed of the fresh tasks that `bayesmeta demo` scores live.
FRESH_SEED = 20261


def recorded_path() -> Path:
    """Where the shipped evidence lies."""
    return Path(str(resources.files("bayesmeta") / "data" / "recorded_evidence.nc"))


def recorded_steps_path() -> Path:
    """Where the shipped reasoning of known skills lies, step by step.

    ``python tests/benchmarks/inverse_planning.py --record PATH`` makes it again; see there.
    """
    return Path(str(resources.files("bayesmeta") / "data" / "recorded_steps.nc"))


def recorded_tasks() -> list[Task]:
    """The tasks of the recorded evidence, drawn anew from their seed."""
    from bayesmeta.families import make_tasks

    return make_tasks(
        num_per_family=TASKS_PER_FAMILY, seed=SEED, held_out_fraction=HELD_OUT_FRACTION
    )


def fresh_tasks(num_per_family: int) -> list[Task]:
    """Held-out tasks that the recorded evidence does not contain, the same on every call."""
    import dataclasses

    from bayesmeta.families import make_tasks

    asked = {task.question for task in recorded_tasks()}
    # Simple families repeat questions across seeds, so draw more than are wanted.
    drawn = make_tasks(num_per_family=4 * num_per_family, seed=FRESH_SEED, held_out_fraction=0.5)
    kept: dict[str, list[Task]] = {}
    for task in drawn:
        of_domain = kept.setdefault(task.domain, [])
        if task.question not in asked and len(of_domain) < num_per_family:
            of_domain.append(dataclasses.replace(task, split=HELD_OUT))
    return [task for of_domain in kept.values() for task in of_domain]


def record(
    path: str | Path,
    *,
    cache: str | Path,
    progress: Callable[[int, int, str], None] | None = None,
) -> xr.Dataset:
    """Score every recorded task under every default skill and save the evidence.

    Took 65 minutes of processor time on 2 shared cores. Interrupted, it goes on from the cache.

    Args:
      path: netCDF file to write.
      cache: folder of finished cells.
      progress: called with (cells done, cells in all, message).
    """
    from bayesmeta.contexts import score_contexts
    from bayesmeta.evidence_io import save
    from bayesmeta.llm.local import LocalLLM
    from bayesmeta.observation import observe
    from bayesmeta.skills import default_skills

    llm, tasks, skills = LocalLLM(), recorded_tasks(), default_skills()
    evidence = observe(
        llm,
        tasks,
        skills,
        num_traces=NUM_TRACES,
        seed=SEED,
        cache=cache,
        progress=progress,
    )
    evidence = score_contexts(llm, evidence, tasks, skills, cache=cache, progress=progress)
    save(evidence, path)
    return evidence
