"""Make evidence: from plain arrays, from probabilities, or from finished cells."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from bayesmeta.evidence_check import validate
from bayesmeta.evidence_schema import (
    SCHEMA_VERSION,
    TOKEN_KINDS,
    VARIABLES,
    EvidenceError,
    storable,
)
from bayesmeta.tasks import REFLECT, Task


def build(
    *,
    log_likelihood: ArrayLike,
    gold: ArrayLike,
    task: Sequence[str] | None = None,
    skill: Sequence[str] | None = None,
    domain: str | Sequence[str] = "default",
    split: str | Sequence[str] = REFLECT,
    observed: ArrayLike | None = None,
    infer_observed: bool = False,
    log_weight: ArrayLike | None = None,
    features: ArrayLike | None = None,
    feature: Sequence[str] | None = None,
    num_tokens: ArrayLike | None = None,
    question: Sequence[str] | None = None,
    candidate_text: ArrayLike | None = None,
    trace_text: ArrayLike | None = None,
    verdict: ArrayLike | None = None,
    verdict_observed: ArrayLike | None = None,
    texts: bool = True,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Evidence from plain arrays; what is left out gets a default, and the result is validated.

    Args:
      log_likelihood: [N, K, S, C] in nats, or [N, K, C] for one trace per task and skill.
      gold: [N] indices of the right candidates.
      task, skill: names; "task-0", ... and "skill-0", ... by default.
      domain, split: [N] names, or one for all tasks.
      observed: the shape of ``log_likelihood``; everything by default. Where it is False the
        log-likelihood given is ignored.
      infer_observed: take -inf to mean that a cell is missing or padding.
      log_weight: [N, K, S] log importance ratios; 0 by default.
      features, feature: [N, P] numbers and their P names.
      num_tokens: [N, K, 2] tokens scored and generated; 0 by default.
      question, candidate_text, trace_text: [N], [N, C] and [N, K, S] text; "" by default.
      verdict, verdict_observed: [N, K, S]; absent by default, and observed where ``observed`` is.
      texts: False leaves the three texts out, which spares much in very large evidence.
      attrs: attributes; a dict or list is stored as JSON.

    Raises:
      EvidenceError: shapes disagree, or the evidence breaks its schema.
    """
    scores = np.array(log_likelihood, dtype=np.float32)
    if scores.ndim == 3:
        scores = scores[:, :, None, :]
    if scores.ndim != 4:
        raise EvidenceError(
            f"log_likelihood has shape {scores.shape}, wanted [task, skill, trace, candidate] "
            "or [task, skill, candidate]. Add the missing axes."
        )
    tasks, skills, traces, candidates = scores.shape
    if observed is not None:
        mask = np.asarray(observed, dtype=bool)
        mask = mask[:, :, None, :] if mask.ndim == 3 else mask
    else:
        mask = ~np.isneginf(scores) if infer_observed else np.ones(scores.shape, dtype=bool)
    _shape("observed", mask, scores.shape)
    scores[~mask] = -np.inf
    columns = np.zeros((tasks, 0)) if features is None else np.asarray(features, dtype=float)
    if columns.ndim == 1:
        columns = columns[:, None]
    if feature is None:
        feature = [f"feature-{i}" for i in range(columns.shape[-1])]
    names = [f"skill-{k}" for k in range(skills)] if skill is None else list(skill)
    variables: dict[str, Any] = {
        "log_likelihood": scores,
        "observed": mask,
        "log_weight": np.zeros(scores.shape[:3], np.float32)
        if log_weight is None
        else np.asarray(log_weight, dtype=np.float32),
        "gold": np.asarray(gold),
        "domain": _texts(domain, (tasks,)),
        "split": _texts(split, (tasks,)),
        "features": columns,
        "num_tokens": np.zeros((tasks, skills, 2), np.int64)
        if num_tokens is None
        else np.asarray(num_tokens),
    }
    if texts:
        variables["question"] = _texts(question, (tasks,))
        variables["candidate_text"] = _texts(candidate_text, (tasks, candidates))
        variables["trace_text"] = _texts(trace_text, (tasks, skills, traces))
    if verdict is not None:
        known = mask.any(-1) if verdict_observed is None else np.asarray(verdict_observed, bool)
        variables["verdict_observed"] = known
        variables["verdict"] = np.where(known, np.asarray(verdict), 0).astype(np.int8)
    sizes = {
        "task": tasks,
        "skill": skills,
        "trace": traces,
        "candidate": candidates,
        "feature": len(feature),
        "token_kind": 2,
    }
    for name, values in variables.items():
        _shape(name, values, tuple(sizes[dim] for dim in VARIABLES[name].dims))
    given = [f"task-{n}" for n in range(tasks)] if task is None else list(task)
    for name, labels, size in (("task", given, tasks), ("skill", names, skills)):
        if len(labels) != size:
            raise EvidenceError(
                f"{name} has {len(labels)} names, but log_likelihood has {size} {name}s. "
                f"Give one name for each {name}."
            )
    return validate(
        xr.Dataset(
            {name: (VARIABLES[name].dims, values) for name, values in variables.items()},
            coords={
                "task": np.array(given, dtype=object),
                "skill": np.array(names, dtype=object),
                "trace": np.arange(traces),
                "candidate": np.arange(candidates),
                "feature": np.array(list(feature), dtype=object),
                "token_kind": np.array(TOKEN_KINDS, dtype=object),
            },
            attrs=_attributes(attrs or {}, names),
        )
    )


