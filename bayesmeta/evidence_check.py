"""The check that names the cell of evidence that breaks the schema."""

import json
from typing import NoReturn, get_args

import numpy as np
import xarray as xr

from bayesmeta.evidence_schema import (
    ATTRIBUTES,
    CONTEXTS,
    COORDINATES,
    JSON_ATTRIBUTES,
    ROUNDING,
    SCHEMA_VERSION,
    TOKEN_KINDS,
    VARIABLES,
    EvidenceError,
    storable,
)
from bayesmeta.llm.base import Quality
from bayesmeta.tasks import HELD_OUT, REFLECT


def validate(evidence: xr.Dataset, *, check_hash: bool = False) -> xr.Dataset:
    """Check evidence against its schema; returns it unchanged, so that calls can be chained.

    Args:
      evidence: what to check.
      check_hash: also recompute the content hash and compare it with the attribute
        ``content_hash``, which goes stale when a dataset is changed in memory. `load` does this.

    Raises:
      EvidenceError: with the first cell at fault (task, skill, trace, candidate), its value, what
        was wanted, and the remedy.
    """
    if not isinstance(evidence, xr.Dataset):
        raise EvidenceError(
            f"evidence is a {type(evidence).__name__}, wanted an xarray.Dataset. "
            "Make one with bayesmeta.evidence.build."
        )
    _check_attributes(evidence)
    _check_layout(evidence)
    _check_coordinates(evidence)
    _check_tasks(evidence)
    _check_cells(evidence)
    _check_gold(evidence)
    _check_verdicts(evidence)
    if check_hash:
        _check_hash(evidence)
    return evidence


def _check_attributes(evidence: xr.Dataset) -> None:
    attrs = evidence.attrs
    version = attrs.get("schema_version")
    if version is None:
        raise EvidenceError(
            "the attribute schema_version is missing, so this is not evidence. "
            "Make evidence with bayesmeta.evidence.build or bayesmeta.observe."
        )
    if version != SCHEMA_VERSION:
        remedy = (
            "Observe the tasks again, or read it with the bayesmeta that wrote it."
            if isinstance(version, (int, np.integer)) and version < SCHEMA_VERSION
            else "Install the newer bayesmeta that wrote it."
        )
        raise EvidenceError(
            f"schema_version is {version!r}, this bayesmeta reads {SCHEMA_VERSION}. {remedy}"
        )
    missing = [name for name in ATTRIBUTES if name not in attrs]
    if missing:
        raise EvidenceError(
            f"attributes {missing} are missing. Add them to evidence.attrs; "
            "bayesmeta.evidence.build fills defaults."
        )
    for name, value in attrs.items():
        if not isinstance(value, (str, int, float, np.integer, np.floating)):
            raise EvidenceError(
                f"attribute {name!r} is a {type(value).__name__} ({value!r}), wanted text or a "
                "number. Store anything else as JSON text."
            )
    for name, kind in JSON_ATTRIBUTES.items():
        try:
            parsed = json.loads(str(attrs[name]))
        except json.JSONDecodeError as error:
            raise EvidenceError(
                f"attribute {name!r} is not JSON: {attrs[name]!r} ({error}). Use json.dumps."
            ) from error
        if not isinstance(parsed, kind):
            raise EvidenceError(
                f"attribute {name!r} is {attrs[name]!r}, wanted a JSON {kind.__name__}."
            )
    if attrs["quality"] not in get_args(Quality):
        raise EvidenceError(
            f"attribute quality is {attrs['quality']!r}, wanted one of {list(get_args(Quality))}. "
            'Full logits are "exact".'
        )


def _check_layout(evidence: xr.Dataset) -> None:
    for name, kind in COORDINATES.items():
        if name not in evidence.coords or evidence[name].dims != (name,):
            raise EvidenceError(
                f"coordinate {name!r} is missing. Assign it with evidence.assign_coords."
            )
        _check_type(evidence, name, kind, exact=False)
    for name, variable in VARIABLES.items():
        if name not in evidence.data_vars:
            if variable.optional:
                continue
            raise EvidenceError(
                f"variable {name!r} with dimensions {variable.dims} is missing. "
                "bayesmeta.evidence.build fills defaults."
            )
        if evidence[name].dims != variable.dims:
            raise EvidenceError(
                f"variable {name!r} has dimensions {evidence[name].dims}, wanted {variable.dims}. "
                "Put them right with evidence.transpose."
            )
        _check_type(evidence, name, variable.dtype, variable.exact)


