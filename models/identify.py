"""Which parameters the data cannot tell apart, found before a fit spends time on them."""

import dataclasses

import numpy as np

from bayesmeta.models.full_data import Answers, Attempts, FullData, Steps
from bayesmeta.models.graph import Graph
from bayesmeta.models.prior import Prior

#: Two skills whose scores differ by less than this, in nats per task on average, cannot be told
#: apart from a few hundred tasks.
MIN_SKILL_DIFFERENCE = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Unidentified:
    """A parameter that these data cannot inform under this graph.

    Attributes:
      sites: the sites concerned.
      why: what makes the likelihood flat.
      fix: what would make it informative.
    """

    sites: tuple[str, ...]
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{', '.join(self.sites)}: {self.why} {self.fix}"


class UnidentifiedError(ValueError):
    """A graph, prior and data that together leave a parameter to its prior."""


def require_identified(graph: Graph, data: FullData, prior: Prior) -> None:
    """Raise `UnidentifiedError` where `unidentified` finds anything."""
    found = unidentified(graph, data, prior)
    if found:
        listed = "\n".join(f"  - {one}" for one in found)
        raise UnidentifiedError(
            f"graph {graph.name!r} with prior {prior.name!r} has parameters that these data "
            f"cannot inform:\n{listed}\nTheir posterior would be their prior along some direction. "
            "Fix one of them, or pass allow_unidentified=True to fit all the same."
        )


def unidentified(graph: Graph, data: FullData, prior: Prior) -> list[Unidentified]:
    """Every parameter whose likelihood is exactly flat, alone or along a ridge.

    A site that the prior fixes is never named. Judges exact flatness, from the structure of the
    graph and the data; it does not measure how much the data say.
    """
    rules = (
        _spread_of_tasks,
        _spread_of_domains,
        _reliability,
        _overdispersion,
        _skills,
        _verifier,
    )
    return [one for rule in rules if (one := rule(graph, data, prior)) is not None]


def similar_skills(
    data: FullData, names: list[str] | None = None, threshold: float = MIN_SKILL_DIFFERENCE
) -> list[tuple[str, str, float]]:
    """Pairs of skills whose scores of the observed answers hardly differ: candidates for a merge.

    Returns:
      (skill, skill, mean absolute difference in nats), for pairs below ``threshold``.
    """
    if not isinstance(data.outcome, Answers) or data.outcome.log_p is None:
        return []
    gold = np.asarray(data.outcome.gold)
    scores = np.take_along_axis(np.asarray(data.outcome.log_p), gold[None, None], 0)[0]
    names = names or [str(k) for k in range(data.num_skills)]
    pairs = []
    for i in range(data.num_skills):
        for j in range(i):
            both = np.isfinite(scores[i]) & np.isfinite(scores[j])
            difference = float(np.abs(scores[i] - scores[j])[both].mean()) if both.any() else 0.0
            if difference < threshold:
                pairs.append((names[j], names[i], difference))
    return pairs


def _free(prior: Prior, *sites: str) -> bool:
    return all(site in prior.sites and prior[site].fixed is None for site in sites)


def _spread_site(graph: Graph) -> str:
    return "kappa_F" if graph.strategy == "dirichlet" else "sigma_F"


def _spread_of_tasks(graph: Graph, data: FullData, prior: Prior) -> Unidentified | None:
    """With one outcome that is linear in F_n, only the mean of F_n enters the likelihood."""
    site = _spread_site(graph)
    if graph.strategy == "categorical" or graph.strategy_per == "domain" or not _free(prior, site):
        return None
    seen = data.outcome
    if isinstance(seen, Steps):
        uses = np.asarray(seen.used).sum(0).max() + (1 if graph.f_to_o else 0)
        if graph.composition == "product_of_experts" or (
            graph.composition == "step_composition" and uses >= 2
        ):
            return None
    if (
        isinstance(seen, Attempts)
        and graph.skill_per == "attempt"
        and np.asarray(seen.attempts).max() >= 2
    ):
        return None
    return Unidentified(
        (site,),
        "each task uses its strategy F_n once, so that the likelihood is linear in F_n and only "
        "its mean enters.",
        "Use strategy='categorical', which is the same likelihood; or steps composed by "
        "step_composition (at least two), or repeated attempts with skill_per='attempt'; or fix "
        f"{site} with SitePrior('Fixed', {{'value': ...}}).",
    )


