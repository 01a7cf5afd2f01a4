"""One cell of an ablation on disk: written whole or not at all, found by what it depends on."""

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmeta.atomic import atomic_write

if TYPE_CHECKING:
    from bayesmeta.models.graph import Graph
    from bayesmeta.models.prior import Prior

#: Raised when what a cell holds, or how it is computed, changes: older cells are then not found.
CELL_VERSION = 1

_ARRAYS = (
    "elpd_loo",
    "elpd_domain",
    "domain",
    "heldout_log_p",
    "heldout_gold",
    "regret",
    "strategy",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What every cell of an ablation has in common.

    Attributes:
      beta: inverse temperature of the scores.
      num_chains: of the fit to all reflect tasks, an even number; refits without a domain have
        two each, because only a mean is wanted of them.
      num_warmup, num_samples, target_accept: of the sampler.
      by_domain: refit without each domain in turn.
      allow_unidentified: fit graphs with parameters that the data cannot inform.
      sites: whose contraction and sensitivity are reported; any site of the program, random or
        deterministic.
    """

    beta: float = 1.0
    num_chains: int = 4
    num_warmup: int = 500
    num_samples: int = 1000
    target_accept: float = 0.9
    by_domain: bool = True
    allow_unidentified: bool = False
    sites: tuple[str, ...] = ("mu", "delta", "F")

    def __post_init__(self) -> None:
        if not (np.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta must be a positive finite number, got {self.beta}.")
        if self.num_chains < 2 or self.num_chains % 2:
            raise ValueError(
                f"num_chains must be even and at least 2, got {self.num_chains}: R-hat compares "
                "chains, which run in pairs. 4 is usual."
            )
        if self.num_samples < 4 or self.num_warmup < 1:
            raise ValueError(
                f"num_warmup must be >= 1 and num_samples >= 4, got {self.num_warmup} and "
                f"{self.num_samples}. 500 and 1000 are usual."
            )


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Cell:
    """One prior, graph and seed on one set of evidence: N reflect tasks, M held out.

    Attributes:
      elpd_loo: [N] expected log predictive density of each task left out, nats.
      elpd_domain: [N] log predictive of each task from the fit without its domain, nats; NaN
        where domains were not left out.
      domain: [N] names.
      heldout_log_p: [M, C] log predictive of the held-out tasks, nats.
      heldout_gold: [M].
      regret: [M] best skill in hindsight minus the skill of largest mean weight, nats.
      strategy: [draws, D, K] some draws of the strategy of each domain.
      facts: everything else, as plain JSON: ``prior``, ``graph``, ``seed``, ``beta``,
        ``status``, ``status_detail``, ``diagnostics``, ``seconds``, ``contraction`` and
        ``sensitivity`` by site, ``psense``, ``bad_pareto_k``, ``calibration_error`` with its
        null, ``domains``, ``skills``.
    """

    elpd_loo: np.ndarray
    elpd_domain: np.ndarray
    domain: np.ndarray
    heldout_log_p: np.ndarray
    heldout_gold: np.ndarray
    regret: np.ndarray
    strategy: np.ndarray
    facts: dict[str, Any]


def cell_key(
    evidence_hash: str, prior: "Prior", graph: "Graph", seed: int, settings: Settings
) -> str:
    """SHA-256, as hex, of everything that a cell depends on."""
    content = {
        "version": CELL_VERSION,
        "evidence": evidence_hash,
        "prior": json.loads(prior.to_json()),
        "graph": json.loads(graph.to_json()),
        "seed": seed,
        "settings": dataclasses.asdict(settings),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def cell_path(folder: Path, key: str) -> Path:
    """Where a cell lies in the folder of an ablation."""
    return folder / "cells" / f"{key}.npz"


def save_cell(cell: Cell, path: Path) -> None:
    """Write a cell, atomically. Raises OSError where the disk is full or not writable."""
    facts = np.array(json.dumps(cell.facts))
    arrays = {name: getattr(cell, name) for name in _ARRAYS}
    atomic_write(path, lambda part: np.savez_compressed(part, facts=facts, **arrays))


def load_cell(path: Path) -> Cell | None:
    """The cell at ``path``; None where there is none, or none that can be read."""
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
            return Cell(**arrays, facts=json.loads(str(file["facts"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
