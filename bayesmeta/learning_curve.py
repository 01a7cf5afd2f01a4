"""How many reflect tasks per domain does it take: posterior against baselines."""

import hashlib
import json
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from bayesmeta import metrics
from bayesmeta.baselines import BASELINES, Baseline
from bayesmeta.heldout import POSTERIOR
from bayesmeta.skill_scores import SkillScores

#: Fits on each of some subsets of the reflect tasks, given by their indices, and returns a strategy
#: [N_held_out, K] for each. All subsets of one size come together, so that they can share work.
FitPredict = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


def learning_curve(
    reflect: SkillScores,
    heldout: SkillScores,
    fit_predict: FitPredict,
    sizes: Sequence[int] = (2, 4, 8, 16, 32),
    num_subsets: int = 20,
    seed: int = 0,
    methods: Mapping[str, Baseline] | None = None,
    cache: MutableMapping[str, float] | None = None,
    fit_name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Held-out log score after learning from few tasks per domain.

    For each size, ``num_subsets`` random subsets of that many reflect tasks per domain are drawn
    (all of a domain that has fewer), every method learns from each, and all are judged on the
    same held-out tasks. A size at which every domain is used up has only one subset.

    Args:
      fit_predict: the posterior, see `FitPredict`.
      methods: baselines by name; all of `bayesmeta.baselines.BASELINES` by default. They learn in a
        second thread while the posterior is fitted, so they must not run NumPyro programs, whose
        effect handlers all threads share.
      cache: any mutable mapping from str to float; each (size, subset, method) cell is stored in
        it as soon as it is known (the posterior's of one size together), so that an interrupted
        run goes on where it stopped.
      fit_name: goes into the cache key of the posterior's cells; change it whenever
        ``fit_predict`` changes.
      progress: called with (cells done, cells in all).

    Returns:
      One row per (size, method): ``log_score`` and ``log_score_se`` (nats per task, mean and
      standard error over subsets), ``diff`` and ``diff_se`` (posterior minus this method, paired
      by subset; positive: the posterior is better), ``num_subsets``, ``reflect_tasks`` (mean
      number of tasks in a subset).
      The standard errors measure the luck of the subset only: all subsets share the held-out
      tasks, and large subsets share most of their reflect tasks, so they understate what a new
      set of tasks would change. They are NaN with one subset.
    """
    sizes = [int(size) for size in sizes]
    if not sizes or min(sizes) < 1 or num_subsets < 1:
        raise ValueError(
            f"sizes must be >= 1 and num_subsets >= 1, got {sizes} and {num_subsets}. "
            "Start with sizes=(2, 4, 8), num_subsets=20."
        )
    if not reflect.num_tasks or not heldout.num_tasks:
        raise ValueError(
            f"learning_curve needs tasks in both splits, got {reflect.num_tasks} reflect and "
            f"{heldout.num_tasks} held-out."
        )
    fits = dict(BASELINES if methods is None else methods)
    store: MutableMapping[str, float] = {} if cache is None else cache
    data = _fingerprint(reflect, heldout)
    # A size beyond the largest domain would repeat the one before it.
    largest = int(np.unique(reflect.domain, return_counts=True)[1].max())
    subsets = {
        size: [
            draw_subset(reflect.domain, size, np.random.default_rng([seed, size, subset]))
            for subset in range(num_subsets if size < largest else 1)
        ]
        for size in sizes
    }
    cells = {
        (size, name): [
            json.dumps(["learning_curve", data, label, size, subset, seed])
            for subset in range(len(drawn))
        ]
        for size, drawn in subsets.items()
        for name, label in ((POSTERIOR, f"{POSTERIOR}:{fit_name}"), *zip(fits, fits, strict=True))
    }
    done, total = 0, sum(map(len, cells.values()))

    def score(strategy: np.ndarray) -> float:
        return float(metrics.log_scores(heldout.mix(strategy), heldout.gold).mean())

    def score_baseline(name: str, tasks: np.ndarray) -> float:
        return score(fits[name](reflect.take(tasks), heldout))

    # Baselines learn in a thread of their own: the posterior's fits leave a core to them, at least
    # while they compile. Only this thread writes into the store.
    pool = ThreadPoolExecutor(1)
    try:
        pending = {
            key: pool.submit(score_baseline, name, tasks)
            for (size, name), keys in cells.items()
            for key, tasks in zip(keys, subsets[size], strict=True)
            if name != POSTERIOR and key not in store
        }
        for (size, name), keys in cells.items():
            missing = [i for i, key in enumerate(keys) if key not in store]
            if missing and name == POSTERIOR:
                strategies = fit_predict([subsets[size][i] for i in missing])
                for i, strategy in zip(missing, strategies, strict=True):
                    store[keys[i]] = score(strategy)
            for i in missing if name != POSTERIOR else ():
                store[keys[i]] = pending[keys[i]].result()
            done += len(keys)
            if progress is not None:
                progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    scores = {cell: [store[key] for key in keys] for cell, keys in cells.items()}
    used = {size: [len(tasks) for tasks in drawn] for size, drawn in subsets.items()}
    return pd.DataFrame([_row(size, name, scores, used) for size, name in cells])


def draw_subset(domain: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices of ``size`` tasks of each domain without replacement (all, if fewer)."""
    chosen = []
    for name in np.unique(domain):
        members = np.flatnonzero(domain == name)
        chosen.append(rng.choice(members, size=min(size, len(members)), replace=False))
    return np.sort(np.concatenate(chosen))


def _row(
    size: int,
    name: str,
    scores: Mapping[tuple[int, str], list[float]],
    used: Mapping[int, list[int]],
) -> dict[str, object]:
    mine, posterior = np.array(scores[size, name]), np.array(scores[size, POSTERIOR])
    score, difference = metrics.mean_with_error(mine), metrics.paired_difference(posterior, mine)
    return {
        "size": size,
        "method": name,
        "log_score": score.mean,
        "log_score_se": score.standard_error,
        "diff": difference.mean,
        "diff_se": difference.standard_error,
        "num_subsets": len(mine),
        "reflect_tasks": float(np.mean(used[size])),
    }


def _fingerprint(*parts: SkillScores) -> str:
    digest = hashlib.sha256()
    for scores in parts:
        for array in (scores.log_p, scores.gold, scores.features):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(json.dumps([scores.domain.tolist(), scores.skills]).encode())
    return digest.hexdigest()[:16]
