"""Convergence of Markov chains, by the rank-based diagnostics of Vehtari et al. (2021)."""

from collections.abc import Iterable, Mapping

import numpy as np

from bayesmeta.inference.status import Outcome, Status

#: Vehtari et al. 2021, doi:10.1214/20-BA1221. 400 is 100 per chain for the usual four chains.
MAX_RHAT = 1.01
MIN_ESS = 400.0
#: Betancourt 2016, arXiv 1604.00695.
MIN_BFMI = 0.3


def diagnose_chains(
    samples: Mapping[str, np.ndarray],
    sample_stats: Mapping[str, np.ndarray],
    sites: Iterable[str],
    *,
    max_rhat: float = MAX_RHAT,
    min_ess: float = MIN_ESS,
) -> Status:
    """Judge chains by the worst entry of the given sites.

    Args:
      samples: site -> [chain, draw, *shape].
      sample_stats: ``diverging`` and ``energy``, [chain, draw].
      sites: the sites to judge: the free ones, so that constants do not count.
      max_rhat: largest acceptable rank-normalised split R-hat (needs at least 2 chains).
      min_ess: smallest acceptable bulk and tail effective sample size, over all chains.
    """
    import arviz as az

    values = {name: np.asarray(samples[name], np.float64) for name in sites}
    diagnostics = {"divergences": float(np.sum(sample_stats["diverging"]))}
    if any(not np.isfinite(v).all() for v in values.values()):
        return Status(Outcome.NOT_FINITE, "some draws are not finite.", diagnostics)
    tree = az.from_dict({"posterior": values})
    summary = {
        "rhat": az.rhat(tree),
        "ess_bulk": az.ess(tree, method="bulk"),
        "ess_tail": az.ess(tree, method="tail"),
    }
    worst = {"rhat": np.nanmax, "ess_bulk": np.nanmin, "ess_tail": np.nanmin}
    for name, computed in summary.items():
        dataset = computed["posterior"].dataset if "posterior" in computed else computed
        entries = np.concatenate([np.ravel(v) for v in dataset.data_vars.values()])
        diagnostics[name] = float(worst[name](entries))
    energy = np.asarray(sample_stats["energy"], np.float64)
    change = np.square(np.diff(energy, axis=1)).mean(1)
    diagnostics["bfmi"] = float((change / np.maximum(energy.var(1), 1e-300)).min())

    num_draws = energy.size
    if diagnostics["rhat"] > max_rhat:
        return Status(Outcome.RHAT, f"R-hat {diagnostics['rhat']:.3f} > {max_rhat}.", diagnostics)
    ess = min(diagnostics["ess_bulk"], diagnostics["ess_tail"])
    if ess < min_ess:
        return Status(Outcome.ESS, f"effective sample size {ess:.0f} < {min_ess:.0f}.", diagnostics)
    if diagnostics["divergences"] > 0:
        return Status(
            Outcome.DIVERGENCES,
            f"{diagnostics['divergences']:.0f} of {num_draws} draws diverged.",
            diagnostics,
        )
    if diagnostics["bfmi"] < MIN_BFMI:
        return Status(Outcome.BFMI, f"E-BFMI {diagnostics['bfmi']:.2f} < {MIN_BFMI}.", diagnostics)
    return Status(
        Outcome.CONVERGED,
        f"R-hat {diagnostics['rhat']:.3f}, effective sample size {ess:.0f}, no divergences.",
        diagnostics,
    )
