"""Which program reads some evidence through a graph, and the arrays that it conditions on."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from bayesmeta.arrays import Encoding, figure2_data

if TYPE_CHECKING:
    from bayesmeta.models.graph import Graph
    from bayesmeta.models.prior import Prior


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A program with everything but its draws.

    Attributes:
      model: called as ``model(data, prior)``. Equal graphs give the same object, so that what
        was compiled for one prior serves the next of the same families.
      data: what it conditions on, with task weights ``scale`` [N].
      prior: as asked for, with the graph's further sites added.
      encoding: how names and features became numbers.
      local: sites with one entry per task, which say nothing about other tasks.
    """

    model: Callable[[Any, Any], None]
    data: Any
    prior: "Prior"
    encoding: Encoding
    local: tuple[str, ...] = ()


def program_for(
    evidence: xr.Dataset,
    prior: "Prior",
    graph: "Graph",
    *,
    beta: float = 1.0,
    encoding: Encoding | None = None,
    allow_unidentified: bool = False,
    language: Literal["numpyro", "pyro"] = "numpyro",
) -> Program:
    """The program of one graph, fitted to all tasks of ``evidence``.

    Args:
      evidence: N tasks, validated.
      prior: with entries for the sites of the working model at least.
      graph: how the evidence is read.
      beta: inverse temperature of the scores, > 0. Ignored where the prior infers it.
      encoding: of the tasks that were fitted, to predict others; None makes one.
      allow_unidentified: accept parameters that such data cannot inform.
      language: what the program is written in.

    Raises:
      ValueError: the prior lacks a site or has one too many, the graph needs what the evidence
        does not hold, or a parameter is not identified.
    """
    from bayesmeta.models.graph import WORKING

    encoding = encoding or Encoding.of(evidence)
    keep_scores = "beta" in prior.sites
    if graph.replace(WORKING.name) == WORKING:
        data = figure2_data(
            evidence, encoding, beta=1.0 if keep_scores else beta, keep_scores=keep_scores
        )
        program = Program(_working_model(language), data, prior, encoding)
    else:
        program = _full_program(
            evidence, prior, graph, beta, encoding, allow_unidentified, language
        )
    if language == "numpyro":  # its twin has the same sites
        check_program(program)
    return program


def check_program(program: Program) -> None:
    """Raise ValueError where prior, graph and data do not fit together; nothing is computed."""
    site_names(program)


def site_names(program: Program) -> list[str]:
    """Random and deterministic sites of a program but its outcome, in order, without a run."""
    import jax
    from numpyro import handlers

    names: list[str] = []

    def run() -> None:
        seeded = handlers.seed(program.model, jax.random.key(0))
        for name, site in handlers.trace(seeded).get_trace(program.data, program.prior).items():
            if site["type"] in ("sample", "deterministic") and not site.get("is_observed"):
                names.append(name)

    jax.eval_shape(run)
    return names


def _full_program(
    evidence: xr.Dataset,
    prior: "Prior",
    graph: "Graph",
    beta: float,
    encoding: Encoding,
    allow_unidentified: bool,
    language: str,
) -> Program:
    from bayesmeta.full_arrays import answers_data
    from bayesmeta.models.identify import require_identified
    from bayesmeta.models.priors import prior_for

    if "beta" in prior.sites:
        raise ValueError(
            f"prior {prior.name!r} infers beta, which graph {graph.name!r} does not. Use a prior "
            "without 'beta', or the working graph."
        )
    data = answers_data(evidence, encoding, beta=beta)
    complete = prior_for(graph, data, prior)
    if not allow_unidentified:
        require_identified(graph, data, complete)
    local = ("F_n", "eps") if graph.strategy_per == "task" else ()
    return Program(_full_model(graph, language), data, complete, encoding, local)


def _working_model(language: str) -> Callable[[Any, Any], None]:
    module = "figure2_pyro" if language == "pyro" else "figure2"
    return importlib.import_module(f"bayesmeta.models.{module}").figure2


@functools.cache
def _full_model(graph: "Graph", language: str) -> Callable[[Any, Any], None]:
    module = "figure2_full_pyro" if language == "pyro" else "figure2_full"
    program = importlib.import_module(f"bayesmeta.models.{module}").figure2_full

    def model(data: Any, prior: Any) -> None:
        program(data, prior, graph)

    return model
