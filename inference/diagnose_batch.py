"""Convergence of the chains of many data sets at once, by the same tests as for one."""

import warnings
from collections.abc import Iterable, Mapping

import numpy as np

from bayesmeta.inference.diagnose import MIN_BFMI
from bayesmeta.inference.status import Outcome, Status


def diagnose_batch(
    samples: Mapping[str, np.ndarray],
    sample_stats: Mapping[str, np.ndarray],
    sites: Iterable[str],
    *,
    max_rhat: float,
    min_ess: float,
) -> list[Status]:
    """Judge every data set by the worst entry of the given sites, as `diagnose_chains` does.

    A single chain is cut in halves, which stand for two chains in R-hat.

    Args:
      samples: site -> [set, chain, draw, *shape].
      sample_stats: ``diverging`` and ``energy``, [set, chain, draw].
      sites, max_rhat, min_ess: see `bayesmeta.inference.diagnose.diagnose_chains`.
    """
    import arviz as az

    values = {}
    for name in sites:
        # [set, chain, draw, *shape] -> [chain, draw, set, entry], what ArviZ iterates over.
        value = _halves(np.asarray(samples[name], np.float64))
        values[name] = np.moveaxis(value.reshape(*value.shape[:3], -1), 0, 2)
    finite = np.all([np.isfinite(v).all((0, 1, 3)) for v in values.values()], axis=0)
    clean = {}
    for name, value in values.items():
        # Entries that never vary in any set, such as the first of a Cholesky factor, are constants.
        free = np.ptp(np.where(finite[:, None], value, 0.0), axis=(0, 1)).max(0) > 0
        if free.any():
            clean[name] = np.where(finite[:, None], value, 0.0)[..., free]
    tree = az.from_dict({"posterior": clean})
    worst = {}
    # A chain that does not move has no R-hat: not a number, which counts as not converged.
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = {
            "rhat": (az.rhat(tree), np.max),
            "ess_bulk": (az.ess(tree, method="bulk"), np.min),
            "ess_tail": (az.ess(tree, method="tail"), np.min),
        }
    for name, (computed, reduce) in found.items():
        dataset = computed["posterior"].dataset if "posterior" in computed else computed
        entries = np.concatenate([np.asarray(v) for v in dataset.data_vars.values()], axis=1)
        worst[name] = reduce(entries, axis=1)
    energy = _halves(np.asarray(sample_stats["energy"], np.float64))
    change = np.square(np.diff(energy, axis=2)).mean(2)
    worst["bfmi"] = (change / np.maximum(energy.var(2), 1e-300)).min(1)
    worst["divergences"] = np.asarray(sample_stats["diverging"]).sum((1, 2))
    return [
        _judge({k: float(v[b]) for k, v in worst.items()}, bool(finite[b]), max_rhat, min_ess)
        for b in range(len(energy))
    ]


def _halves(values: np.ndarray) -> np.ndarray:
    """One chain as two, several as they are: [set, chain, draw, *shape]."""
    if values.shape[1] > 1:
        return values
    half = values.shape[2] // 2
    return values[:, 0, : 2 * half].reshape(values.shape[0], 2, half, *values.shape[3:])


def _judge(diagnostics: dict[str, float], finite: bool, max_rhat: float, min_ess: float) -> Status:
    if not finite:
        return Status(Outcome.NOT_FINITE, "some draws are not finite.", diagnostics)
    rhat = diagnostics["rhat"]
    ess = min(diagnostics["ess_bulk"], diagnostics["ess_tail"])
    if not rhat <= max_rhat:
        return Status(Outcome.RHAT, f"R-hat {rhat:.3f} > {max_rhat}.", diagnostics)
    if not ess >= min_ess:
        return Status(Outcome.ESS, f"effective sample size {ess:.0f} < {min_ess:.0f}.", diagnostics)
    if diagnostics["divergences"] > 0:
        detail = f"{diagnostics['divergences']:.0f} draws diverged."
        return Status(Outcome.DIVERGENCES, detail, diagnostics)
    if diagnostics["bfmi"] < MIN_BFMI:
        detail = f"E-BFMI {diagnostics['bfmi']:.2f} < {MIN_BFMI}."
        return Status(Outcome.BFMI, detail, diagnostics)
    detail = f"R-hat {rhat:.3f}, effective sample size {ess:.0f}, no divergences."
    return Status(Outcome.CONVERGED, detail, diagnostics)
