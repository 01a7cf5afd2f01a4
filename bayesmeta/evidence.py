"""Evidence: what a language model says about every task under every skill.

An `xarray.Dataset`, nothing more. Log-likelihoods are in nats and cover the answer tokens only,
the token that ends the answer included.

| variable | dimensions | meaning |
|---|---|---|
| log_likelihood | task, skill, trace, candidate | log p(candidate); -inf if unobserved |
| observed | task, skill, trace, candidate | False: padding, or a cell that is missing |
| log_weight | task, skill, trace | log importance ratio of the trace, 0 if drawn from the model |
| gold | task | index of the right candidate |
| domain, split, question | task | text; split is "reflect" or "held_out" |
| candidate_text | task, candidate | text, "" for padding |
| trace_text | task, skill, trace | text |
| features | task, feature | real features of the question |
| num_tokens | task, skill, token_kind | tokens "scored" and "generated" by that skill |
| verdict, verdict_observed | task, skill, trace | optional: judged right (1) or wrong (0) |

The three long texts are optional. A skill whose cells of a task are all unobserved says nothing
about that task: it is missing, not wrong, and whatever uses the evidence decides what to assume.
"""

import numpy as np
import xarray as xr

from bayesmeta.evidence_build import assemble as assemble
from bayesmeta.evidence_build import build as build
from bayesmeta.evidence_build import from_log_probabilities as from_log_probabilities
from bayesmeta.evidence_check import validate as validate
from bayesmeta.evidence_io import content_hash as content_hash
from bayesmeta.evidence_io import load as load
from bayesmeta.evidence_io import open_lazy as open_lazy
from bayesmeta.evidence_io import save as save
from bayesmeta.evidence_join import append as append
from bayesmeta.evidence_join import split as split
from bayesmeta.evidence_join import subset as subset
from bayesmeta.evidence_schema import SCHEMA_VERSION as SCHEMA_VERSION
from bayesmeta.evidence_schema import EvidenceError as EvidenceError
from bayesmeta.evidence_schema import storable as storable
from bayesmeta.verdicts import from_verdicts as from_verdicts

#: Evidence is a plain dataset that passes `validate`.
Evidence = xr.Dataset


def summarise(evidence: xr.Dataset) -> str:
    """What is in the evidence, as a few lines of text for a terminal.

    Raises:
      EvidenceError: the evidence breaks its schema.
    """
    validate(evidence)
    attrs, sizes = evidence.attrs, evidence.sizes
    observed = evidence["observed"].values
    tried, candidates = observed.any((2, 3)), observed.any((1, 2)).sum(-1)
    traces, tokens = observed.any(-1).sum(2), evidence["num_tokens"].values
    lines = [
        f"Evidence: {sizes['task']} tasks x {sizes['skill']} skills, "
        f"{_span(candidates)} candidates, {len(evidence['feature'])} features",
        f"Model: {attrs['model']} ({attrs['quantisation']}, {attrs['dtype']}), "
        f"quality {attrs['quality']}, seed {attrs['seed']}",
    ]
    if missing := int((~tried).sum()):
        lines.append(f"Missing: {missing} of {tried.size} cells (task, skill)")
    if "verdict_observed" in evidence:
        known = evidence["verdict_observed"].values
        right = float(evidence["verdict"].values[known].mean()) if known.any() else float("nan")
        lines.append(f"Verdicts: {int(known.sum())}, {right:.1%} right")
    if "content_hash" in attrs:
        lines.append(f"Content hash: {attrs['content_hash']}")
    lines += ["", *_domain_table(evidence), "", "Skill | tasks | traces | tokens per task"]
    for k, skill in enumerate(evidence["skill"].values.tolist()):
        scored, generated = tokens[tried[:, k], k].mean(0) if tried[:, k].any() else (0, 0)
        lines.append(
            f"{skill} | {int(tried[:, k].sum())} | {_span(traces[tried[:, k], k])} | "
            f"{scored:.0f} scored, {generated:.0f} generated"
        )
    return "\n".join(lines)


def _domain_table(evidence: xr.Dataset) -> list[str]:
    domain = np.asarray(evidence["domain"].values, dtype=object)
    held_out = evidence["split"].values == "held_out"
    lines = ["Domain | reflect | held out"]
    for name in sorted(set(domain.tolist())):
        mine = domain == name
        lines.append(f"{name} | {int((mine & ~held_out).sum())} | {int((mine & held_out).sum())}")
    return lines


def _span(counts: np.ndarray) -> str:
    if not counts.size:
        return "0"
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"
