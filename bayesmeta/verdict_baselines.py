"""What a model of verdicts has to beat: counts, and logistic routing.

Every baseline is a function of the reflect tasks and the new tasks that returns the probability
[N_new, K] that each skill is right on each new task; of new tasks it reads domain and features
only. A (task, skill) pair counts once, as its share of right attempts, however often it was
tried: attempts at one task are no independent tasks, and baselines that took them for such would
be needlessly overconfident.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.special import expit

from bayesmeta.verdict_counts import VerdictCounts

Baseline = Callable[[VerdictCounts, VerdictCounts], np.ndarray]


def pooled_counts(reflect: VerdictCounts, new: VerdictCounts) -> np.ndarray:
    """(right + 1) / (tried + 2) of each skill over all domains."""
    return np.tile(_laplace(reflect), (new.num_tasks, 1))


def domain_counts(reflect: VerdictCounts, new: VerdictCounts) -> np.ndarray:
    """(right + 1) / (tried + 2) of each skill in the task's domain."""
    found = {name: _laplace(reflect.take(reflect.domain == name)) for name in np.unique(new.domain)}
    return np.stack([found[name] for name in new.domain])


def separate_router(reflect: VerdictCounts, new: VerdictCounts) -> np.ndarray:
    """Logistic regression of each skill's verdicts on domain and features, with a ridge of 1."""
    member, new_member = _designs(reflect, new)
    p = np.empty((new.num_tasks, len(reflect.skill)))
    for k in range(len(reflect.skill)):
        rows = reflect.tried[:, k] > 0
        found = fit_logistic(member[rows], reflect.rate[rows, k])
        p[:, k] = expit(new_member @ found)
    return _no_surer_than_counts(p, reflect)


def joint_router(reflect: VerdictCounts, new: VerdictCounts) -> np.ndarray:
    """One logistic regression of all verdicts on skill, domain, both crossed, and features
    crossed with skill, with a ridge of 1.

    The mode of a model much like the hierarchical one but for scales, which it does not learn.
    """
    num_skills = len(reflect.skill)
    member, new_member = _designs(reflect, new)

    def cross(design: np.ndarray, tasks: np.ndarray, skills: np.ndarray) -> np.ndarray:
        one = np.eye(num_skills)[skills]
        crossed = design[tasks][:, None, :] * one[:, :, None]
        return np.hstack([design[tasks], crossed.reshape(len(tasks), -1)])

    tasks, skills = np.nonzero(reflect.tried)
    found = fit_logistic(cross(member, tasks, skills), reflect.rate[tasks, skills])
    index = np.indices((new.num_tasks, num_skills)).reshape(2, -1)
    p = expit(cross(new_member, *index) @ found).reshape(new.num_tasks, num_skills)
    return _no_surer_than_counts(p, reflect)


#: Baselines by the name that they carry in tables.
BASELINES: Mapping[str, Baseline] = {
    "pooled counts": pooled_counts,
    "domain counts": domain_counts,
    "logistic routing, skill by skill": separate_router,
    "logistic routing, crossed": joint_router,
}


def fit_logistic(
    design: np.ndarray, response: np.ndarray, ridge: float = 1.0, max_iterations: int = 100
) -> np.ndarray:
    """[P] coefficients that maximise sum_i y_i log p_i + (1 - y_i) log(1 - p_i) - ridge/2 |w|^2.

    The first column of the design is the intercept, which is not penalised but by 1e-6. Newton
    steps, halved until the objective rises.

    Args:
      design: [N, P].
      response: [N] in [0, 1].
    """
    # Equal rows are one row: few domains and no features make few rows of many.
    rows, group = np.unique(design, axis=0, return_inverse=True)
    group = group.ravel()
    total = np.bincount(group, minlength=len(rows)).astype(float)
    right = np.bincount(group, weights=response, minlength=len(rows))
    penalty = np.full(design.shape[1], ridge)
    penalty[0] = 1e-6

    def objective(w: np.ndarray) -> float:
        logits = rows @ w
        return float(right @ logits - total @ np.logaddexp(0, logits) - 0.5 * penalty @ w**2)

    w = np.zeros(design.shape[1])
    value = objective(w)
    for _ in range(max_iterations):
        p = expit(rows @ w)
        gradient = rows.T @ (right - total * p) - penalty * w
        if np.abs(gradient).max() < 1e-8:
            break
        curvature = (rows * (total * p * (1 - p))[:, None]).T @ rows + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        while objective(w + step) < value and np.abs(step).max() > 1e-12:
            step = step / 2
        w = w + step
        value = objective(w)
    return w


def _laplace(counts: VerdictCounts) -> np.ndarray:
    rate = counts.rate
    known = np.isfinite(rate)
    return (np.where(known, rate, 0).sum(0) + 1) / (known.sum(0) + 2)


def _no_surer_than_counts(p: np.ndarray, reflect: VerdictCounts) -> np.ndarray:
    """Kept between 1 / (n + 2) and (n + 1) / (n + 2) for a skill tried on n tasks.

    The intercept is free, so where all verdicts are equal the fit is certain of the next one.
    """
    least = 1 / ((reflect.tried > 0).sum(0) + 2)
    return np.clip(p, least, 1 - least)


def _designs(reflect: VerdictCounts, new: VerdictCounts) -> tuple[np.ndarray, np.ndarray]:
    """Intercept, domain (nothing for an unknown one) and standardised features."""
    domains = np.unique(reflect.domain)
    centre, spread = reflect.x.mean(0), reflect.x.std(0)
    spread = np.where(spread > 1e-12, spread, np.inf)

    def build(counts: VerdictCounts) -> np.ndarray:
        member = (counts.domain[:, None] == domains).astype(float)
        # The intercept is a single domain's effect already.
        member = member if len(domains) > 1 else member[:, :0]
        return np.hstack([np.ones((counts.num_tasks, 1)), member, (counts.x - centre) / spread])

    return build(reflect), build(new)
