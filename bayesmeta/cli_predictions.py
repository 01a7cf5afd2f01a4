"""Predictions as rows of a CSV file."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from bayesmeta.posterior import encoding_of
from bayesmeta.prediction import predict, strategy_draws
from bayesmeta.tasks import Task


def answers_frame(
    posterior: xr.DataTree, evidence: xr.Dataset, interval: float, seed: int
) -> pd.DataFrame:
    """Strategy and answer of every task of some evidence."""
    found = predict(posterior, evidence, rng_seed=seed, interval=interval)
    probability = np.exp(found["log_p"].values)
    best, gold = probability.argmax(1), evidence["gold"].values
    rows = np.arange(len(best))
    answer: dict[str, object] = {"answer_index": best}
    if "candidate_text" in evidence:
        answer["answer"] = evidence["candidate_text"].values[rows, best]
    answer["answer_probability"] = probability[rows, best]
    answer["gold_index"] = gold
    answer["gold_probability"] = probability[rows, gold]
    answer["correct"] = (best == gold).astype(int)
    skills = list(map(str, found["skill"].values))
    mean, lower, upper = (found[name].values for name in ("weight", "weight_lower", "weight_upper"))
    return _frame(evidence, skills, mean, lower, upper, answer)


def strategies_frame(
    posterior: xr.DataTree, tasks: Sequence[Task], interval: float, seed: int
) -> pd.DataFrame:
    """The strategy of tasks that no language model was asked about.

    Raises:
      ValueError: a task lacks a feature that the posterior was fitted with.
    """
    encoding = encoding_of(posterior)
    for task in tasks:
        lacking = [name for name in encoding.feature if name not in task.features]
        if lacking:
            raise ValueError(
                f"task {task.id!r} lacks the feature {lacking[0]!r} that the posterior was fitted "
                f"with; it has {sorted(task.features)}. Add it, or fit without it."
            )
    features = [[task.features[name] for name in encoding.feature] for task in tasks]
    questions = xr.Dataset(
        {
            "domain": ("task", np.array([task.domain for task in tasks], dtype=object)),
            "split": ("task", np.array([task.split for task in tasks], dtype=object)),
            "features": (
                ("task", "feature"),
                np.array(features, dtype=float).reshape(len(tasks), len(encoding.feature)),
            ),
        },
        coords={"task": [task.id for task in tasks], "feature": list(encoding.feature)},
    )
    draws = strategy_draws(posterior, questions, rng_seed=seed)
    tail = 100 * (1 - interval) / 2
    lower, upper = np.percentile(draws, [tail, 100 - tail], axis=0)
    return _frame(questions, encoding.skill, draws.mean(0), lower, upper, {})


def _frame(
    tasks: xr.Dataset,
    skills: Sequence[str],
    mean: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    answer: dict[str, object],
) -> pd.DataFrame:
    best, rows = mean.argmax(1), np.arange(len(mean))
    columns: dict[str, object] = {
        "task": tasks["task"].values,
        "domain": tasks["domain"].values,
        "split": tasks["split"].values,
        "skill": np.array(skills, dtype=object)[best],
        "skill_weight": mean[rows, best],
        "skill_weight_lower": lower[rows, best],
        "skill_weight_upper": upper[rows, best],
        **answer,
    }
    for k, skill in enumerate(skills):
        columns[f"weight:{skill}"] = mean[:, k]
        columns[f"lower:{skill}"] = lower[:, k]
        columns[f"upper:{skill}"] = upper[:, k]
    return pd.DataFrame(columns)
