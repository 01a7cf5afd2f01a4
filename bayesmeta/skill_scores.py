"""What every comparison needs: each skill's predictive distribution on each task, as arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from bayesmeta.outcomes import candidate_mask, skill_predictive


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class SkillScores:
    """The predictive distributions of K skills on N tasks with at most C candidates.

    Attributes:
      log_p: [N, K, C] log p(candidate | task, skill) in nats, normalised over the candidates of
        the task; -inf at padded candidates.
      gold: [N] index of the gold candidate.
      domain: [N] name of the domain.
      features: [N, P] real features of the question; P may be 0.
      tokens: [N, K] tokens that running this skill alone on this task costs.
      skills: the K names.

    Raises ValueError if the arrays disagree in shape or a distribution does not sum to one.
    """

    log_p: np.ndarray
    gold: np.ndarray
    domain: np.ndarray
    features: np.ndarray
    tokens: np.ndarray
    skills: tuple[str, ...]

    def __post_init__(self) -> None:
        arrays = {
            "log_p": np.asarray(self.log_p, np.float64),
            "gold": np.asarray(self.gold, np.int64),
            "domain": np.asarray(self.domain, np.str_),
            "features": np.asarray(self.features, np.float64),
            "tokens": np.asarray(self.tokens, np.float64),
        }
        for name, array in arrays.items():
            object.__setattr__(self, name, array)
        object.__setattr__(self, "skills", tuple(str(s) for s in self.skills))
        if self.log_p.ndim != 3:
            raise ValueError(
                f"log_p must have shape [tasks, skills, candidates], got {self.log_p.shape}."
            )
        n, k, c = self.log_p.shape
        wanted = {"gold": (n,), "domain": (n,), "tokens": (n, k)}
        for name, shape in wanted.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {arrays[name].shape}.")
        if self.features.ndim != 2 or len(self.features) != n:
            raise ValueError(
                f"features must have shape [{n}, P], got {self.features.shape}. "
                f"Without features pass np.zeros(({n}, 0))."
            )
        if not np.all(np.isfinite(self.features)):
            raise ValueError("features must be finite. Fill or drop the missing values first.")
        if len(self.skills) != k:
            raise ValueError(f"skills must name {k} skills, got {list(self.skills)}.")
        if n and (self.gold.min() < 0 or self.gold.max() >= c):
            raise ValueError(
                f"gold must lie in [0, {c}), got {self.gold.min()}..{self.gold.max()}."
            )
        self._check_normalised()

    def _check_normalised(self) -> None:
        if np.isnan(self.log_p).any() or np.isposinf(self.log_p).any():
            where = np.argwhere(np.isnan(self.log_p) | np.isposinf(self.log_p))[0]
            raise ValueError(
                f"log_p at task {where[0]}, skill {self.skills[where[1]]!r}, candidate {where[2]} "
                f"is {self.log_p[tuple(where)]}; wanted a log-probability or -inf. For a skill "
                "that was not tried, write equal probabilities."
            )
        total = np.exp(self.log_p).sum(axis=2)
        wrong = np.argwhere(np.abs(total - 1) > 1e-5)
        if len(wrong):
            task, skill = wrong[0]
            raise ValueError(
                f"log_p of task {task}, skill {self.skills[skill]!r} sums to "
                f"{total[task, skill]:.6g} over the candidates; wanted 1. "
                "Renormalise over the observed candidates."
            )

    @property
    def num_tasks(self) -> int:
        return self.log_p.shape[0]

    @property
    def num_skills(self) -> int:
        return self.log_p.shape[1]

    @property
    def log_likelihood(self) -> np.ndarray:
        """[N, K] log p(gold | task, skill) in nats."""
        return self.log_p[np.arange(self.num_tasks), :, self.gold]

    def take(self, tasks: ArrayLike) -> "SkillScores":
        """The same for a subset of the tasks (integer indices or a boolean mask)."""
        tasks = np.asarray(tasks)
        tasks = tasks if tasks.size else tasks.astype(np.int64)  # [] would be an array of floats
        return dataclasses.replace(
            self,
            log_p=self.log_p[tasks],
            gold=self.gold[tasks],
            domain=self.domain[tasks],
            features=self.features[tasks],
            tokens=self.tokens[tasks],
        )

    def mix(self, strategy: ArrayLike) -> np.ndarray:
        """[N, C] log predictive of the mixture, log sum_k w_nk p(c | n, k), in nats.

        Args:
          strategy: w, [N, K] with rows that sum to one, or [K] for the same everywhere.
        """
        weights = check_strategy(strategy, self.num_tasks, self.num_skills)
        with np.errstate(divide="ignore"):
            return np.log(np.einsum("nk,nkc->nc", weights, np.exp(self.log_p)))


def skill_scores(evidence: xr.Dataset, beta: float = 1.0) -> SkillScores:
    """The arrays of some evidence, its scores sharpened or blurred by ``beta``.

    A skill that was not tried on a task predicts nothing there: its candidates are equally
    probable.
    """
    log_p = skill_predictive(evidence, beta)
    mask = candidate_mask(evidence)
    with np.errstate(divide="ignore"):
        flat = np.where(mask, -np.log(mask.sum(1, keepdims=True)), -np.inf)
    return SkillScores(
        log_p=np.where(np.isnan(log_p), flat[:, None, :], log_p),
        gold=evidence["gold"].values,
        domain=evidence["domain"].values,
        features=evidence["features"].transpose("task", "feature").values,
        tokens=evidence["num_tokens"].transpose("task", "skill", "token_kind").values.sum(-1),
        skills=tuple(map(str, evidence["skill"].values)),
    )


def check_strategy(strategy: ArrayLike, num_tasks: int, num_skills: int) -> np.ndarray:
    """Return the strategy as float64 [N, K], or raise ValueError naming the row that is wrong."""
    weights = np.asarray(strategy, np.float64)
    if weights.shape == (num_skills,):
        weights = np.broadcast_to(weights, (num_tasks, num_skills))
    if weights.shape != (num_tasks, num_skills):
        raise ValueError(
            f"strategy must have shape {(num_tasks, num_skills)}, got {weights.shape}."
        )
    total = weights.sum(axis=1)
    wrong = ~(np.abs(total - 1) < 1e-5) | ~(weights >= -1e-12).all(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"strategy of task {row} is {weights[row].tolist()}, which sums to {total[row]:.6g}; "
            "wanted non-negative weights that sum to 1. Divide the row by its sum."
        )
    return np.maximum(weights, 0) / total[:, None]


def one_hot(choice: Sequence[int] | np.ndarray, num_skills: int) -> np.ndarray:
    """[N, K] strategy that puts all weight on one skill per task."""
    return np.eye(num_skills)[np.asarray(choice, np.int64)]
