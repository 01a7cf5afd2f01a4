"""From reasoning observed step by step to what Figure 2 in full conditions on."""

from typing import NoReturn

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from bayesmeta.arrays import Encoding
from bayesmeta.evidence_schema import EvidenceError

#: Stands in for log 0: impossible also where a product of experts gives its skill little weight,
#: and, unlike -inf, with a derivative of zero.
LOG_ZERO = -1e9

#: Probabilities may sum to something this far from one.
_ROUNDING = 1e-6

_DIMS = {
    "log_pi": ("task", "trace", "step", "choice", "skill"),
    "log_pi_without_question": ("task", "trace", "step", "choice", "skill"),
    "chosen": ("task", "trace", "step"),
    "used": ("task", "trace", "step"),
    "log_weight": ("task", "trace"),
    "log_p": ("task", "trace", "skill", "candidate"),
    "log_p_without_skill": ("task", "trace", "candidate"),
    "gold": ("task",),
    "domain": ("task",),
    "features": ("task", "feature"),
}
_OPTIONAL = ("log_pi_without_question", "log_p_without_skill")


def steps_data(
    dataset: xr.Dataset,
    encoding: Encoding | None = None,
    *,
    task_weight: np.ndarray | None = None,
):
    """Arrays for `bayesmeta.models.figure2_full.figure2_full`: a ``FullData`` that holds ``Steps``.

    Args:
      dataset: from `bayesmeta.step_evidence.observe_steps`, or of the same form.
      encoding: from the tasks a model was fitted on; None makes one from these tasks.
      task_weight: [N] exponents of the tasks' likelihoods; None for ones, which is Bayes' rule.

    Raises:
      EvidenceError: as `check_steps`.
      ValueError: a domain is not in the encoding.
    """
    import jax.numpy as jnp

    from bayesmeta.models.full_data import FullData, Steps

    check_steps(dataset)
    encoding = encoding or Encoding.of(dataset)
    domain = encoding.domain_index(dataset["domain"].values)
    if (domain < 0).any():
        unseen = sorted(set(map(str, dataset["domain"].values[domain < 0])))
        raise ValueError(
            f"domains {unseen} are not among the fitted domains {list(encoding.domain)}. "
            "Fit on evidence that has them."
        )
    dataset = dataset.sel(skill=list(encoding.skill))
    float_ = jnp.result_type(float)

    def table(name: str, axes: tuple[int, ...]):
        values: np.ndarray = dataset[name].transpose(*_DIMS[name]).values
        return jnp.asarray(np.maximum(values, LOG_ZERO).transpose(axes), float_)

    def table_if_there(name: str, axes: tuple[int, ...]):
        return table(name, axes) if name in dataset else None

    used = dataset["used"].transpose(*_DIMS["used"]).values
    chosen = np.where(used, dataset["chosen"].transpose(*_DIMS["chosen"]).values, 0)
    num_tasks = dataset.sizes["task"]
    log_pi, answers = (3, 2, 1, 4, 0), (3, 1, 2, 0)
    log_weight = dataset["log_weight"].transpose(*_DIMS["log_weight"]).values
    steps = Steps(
        gold=jnp.asarray(dataset["gold"].values.astype(np.int32)),
        log_pi=table("log_pi", log_pi),
        chosen=jnp.asarray(chosen.transpose(2, 1, 0).astype(np.int32)),
        used=jnp.asarray(used.transpose(2, 1, 0), float_),
        log_weight=jnp.asarray(np.maximum(log_weight, LOG_ZERO).T, float_),
        log_p=table("log_p", answers),
        log_p_without_skill=table_if_there("log_p_without_skill", (2, 1, 0)),
        log_pi_without_question=table_if_there("log_pi_without_question", log_pi),
    )
    return FullData(
        outcome=steps,
        domain=jnp.asarray(domain),
        x=jnp.asarray(encoding.standardise(dataset), float_),
        scale=jnp.ones(num_tasks, float_) if task_weight is None else jnp.asarray(task_weight),
        num_domains=len(encoding.domain),
        num_skills=len(encoding.skill),
    )