def _check_type(evidence: xr.Dataset, name: str, wanted: str, exact: bool) -> None:
    found = evidence[name].dtype
    if wanted == "text":
        _check_text(evidence, name)
    elif (found != wanted) if exact else (found.kind not in _kinds(wanted)):
        raise EvidenceError(
            f"{name} has type {found}, wanted {wanted}. Convert it with .astype({wanted!r})."
        )


def _kinds(wanted: str) -> str:
    return "iu" if wanted.startswith("int") else np.dtype(wanted).kind


def _check_text(evidence: xr.Dataset, name: str) -> None:
    """Text that UTF-8 and HDF5 can hold: no lone surrogate, no NUL."""
    values = np.asarray(evidence[name].values, dtype=object)
    try:
        joined = "".join(values.ravel().tolist())
        if "\0" not in joined:
            joined.encode()
            return
    except (TypeError, UnicodeEncodeError):
        pass
    for where, value in np.ndenumerate(values):
        if not isinstance(value, str):
            _refuse(
                evidence, name, where, f"is {value!r} ({type(value).__name__}), wanted text. Use ''"
            )
        if value != storable(value):
            _refuse(
                evidence,
                name,
                where,
                f"is {value!r}, which has a NUL or a lone surrogate and cannot be stored. "
                "Clean it with bayesmeta.evidence.storable",
            )


def _check_coordinates(evidence: xr.Dataset) -> None:
    for name in ("task", "skill", "trace", "candidate"):
        if not evidence.sizes[name]:
            raise EvidenceError(f"dimension {name!r} is empty. Evidence needs at least one {name}.")
    if evidence.sizes["candidate"] < 2:
        raise EvidenceError(
            "there is 1 candidate, wanted at least 2: log-likelihoods are renormalised over the "
            "candidates, so a lone one says nothing. Add distractors."
        )
    for name in ("task", "skill", "feature"):
        values = np.asarray(evidence[name].values, dtype=object).tolist()
        if len(set(values)) < len(values):
            seen: set[str] = set()
            repeated = next(v for v in values if v in seen or seen.add(v))
            raise EvidenceError(
                f"{name} {repeated!r} appears {values.count(repeated)} times, wanted once. "
                f"Give each {name} its own name."
            )
        if "" in values:
            raise EvidenceError(f"{name} {values.index('')} has an empty name. Give it one.")
    for name in ("trace", "candidate"):
        if not np.array_equal(evidence[name].values, np.arange(evidence.sizes[name])):
            raise EvidenceError(
                f"coordinate {name!r} is {evidence[name].values.tolist()[:8]}, wanted 0, 1, 2, ... "
                "Renumber it with assign_coords."
            )
    if tuple(evidence["token_kind"].values.tolist()) != TOKEN_KINDS:
        raise EvidenceError(
            f"token_kind is {evidence['token_kind'].values.tolist()}, wanted {list(TOKEN_KINDS)}."
        )
    listed = json.loads(evidence.attrs["skills"])
    names = {skill.get("name") for skill in listed if isinstance(skill, dict)}
    for skill in evidence["skill"].values.tolist():
        if skill not in names:
            raise EvidenceError(
                f"skill {skill!r} is not described in the attribute skills, which lists "
                f"{sorted(map(str, names))}. Add a JSON object with its name and version."
            )


def _check_tasks(evidence: xr.Dataset) -> None:
    splits = (REFLECT, HELD_OUT)
    split = evidence["split"].values
    _refuse_any(
        evidence, "split", (split != REFLECT) & (split != HELD_OUT), f"wanted one of {splits}"
    )
    _refuse_any(
        evidence, "domain", evidence["domain"].values == "", "wanted a name; use 'default' for one"
    )
    finite = np.isfinite(evidence["features"].values)
    _refuse_any(
        evidence, "features", ~finite, "wanted a finite number. Impute it or drop the feature"
    )
    tokens = evidence["num_tokens"].values
    _refuse_any(evidence, "num_tokens", tokens < 0, "wanted a count >= 0. Use 0 if unknown")


def _check_cells(evidence: xr.Dataset) -> None:
    observed = evidence["observed"].values
    for name in ("log_likelihood", *(f"log_likelihood_{context}" for context in CONTEXTS)):
        if name in evidence:
            _check_scores(evidence, name, evidence[name].values, observed)
    _refuse_any(
        evidence,
        "log_weight",
        ~np.isfinite(evidence["log_weight"].values),
        "wanted a finite log importance ratio. Use 0 for a trace drawn from the model itself",
    )
    _refuse_any(
        evidence,
        "observed",
        ~observed.any((1, 2, 3)),
        "wanted at least one observed cell per task. Drop the task with bayesmeta.evidence.subset",
        value="is False for every skill, trace and candidate",
    )
    wanted = observed.any((1, 2), keepdims=True)
    _refuse_any(
        evidence,
        "observed",
        (observed != wanted) & observed.any(-1, keepdims=True),
        "but other traces of this task, or other candidates of this trace, are observed: every "
        "observed trace of a task must score the same candidates, or skills are normalised over "
        "different sets. Score the missing candidate or mark the whole trace as not observed",
    )
    _refuse_any(
        evidence,
        "observed",
        wanted[:, 0, 0].sum(-1) < 2,
        "wanted at least 2: a lone candidate says nothing",
        value="is False for all but one candidate",
    )


