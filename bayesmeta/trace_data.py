"""From observed steps to what inverse planning conditions on."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from bayesmeta.evidence_schema import EvidenceError

if TYPE_CHECKING:
    from bayesmeta.models.inverse_planning import TraceData

_STEP = ("task", "trace", "step")
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Traces:
    """Traces one after the other, with their names.

    Attributes:
      data: arrays for `bayesmeta.models.inverse_planning.inverse_planning`.
      task: [N] ids.
      number: [N] of the trace within its task.
      drawn_under: [N] the skill that a trace was written under; empty where unknown.
      skill, goal: names; one unnamed goal where goals are known.
      flags: what the traces cannot say, in words.
    """

    data: "TraceData"
    task: tuple[str, ...]
    number: tuple[int, ...]
    drawn_under: tuple[str, ...]
    skill: tuple[str, ...]
    goal: tuple[str, ...]
    flags: tuple[str, ...]


def read_traces(dataset: xr.Dataset, *, outcomes: bool = False) -> Traces:
    """Check observed steps and lay their traces out one after the other.

    Args:
      dataset: from `bayesmeta.step_evidence.observe_steps`, or with ``log_pi`` (task, trace, step,
        choice, skill; nats, normalised over choices, -inf pads), ``chosen`` and ``used`` (task,
        trace, step). Optionally: a dimension ``goal`` in ``log_pi``, with ``log_goal`` (task, goal)
        its prior, uniform if left out; ``seen`` (task, trace, step), false for steps that are
        hidden, as by a summary; ``drawn_under`` (task, trace), which is carried along, unused.
      outcomes: let the observed answers speak too, by ``log_p`` (task, trace, skill, candidate)
        and ``gold``, which is taken for the answer that was given. Right only if skills reach the
        answer (F -> O).

    Raises:
      EvidenceError: a variable is missing or of other dimensions, there is one skill only, no
        trace has a step, probabilities are no probabilities, or a step was chosen that no skill
        can take; the place, the value and the remedy are named.
    """
    import jax.numpy as jnp

    from bayesmeta.models.inverse_planning import ABSENT, TraceData

    if "goal" not in dataset.dims and "log_pi" in dataset:
        dataset = dataset.assign(log_pi=dataset["log_pi"].expand_dims("goal"))
    log_pi = _array(dataset, "log_pi", ("task", "trace", "goal", "step", "choice", "skill"))
    chosen = _array(dataset, "chosen", _STEP).astype(np.int64)
    used = _array(dataset, "used", _STEP).astype(bool)
    seen = _array(dataset, "seen", _STEP).astype(bool) & used if "seen" in dataset else used
    K = log_pi.shape[-1]
    if K < 2:
        raise EvidenceError(f"{K} skill leaves nothing to infer. Score steps under at least two.")
    ids = [str(name) for name in dataset["task"].values]
    there = used.any(2)
    if "log_weight" in dataset:  # traces with a weight exist, however short
        there = there | np.isfinite(_array(dataset, "log_weight", ("task", "trace")))
    if not seen.any():
        raise EvidenceError("no trace has a step that was seen. Observe traces of some steps.")
    _check(ids, log_pi, chosen, used)
    task, number = np.nonzero(there)
    empty = ~seen[there].any(1)
    flags = []
    if empty.any():
        shown = ", ".join(
            f"{ids[t]}/{s}" for t, s in zip(task[empty][:5], number[empty][:5], strict=True)
        )
        flags.append(
            f"{empty.sum()} traces have no step that was seen ({shown}): the prior speaks."
        )
    alone = (np.isfinite(log_pi).any(-1).sum(4) < 2).all(2) & seen
    if alone.any():
        flags.append(
            f"{alone.sum()} of {seen.sum()} steps had one candidate only, so every skill was "
            "sure to take it and they say nothing. Observe with more draws or a vocabulary."
        )
    goals = log_pi.shape[2]
    log_goal = np.full((len(ids), goals), -np.log(goals))
    if "log_goal" in dataset:
        log_goal = _array(dataset, "log_goal", ("task", "goal"))
    log_outcome = np.zeros((len(task), goals, K))
    if outcomes:
        log_p = _array(dataset, "log_p", ("task", "trace", "skill", "candidate"))
        gold = _array(dataset, "gold", ("task",)).astype(np.int64)
        picked = np.take_along_axis(log_p, gold[:, None, None, None], 3)[..., 0]
        log_outcome = np.broadcast_to(picked[there][:, None], log_outcome.shape)
    under = [""] * len(task)
    if "drawn_under" in dataset:
        under = [str(name) for name in _array(dataset, "drawn_under", ("task", "trace"))[there]]
    real = jnp.result_type(float)
    data = TraceData(
        log_q=jnp.asarray(np.maximum(log_pi[there], ABSENT), real),
        chosen=jnp.asarray(np.where(used, chosen, 0)[there], jnp.int32),
        seen=jnp.asarray(seen[there]),
        log_goal=jnp.asarray(np.maximum(log_goal[task], ABSENT), real),
        log_outcome=jnp.asarray(np.maximum(log_outcome, ABSENT), real),
    )
    names = dataset["goal"].values if "goal" in dataset.coords else range(goals)
    return Traces(
        data,
        tuple(ids[t] for t in task),
        tuple(map(int, number)),
        tuple(under),
        tuple(map(str, dataset["skill"].values)),
        tuple(map(str, names)),
        tuple(flags),
    )


def _array(dataset: xr.Dataset, name: str, dims: tuple[str, ...]) -> np.ndarray:
    if name not in dataset:
        raise EvidenceError(f"the steps have no {name!r}. Make them with observe_steps.")
    if set(dataset[name].dims) != set(dims):
        raise EvidenceError(f"{name} has dimensions {dataset[name].dims}, wanted {dims}.")
    return dataset[name].transpose(*dims).values


def _check(ids: list[str], log_pi: np.ndarray, chosen: np.ndarray, used: np.ndarray) -> None:
    def refuse(bad: np.ndarray, name: str, wanted: str) -> None:
        if bad.any():
            t, s, step = (int(i[0]) for i in np.nonzero(bad))
            raise EvidenceError(
                f"{name}, task {ids[t]!r}, trace {s}, step {step}: wanted {wanted}. Correct it, or "
                "observe the task again."
            )

    over = (2, 4, 5)  # goal, choice, skill
    wrong = np.isnan(log_pi) | np.isposinf(log_pi)
    refuse(wrong.any(over) & used, "log_pi", "numbers or -inf, in nats")
    total = np.asarray(logsumexp(log_pi, axis=4))  # task, trace, goal, step, skill
    off = (np.abs(total) > _ROUNDING) & ~np.isneginf(total)
    refuse(off.any((2, 4)) & used, "log_pi", "probabilities that sum to 1 over choices")
    outside = (chosen < 0) | (chosen >= log_pi.shape[4])
    refuse(outside & used, "chosen", f"an index below {log_pi.shape[4]}")
    index = np.where(used, chosen, 0)[:, :, None, :, None, None]
    taken = np.take_along_axis(log_pi, index, 4)[..., 0, :]
    impossible = np.isneginf(taken).all((2, 4))
    refuse(impossible & used, "chosen", "a step that some skill can take")
