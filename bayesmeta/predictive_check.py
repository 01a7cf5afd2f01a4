"""Does the fitted model produce outcomes like those it was fitted to?"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from bayesmeta.posterior import group

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def predictive_check(posterior: xr.DataTree, evidence: xr.Dataset) -> pd.DataFrame:
    """Accuracy of the skills' answers in each domain: observed, and as the model would have it.

    The test quantity of a domain is the share of its tasks on which the observed answer is the
    one that the skills call most likely on average. Under the model the observed answers are
    draws from the posterior predictive, so that replicated answers give the same quantity's
    distribution (Gelman, Meng & Stern 1996).

    Args:
      posterior: of answers, with the group ``posterior_predictive``.
      evidence: that it was fitted to; its reflect tasks are used.

    Returns:
      By domain: ``tasks``, ``observed``, ``replicated`` (mean), ``low`` and ``high`` (90 %
      interval) and ``p`` (share of replications at or above the observed value, ties halved).
    """
    from bayesmeta.fitting import reflect_part
    from bayesmeta.outcomes import skill_predictive

    drawn = group(posterior, "posterior_predictive")["O"]
    fitted = reflect_part(evidence).sel(task=drawn["task"].values)
    beta = posterior.attrs["beta"]
    table = skill_predictive(fitted, 1.0 if beta == "infer" else float(beta))
    best = np.nanmean(np.exp(table), axis=1).argmax(1)
    replicated = drawn.values.reshape(-1, drawn.sizes["task"]) == best
    observed = fitted["gold"].values == best
    domains = np.asarray(fitted["domain"].values, object)
    rows = {}
    for domain in sorted(set(domains)):
        own = domains == domain
        share, shares = observed[own].mean(), replicated[:, own].mean(1)
        above = (shares > share).mean() + 0.5 * (shares == share).mean()
        low, high = np.quantile(shares, [0.05, 0.95])
        rows[domain] = (int(own.sum()), share, shares.mean(), low, high, above)
    columns = ["tasks", "observed", "replicated", "low", "high", "p"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def plot_predictive_check(table: pd.DataFrame) -> "Figure":
    """Observed accuracy of each domain on its 90 % predictive interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.35 * len(table) + 1.2), layout="constrained")
    axis = figure.subplots()
    rows = np.arange(len(table))[::-1]
    axis.hlines(rows, table["low"], table["high"], color="#0072B2", lw=6, alpha=0.35)
    axis.plot(table["replicated"], rows, "|", color="#0072B2", ms=12, label="replicated, 90 %")
    axis.plot(table["observed"], rows, "o", color="#D55E00", label="observed")
    axis.set_yticks(rows, list(map(str, table.index)))
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of tasks on which the skills' favourite answer is right")
    axis.legend(loc="lower right", frameon=False)
    return figure
