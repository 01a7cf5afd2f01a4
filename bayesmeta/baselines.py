"""What a posterior over strategies has to beat: simpler ways to choose or mix skills.

Every baseline is a function of the reflect tasks and the held-out tasks that returns the strategy
for the held-out tasks, ``[N_held_out, K]`` with rows that sum to one. None but `oracle` looks at
the held-out labels; the others use of the held-out tasks only domain and features.
"""

from collections.abc import Callable, Mapping

import numpy as np

from bayesmeta.metrics import top_label
from bayesmeta.skill_scores import SkillScores, one_hot

Baseline = Callable[[SkillScores, SkillScores], np.ndarray]


def single_skill(name: str) -> Baseline:
    """The baseline that always uses the skill ``name``."""

    def strategy(reflect: SkillScores, heldout: SkillScores) -> np.ndarray:
        if name not in heldout.skills:
            raise ValueError(f"unknown skill {name!r}; the evidence has {list(heldout.skills)}.")
        k = heldout.skills.index(name)
        return one_hot(np.full(heldout.num_tasks, k), heldout.num_skills)

    return strategy


def best_single(reflect: SkillScores, heldout: SkillScores) -> np.ndarray:
    """The one skill with the highest mean log score on the reflect tasks."""
    _need_tasks(reflect)
    best = int(np.argmax(reflect.log_likelihood.mean(axis=0)))
    return one_hot(np.full(heldout.num_tasks, best), heldout.num_skills)


def uniform(reflect: SkillScores, heldout: SkillScores) -> np.ndarray:
    """Equal weight on every skill: the mixture that has learned nothing."""
    return np.full((heldout.num_tasks, heldout.num_skills), 1 / heldout.num_skills)


def domain_counts(reflect: SkillScores, heldout: SkillScores) -> np.ndarray:
    """For each domain the skill that was right most often on its reflect tasks.

    Right means that its most probable candidate is gold (a tie between m counts 1/m): what a
    researcher with a table of right and wrong answers would do. Skills with equal counts are
    told apart by their mean log score. A domain without reflect tasks uses the counts of all.
    """
    _need_tasks(reflect)
    right = np.stack(
        [top_label(reflect.log_p[:, k], reflect.gold)[1] for k in range(reflect.num_skills)], axis=1
    )

    def choose(tasks: np.ndarray) -> int:
        count = right[tasks].sum(axis=0)
        tied = count >= count.max() - 1e-9
        return int(np.argmax(np.where(tied, reflect.log_likelihood[tasks].mean(axis=0), -np.inf)))

    by_domain = _per_domain(reflect, choose)
    overall = choose(np.ones(reflect.num_tasks, bool))
    choice = [by_domain.get(str(domain), overall) for domain in heldout.domain]
    return one_hot(choice, heldout.num_skills)


def complete_pooling(reflect: SkillScores, heldout: SkillScores) -> np.ndarray:
    """Stacking with one strategy for all domains: max_w sum_n log sum_k w_k p(gold_n | n, k)."""
    _need_tasks(reflect)
    weights = stack(reflect.log_likelihood)
    return np.tile(weights, (heldout.num_tasks, 1))


def no_pooling(reflect: SkillScores, heldout: SkillScores) -> np.ndarray:
    """Stacking in each domain alone; a domain without reflect tasks uses complete pooling."""
    _need_tasks(reflect)
    by_domain = _per_domain(reflect, lambda tasks: stack(reflect.log_likelihood[tasks]))
    overall = stack(reflect.log_likelihood)
    return np.stack([by_domain.get(str(domain), overall) for domain in heldout.domain])


def stack(
    log_likelihood: np.ndarray, tolerance: float = 1e-6, max_iterations: int = 2000
) -> np.ndarray:
    """Weights [K] that maximise mean_n log sum_k w_k exp(log_likelihood[n, k]) on the simplex.

    The objective is concave, so its maximum is unique (the weights are too, unless the skills'
    likelihoods are linearly dependent). A few EM steps reach the interior, SLSQP goes to the
    vertex or face, and EM goes on until max_k mean_n p_nk / p_n - 1, which bounds what is still
    to be gained, is below ``tolerance`` nats per task. Yao et al. 2018, eq 4 (log score).
    """
    from scipy.optimize import minimize

    top = log_likelihood.max(axis=1, keepdims=True)
    usable = np.isfinite(top[:, 0])  # a task that no skill can explain says nothing about w
    num_skills = log_likelihood.shape[1]
    weights = np.full(num_skills, 1 / num_skills)
    if not usable.any():
        return weights
    p = np.exp(log_likelihood[usable] - top[usable])

    def gradient(w: np.ndarray) -> np.ndarray:
        return (p / (p @ w)[:, None]).mean(axis=0)

    for _ in range(20):
        weights = weights * gradient(weights)
    result = minimize(
        lambda w: -np.log(p @ w).mean(),
        weights,
        jac=lambda w: -gradient(w),
        bounds=[(1e-12, 1)] * num_skills,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 200},
    )
    polished = np.clip(result.x, 1e-12, 1)
    polished = polished / polished.sum()
    if np.log(p @ polished).mean() > np.log(p @ weights).mean():
        weights = polished
    for _ in range(max_iterations):
        slope = gradient(weights)
        if slope.max() - 1 < tolerance:
            break
        weights = weights * slope
    return weights / weights.sum()


