"""Proof that the posteriors are what they claim: simulate, fit, rank, enumerate, and tabulate."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmeta.atomic import atomic_write
from bayesmeta.proof_catalogue import catalogue, fingerprint
from bayesmeta.proof_cells import ProofCell, Tier, quantities_of
from bayesmeta.workers import in_workers

if TYPE_CHECKING:
    import pandas as pd

    from bayesmeta.inference.calibration import Calibration

#: Share of fits that may end unconverged before a cell fails for that alone.
MAX_UNCONVERGED = 0.1
#: How often a posterior mean lies within 3 posterior sd of the truth: 0.997 for normal posteriors,
#: and this for normal effects whose common scale is not known (half-normal scale).
RECOVERED = 0.98
#: With fewer vouched fits than this, an approximation has withheld its answer.
MIN_VOUCHED = 20
#: Points at which the program is compared with enumeration.
_POINTS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Proven:
    """What one cell came to.

    Attributes:
      cell: what was to be proven.
      calibration: all replications.
      enumeration_error: largest |program - enumeration| in nats at random points, in float64; NaN
        where another cell checks the same program.
    """

    cell: ProofCell
    calibration: "Calibration"
    enumeration_error: float

    @property
    def judged(self) -> "Calibration":
        """All replications, or those that the engine vouches for where only these count."""
        if not self.cell.vouched_only:
            return self.calibration
        return self.calibration.where(np.array(self.calibration.outcomes) == "CONVERGED")

    @property
    def withheld(self) -> bool:
        """Whether the engine itself rejects so many fits that nothing is left to judge."""
        return self.cell.vouched_only and self.judged.num_replications < MIN_VOUCHED

    @property
    def failures(self) -> list[str]:
        """Names of the tests that this cell does not pass."""
        if self.withheld:
            return []
        found, judged = [], self.judged
        if (judged.p_values() <= judged.p_limit()).any():
            found.append("ranks")
        low, high = judged.band()
        if (judged.hits() < low).any() or (judged.hits() > high).any():
            found.append("intervals")
        if (judged.recovered() * judged.num_replications < _fewest_recovered(judged)).any():
            found.append("recovery")
        if sum(judged.unconverged().values()) > MAX_UNCONVERGED * judged.num_replications:
            found.append("convergence")
        if self.enumeration_error > self.cell.tolerance:
            found.append("enumeration")
        return found

    @property
    def accepted(self) -> bool:
        """No failure; or for an engine that is wrong on purpose, uncalibrated as it should be."""
        if self.cell.must_fail:
            return bool({"ranks", "intervals"} & set(self.failures))
        return not self.failures

    def row(self) -> dict[str, Any]:
        """One row of the table."""
        every, failures = self.calibration, ", ".join(self.failures)
        found = every if self.withheld else self.judged
        (low, high), hits, contraction = found.band(), found.hits(), found.contraction()
        if self.cell.must_fail:
            status = f"fails as it must: {failures}" if self.accepted else "FAIL: not noticed"
        elif self.withheld:
            status = "withheld: the engine rejects its own fits"
        else:
            status = "pass" if self.accepted else f"FAIL: {failures}"
        parameters = [i for i, q in enumerate(found.quantities) if q != "log_likelihood"]
        return {
            "model": self.cell.model,
            "engine": self.cell.engine,
            "status": status,
            "replications": every.num_replications,
            "unconverged": _counts(every.unconverged()),
            "judged": 0 if self.withheld else found.num_replications,
            "quantities": len(found.quantities),
            "p_value": float(found.p_values().min()),
            "p_limit": found.p_limit(),
            "hits": f"{hits.min()}..{hits.max()}",
            "hits_wanted": f"{low}..{high}",
            "recovered": float(found.recovered().min()),
            "contraction": float(contraction[parameters].max()),
            "enumeration_error": self.enumeration_error,
            "seconds": every.seconds,
            "note": self.cell.note,
        }


def prove(
    folder: Path,
    tier: Tier = "full",
    *,
    only: Sequence[str] = (),
    progress: Callable[[int, int, str], None] | None = None,
    rng_seed: int = 0,
    workers: int = 1,
) -> "pd.DataFrame":
    """Compute every cell of a tier, or take it from ``folder`` where it has been computed before.

    Cells are kept one by one as they are done, so that a run that was killed goes on where it
    stopped. A cell is computed again when the code that it runs has changed.

    Args:
      folder: gets ``proof.csv`` (one row per cell), ``quantities.csv`` (one row per quantity),
        ``cells/`` and one picture of each cell's ranks.
      tier: ``"full"``, or ``"fast"`` for the few cells that the test suite runs.
      only: models or engines to restrict the table to; all by default.
      progress: called as ``progress(done, total, cell name)``.
      rng_seed: fixes everything.
      workers: processes that compute cells side by side, each on its share of the cores and with
        up to 4 GB of memory; 1 computes them in this one.

    Returns:
      The table of ``proof.csv``.

    Raises:
      ValueError: ``only`` names no cell, or no worker.
      WorkerDiedError: a process was killed, as when memory ran out; finished cells are kept.
    """
    import pandas as pd

    every_cell = catalogue()
    chosen = [
        cell
        for cell in every_cell
        if cell.replications[tier] and (not only or {cell.model, cell.engine} & set(only))
    ]
    if not chosen:
        known = sorted({name for cell in every_cell for name in (cell.model, cell.engine)})
        raise ValueError(f"no cell of tier {tier!r} is named {list(only)}; known: {known}.")
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    # Read once, so that all processes mean the same code.
    code = {cell.source: fingerprint(cell.source) for cell in chosen}
    if workers != 1:
        work = functools.partial(
            _prove_named, tier=tier, folder=folder, rng_seed=rng_seed, code=code
        )
        for index, name in enumerate(in_workers(work, longest_first(chosen), workers)):
            if progress:
                progress(index + 1, len(chosen), name)
    done: list[Proven] = []
    with compiled_once(folder / "compiled"):
        for index, cell in enumerate(chosen):
            if progress and workers == 1:
                progress(index, len(chosen), cell.name)
            done.append(_prove_or_load(cell, tier, folder, rng_seed, code))
            picture = folder / f"{cell.name}.png"
            if not picture.exists():
                atomic_write(picture, lambda path: draw_ranks(done[-1].calibration, path))
    if progress:
        progress(len(chosen), len(chosen), "done")
    table = pd.DataFrame([proven.row() for proven in done])
    every = [
        proven.calibration.table().assign(model=proven.cell.model, engine=proven.cell.engine)
        for proven in done
    ]
    quantities = pd.concat(every, ignore_index=True)
    atomic_write(folder / "proof.csv", lambda path: table.to_csv(path, index=False))
    atomic_write(folder / "quantities.csv", lambda path: quantities.to_csv(path, index=False))
    table.attrs["accepted"] = all(proven.accepted for proven in done)
    return table


def longest_first(chosen: Sequence[ProofCell]) -> list[str]:
    """Names in the order in which processes side by side should begin them."""
    return [cell.name for cell in sorted(chosen, key=lambda cell: -cell.minutes)]


def prove_cell(cell: ProofCell, num_replications: int, rng_seed: int = 0) -> Proven:
    """Compute one cell."""
    import jax

    from bayesmeta.inference.sbc import sbc

    with jax.enable_x64(True) if cell.double else contextlib.nullcontext():
        case = cell.case(cell.sizes)
        calibration = sbc(
            case.model,
            case.data,
            with_observations=case.with_observations,
            engine=cell.fit(),
            quantities=quantities_of(case, cell.ranked),
            num_replications=num_replications,
            rng_seed=rng_seed,
        )
    return Proven(cell, calibration, enumeration_error(cell, rng_seed))


def enumeration_error(cell: ProofCell, rng_seed: int = 0) -> float:
    """Largest |log density by the program - by enumeration| in nats, in float64."""
    import jax
    from numpyro.infer.util import log_density

    from bayesmeta.inference.sbc import simulate
    from bayesmeta.inference.structure import latent_sites

    worst = float("nan")
    with jax.enable_x64(True):
        case = cell.case(cell.tiny)
        if case.log_joint is None:
            return worst
        found = simulate(case.model, case.data, num_replications=_POINTS, rng_seed=rng_seed)
        latent = latent_sites(case.model, case.data)
        by_program = jax.jit(lambda data, sites: log_density(case.model, (data,), {}, sites)[0])
        for r in range(_POINTS):
            sites = {name: found.truth[name][r] for name in latent}
            data = case.with_observations(case.data, {k: v[r] for k, v in found.drawn.items()})
            error = abs(float(by_program(data, sites)) - case.log_joint(sites, data))
            worst = error if r == 0 else max(worst, error)
    return worst


def draw_ranks(calibration: "Calibration", path: Path) -> None:
    """Distribution function of each quantity's ranks, less the uniform one, with 99 % bands.

    The whole curve of one quantity lies within the band with that probability.
    """
    import matplotlib.pyplot as plt

    from bayesmeta.inference.ecdf_bands import EcdfBands

    bands = EcdfBands.of(calibration.num_replications, calibration.num_draws)
    size, expected = calibration.num_replications, bands.places
    low, high = (edge / size - expected for edge in bands.band(0.99))
    names, columns = calibration.quantities, 4
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(11, 2.3 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, name, ranks in zip(axes.flat, names, calibration.ranks.T, strict=False):
        axis.fill_between(expected, low, high, step="post", color="0.9")
        axis.axhline(0.0, color="0.6", linewidth=0.8)
        inside = bands.p_value(ranks) > 0.01
        axis.step(
            expected,
            bands.counts(ranks) / size - expected,
            where="post",
            color="C0" if inside else "C3",
        )
        axis.set_title(name, fontsize=9)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.supxlabel("rank of the truth among posterior draws, as a share", fontsize=9)
    figure.supylabel("ECDF - uniform", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Let JAX keep what it compiles in ``folder``, so that equal programs are compiled once.

    Engines that compile anew for every fit, although only the data differ, then find it there.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    wanted = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _prove_named(
    name: str, *, tier: Tier, folder: Path, rng_seed: int, code: Mapping[str, str]
) -> None:
    """Compute a cell, or find it computed, in a process that was started for it and others."""
    cell = {cell.name: cell for cell in catalogue()}[name]
    # Each process has a folder of its own, because JAX does not write its files atomically.
    with compiled_once(folder / "compiled" / str(os.getpid())):
        _prove_or_load(cell, tier, folder, rng_seed, code)


def _prove_or_load(
    cell: ProofCell, tier: Tier, folder: Path, rng_seed: int, code: Mapping[str, str]
) -> Proven:
    from bayesmeta.inference.calibration import Calibration

    count = cell.replications[tier]
    assert count is not None
    settings = [
        code[cell.source],
        cell.name,
        dataclasses.asdict(cell.sizes),
        count,
        rng_seed,
    ]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    path = folder / "cells" / f"{cell.name}-{tier}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] == key:
            calibration = Calibration.from_json(content["calibration"])
            return Proven(cell, calibration, float(content["enumeration_error"]))
    start = time.perf_counter()
    proven = prove_cell(cell, count, rng_seed)
    calibration = dataclasses.replace(proven.calibration, seconds=time.perf_counter() - start)
    content = {
        "key": key,
        "calibration": calibration.to_json(),
        "enumeration_error": str(proven.enumeration_error),
    }
    atomic_write(path, lambda part: _write(part, json.dumps(content)))
    (folder / f"{cell.name}.png").unlink(missing_ok=True)
    return dataclasses.replace(proven, calibration=calibration)


def _fewest_recovered(calibration: "Calibration") -> float:
    """Recoveries that each quantity of a right engine has, but for one false alarm in 100."""
    from scipy import stats

    return float(stats.binom.ppf(calibration.p_limit(), calibration.num_replications, RECOVERED))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{n} {name.lower()}" for name, n in sorted(found.items())) or "0"
