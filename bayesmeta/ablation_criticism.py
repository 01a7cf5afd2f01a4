"""Leave-one-out and sensitivity to the prior, by ArviZ, as plain numbers that never fail."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import logsumexp

#: What power scaling may say of a quantity, best first (Kallioinen et al. 2024,
#: doi:10.1007/s11222-023-10366-5).
DIAGNOSES = (
    "✓",
    "potential strong prior / weak likelihood",
    "potential prior-data conflict",
)


def leave_one_out(tree: xr.DataTree) -> tuple[np.ndarray, int]:
    """Expected log predictive density of each of N tasks left out, and how many are unreliable.

    Pareto-smoothed importance sampling (Vehtari et al. 2024). Where a task's likelihood is the
    same at all draws but a few, as under strategies near a vertex, there is no tail to smooth and
    plain importance sampling is what is left.

    Args:
      tree: with groups ``posterior`` and ``log_likelihood``, the latter with one variable ``O``.

    Returns:
      [N] in nats, and the number of tasks whose Pareto k is too large.
    """
    import arviz as az

    with _quiet():
        with contextlib.suppress(ValueError):
            loo: Any = az.loo(tree, pointwise=True)
            return _values(loo.elpd_i), int((_values(loo.pareto_k) > loo.good_k).sum())
        log_likelihood = tree.children["log_likelihood"].to_dataset()["O"].values
        elpd, bad = np.empty(log_likelihood.shape[-1]), 0
        for n in range(len(elpd)):
            one = log_likelihood[..., n : n + 1]
            # With reff given, the posterior is asked for its dimensions only.
            alone = az.from_dict({"posterior": {"_": one[..., 0]}, "log_likelihood": {"O": one}})
            try:
                loo = az.loo(alone, pointwise=True, reff=1.0)
                elpd[n] = _values(loo.elpd_i)[0]
                bad += int(_values(loo.pareto_k)[0] > loo.good_k)
            except ValueError:
                flat = one.ravel().astype(np.float64)
                elpd[n] = np.log(len(flat)) - logsumexp(-flat)
        return elpd, bad


def prior_sensitivity(tree: xr.DataTree, sites: tuple[str, ...]) -> tuple[dict[str, float], str]:
    """Largest sensitivity to the prior of each site's entries, and the worst diagnosis of any.

    Args:
      tree: with groups ``posterior``, ``log_likelihood`` and ``log_prior``; sites that it lacks,
        because they do not vary, are NaN.
    """
    import arviz as az

    names = [name for name in sites if name in tree["posterior"]]
    unknown = dict.fromkeys(sites, float("nan"))
    if not names:
        return unknown, "n/a"
    try:
        with _quiet():
            table = az.psense_summary(tree, var_names=names, round_to=12)
    except ValueError:  # no tail to smooth, as in `leave_one_out`
        return unknown, "n/a"
    site = np.array([str(label).split("[")[0] for label in table.index])
    values = np.asarray(table["prior"], np.float64)
    found = {name: values[(site == name) & np.isfinite(values)] for name in sites}
    largest = {name: float(v.max()) if len(v) else float("nan") for name, v in found.items()}
    return largest, str(max(table["diagnosis"], key=_severity))


def _severity(diagnosis: str) -> int:
    return DIAGNOSES.index(diagnosis) if diagnosis in DIAGNOSES else 0


def _values(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64).ravel()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ArviZ tells of large Pareto k and of sensitivity in words; here they are numbers."""
    logger = logging.getLogger("arviz_stats.psense")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