def router(reflect: SkillScores, heldout: SkillScores) -> np.ndarray:
    """Multinomial-logit router by maximum likelihood: w_n = softmax(B' x_n).

    x_n is an intercept, the features standardised on the reflect tasks, and the domain one-hot
    (all zero for a domain without reflect tasks). B maximises sum_n log sum_k w_nk p(gold | n, k)
    from B = 0. With few tasks some direction usually separates the skills, and the maximum lies
    at infinity; the ridge of 1e-6 only makes it finite and shrinks nothing. The objective is not
    concave in B: this is a maximum that is reached from equal weights.
    """
    return _route(reflect, heldout, ridge=1e-6)


def ridge_router(reflect: SkillScores, heldout: SkillScores) -> np.ndarray:
    """The same with a ridge of 1, that is with a standard normal prior on every coefficient.

    Maximum likelihood overfits when tasks are few; this is the router with the usual remedy, and
    so the harder one to beat.
    """
    return _route(reflect, heldout, ridge=1.0)


def fit_router(design: np.ndarray, log_likelihood: np.ndarray, ridge: float = 1e-6) -> np.ndarray:
    """[P, K] coefficients of the router on a design [N, P] and log-likelihoods [N, K]."""
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    top = log_likelihood.max(axis=1, keepdims=True)
    usable = np.isfinite(top[:, 0])
    design, likelihood = design[usable], np.exp(log_likelihood[usable] - top[usable])
    shape = (design.shape[1], likelihood.shape[1])

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = router_objective(flat.reshape(shape), design, likelihood, ridge)
        return -value, -gradient.ravel()

    # Truncated Newton: on separated data it gets further than L-BFGS in the same time.
    start = np.zeros(shape[0] * shape[1])
    # On matrices this small the threads of a BLAS cost 20 times what they save.
    with threadpool_limits(1, user_api="blas"):
        result = minimize(objective, start, jac=True, method="TNC", options={"maxfun": 2000})
    return result.x.reshape(shape)


def router_objective(
    coefficients: np.ndarray, design: np.ndarray, likelihood: np.ndarray, ridge: float
) -> tuple[float, np.ndarray]:
    """Penalised log-likelihood in nats, and its gradient: design' (responsibilities - weights).

    Args:
      likelihood: [N, K], of each task up to a factor; its largest should be about 1.
    """
    weight = _softmax(design @ coefficients)
    joint = weight * likelihood
    # A weight can underflow only where a task has been lost by hundreds of nats.
    marginal = np.maximum(joint.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    gradient = design.T @ (joint / marginal - weight)
    value = float(np.log(marginal).sum() - 0.5 * ridge * np.sum(coefficients**2))
    return value, gradient - ridge * coefficients


def oracle(reflect: SkillScores, heldout: SkillScores) -> np.ndarray:
    """For each held-out task the skill that does best on it: a bound that reads the labels."""
    return one_hot(np.argmax(heldout.log_likelihood, axis=1), heldout.num_skills)


#: Baselines by the name that they carry in tables. Single skills are added by `all_strategies`.
BASELINES: Mapping[str, Baseline] = {
    "best single skill": best_single,
    "uniform mixture": uniform,
    "skill by domain counts": domain_counts,
    "complete pooling": complete_pooling,
    "no pooling": no_pooling,
    "router": router,
    "router with ridge": ridge_router,
    "oracle over skills": oracle,
}

#: Names in `BASELINES` that read the held-out labels: bounds, not methods.
BOUNDS = frozenset({"oracle over skills"})


def all_strategies(reflect: SkillScores, heldout: SkillScores) -> dict[str, np.ndarray]:
    """Held-out strategies of every single skill (as ``skill: NAME``) and every baseline."""
    if reflect.skills != heldout.skills:
        raise ValueError(
            f"reflect and held-out skills differ: {list(reflect.skills)} and "
            f"{list(heldout.skills)}. Observe both with the same skills."
        )
    singles = {f"skill: {name}": single_skill(name) for name in heldout.skills}
    return {name: fit(reflect, heldout) for name, fit in {**singles, **BASELINES}.items()}


def _route(reflect: SkillScores, heldout: SkillScores, ridge: float) -> np.ndarray:
    _need_tasks(reflect)
    design, new_design = _design(reflect, heldout)
    return _softmax(new_design @ fit_router(design, reflect.log_likelihood, ridge))


def _need_tasks(reflect: SkillScores) -> None:
    if not reflect.num_tasks:
        raise ValueError("a baseline needs at least one reflect task, got none.")


def _per_domain[T](scores: SkillScores, fit: Callable[[np.ndarray], T]) -> dict[str, T]:
    return {str(name): fit(scores.domain == name) for name in np.unique(scores.domain)}


def _design(reflect: SkillScores, heldout: SkillScores) -> tuple[np.ndarray, np.ndarray]:
    centre = reflect.features.mean(axis=0)
    spread = reflect.features.std(axis=0)
    spread = np.where(spread > 1e-12, spread, np.inf)  # a constant feature drops out
    domains = np.unique(reflect.domain)

    def build(scores: SkillScores) -> np.ndarray:
        intercept = np.ones((scores.num_tasks, 1))
        member = (scores.domain[:, None] == domains).astype(float)
        return np.hstack([intercept, (scores.features - centre) / spread, member])

    return build(reflect), build(heldout)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)