def _spread_of_domains(graph: Graph, data: FullData, prior: Prior) -> Unidentified | None:
    """One strategy per domain can differ from its neighbours for two reasons, with one effect."""
    site = _spread_site(graph)
    if graph.strategy_per != "domain" or data.num_domains < 2:
        return None
    if not _free(prior, site) or not _free(prior, "tau_E"):
        return None
    return Unidentified(
        (site, "tau_E"),
        "each domain has one strategy, and both the external view's effect delta_d and the spread "
        "of F around it make domains differ: only their sum is seen.",
        f"Fix {site}, or fix tau_E at 0.",
    )


def _reliability(graph: Graph, data: FullData, prior: Prior) -> Unidentified | None:
    if graph.e_to_o != "reliability" or not _free(prior, "vartheta"):
        return None
    seen = data.outcome
    if not isinstance(seen, Answers):
        return None
    with_e, without_e = seen.tables(graph.f_to_o)
    if with_e is None or without_e is None:
        return None
    gold = np.asarray(seen.gold)[None, None]
    difference = np.take_along_axis(np.asarray(with_e) - np.asarray(without_e), gold, 0)[0]
    if np.abs(np.nan_to_num(difference)).max() > 1e-6:
        return None
    return Unidentified(
        ("vartheta",),
        "with and without what was recalled, every observed answer has the same score, so nothing "
        "tells how reliable it is.",
        "Add tasks on which memory and evidence disagree, or use e_to_o='on'.",
    )


def _overdispersion(graph: Graph, data: FullData, prior: Prior) -> Unidentified | None:
    seen = data.outcome
    if graph.outcome != "success" or not isinstance(seen, Attempts) or not _free(prior, "phi"):
        return None
    if np.asarray(seen.attempts).max() >= 2:
        return None
    return Unidentified(
        ("phi",),
        "no task was attempted twice, and one attempt cannot show how much attempts vary.",
        "Repeat attempts on some tasks, or fix phi.",
    )


def _skills(graph: Graph, data: FullData, prior: Prior) -> Unidentified | None:
    """Skills that succeed equally often whatever is inferred leave no trace of the strategy."""
    seen = data.outcome
    if not isinstance(seen, Attempts) or graph.i_to_o:
        return None
    abilities_differ = graph.e_to_o == "on" and data.num_domains > 1
    if abilities_differ or np.ptp(np.asarray(seen.log_odds), axis=0).max() > 1e-6:
        return None
    sites = tuple(s for s in ("u", "U", "v", "tau_E") if _free(prior, s))
    return Unidentified(
        sites,
        "all skills succeed with the same log-odds on every task, so outcomes do not depend on "
        "which one was used.",
        "Give log_odds that differ by skill, or let I reach O (i_to_o=True).",
    )


def _verifier(graph: Graph, data: FullData, prior: Prior) -> Unidentified | None:
    """Where nothing says how often answers are correct, errors and correctness can be swapped."""
    if graph.outcome != "verifier" or not _free(prior, "eps_minus", "eps_plus"):
        return None
    means = [_beta_mean(prior, site) for site in ("eps_minus", "eps_plus")]
    if any(mean is None for mean in means) or sum(mean for mean in means if mean) < 1:
        return None
    return Unidentified(
        ("eps_minus", "eps_plus"),
        "a verifier that errs as often as not carries no information, and one that errs more often "
        "than not is the same as a good one with its verdicts swapped.",
        "Choose priors whose means sum to less than 1, such as Beta(2, 10) for each.",
    )


def _beta_mean(prior: Prior, site: str) -> float | None:
    entry = prior[site]
    if entry.family == "Uniform":
        low, high = entry.parameters.get("low", 0.0), entry.parameters.get("high", 1.0)
        if isinstance(low, int | float) and isinstance(high, int | float):
            return (low + high) / 2
        return None
    a, b = (entry.parameters.get(k) for k in ("concentration1", "concentration0"))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a / (a + b)
    return None
