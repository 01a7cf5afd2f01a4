"""Evidence as the arrays that the Figure 2 model conditions on."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import xarray as xr

from bayesmeta.outcomes import LOG_ZERO, skill_mask, skill_predictive, trace_scores


@dataclasses.dataclass(frozen=True, slots=True)
class Encoding:
    """How names and features became numbers; fixed by the tasks a model is fitted on.

    Attributes:
      skill: skill names, in the order of the model's axis.
      domain: domain names, likewise.
      feature: feature names, likewise.
      feature_mean, feature_scale: [P], so that x = (feature - mean) / scale.
    """

    skill: tuple[str, ...]
    domain: tuple[str, ...]
    feature: tuple[str, ...]
    feature_mean: np.ndarray
    feature_scale: np.ndarray

    @classmethod
    def of(cls, evidence: xr.Dataset) -> "Encoding":
        """The encoding that standardises the features of these tasks."""
        features = evidence["features"].transpose("task", "feature").values.astype(np.float64)
        scale = features.std(0)
        return cls(
            skill=tuple(map(str, evidence["skill"].values)),
            domain=tuple(sorted(set(map(str, evidence["domain"].values)))),
            feature=tuple(map(str, evidence["feature"].values)),
            feature_mean=features.mean(0),
            # A feature that never varies says nothing; dividing by one leaves it at zero.
            feature_scale=np.where(scale > 1e-12, scale, 1.0),
        )

    def domain_index(self, domains: Iterable[str]) -> np.ndarray:
        """[N] index of each domain, -1 for one that the model has not seen."""
        position = {name: index for index, name in enumerate(self.domain)}
        return np.array([position.get(str(d), -1) for d in domains], np.int32)

    def standardise(self, evidence: xr.Dataset) -> np.ndarray:
        """[N, P] standardised features."""
        missing = sorted(set(self.feature) - set(map(str, evidence["feature"].values)))
        if missing:
            raise ValueError(
                f"the evidence lacks the features {missing} that the model was fitted with. "
                "Build it from tasks that carry them."
            )
        features = evidence["features"].sel(feature=list(self.feature)).transpose("task", "feature")
        return (features.values.astype(np.float64) - self.feature_mean) / self.feature_scale


def figure2_data(
    evidence: xr.Dataset,
    encoding: Encoding | None = None,
    *,
    beta: float = 1.0,
    keep_scores: bool = False,
    task_weight: np.ndarray | None = None,
):
    """Arrays for `bayesmeta.models.figure2.figure2`, as a ``Figure2Data`` of JAX arrays.

    Args:
      evidence: validated evidence, N tasks.
      encoding: from the tasks a model was fitted on; None makes one from these tasks.
      beta: inverse temperature of the scores, > 0.
      keep_scores: keep the scores of every trace, for a prior that infers beta.
      task_weight: [N] exponents of the tasks' likelihoods; None for ones, which is Bayes' rule.
    """
    import jax.numpy as jnp

    from bayesmeta.models.figure2 import Figure2Data

    encoding = encoding or Encoding.of(evidence)
    domain = encoding.domain_index(evidence["domain"].values)
    if (domain < 0).any():
        unseen = sorted(set(map(str, evidence["domain"].values[domain < 0])))
        raise ValueError(
            f"domains {unseen} are not among the fitted domains {list(encoding.domain)}. "
            "Fit on evidence that has them, or use predict(), which draws unseen domains."
        )
    evidence = evidence.sel(skill=list(encoding.skill))
    log_p = np.nan_to_num(skill_predictive(evidence, beta), nan=0.0, neginf=LOG_ZERO)
    gold = evidence["gold"].values.astype(np.int32)
    tried = skill_mask(evidence)
    scores, log_trace_weight = trace_scores(evidence) if keep_scores else (None, None)
    float_ = jnp.result_type(float)
    return Figure2Data(
        log_p=jnp.asarray(log_p.transpose(2, 1, 0), float_),
        log_likelihood=jnp.asarray(
            np.take_along_axis(log_p, gold[:, None, None], 2)[:, :, 0].T, float_
        ),
        gold=jnp.asarray(gold),
        domain=jnp.asarray(domain),
        x=jnp.asarray(encoding.standardise(evidence), float_),
        scale=jnp.ones(len(gold), float_) if task_weight is None else jnp.asarray(task_weight),
        num_domains=len(encoding.domain),
        log_available=None if tried.all() else jnp.asarray(np.where(tried.T, 0.0, -np.inf), float_),
        scores=None if scores is None else jnp.asarray(scores.transpose(3, 2, 1, 0), float_),
        log_trace_weight=None
        if log_trace_weight is None
        else jnp.asarray(log_trace_weight.transpose(2, 1, 0), float_),
    )
