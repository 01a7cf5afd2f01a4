"""Memory: the internal and the external view, kept over episodes and processes.

The internal view I is the slow posterior over Theta_I, what is known of skills in general; the
external view E is the fast one over Theta_E, what is particular to a domain. Both are read off one
joint belief, so that what one episode teaches about a domain also counts for what is common.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from bayesmeta.belief import Belief
from bayesmeta.memory_store import Entry, MemoryStore
from bayesmeta.outcomes import skill_mask, skill_predictive
from bayesmeta.prediction import mix

if TYPE_CHECKING:
    import pandas as pd

#: Draws by which nonlinear quantities are summarised, with a fixed seed.
_NUM_DRAWS = 2000


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class InternalView:
    """The slow view: which skills suit reasoning in general, and how features bear on that.

    Attributes:
      skill, feature: names.
      mu: [draw, K] logits, zero-sum over skills.
      W: [draw, K, P] effects of standardised features on them.
    """

    skill: tuple[str, ...]
    feature: tuple[str, ...]
    mu: np.ndarray
    W: np.ndarray

    def table(self) -> "pd.DataFrame":
        """Mean and sd of every entry, on logits: columns ``intercept`` and one for each feature."""
        import pandas as pd

        rows = {}
        for k, skill in enumerate(self.skill):
            row = {"mu mean": self.mu[:, k].mean(), "mu sd": self.mu[:, k].std()}
            for p, name in enumerate(self.feature):
                row |= {f"{name} mean": self.W[:, k, p].mean(), f"{name} sd": self.W[:, k, p].std()}
            rows[skill] = row
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("skill")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ExternalView:
    """The fast view: what is particular to each domain.

    Attributes:
      domain, skill: names.
      delta: [draw, D, K] effects on logits, zero-sum over skills.
      tau_E: [draw] their common scale.
      strategy: [draw, D, K] F, the domain's strategy for an average question.
    """

    domain: tuple[str, ...]
    skill: tuple[str, ...]
    delta: np.ndarray
    tau_E: np.ndarray
    strategy: np.ndarray

    def table(self, interval: float = 0.9) -> "pd.DataFrame":
        """One row for each domain and skill: weight in the strategy with an interval, and delta."""
        import pandas as pd

        tail = (1 - interval) / 2
        lower, upper = np.quantile(self.strategy, [tail, 1 - tail], axis=0)
        index = pd.MultiIndex.from_product([self.domain, self.skill], names=["domain", "skill"])
        return pd.DataFrame(
            {
                "weight": self.strategy.mean(0).ravel(),
                "lower": lower.ravel(),
                "upper": upper.ravel(),
                "delta mean": self.delta.mean(0).ravel(),
                "delta sd": self.delta.std(0).ravel(),
            },
            index=index,
        )


class Memory:
    """What has been learned so far, in a folder. See `bayesmeta.reflection.reflect`.

    Opening one reads nothing but the head; the folder appears with the first episode.
    """

    def __init__(self, folder: str | Path) -> None:
        self.store = MemoryStore(folder)
        self.store.history()  # an unreadable memory is noticed here, not after an hour of work

    @property
    def entry(self) -> Entry | None:
        """The current episode; None before the first."""
        return self.store.head()

    @property
    def belief(self) -> Belief:
        """The current belief.

        Raises:
          ValueError: nothing has been learned yet, or the file is damaged.
        """
        entry = self.entry
        if entry is None:
            raise ValueError(
                f"memory {self.store.folder} has taken in no episode yet. Reflect on some "
                "evidence first: bayesmeta.reflect(memory, evidence)."
            )
        return self.at(entry.episode)

    def at(self, episode: int) -> Belief:
        """The belief after an episode on the way to the current one."""
        return Belief.from_dataset(self.store.read(self.store.entry(episode)))

    def history(self) -> "pd.DataFrame":
        """What was done to the memory, oldest first."""
        import pandas as pd

        rows = [dataclasses.asdict(entry) for entry in self.store.history()]
        columns = [field.name for field in dataclasses.fields(Entry)]
        return pd.DataFrame(rows, columns=columns)

    def rollback(self, episode: int) -> None:
        """Go back to an earlier episode, 0 for none. Later ones stay on disk and in the history."""
        self.store.rollback(episode)

    @property
    def internal(self) -> InternalView:
        """The internal view now."""
        return views(self.belief)[0]

    @property
    def external(self) -> ExternalView:
        """The external view now."""
        return views(self.belief)[1]

    def strategy(self, domain: str) -> dict[str, float]:
        """Skill -> weight for an average question of a domain, known or not."""
        belief = self.belief.with_domains([domain])
        _, external = views(belief)
        mean = external.strategy[:, external.domain.index(domain)].mean(0)
        return dict(zip(belief.encoding.skill, mean.tolist(), strict=True))

    def predict(self, evidence: xr.Dataset) -> xr.Dataset:
        """Strategy and answers for every task of some evidence: see `predict_from`."""
        return predict_from(self.belief, evidence)


def views(belief: Belief) -> tuple[InternalView, ExternalView]:
    """Both views of a belief, by the same draws."""
    from bayesmeta.reflection import site_draws

    sites, encoding = site_draws(belief, _NUM_DRAWS), belief.encoding
    met = [encoding.domain.index(name) for name in belief.domains]
    mu = sites["mu"]
    W = sites.get("W", np.zeros((*mu.shape, 0)))
    internal = InternalView(encoding.skill, encoding.feature, mu, W)
    external = ExternalView(
        belief.domains,
        encoding.skill,
        sites["delta"][:, met],
        sites["tau_E"],
        sites["F"][:, met],
    )
    return internal, external


def predict_from(belief: Belief, evidence: xr.Dataset) -> xr.Dataset:
    """What a belief predicts for tasks that it has not taken in.

    Args:
      belief: of at least one episode.
      evidence: N tasks with the skills of the belief; domains may be new, and are then predicted
        from what the others have in common.

    Returns:
      Dataset with ``weight`` [task, skill], the mean of the strategy over the belief; ``log_p``
      [task, candidate] in nats; ``log_score`` [task], that of the gold answer.
    """
    from scipy.special import softmax

    from bayesmeta.reflection import check_skills_known, site_draws

    check_skills_known(belief, evidence)
    evidence = evidence.sel(skill=list(belief.encoding.skill))
    belief = belief.with_domains(sorted(set(map(str, evidence["domain"].values))))
    sites = site_draws(belief, _NUM_DRAWS)
    x = belief.encoding.standardise(evidence)
    domain = belief.encoding.domain_index(evidence["domain"].values)
    logits = sites["mu"][:, None] + sites["delta"][:, domain]
    if "W" in sites:
        logits = logits + np.einsum("np,skp->snk", x, sites["W"])
    weights = softmax(logits, -1)
    tried = skill_mask(evidence)
    weights = weights * tried
    weights = (weights / weights.sum(-1, keepdims=True)).mean(0)
    log_p = mix(weights, skill_predictive(evidence, float(belief.attributes["beta"])))
    gold = evidence["gold"].values.astype(int)
    coords: dict[str, Any] = {
        "task": evidence["task"].values,
        "skill": list(belief.encoding.skill),
    }
    return xr.Dataset(
        {
            "weight": (("task", "skill"), weights),
            "log_p": (("task", "candidate"), log_p),
            "log_score": ("task", np.take_along_axis(log_p, gold[:, None], 1)[:, 0]),
        },
        coords=coords,
    )
