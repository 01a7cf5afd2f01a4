"""Estimates of log p(o | n, k) from sampled traces, and how biased their logarithm is.

Traces are integration nodes and not data: however many are drawn, a task has one outcome, and its
likelihood under a skill is a mean over traces. With log-likelihoods l_s and importance ratios
v_s = p_k(a_s) / q(a_s),

    L_hat = logsumexp_s(l_s + log v_s) - log S,      E[exp L_hat] = p(o | n, k).

The mean is unbiased, its logarithm is not: E[L_hat] - L is about -CV^2 / (2 S), CV being the
coefficient of variation of one term (Burda, Grosse and Salakhutdinov 2016, arXiv 1509.00519).
"""

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp


def plain_log_marginal(
    log_likelihood: Float[np.ndarray, "*batch skill trace"],
    log_ratio: Float[np.ndarray, "*batch skill trace"] | None = None,
) -> Float[np.ndarray, "*batch skill"]:
    """log of the mean likelihood over the traces that each skill drew itself, nats.

    Args:
      log_likelihood: log p(o | trace, skill) in nats; -inf where the outcome is impossible.
      log_ratio: log p_k(trace) - log q(trace) in nats; None where traces were drawn from the
        model itself. Traces of a truncated sampler have no such ratio: what it cut off, no
        weight brings back.

    Raises:
      ValueError: shapes differ, there is no trace, or a number is NaN or +inf.
    """
    terms = _checked("log_likelihood", log_likelihood, 2)
    if log_ratio is not None:
        terms = terms + _checked("log_ratio", log_ratio, 2, terms.shape)
    return _log_mean_exp(terms)


def pooled_log_marginal(
    log_likelihood: Float[np.ndarray, "*batch skill drawn_under trace"],
    log_prob: Float[np.ndarray, "*batch skill drawn_under trace"],
) -> Float[np.ndarray, "*batch skill"]:
    """As `plain_log_marginal`, every skill using the traces of all skills.

    It needs no more traces, but each scored under every skill, and usually varies less.

    Args:
      log_likelihood: log p(o | a, k) in nats of trace ``[drawn_under, trace]`` under ``skill``.
      log_prob: log p_k(a) in nats, the probability of the same trace under that skill.

    Raises:
      ValueError: shapes differ, a number is NaN or +inf, or as `balance_log_ratio`.
    """
    terms = balance_log_ratio(log_prob)
    terms = terms + _checked("log_likelihood", log_likelihood, 3, terms.shape)
    return _log_mean_exp(terms.reshape(*terms.shape[:-2], -1))


def balance_log_ratio(
    log_prob: Float[np.ndarray, "*batch skill drawn_under trace"],
) -> Float[np.ndarray, "*batch skill drawn_under trace"]:
    """log of p_k(a) / q(a), where q(a) = mean_j p_j(a), for K skills that drew S traces each.

    All K S traces count as one sample from q, whatever skill drew them: the balance heuristic
    (Veach and Guibas 1995). A ratio is at most K.

    Args:
      log_prob: log p_k(a) in nats of trace ``[drawn_under, trace]`` under ``skill``.

    Raises:
      ValueError: the two skill axes differ in length, a number is NaN or +inf, or a trace is
        impossible under every skill.
    """
    log_prob = _checked("log_prob", log_prob, 3)
    num_skills, drawn_under = log_prob.shape[-3], log_prob.shape[-2]
    if num_skills != drawn_under:
        raise ValueError(
            f"log_prob scores traces of {drawn_under} skills under {num_skills}; the mixture that "
            "they were drawn from needs both to be the same skills. Score all under all."
        )
    log_q = np.asarray(logsumexp(log_prob, axis=-3, keepdims=True)) - np.log(num_skills)
    if np.isneginf(log_q).any():
        where = tuple(int(i[0]) for i in np.nonzero(np.isneginf(log_q)))
        raise ValueError(
            f"the trace at {where} has probability 0 under every skill, so none can have drawn "
            "it. Score traces with the prompts that they were drawn with."
        )
    return log_prob - log_q


def log_bias(log_terms: Float[np.ndarray, "*batch trace"]) -> Float[np.ndarray, "*batch"]:
    """-CV^2 / (2 S): the bias in nats of the log of the mean of S terms, to first order.

    Args:
      log_terms: log-likelihoods plus log importance ratios in nats, S >= 2 of them.

    Raises:
      ValueError: fewer than two terms, or a number is NaN or +inf.
    """
    log_terms = _checked("log_terms", log_terms, 1)
    num_terms = log_terms.shape[-1]
    if num_terms < 2:
        raise ValueError("log_terms holds 1 trace, and a spread needs 2. Draw more traces.")
    top = log_terms.max(-1, keepdims=True)
    terms = np.exp(log_terms - np.where(np.isfinite(top), top, 0.0))
    mean = terms.mean(-1)
    squared = terms.var(-1, ddof=1) / np.where(mean > 0, mean, 1.0) ** 2
    return -squared / (2 * num_terms)


def _log_mean_exp(terms: np.ndarray) -> np.ndarray:
    return np.asarray(logsumexp(terms, axis=-1)) - np.log(terms.shape[-1])


def _checked(
    name: str, values: np.ndarray, num_axes: int, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim < num_axes or 0 in values.shape:
        raise ValueError(
            f"{name} has shape {values.shape}, wanted at least {num_axes} axes and no empty one."
        )
    if shape is not None and values.shape != shape:
        raise ValueError(f"{name} has shape {values.shape}, wanted {shape} like the other scores.")
    if (bad := np.isnan(values) | np.isposinf(values)).any():
        where = tuple(int(i[0]) for i in np.nonzero(bad))
        raise ValueError(
            f"{name} is {values[where]} at {where}, wanted a number or -inf, in nats. "
            "Check the scores of the model with bayesmeta.testing."
        )
    return values