def check_steps(dataset: xr.Dataset) -> None:
    """Raise EvidenceError, naming the place, the value and the remedy, unless steps are sound.

    Every task needs a trace, every trace a step, and every task a step with two candidates or
    more; steps and answers must be distributions; what was chosen must be possible.
    """
    for name, dims in _DIMS.items():
        if name not in dataset:
            if name in _OPTIONAL:
                continue
            raise EvidenceError(f"the dataset has no {name!r}. Make it with observe_steps.")
        if set(dataset[name].dims) != set(dims):
            raise EvidenceError(
                f"{name} has dimensions {dataset[name].dims}, wanted {dims}. Rename them."
            )
    arrays = {n: dataset[n].transpose(*d).values for n, d in _DIMS.items() if n in dataset}
    for name in ("log_pi", "log_pi_without_question", "log_p", "log_p_without_skill", "log_weight"):
        if name in arrays and (bad := np.isnan(arrays[name]) | np.isposinf(arrays[name])).any():
            _refuse(dataset, name, bad, arrays[name], "a number or -inf, in nats", "Score it again")
    used, present = arrays["used"].astype(bool), ~np.isneginf(arrays["log_weight"])
    if (empty := ~present.any(1)).any():
        _refuse(dataset, "log_weight", empty, None, "at least one trace", "Observe the task again")
    if (empty := present & ~used.any(2)).any():
        _refuse(dataset, "used", empty, None, "at least one step in a trace", "Leave it out")
    if (gaps := used[:, :, 1:] & ~used[:, :, :-1]).any():
        _refuse(dataset, "used", gaps, None, "no step after the last", "Close the gap")
    for name in ("log_pi", "log_pi_without_question"):
        if name in arrays:
            total = np.asarray(logsumexp(arrays[name], axis=3))  # task, trace, step, skill
            bad = used[..., None] & (np.abs(total) > _ROUNDING)
            if bad.any():
                _refuse(dataset, name, bad, np.exp(total), "a sum of 1 over choices", "Renormalise")
    chosen, num_choices = arrays["chosen"], dataset.sizes["choice"]
    if (bad := used & ((chosen < 0) | (chosen >= num_choices))).any():
        _refuse(dataset, "chosen", bad, chosen, f"an index below {num_choices}", "Correct it")
    index = np.where(used, chosen, 0)[..., None, None]
    taken = np.take_along_axis(arrays["log_pi"], index, 3)[..., 0, :]
    if (bad := used & np.isneginf(taken).all(-1)).any():
        wanted = "a step that some skill can take"
        _refuse(dataset, "chosen", bad, chosen, wanted, "Score traces among their own candidates")
    offered = (used[..., None] & ~np.isneginf(arrays["log_pi"]).all(-1)).sum(-1)
    if (poor := ~(offered >= 2).any((1, 2))).any():
        _refuse(
            dataset,
            "log_pi",
            poor,
            None,
            "a step with at least 2 candidates, or every skill is equally likely to have taken it",
            "Raise num_draws, or name the candidates as vocabulary",
        )
    for name in ("log_p", "log_p_without_skill"):
        if name in arrays:
            total = np.asarray(logsumexp(arrays[name], axis=-1))
            alive = present[..., None] if total.ndim == 3 else present
            if (bad := alive & (np.abs(total) > _ROUNDING)).any():
                wanted = "a sum of 1 over candidates"
                _refuse(dataset, name, bad, np.exp(total), wanted, "Renormalise")
    gold = arrays["gold"]
    if (bad := (gold < 0) | (gold >= dataset.sizes["candidate"])).any():
        _refuse(dataset, "gold", bad, gold, "the index of a candidate", "Correct it")


def _refuse(
    dataset: xr.Dataset,
    name: str,
    bad: np.ndarray,
    values: np.ndarray | None,
    wanted: str,
    remedy: str,
) -> NoReturn:
    where = tuple(int(i[0]) for i in np.nonzero(bad))
    axes = _DIMS[name]
    if len(where) < len(axes):  # of sums, which have lost the axis they run over
        axes = tuple(axis for axis in axes if axis not in ("choice", "candidate"))
    place = [f"task {str(dataset['task'].values[where[0]])!r}"]
    place += [f"{axis} {i}" for axis, i in zip(axes[1:], where[1:], strict=False)]
    found = "there is none" if values is None else f"it is {values[where]}"
    raise EvidenceError(f"{name}, {', '.join(place)}: {found}, wanted {wanted}. {remedy}.")
