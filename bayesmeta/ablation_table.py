"""The cells of an ablation as one tidy table."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from bayesmeta.ablation_store import Cell
from bayesmeta.metrics import Estimate, log_scores, mean_with_error


class Name(NamedTuple):
    """Where a cell stands in the grid."""

    prior: str
    graph: str
    seed: int
    evidence: str


#: Column -> what it says, for readers of the table.
COLUMNS = {
    "prior": "prior",
    "graph": "reading of Figure 2: which arrows are drawn",
    "seed": "of the sampler",
    "evidence": "set of evidence",
    "elpd_loo": "expected log predictive density by leave-one-out over the reflect tasks, "
    "nats in all",
    "elpd_diff": "elpd_loo minus that of the base, nats in all",
    "elpd_diff_se": "its standard error, paired by task",
    "elpd_domain": "log predictive of the reflect tasks by fits without their domain, nats in all",
    "elpd_domain_diff": "elpd_domain minus that of the base, nats in all",
    "elpd_domain_diff_se": "its standard error, paired by task and clustered by domain",
    "log_score": "log score on the held-out tasks, nats per task",
    "divergence": "of the held-out predictive from the base's: mean KL(base || this), "
    "nats per task",
    "calibration_error": "on the held-out tasks, less what a calibrated predictor would show",
    "calibration_null_q95": "above this, chance does not explain calibration_error",
    "regret": "best skill in hindsight minus the skill of largest weight, nats per held-out task",
    "regret_se": "its standard error",
    "contraction": "1 - Var_post / Var_prior, mean over sites; by site in contraction_*",
    "psense": "worst diagnosis when prior and likelihood are scaled by a power",
    "psense_prior": "largest sensitivity to the prior; by site in sensitivity_*",
    "bad_pareto_k": "tasks whose leave-one-out estimate is not to be trusted",
    "seconds": "of the cell when it was computed",
    "status": "how the fit ended",
    "advice": "what to do about it",
}


def tidy(cells: Mapping[Name, Cell], base: tuple[str, str]) -> pd.DataFrame:
    """One row per cell, in the order given.

    Args:
      cells: of one grid.
      base: prior and graph that the differences are taken to, at the same seed and evidence.

    Returns:
      The columns of `COLUMNS`, and ``contraction_*`` and ``sensitivity_*`` by site. What does not
      apply (no held-out tasks, a single domain, a fit that is not finite) is NaN.
    """
    return pd.DataFrame(
        [
            _row(name, cell, cells[Name(base[0], base[1], name.seed, name.evidence)])
            for name, cell in cells.items()
        ]
    )


def paired_elpd(elpd: np.ndarray, base: np.ndarray) -> Estimate:
    """Sum of the differences [N] in nats, and its standard error sqrt(N Var), as ``az.compare``.

    Vehtari, Gelman & Gabry 2017, doi:10.1007/s11222-016-9696-4, equation 24.
    """
    difference = elpd - base
    return Estimate(float(difference.sum()), float(np.sqrt(len(difference) * np.var(difference))))


def divergence(base_log_p: np.ndarray, log_p: np.ndarray) -> float:
    """Mean over tasks of KL(base || other) between predictives [M, C], nats; NaN for no tasks."""
    if not len(base_log_p):
        return float("nan")
    p = np.exp(base_log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (base_log_p - log_p), 0.0)
    # Rounding can leave equal distributions a hair below zero.
    return max(float(terms.sum(1).mean()), 0.0)


def _row(name: Name, cell: Cell, base: Cell) -> dict[str, object]:
    from bayesmeta.inference.status import Outcome

    facts = cell.facts
    is_base = cell is base
    loo = paired_elpd(cell.elpd_loo, base.elpd_loo)
    domain = mean_with_error(cell.elpd_domain - base.elpd_domain, cell.domain)
    num_tasks = len(cell.elpd_domain)
    has_heldout = len(cell.regret) > 0
    regret = mean_with_error(cell.regret) if has_heldout else Estimate(np.nan, np.nan)
    outcome = Outcome[facts["status"]]
    contraction, sensitivity = facts["contraction"], facts["sensitivity"]
    return {
        **name._asdict(),
        "elpd_loo": float(cell.elpd_loo.sum()),
        "elpd_diff": loo.mean,
        "elpd_diff_se": loo.standard_error,
        "elpd_domain": float(cell.elpd_domain.sum()),
        "elpd_domain_diff": domain.mean * num_tasks,
        "elpd_domain_diff_se": 0.0 if is_base else domain.standard_error * num_tasks,
        "log_score": float(log_scores(cell.heldout_log_p, cell.heldout_gold).mean())
        if has_heldout
        else np.nan,
        "divergence": divergence(base.heldout_log_p, cell.heldout_log_p),
        "calibration_error": facts["calibration_error"] - facts["calibration_null"],
        "calibration_null_q95": facts["calibration_null_q95"] - facts["calibration_null"],
        "regret": regret.mean,
        "regret_se": regret.standard_error,
        "contraction": _mean(contraction.values()),
        **{f"contraction_{site}": value for site, value in contraction.items()},
        "psense": facts["psense"],
        "psense_prior": _largest(sensitivity.values()),
        **{f"sensitivity_{site}": value for site, value in sensitivity.items()},
        "bad_pareto_k": facts["bad_pareto_k"],
        "seconds": facts["seconds"],
        "status": outcome.name.lower(),
        "advice": ""
        if outcome is Outcome.CONVERGED
        else f"{facts['status_detail']} {outcome.value}",
    }


def _mean(values: object) -> float:
    finite = [v for v in values if np.isfinite(v)]  # type: ignore[attr-defined]
    return float(np.mean(finite)) if finite else float("nan")


def _largest(values: object) -> float:
    finite = [v for v in values if np.isfinite(v)]  # type: ignore[attr-defined]
    return max(finite) if finite else float("nan")
