"""From a language model's log-likelihoods to what each skill predicts.

For trace s of skill k on task n, the answer is chosen among the candidates C_n with inverse
temperature beta:

    p_beta(c | a_nks) = exp(beta l_nksc) / sum_{c' in C_n} exp(beta l_nksc'),

and the traces, which are integration nodes and not data, are averaged with their importance
ratios upsilon:

    p_beta(c | n, k) = (1/S_nk) sum_s upsilon_nks p_beta(c | a_nks).

Renormalised over candidates this is a proper outcome model for every beta > 0.
"""

import numpy as np
import xarray as xr
from scipy.special import log_softmax, logsumexp

#: Stands in for log 0 where a finite number is needed: exp of it is exactly 0 in float32.
LOG_ZERO = -1e4


def skill_predictive(evidence: xr.Dataset, beta: float = 1.0) -> np.ndarray:
    """log p_beta(c | n, k) as [N, K, C] in nats: -inf at padding, NaN where a skill was not tried.

    Raises:
      ValueError: beta is not a positive finite number.
    """
    if not (np.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be a positive finite number, got {beta}. 1 leaves scores be.")
    scores, log_trace_weight = trace_scores(evidence)
    per_trace = log_softmax(beta * scores, axis=-1)
    with np.errstate(divide="ignore"):
        table = np.asarray(logsumexp(per_trace + log_trace_weight[..., None], axis=2))
    table = np.where(candidate_mask(evidence)[:, None, :], table, -np.inf)
    return np.where(skill_mask(evidence)[:, :, None], table, np.nan)


def trace_scores(evidence: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, K, S, C] in nats, `LOG_ZERO` below the best where unobserved, and the log weight
    of each trace [N, K, S]: log importance ratio minus log S_nk, -inf where there is no trace."""
    observed = evidence["observed"].transpose("task", "skill", "trace", "candidate").values
    scores = evidence["log_likelihood"].transpose("task", "skill", "trace", "candidate").values
    scores = np.where(observed, scores.astype(np.float64), -np.inf)
    best = scores.max(-1, keepdims=True)
    scores = np.maximum(scores - np.where(np.isfinite(best), best, 0.0), LOG_ZERO)
    present = observed.any(-1)
    count = np.maximum(present.sum(-1, keepdims=True), 1)
    log_weight = evidence["log_weight"].transpose("task", "skill", "trace").values
    return scores, np.where(present, log_weight.astype(np.float64) - np.log(count), -np.inf)


def candidate_mask(evidence: xr.Dataset) -> np.ndarray:
    """[N, C]: whether the task has this candidate at all."""
    return evidence["observed"].transpose("task", "skill", "trace", "candidate").values.any((1, 2))


def skill_mask(evidence: xr.Dataset) -> np.ndarray:
    """[N, K]: whether the skill was tried on the task."""
    return evidence["observed"].transpose("task", "skill", "trace", "candidate").values.any((2, 3))
