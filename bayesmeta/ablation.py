"""How much does each conclusion depend on the prior? Priors x graphs x seeds x evidence.

Every cell of the grid is a refit of evidence that was paid for once: no language model is asked.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from bayesmeta.ablation_store import Cell, Settings, cell_key, cell_path, load_cell, save_cell
from bayesmeta.ablation_table import Name, tidy

if TYPE_CHECKING:
    import pandas as pd

    from bayesmeta.models.graph import Graph
    from bayesmeta.models.prior import Prior

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Job:
    """One cell to be computed, with all that it takes."""

    name: Name
    evidence: xr.Dataset
    prior: "Prior"
    graph: "Graph"
    settings: Settings
    path: Path


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Ablation:
    """Every cell of a grid.

    Attributes:
      table: one row per cell, columns as in `bayesmeta.ablation_table.COLUMNS`.
      cells: what the table was made from, in the same order.
      base: the prior and the graph that differences are taken to.
      num_computed: how many cells were not found on disk.
    """

    table: "pd.DataFrame"
    cells: Mapping[Name, Cell]
    base: tuple[str, str]
    num_computed: int


def ablate(
    evidence: xr.Dataset | Mapping[str, xr.Dataset],
    priors: "Sequence[Prior] | None" = None,
    *,
    graphs: "Sequence[Graph] | None" = None,
    seeds: Sequence[int] = (0,),
    folder: str | Path,
    beta: float | Literal["held_out"] = "held_out",
    settings: Settings | None = None,
    parallel: Literal["ray"] | None = None,
    progress: Progress | None = None,
) -> Ablation:
    """Fit every prior through every graph with every seed to every set of evidence.

    The first prior with the first graph is the base that differences are taken to. Each finished
    cell is a file in ``folder``, named by all it depends on: after an interruption, or with more
    priors, only what is missing is computed.

    Args:
      evidence: validated evidence, or several by name. Fits use the reflect tasks, judgements
        the held-out ones.
      priors: with different names; None for all that are registered.
      graphs: with different names; None for the working model.
      seeds: of the sampler.
      folder: created if absent.
      beta: inverse temperature of the scores, the same for all cells of an evidence. With
        ``"held_out"`` it is chosen by cross-validation on the reflect tasks.
      settings: of every cell; its ``beta`` is replaced.
      parallel: ``"ray"`` spreads the cells over the processes of a Ray cluster (or of this
        machine), which must see ``folder``.
      progress: called with (cells done, cells in all, message).

    Raises:
      ValueError: a prior or a graph does not fit, before anything is computed.
      ModuleNotFoundError: Ray is asked for and not installed.
    """
    from bayesmeta.models.graph import WORKING
    from bayesmeta.models.priors import PRIORS

    if parallel == "ray":
        from bayesmeta.ablation_ray import require_ray

        require_ray()
    elif parallel is not None:
        raise ValueError(f"parallel must be 'ray' or None, got {parallel!r}.")
    priors = list(PRIORS.values()) if priors is None else list(priors)
    graphs = [WORKING] if graphs is None else list(graphs)
    sets = (
        dict(evidence)
        if isinstance(evidence, Mapping) and not isinstance(evidence, xr.Dataset)
        else {"evidence": evidence}
    )
    for what, names in (
        ("priors", [prior.name for prior in priors]),
        ("graphs", [graph.name for graph in graphs]),
        ("seeds", list(map(str, seeds))),
        ("evidence", list(sets)),
    ):
        _check_names(what, names)
    folder = Path(folder)
    jobs = _jobs(sets, priors, graphs, seeds, folder, beta, settings or Settings())
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    cells = {job.name: load_cell(job.path) for job in jobs}
    missing = [job for job in jobs if cells[job.name] is None]
    report = progress or (lambda done, total, message: None)
    done = len(jobs) - len(missing)
    report(done, len(jobs), "found on disk" if done else "starting")
    for job in _computed(missing, parallel):
        done += 1
        cells[job.name] = load_cell(job.path)
        report(done, len(jobs), _label(job.name))
    complete = {name: cell for name, cell in cells.items() if cell is not None}
    if len(complete) < len(jobs):
        lost = next(job for job in jobs if cells[job.name] is None)
        raise OSError(
            f"the cell {_label(lost.name)} was computed but cannot be read from {lost.path}. "
            "Check the disk, and that no other process clears the folder; then run again."
        )
    base = (priors[0].name, graphs[0].name)
    return Ablation(tidy(complete, base), complete, base, len(missing))


def compute(job: Job) -> None:
    """Compute one cell and write it."""
    from bayesmeta.ablation_cell import run_cell

    save_cell(run_cell(job.evidence, job.prior, job.graph, job.name.seed, job.settings), job.path)


def _computed(jobs: Sequence[Job], parallel: str | None) -> Any:
    """Yield every job as it is done."""
    if parallel == "ray" and jobs:
        from bayesmeta.ablation_ray import compute_with_ray

        yield from compute_with_ray(jobs)
        return
    for job in jobs:
        compute(job)
        yield job


def _jobs(
    sets: Mapping[str, xr.Dataset],
    priors: "Sequence[Prior]",
    graphs: "Sequence[Graph]",
    seeds: Sequence[int],
    folder: Path,
    beta: float | Literal["held_out"],
    settings: Settings,
) -> list[Job]:
    """The grid, every combination checked before the first is fitted."""
    from bayesmeta.evidence_io import content_hash
    from bayesmeta.fitting import reflect_part
    from bayesmeta.tasks import HELD_OUT, REFLECT
    from bayesmeta.temperature import choose_beta

    jobs = []
    for label, dataset in sets.items():
        reflect = reflect_part(dataset)
        if not reflect.sizes["task"]:
            raise ValueError(
                f"evidence {label!r} has no task with split {REFLECT!r}, so there is nothing to "
                "fit. Mark the tasks to learn from."
            )
        unseen = sorted(set(map(str, dataset["domain"].values)) - set(_domains(reflect)))
        if unseen:
            raise ValueError(
                f"evidence {label!r} has {HELD_OUT} tasks in domains {unseen} without any "
                f"{REFLECT} task. Leave them out, or give these domains {REFLECT} tasks."
            )
        value = choose_beta(reflect) if beta == "held_out" else float(beta)
        own = dataclasses.replace(settings, beta=value)
        evidence_hash = content_hash(dataset)
        for graph in graphs:
            for prior in priors:
                _check_cell(reflect, prior, graph, own)
                for seed in seeds:
                    key = cell_key(evidence_hash, prior, graph, seed, own)
                    name = Name(prior.name, graph.name, seed, label)
                    jobs.append(Job(name, dataset, prior, graph, own, cell_path(folder, key)))
    return jobs


def _check_cell(reflect: xr.Dataset, prior: "Prior", graph: "Graph", settings: Settings) -> None:
    from bayesmeta.programs import program_for, site_names

    program = program_for(
        reflect,
        prior,
        graph,
        beta=settings.beta,
        allow_unidentified=settings.allow_unidentified,
    )
    if missing := sorted({*settings.sites, "F"} - set(site_names(program))):
        raise ValueError(
            f"the program with prior {prior.name!r} and graph {graph.name!r} has no site "
            f"{missing[0]!r}; it has {site_names(program)}. Name some of these in Settings.sites."
        )


def _check_names(what: str, names: Sequence[str]) -> None:
    if not names:
        raise ValueError(f"an ablation needs at least one entry in {what}, got none.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{what} hold {twice[0]!r} twice. Rename one of them, or leave it out.")


def _domains(evidence: xr.Dataset) -> list[str]:
    return list(map(str, evidence["domain"].values))


def _label(name: Name) -> str:
    return f"{name.prior}, {name.graph}, seed {name.seed}, {name.evidence}"
