"""Evidence as the arrays that Figure 2 in full conditions on."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from bayesmeta.arrays import Encoding
from bayesmeta.evidence_schema import CONTEXTS
from bayesmeta.outcomes import LOG_ZERO, skill_mask, skill_predictive
from bayesmeta.recall import ExternalMemory
from bayesmeta.tasks import REFLECT, Task

#: Log-odds of the language model are kept within this of zero: a certainty cannot be corrected.
MAX_LOG_ODDS = 8.0


def answers_data(
    evidence: xr.Dataset,
    encoding: Encoding | None = None,
    *,
    beta: float = 1.0,
    e: np.ndarray | None = None,
    task_weight: np.ndarray | None = None,
):
    """Evidence of answers as `bayesmeta.models.full_data.FullData`, in every context it holds.

    Args:
      evidence: validated evidence, N tasks; `bayesmeta.contexts.score_contexts` adds contexts.
      encoding: from the tasks a model was fitted on; None makes one from these tasks.
      beta: inverse temperature of the scores, > 0.
      e: [N, Q] features of what was recalled, such as `recall_features`; None for none.
      task_weight: [N] exponents of the tasks' likelihoods; None for ones.
    """
    import jax.numpy as jnp

    from bayesmeta.models.full_data import Answers

    encoding = encoding or Encoding.of(evidence)
    evidence = evidence.sel(skill=list(encoding.skill))
    float_ = jnp.result_type(float)
    names = {"log_p": "log_likelihood"} | {
        f"log_p_{field}": f"log_likelihood_{context}"
        for field, context in zip(("without_e", "without_skill", "plain"), CONTEXTS, strict=True)
    }
    tables = {
        field: jnp.asarray(_table(evidence, variable, beta).transpose(2, 1, 0), float_)
        for field, variable in names.items()
        if variable in evidence
    }
    gold = jnp.asarray(evidence["gold"].values, jnp.int32)
    return _full_data(evidence, encoding, Answers(gold=gold, **tables), e, task_weight)


def attempts_data(
    evidence: xr.Dataset,
    successes: ArrayLike,
    attempts: ArrayLike,
    encoding: Encoding | None = None,
    *,
    beta: float = 1.0,
    use_scores: bool = True,
    task_weight: np.ndarray | None = None,
):
    """How often attempts on each task succeeded, or a verifier said yes, as ``FullData``.

    Args:
      evidence: the tasks and the language model's scores of their answers.
      successes, attempts: [N] counts, of a reasoner that chose its skills by itself.
      encoding, beta, task_weight: as for `answers_data`.
      use_scores: start from the language model's own log-odds of the gold answer under each
        skill; otherwise from zero, which leaves all to abilities.

    Raises:
      ValueError: the counts are not 0 <= successes <= attempts, one per task.
    """
    import jax.numpy as jnp

    from bayesmeta.models.full_data import Attempts

    made, tried = np.asarray(successes), np.asarray(attempts)
    num_tasks = evidence.sizes["task"]
    if made.shape != (num_tasks,) or tried.shape != (num_tasks,):
        raise ValueError(
            f"successes and attempts have shapes {made.shape} and {tried.shape}, wanted "
            f"({num_tasks},): one count per task of the evidence."
        )
    wrong = np.flatnonzero((made < 0) | (made > tried) | (tried < 1))
    if len(wrong):
        task = evidence["task"].values[wrong[0]]
        raise ValueError(
            f"task {task!r} has {made[wrong[0]]} successes in {tried[wrong[0]]} attempts; wanted "
            "0 <= successes <= attempts and at least one attempt. Drop or correct such tasks."
        )
    encoding = encoding or Encoding.of(evidence)
    evidence = evidence.sel(skill=list(encoding.skill))
    log_odds = np.zeros((len(encoding.skill), num_tasks))
    if use_scores:
        table = _table(evidence, "log_likelihood", beta)
        gold = evidence["gold"].values.astype(int)
        log_p = np.take_along_axis(table, gold[:, None, None], 2)[:, :, 0].T
        log_rest = np.log(-np.expm1(np.minimum(log_p, -1e-12)))
        log_odds = np.clip(log_p - log_rest, -MAX_LOG_ODDS, MAX_LOG_ODDS)
    outcome = Attempts(
        successes=jnp.asarray(made, jnp.int32),
        attempts=jnp.asarray(tried, jnp.int32),
        log_odds=jnp.asarray(log_odds, jnp.result_type(float)),
        max_attempts=int(np.max(tried)),
    )
    return _full_data(evidence, encoding, outcome, None, task_weight)


def recall_features(evidence: xr.Dataset) -> np.ndarray:
    """[N, 2] features e_n of what external memory recalls for each task, standardised.

    The BM25 similarity of the most similar solved task (log1p), and whether that task is of the
    same domain. Memory holds the reflect tasks; a task is never recalled for itself.
    """
    tasks = [
        Task(str(i), str(q), str(c[g]), tuple(map(str, c[c != ""])), domain=str(d), split=str(s))
        for i, q, c, g, d, s in zip(
            evidence["task"].values,
            evidence["question"].values,
            np.asarray(evidence["candidate_text"].values, object),
            evidence["gold"].values,
            evidence["domain"].values,
            evidence["split"].values,
            strict=True,
        )
    ]
    memory = ExternalMemory(task for task in tasks if task.split == REFLECT)
    rows = np.zeros((len(tasks), 2))
    for row, task in zip(rows, tasks, strict=True):
        for found in memory.recall(task, 1):
            row[:] = np.log1p(found.similarity), found.task.domain == task.domain
    scale = rows.std(0)
    return (rows - rows.mean(0)) / np.where(scale > 1e-12, scale, 1.0)


def _table(evidence: xr.Dataset, variable: str, beta: float) -> np.ndarray:
    """[N, K, C] log p(c | n, k) in nats, finite: impossible is `LOG_ZERO`, untried is 0."""
    renamed = evidence.assign(log_likelihood=evidence[variable])
    return np.nan_to_num(skill_predictive(renamed, beta), nan=0.0, neginf=LOG_ZERO)


def _full_data(
    evidence: xr.Dataset,
    encoding: Encoding,
    outcome: Any,
    e: np.ndarray | None,
    task_weight: np.ndarray | None,
):
    import jax.numpy as jnp

    from bayesmeta.models.full_data import FullData

    float_ = jnp.result_type(float)
    tried = skill_mask(evidence)
    num_tasks = evidence.sizes["task"]
    domain = encoding.domain_index(evidence["domain"].values)
    if (domain < 0).any():
        unseen = sorted(set(map(str, evidence["domain"].values[domain < 0])))
        raise ValueError(
            f"domains {unseen} are not among the fitted domains {list(encoding.domain)}. "
            "Fit on evidence that has them."
        )
    return FullData(
        outcome=outcome,
        domain=jnp.asarray(domain),
        x=jnp.asarray(encoding.standardise(evidence), float_),
        scale=jnp.ones(num_tasks, float_)
        if task_weight is None
        else jnp.asarray(task_weight, float_),
        num_domains=len(encoding.domain),
        num_skills=len(encoding.skill),
        e=None if e is None else jnp.asarray(e, float_),
        log_available=None if tried.all() else jnp.asarray(np.where(tried.T, 0.0, -np.inf), float_),
    )
