"""Take evidence apart by task, and put it together again."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from bayesmeta.evidence_check import validate
from bayesmeta.evidence_schema import CONTEXTS, VARIABLES, EvidenceError
from bayesmeta.tasks import HELD_OUT, REFLECT

#: Attributes that must agree before two pieces of evidence are one.
_SAME = ("model", "quantisation", "dtype", "quality", "prompt_version", "skills", "sampling")


def subset(evidence: xr.Dataset, tasks: ArrayLike | slice) -> xr.Dataset:
    """The tasks with these ids, or at these positions (integers, a slice, or a mask of truth).

    Raises:
      EvidenceError: a task id is unknown.
    """
    if not isinstance(tasks, slice):
        wanted = np.asarray(tasks)
        if wanted.dtype.kind in "OUT":
            index = {name: n for n, name in enumerate(evidence["task"].values.tolist())}
            unknown = [name for name in wanted.tolist() if name not in index]
            if unknown:
                raise EvidenceError(
                    f"task {unknown[0]!r} is not in the evidence ({len(unknown)} unknown, "
                    f"{len(index)} known). Check the ids against evidence['task']."
                )
            tasks = np.array([index[name] for name in wanted.tolist()], dtype=int)
        elif wanted.size == 0:
            tasks = np.zeros(0, dtype=int)
    part = evidence.isel(task=tasks)
    # A new dict: xarray may share the old one.
    part.attrs = {name: value for name, value in part.attrs.items() if name != "content_hash"}
    return part


def split(evidence: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """The reflect tasks and the held-out tasks; either may come out without tasks."""
    where = np.asarray(evidence["split"].values, dtype=object)
    return subset(evidence, where == REFLECT), subset(evidence, where == HELD_OUT)


def append(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """The tasks of both, padded to the larger number of traces and of candidates.

    Scores in poorer contexts (see `bayesmeta.contexts`) are kept where both have them.

    Raises:
      EvidenceError: they share a task id, or differ in skills, features, model, prompts, sampling
        or anything else that would make their log-likelihoods incomparable.
    """
    for evidence in (first, second):
        validate(evidence)
    for name in ("skill", "feature"):
        a, b = first[name].values.tolist(), second[name].values.tolist()
        if a != b:
            raise EvidenceError(
                f"cannot append: {name}s are {a} and {b}, wanted the same in the same order. "
                f"Reorder with .sel({name}=[...]), or observe again."
            )
    for name in _SAME:
        a, b = (
            _comparable(evidence.attrs[name], evidence["skill"].values.tolist())
            for evidence in (first, second)
        )
        if a != b:
            raise EvidenceError(
                f"cannot append: attribute {name} is {a!r} and {b!r}. Log-likelihoods of "
                "different sources cannot be compared: observe all tasks in one way."
            )
    ids = set(first["task"].values.tolist())
    both = [name for name in second["task"].values.tolist() if name in ids]
    if both:
        raise EvidenceError(
            f"cannot append: task {both[0]!r} is in both ({len(both)} such tasks). "
            "Drop them from one with bayesmeta.evidence.subset."
        )
    traces = max(first.sizes["trace"], second.sizes["trace"])
    candidates = max(first.sizes["candidate"], second.sizes["candidate"])
    # Scores in poorer contexts cannot be made up for tasks that were not scored that way.
    poorer = {f"log_likelihood_{context}" for context in CONTEXTS}
    first, second = (
        part.drop_vars([name for name in poorer if name in part and name not in other])
        for part, other in ((first, second), (second, first))
    )
    names = {str(name) for part in (first, second) for name in part.data_vars}
    parts = [_pad(evidence, traces, candidates, names) for evidence in (first, second)]
    merged = xr.Dataset(
        {
            name: (
                VARIABLES[name].dims,
                np.concatenate([part[name].values for part in parts]),
            )
            for name in map(str, parts[0].data_vars)
        },
        coords={
            **{name: parts[0][name] for name in ("skill", "trace", "candidate", "feature")},
            "task": np.concatenate([np.asarray(p["task"].values, object) for p in parts]),
            "token_kind": parts[0]["token_kind"],
        },
        attrs=_merged_attributes(first.attrs, second.attrs),
    )
    return validate(merged)


def _pad(evidence: xr.Dataset, traces: int, candidates: int, names: set[str]) -> xr.Dataset:
    evidence = evidence.copy()
    for name in names - set(map(str, evidence.data_vars)):
        variable = VARIABLES.get(name)
        if variable is None:
            raise EvidenceError(
                f"cannot append: variable {name!r} is in one of them only. Drop it with drop_vars."
            )
        shape = tuple(evidence.sizes[dim] for dim in variable.dims)
        empty = (
            np.full(shape, "", dtype=object)
            if variable.dtype == "text"
            else np.zeros(shape, dtype=variable.dtype)
        )
        evidence[name] = (variable.dims, empty)
    grow = {
        "trace": (0, traces - evidence.sizes["trace"]),
        "candidate": (0, candidates - evidence.sizes["candidate"]),
    }
    padded: dict[str, tuple] = {}
    for name in map(str, evidence.data_vars):
        if name not in VARIABLES:
            raise EvidenceError(
                f"cannot append: variable {name!r} is not part of the schema, so its padding is "
                "unknown. Drop it with drop_vars."
            )
        dims = VARIABLES[name].dims
        values = evidence[name].values
        if VARIABLES[name].dtype == "text":
            values = np.asarray(values, dtype=object)
        scores = name.startswith("log_likelihood")
        fill = -np.inf if scores else "" if values.dtype == object else 0
        widths = [grow.get(dim, (0, 0)) for dim in dims]
        padded[name] = (dims, np.pad(values, widths, constant_values=fill))
    coords = {name: evidence[name].values for name in ("task", "skill", "feature", "token_kind")}
    coords |= {"trace": np.arange(traces), "candidate": np.arange(candidates)}
    return xr.Dataset(padded, coords=coords)


def _comparable(value: Any, skills: list[str]) -> Any:
    """An attribute without what may differ: key order in JSON, skills that are not used."""
    try:
        parsed = json.loads(value)
    except (TypeError, json.JSONDecodeError):
        return value
    if isinstance(parsed, list):
        return [item for item in parsed if isinstance(item, dict) and item.get("name") in skills]
    return parsed


def _merged_attributes(first: Mapping, second: Mapping) -> dict[str, Any]:
    merged = {**second, **first}
    merged.pop("content_hash", None)
    if first["seed"] != second["seed"]:
        merged["seed"] = f"{first['seed']}, {second['seed']}"
    if first["created_by"] != second["created_by"]:
        merged["created_by"] = f"{first['created_by']}; {second['created_by']}"
    packages, others = json.loads(first["packages"]), json.loads(second["packages"])
    for name, version in others.items():
        if packages.setdefault(name, version) != version:
            packages[name] = f"{packages[name]}, {version}"
    merged["packages"] = json.dumps(packages, sort_keys=True)
    if first.get("allow_neg_inf") or second.get("allow_neg_inf"):
        merged["allow_neg_inf"] = 1
    return merged