def _check_scores(
    evidence: xr.Dataset, name: str, scores: np.ndarray, observed: np.ndarray
) -> None:
    _refuse_any(
        evidence,
        name,
        np.isnan(scores),
        "wanted nats <= 0. For a missing cell set observed to False and the value to -inf",
    )
    # Also refuses +inf.
    _refuse_any(
        evidence,
        name,
        scores > ROUNDING,
        "wanted nats <= 0. A density or an unnormalised score is not a probability: "
        "normalise it, or take the log of the probability",
    )
    impossible = np.isneginf(scores)
    if not evidence.attrs.get("allow_neg_inf", 0):
        _refuse_any(
            evidence,
            name,
            impossible & observed,
            "wanted a finite number in an observed cell. If the probability is truly zero, set "
            "the attribute allow_neg_inf to 1; if the cell is missing, set observed to False",
        )
    _refuse_any(
        evidence,
        name,
        ~impossible & ~observed,
        "wanted -inf because observed is False there. Set observed to True or the value to -inf",
    )
    _refuse_any(
        evidence,
        name,
        (impossible | ~observed).all(-1) & observed.any(-1),
        "so its candidates cannot be normalised. Mark the trace as not observed",
        value="is -inf for every candidate",
    )


def _check_gold(evidence: xr.Dataset) -> None:
    gold, size = evidence["gold"].values, evidence.sizes["candidate"]
    _refuse_any(
        evidence,
        "gold",
        (gold < 0) | (gold >= size),
        f"wanted the index of a candidate, 0 to {size - 1}",
    )
    candidates = evidence["observed"].values.any((1, 2))
    chosen = np.take_along_axis(candidates, gold[:, None].astype(np.int64), axis=1)[:, 0]
    _refuse_any(
        evidence,
        "gold",
        ~chosen,
        "which is a candidate that was not observed. Score the gold answer, or correct the index",
    )


def _check_verdicts(evidence: xr.Dataset) -> None:
    present = [name for name in ("verdict", "verdict_observed") if name in evidence.data_vars]
    if len(present) == 1:
        raise EvidenceError(
            f"there is {present[0]!r} alone, wanted verdict and verdict_observed together. "
            "Add the other or drop it."
        )
    if present:
        verdict = evidence["verdict"].values
        _refuse_any(
            evidence,
            "verdict",
            (verdict != 0) & (verdict != 1),
            "wanted 0 or 1. Use 0 where verdict_observed is False",
        )


def _check_hash(evidence: xr.Dataset) -> None:
    from bayesmeta.evidence_io import content_hash

    recorded = evidence.attrs.get("content_hash")
    if recorded is None:
        raise EvidenceError("the attribute content_hash is missing. Save with evidence.save.")
    found = content_hash(evidence)
    if recorded != found:
        raise EvidenceError(
            f"content_hash is {recorded}, but the content has {found}: it was changed after it "
            "was saved. Get the file again; if you changed it yourself, save it with "
            "bayesmeta.evidence.save, which records the new hash."
        )


def _refuse_any(
    evidence: xr.Dataset, name: str, bad: np.ndarray, wanted: str, value: str | None = None
) -> None:
    """Refuse the first cell in which ``bad`` is True; its leading dimensions are those of name."""
    if not bad.any():
        return
    where = np.unravel_index(int(np.argmax(bad)), bad.shape)
    if value is None:
        value = f"is {evidence[name].values[where]!s}"
        if evidence[name].dtype.kind not in "biuf":
            value = f"is {evidence[name].values[where]!r}"
    count = int(bad.sum())
    more = f" (and {count - 1} more such cells)" if count > 1 else ""
    _refuse(evidence, name, where, f"{value}{more}, {wanted}")


def _refuse(evidence: xr.Dataset, name: str, where: tuple, problem: str) -> NoReturn:
    labels = [
        f"{dim} {evidence[dim].values.tolist()[index]!r}"
        for dim, index in zip(evidence[name].dims, where, strict=False)
    ]
    raise EvidenceError(f"{name} of {', '.join(labels)} {problem}.")
