"""What a posterior over strategies predicts for tasks it has not seen."""

import numpy as np
import xarray as xr
from scipy.special import logsumexp, softmax

from bayesmeta.outcomes import skill_mask, skill_predictive
from bayesmeta.posterior import check_converged, encoding_of, group


def predict(
    posterior: xr.DataTree, evidence: xr.Dataset, *, rng_seed: int = 0, interval: float = 0.9
) -> xr.Dataset:
    """Strategy and answer of every task of some evidence, averaged over the posterior.

    The strategy needs only a task's domain and features; the answer also needs the skills'
    log-likelihoods of its candidates. Domains that the posterior has not seen are drawn from the
    distribution that the seen ones come from, delta ~ N(0, tau_E^2).

    Args:
      posterior: a converged fit (otherwise `NotConvergedError`).
      evidence: N tasks with the skills that were fitted.
      rng_seed: for unseen domains.
      interval: probability of the equal-tailed interval reported for the weights.

    Returns:
      Dataset with ``weight`` [task, skill], the posterior mean of w_nk; ``weight_lower`` and
      ``weight_upper``; ``log_p`` [task, candidate], log E[sum_k w_nk p(c | n, k)] in nats;
      ``skill_log_p`` [task, skill, candidate].
    """
    check_converged(posterior)
    _require_readable(posterior)
    encoding = encoding_of(posterior)
    missing = sorted(set(encoding.skill) - set(map(str, evidence["skill"].values)))
    if missing:
        raise ValueError(
            f"the evidence lacks the skills {missing} that the posterior weighs. "
            "Observe the tasks under them, or fit without them."
        )
    evidence = evidence.sel(skill=list(encoding.skill))
    weights = strategy_draws(posterior, evidence, rng_seed=rng_seed)
    tried = skill_mask(evidence)
    if not tried.all():
        weights = weights * tried
        weights = weights / weights.sum(-1, keepdims=True)
    mean = weights.mean(0)
    if posterior.attrs["beta"] == "infer":
        log_p, table = _tempered(posterior, evidence, weights)
    else:
        table = skill_predictive(evidence, float(posterior.attrs["beta"]))
        log_p = mix(mean, table)
    tail = 100 * (1 - interval) / 2
    lower, upper = np.percentile(weights, [tail, 100 - tail], axis=0)
    return xr.Dataset(
        {
            "weight": (("task", "skill"), mean),
            "weight_lower": (("task", "skill"), lower),
            "weight_upper": (("task", "skill"), upper),
            "log_p": (("task", "candidate"), log_p),
            "skill_log_p": (("task", "skill", "candidate"), table),
        },
        coords={"task": evidence["task"].values, "skill": list(encoding.skill)},
        attrs={"interval": interval},
    )


def _require_readable(posterior: xr.DataTree) -> None:
    """Raise ValueError where the graph gives tasks strategies or answers that are not read here."""
    from bayesmeta.models.graph import Graph

    if "graph" not in posterior.attrs:
        return
    graph = Graph.from_json(posterior.attrs["graph"])
    if graph.strategy != "categorical" or not graph.f_to_o or graph.e_to_o != "on":
        raise ValueError(
            f"predictions for new tasks read the scores as they are, but the posterior's graph "
            f"{graph.name!r} has strategy={graph.strategy!r}, f_to_o={graph.f_to_o}, "
            f"e_to_o={graph.e_to_o!r}. Compare such graphs on held-out tasks with "
            "bayesmeta.ablation, which runs the graph's own program."
        )


def mix(weights: np.ndarray, table: np.ndarray) -> np.ndarray:
    """log sum_k w_nk p(c | n, k), [N, C] in nats, from weights [N, K] and table [N, K, C].

    Skills that were not tried (NaN in the table) must have weight zero.
    """
    table = np.where(np.isnan(table), -np.inf, table)
    with np.errstate(divide="ignore"):
        return np.asarray(logsumexp(np.log(weights)[:, :, None] + table, axis=1))


def strategy_draws(
    posterior: xr.DataTree, evidence: xr.Dataset, *, rng_seed: int = 0, max_draws: int = 1000
) -> np.ndarray:
    """Posterior draws of the strategy w_n, [draws, N, K], thinned to at most ``max_draws``."""
    from bayesmeta.inference.structure import merge_chains

    encoding, sites = encoding_of(posterior), group(posterior, "posterior")
    names = [name for name in ("mu", "W", "delta", "tau_E") if name in sites]
    stacked = {name: merge_chains(sites[name].values) for name in names}
    keep = np.linspace(0, len(stacked["mu"]) - 1, min(max_draws, len(stacked["mu"]))).astype(int)
    x = encoding.standardise(evidence)
    # Tasks without features have no W.
    stacked.setdefault("W", np.zeros((*stacked["mu"].shape, x.shape[1])))
    mu, W, delta, tau = (stacked[n][keep].astype(np.float64) for n in ("mu", "W", "delta", "tau_E"))
    domain = encoding.domain_index(evidence["domain"].values)
    unseen = sorted(set(map(str, evidence["domain"].values[domain < 0])))
    if unseen:
        noise = np.random.default_rng(rng_seed).standard_normal((len(mu), len(unseen), mu.shape[1]))
        noise -= noise.mean(-1, keepdims=True)
        delta = np.concatenate([delta, tau[:, None, None] * noise], axis=1)
        place = {name: len(encoding.domain) + i for i, name in enumerate(unseen)}
        domain = np.array(
            [place.get(str(n), d) for n, d in zip(evidence["domain"].values, domain, strict=True)]
        )
    logits = mu[:, None, :] + np.einsum("np,skp->snk", x, W) + delta[:, domain, :]
    return softmax(logits, axis=-1)


def _tempered(posterior: xr.DataTree, evidence: xr.Dataset, weights: np.ndarray):
    """Average over draws of (strategy, beta) jointly; the table is at the posterior mean beta."""
    betas = group(posterior, "posterior")["beta"].values.reshape(-1)
    keep = np.linspace(0, len(betas) - 1, len(weights)).astype(int)
    picks = np.linspace(0, len(keep) - 1, min(len(keep), 200)).astype(int)
    draws = [mix(weights[i], skill_predictive(evidence, float(betas[keep[i]]))) for i in picks]
    log_p = logsumexp(np.stack(draws), axis=0) - np.log(len(picks))
    return log_p, skill_predictive(evidence, float(betas.mean()))
