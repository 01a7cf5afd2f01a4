"""Observe: everything a language model says about tasks under skills, as evidence."""

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from bayesmeta.cells import Cache, Cell, DictCache, Observer, OnError, make_cell
from bayesmeta.cells import ObserveError as ObserveError
from bayesmeta.llm.base import AbstractLLM, Sampling
from bayesmeta.prompting import PROMPT_VERSION
from bayesmeta.recall import ExternalMemory, reflect_memory
from bayesmeta.skills import Skill, check_skills, default_skills
from bayesmeta.tasks import Task

#: ``progress(done, total, message)``: cells of (task, skill) finished, and how many there are.
Progress = Callable[[int, int, str], None]

_FROM_THE_MODEL = Sampling()


def observe(
    llm: AbstractLLM,
    tasks: Sequence[Task],
    skills: Sequence[Skill] | None = None,
    *,
    num_traces: int = 4,
    seed: int = 0,
    sampling: Sampling = _FROM_THE_MODEL,
    cache: Cache | str | Path | None = None,
    memory: ExternalMemory | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
    on_error: OnError = "raise",
) -> xr.Dataset:
    """Sample the traces of every skill on every task, and score every candidate after each.

    The result depends on the model, the tasks, the skills, the memory, ``num_traces``, ``seed``
    and ``sampling`` only: neither the batches nor an interruption changes it beyond rounding.
    Traces enter the cache as soon as they are sampled and scores as soon as they are scored, so
    a run that is killed loses at most the batch in flight.

    Args:
      llm: the model to observe.
      tasks: with unique ids.
      skills: the skill set; by default `bayesmeta.skills.default_skills()`.
      num_traces: traces per task and skill, for skills that have stages. Raising it keeps the
        traces already in the cache.
      seed: root of all randomness.
      sampling: the distribution that traces are drawn from. If it is not the model's own, the
        altered sampler *is* the model of that skill, so importance ratios stay one.
      cache: a folder, or anything with ``get`` and ``put``; None keeps nothing after the call.
      memory: where worked examples come from; by default the reflect tasks among ``tasks``.
      batch_size: tasks per batch.
      progress: called as ``progress(done, total, message)`` with counts of (task, skill) cells.
      on_error: what to do when the model refuses one cell, such as for a prompt longer than its
        context: ``"raise"``, or ``"skip"`` to leave the cell unobserved and list it in the
        attribute ``skipped`` as JSON. A task refused under every skill is left out and listed.

    Returns:
      Evidence as in `bayesmeta.evidence`: log-likelihoods in nats over (task, skill, trace,
      candidate). ``num_tokens`` is what a skill alone costs on a task: ``scored``, the mean over
      its traces of the context and all candidates; ``generated``, the sum over its traces.

    Raises:
      ObserveError: the model failed on a cell, which the message names.
      ValueError: the tasks, the skills or a setting are wrong.
    """
    tasks = _check_tasks(tasks)
    skills = default_skills() if skills is None else check_skills(skills)
    for name, value in (("num_traces", num_traces), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}. Leave it out for the default.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}. Choose one.")
    if memory is None:
        memory = reflect_memory(tasks if any(skill.recall for skill in skills) else ())
    with opened(cache) as store:
        observer = Observer(llm, store, seed, sampling, on_error)
        cells = _observe_cells(observer, tasks, skills, memory, num_traces, batch_size, progress)
    return _evidence(llm, tasks, skills, cells, seed, sampling, num_traces)


def _observe_cells(
    observer: Observer,
    tasks: Sequence[Task],
    skills: Sequence[Skill],
    memory: ExternalMemory,
    num_traces: int,
    batch_size: int,
    progress: Progress | None,
) -> list[Cell]:
    cells: list[Cell] = []

    def tell(message: str) -> None:
        if progress is not None:
            progress(len(cells), len(tasks) * len(skills), message)

    for start in range(0, len(tasks), batch_size):
        part = tasks[start : start + batch_size]
        batch = {
            skill.name: [make_cell(task, skill, memory, num_traces) for task in part]
            for skill in skills
        }
        for skill in skills:
            if skill.stages:
                tell(f"sampling {skill.name}")
            observer.sample(batch[skill.name])
        tell("scoring answers")
        # All skills of a task in one call: the model can share the question between them.
        scored = [batch[skill.name][n] for n in range(len(part)) for skill in skills]
        observer.score(scored)
        cells += scored
        tell(f"observed {start + len(part)} of {len(tasks)} tasks")
    return cells


def _check_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    tasks = tuple(tasks)
    if not tasks:
        raise ValueError("tasks is empty: there is nothing to observe. Try make_tasks().")
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise ValueError(f"task id {task.id!r} repeats. Give each task its own id.")
        seen.add(task.id)
    return tasks


@contextlib.contextmanager
def opened(cache: Cache | str | Path | None) -> Iterator[Cache]:
    """The cache; one that is opened here is closed here."""
    if isinstance(cache, (str, Path)):
        from bayesmeta.cache import EvidenceCache

        with EvidenceCache(cache) as store:
            yield store
    else:
        yield DictCache() if cache is None else cache


def _evidence(
    llm: AbstractLLM,
    tasks: Sequence[Task],
    skills: Sequence[Skill],
    cells: Sequence[Cell],
    seed: int,
    sampling: Sampling,
    num_traces: int,
) -> xr.Dataset:
    from bayesmeta.evidence_build import assemble

    skipped = [
        {"task": cell.task.id, "skill": cell.skill.name, "reason": cell.failure}
        for cell in cells
        if cell.failure is not None
    ]
    if len(skipped) == len(cells):
        raise ObserveError(
            f"all {len(cells)} cells were refused, the first with: {skipped[0]['reason']} "
            "There is no evidence in this; shorten the tasks or choose another model."
        )
    attrs: dict[str, Any] = {
        **{f"llm_{name}": value for name, value in llm.attributes.items()},
        **{name: llm.attributes[name] for name in ("model", "quantisation", "dtype")},
        "llm": llm.name,
        "quality": llm.quality,
        "prompt_version": PROMPT_VERSION,
        "skills": [skill.to_dict() for skill in skills],
        "skill_hashes": json.dumps({skill.name: skill.content_hash() for skill in skills}),
        "seed": seed,
        "sampling": {**dataclasses.asdict(sampling), "num_traces": num_traces},
        "packages": _packages(),
        "created_by": "bayesmeta.observe",
        "skipped": json.dumps(skipped),
    }
    finished = {(cell.task.id, cell.skill.name): cell.finished() for cell in cells}
    scores = (row for cell in finished.values() if cell for row in cell["log_likelihood"])
    if any(score == float("-inf") for row in scores for score in row):
        attrs["allow_neg_inf"] = 1  # the model itself calls a candidate impossible
    # A task that no skill could be tried on says nothing; `skipped` names it.
    tried = {cell.task.id for cell in cells if cell.failure is None}
    kept = [task for task in tasks if task.id in tried]
    finished = {key: cell for key, cell in finished.items() if key[0] in tried}
    return assemble(kept, [skill.name for skill in skills], finished, attrs=attrs)


def _packages() -> dict[str, str]:
    found = {}
    for name in ("bayesmeta", "torch", "transformers", "bm25s", "reasoning-gym"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