def from_log_probabilities(
    table: ArrayLike, gold: ArrayLike | None = None, **others: Any
) -> xr.Dataset:
    """Evidence from finished probabilities of the outcome, one trace per task and skill.

    Args:
      table: [N, K, C] log-probabilities of the candidates in nats with ``gold`` [N]; or [N, K]
        log-probabilities of the gold answer, to which the rest, log(1 - exp(table)), is added as
        the second candidate.
      others: passed on to `build`.

    Raises:
      EvidenceError: as `build`.
    """
    scores = np.asarray(table, dtype=np.float64)
    attrs = dict(others.pop("attrs", None) or {})
    if scores.ndim == 2:
        if gold is not None:
            raise EvidenceError(
                f"gold was given with a table of shape {scores.shape}, which holds the gold answer "
                "only. Leave gold out, or give a table [task, skill, candidate]."
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = np.log(-np.expm1(np.minimum(scores, 0.0)))
        scores, gold = np.stack([scores, rest], axis=-1), np.zeros(len(scores), dtype=int)
        others.setdefault("candidate_text", np.tile(["gold", "other"], (len(scores), 1)))
    if gold is None:
        raise EvidenceError(
            f"gold is missing for a table of shape {scores.shape}. Give the index of the right "
            "candidate of each task."
        )
    if "observed" not in others and not others.get("infer_observed") and np.isneginf(scores).any():
        attrs.setdefault("allow_neg_inf", 1)
    return build(log_likelihood=scores, gold=gold, attrs=attrs, **others)


def assemble(
    tasks: Sequence[Task],
    skills: Sequence[str],
    cells: Mapping[tuple[str, str], Mapping[str, Any] | None],
    *,
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """Evidence from finished (task, skill) cells, padded to the most traces and candidates.

    Args:
      tasks: in the order wanted.
      skills: names, in the order wanted.
      cells: by (task id, skill name): ``log_likelihood``, a list over traces of lists over the
        task's candidates; optionally ``log_weight`` and ``trace_text`` over traces, and
        ``num_tokens``, the pair scored and generated. A cell that is None or absent is missing.
      attrs: attributes of the evidence.

    Raises:
      EvidenceError: a cell does not fit its task, or the evidence breaks its schema.
    """
    sizes = [len(cell["log_likelihood"]) for cell in cells.values() if cell is not None]
    shape = (
        len(tasks),
        len(skills),
        max(sizes, default=1),
        max((len(task.candidates) for task in tasks), default=2),
    )
    scores = np.full(shape, -np.inf, np.float32)
    observed = np.zeros(shape, bool)
    log_weight = np.zeros(shape[:3], np.float32)
    num_tokens = np.zeros((*shape[:2], 2), np.int64)
    trace_text = np.full(shape[:3], "", dtype=object)
    candidate_text = np.full((shape[0], shape[3]), "", dtype=object)
    feature = list(dict.fromkeys(name for task in tasks for name in task.features))
    for n, task in enumerate(tasks):
        width = len(task.candidates)
        candidate_text[n, :width] = task.candidates
        if lacking := [name for name in feature if name not in task.features]:
            raise EvidenceError(
                f"task {task.id!r} has no feature {lacking[0]!r}, which other tasks have. "
                "Give every task the same features."
            )
        for k, skill in enumerate(skills):
            cell = cells.get((task.id, skill))
            if cell is None:
                continue
            rows = cell["log_likelihood"]
            if any(len(row) != width for row in rows):
                raise EvidenceError(
                    f"task {task.id!r}, skill {skill!r}: log_likelihood has rows of "
                    f"{sorted({len(row) for row in rows})} numbers, wanted {width}, one for each "
                    "candidate. Score the whole candidate set after every trace."
                )
            many = len(rows)
            scores[n, k, :many, :width] = rows
            observed[n, k, :many, :width] = True
            log_weight[n, k, :many] = cell.get("log_weight", 0.0)
            trace_text[n, k, :many] = cell.get("trace_text", "")
            num_tokens[n, k] = cell.get("num_tokens", 0)
    return build(
        log_likelihood=scores,
        observed=observed,
        gold=[task.gold for task in tasks],
        task=[task.id for task in tasks],
        skill=skills,
        domain=[task.domain for task in tasks],
        split=[task.split for task in tasks],
        log_weight=log_weight,
        features=np.array(
            [[task.features[name] for name in feature] for task in tasks], dtype=float
        ).reshape(len(tasks), len(feature)),
        feature=feature,
        num_tokens=num_tokens,
        question=[task.question for task in tasks],
        candidate_text=candidate_text,
        trace_text=trace_text,
        attrs=attrs,
    )


def _attributes(given: Mapping[str, Any], skills: Sequence[str]) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": "unknown",
        "quantisation": "none",
        "dtype": "unknown",
        "quality": "exact",
        "prompt_version": "",
        "skills": [{"name": name} for name in skills],
        "seed": 0,
        "sampling": {},
        "packages": {},
        "created_by": "bayesmeta.evidence.build",
        **given,
    }
    for name, value in attrs.items():
        if isinstance(value, (dict, list, tuple)):
            attrs[name] = json.dumps(value, sort_keys=True)
        elif isinstance(value, bool):
            attrs[name] = int(value)
        elif value is None:
            attrs[name] = ""
    return attrs


def _texts(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An object array of storable text; one text stands for all."""
    if values is None or isinstance(values, str):
        return np.full(shape, values or "", dtype=object)
    array = np.array(values, dtype=object)
    flat = array.reshape(-1)
    for index, value in enumerate(flat.tolist()):
        if isinstance(value, str) and not value.isascii() or "\0" in str(value):
            flat[index] = storable(value)
    return array


def _shape(name: str, values: np.ndarray, wanted: tuple[int, ...]) -> None:
    if values.shape != wanted:
        raise EvidenceError(
            f"{name} has shape {values.shape}, wanted {wanted} to agree with log_likelihood. "
            "Check the order of its axes."
        )
