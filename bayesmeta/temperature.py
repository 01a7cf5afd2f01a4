"""Choosing the inverse temperature of a language model's scores by held-out log score."""

import numpy as np
import xarray as xr

from bayesmeta.baselines import no_pooling
from bayesmeta.metrics import log_scores
from bayesmeta.skill_scores import SkillScores, skill_scores

#: Powers of the square root of two from 1/8 to 2: small models are over-confident, seldom shy.
GRID = tuple(float(2 ** (k / 2)) for k in range(-6, 3))


def choose_beta(
    reflect: xr.Dataset, grid: tuple[float, ...] = GRID, num_folds: int = 5, seed: int = 0
) -> float:
    """The beta of ``grid`` with the best cross-validated log score.

    Each fold's tasks are scored by the stacking weights that the other folds give their domain,
    so the choice rests on predictions only. Weights common to all domains would not do: they
    predict badly wherever domains differ, and bad predictors are best blurred. Beta is fixed
    before the strategy is fitted: it sharpens or blurs what each task says of its skill, and the
    two are hardly told apart by one outcome per task.

    Args:
      reflect: the tasks to choose on.
      grid: candidate values, > 0.
      num_folds: folds, drawn at random with ``seed``.
    """
    return float(grid[int(np.argmax(beta_curve(reflect, grid, num_folds, seed)))])


def beta_curve(
    reflect: xr.Dataset, grid: tuple[float, ...] = GRID, num_folds: int = 5, seed: int = 0
) -> np.ndarray:
    """Cross-validated mean log score of each beta of the grid, in nats per task."""
    num_tasks = reflect.sizes["task"]
    if num_tasks < 2 * num_folds:
        raise ValueError(
            f"choosing beta needs at least {2 * num_folds} reflect tasks, got {num_tasks}. "
            "Give a number, such as beta=1.0."
        )
    fold = np.random.default_rng(seed).permutation(num_tasks) % num_folds
    return np.array([_cross_validated(skill_scores(reflect, beta), fold) for beta in grid])


def _cross_validated(scores: SkillScores, fold: np.ndarray) -> float:
    held_out = []
    for k in range(fold.max() + 1):
        learned, judged = scores.take(fold != k), scores.take(fold == k)
        predictive = judged.mix(no_pooling(learned, judged))
        held_out.append(log_scores(predictive, judged.gold))
    return float(np.concatenate(held_out).mean())
