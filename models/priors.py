"""Named priors for Figure 2, to be swapped and compared."""

from bayesmeta.models.figure2 import HIERARCHICAL
from bayesmeta.models.full_data import FullData
from bayesmeta.models.full_sites import sites_of
from bayesmeta.models.graph import Graph
from bayesmeta.models.prior import Prior, SitePrior

_ZERO = SitePrior("Fixed", {"value": 0.0})

#: Priors of the sites that only some graphs have. Weakly informative on scales of one logit;
#: repeated attempts on one task are taken to differ little (phi), verifiers to err rarely.
EXTRA: dict[str, SitePrior] = {
    "V": SitePrior("Normal", {"loc": 0.0, "scale": 0.5}),
    "kappa_F": SitePrior("Gamma", {"concentration": 3.0, "rate": 0.3}),
    "sigma_F": SitePrior("HalfNormal", {"scale": 0.5}),
    "corr_F": SitePrior("LKJCholesky", {"concentration": 2.0}),
    "vartheta": SitePrior("Beta", {"concentration1": 2.0, "concentration0": 2.0}),
    "theta": SitePrior("Normal", {"loc": 0.0, "scale": 1.0}),
    "tau_gamma": SitePrior("HalfNormal", {"scale": 0.5}),
    "gamma": SitePrior("Normal", {"loc": 0.0, "scale": "tau_gamma"}),
    "difficulty": SitePrior("Normal", {"loc": 0.0, "scale": 0.5}),
    "phi": SitePrior("HalfNormal", {"scale": 50.0}),
    "eps_minus": SitePrior("Beta", {"concentration1": 2.0, "concentration0": 10.0}),
    "eps_plus": SitePrior("Beta", {"concentration1": 2.0, "concentration0": 10.0}),
}

#: Every domain for itself: effects of a fixed width so large that nothing is shared but mu.
NO_POOLING = HIERARCHICAL.replace(
    "no_pooling",
    tau_E=SitePrior("Fixed", {"value": 5.0}),
    v=SitePrior("Normal", {"loc": 0.0, "scale": 5.0}),
)
#: One strategy for all domains.
COMPLETE_POOLING = HIERARCHICAL.replace("complete_pooling", tau_E=_ZERO)
#: Every strategy equally likely beforehand: flat on weights, not on logits.
FLAT_WEIGHTS = HIERARCHICAL.replace(
    "flat_weights", u=SitePrior("LogisticDirichlet", {"concentration": 1.0})
)
#: The question's features do not reach the strategy.
NO_FEATURES = HIERARCHICAL.replace("no_features", U=_ZERO)
#: Most domains are like the others, and a few are not at all (regularised horseshoe).
HORSESHOE = HIERARCHICAL.replace(
    "horseshoe",
    tau_E=SitePrior("HalfCauchy", {"scale": 0.25}),
    lambda_E=SitePrior("HalfCauchy", {"scale": 1.0}),
    v=SitePrior("Normal", {"loc": 0.0, "scale": "local_E"}),
)
#: As the figure is printed: no features. In the graph `LITERAL` each domain has one strategy of
#: its own, whose spread sigma_F has to be known, or it could not be told from that of E.
LITERAL_FIGURE2 = HIERARCHICAL.replace("literal_figure2", U=_ZERO)
#: Skills hardly differ: it takes much evidence to move the strategy from uniform.
SCEPTICAL = HIERARCHICAL.replace(
    "sceptical",
    u=SitePrior("Normal", {"loc": 0.0, "scale": 0.3}),
    U=SitePrior("Normal", {"loc": 0.0, "scale": 0.1}),
    tau_E=SitePrior("HalfNormal", {"scale": 0.1}),
)
#: One skill does everything, in each domain another: logits so wide that weights are near 0 or 1.
OVERCONFIDENT = HIERARCHICAL.replace(
    "overconfident",
    u=SitePrior("Normal", {"loc": 0.0, "scale": 6.0}),
    U=SitePrior("Normal", {"loc": 0.0, "scale": 2.0}),
    tau_E=SitePrior("LogNormal", {"loc": 1.5, "scale": 0.25}),
)

#: Name -> prior, for `bayesmeta.fit` and `bayesmeta ablate`.
PRIORS: dict[str, Prior] = {
    prior.name: prior
    for prior in (
        HIERARCHICAL,
        NO_POOLING,
        COMPLETE_POOLING,
        FLAT_WEIGHTS,
        NO_FEATURES,
        HORSESHOE,
        LITERAL_FIGURE2,
        SCEPTICAL,
        OVERCONFIDENT,
    )
}


def named_prior(name: str) -> Prior:
    """The registered prior of this name. Raises ValueError with the names there are."""
    try:
        return PRIORS[name]
    except KeyError:
        raise ValueError(f"no prior named {name!r}; known: {', '.join(PRIORS)}.") from None


def prior_for(graph: Graph, data: FullData, base: Prior = HIERARCHICAL) -> Prior:
    """``base`` with the default entry for every site that the graph has and ``base`` lacks.

    Where a domain has one strategy its spread around the external view's is fixed (kappa_F at
    10; sigma_F at 0.5, uncorrelated), because no data can tell the two apart.
    """
    wanted = sites_of(graph, data, base)
    extra = {site: EXTRA[site] for site in wanted if site not in base.sites}
    if graph.strategy_per == "domain":
        size = data.num_skills - 1
        identity = tuple(tuple(float(i == j) for j in range(size)) for i in range(size))
        known = {"kappa_F": 10.0, "sigma_F": 0.5, "corr_F": identity}
        extra |= {
            site: SitePrior("Fixed", {"value": value})
            for site, value in known.items()
            if site in extra
        }
    if not graph.g_to_f:
        extra["U"] = _ZERO
    return base.replace(base.name, **extra) if extra else base
