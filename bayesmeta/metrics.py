"""Scores of probabilistic predictions: log score, accuracy, Brier score, calibration.

All functions take the log predictive ``log_predictive`` [N, C] in nats (-inf at padded
candidates) and the index ``gold`` [N] of the right candidate.
"""

from typing import NamedTuple

import numpy as np

# Two candidates tie when a float64 sum over skills in another order could swap them.
_TIE = 1e-12


class Estimate(NamedTuple):
    """A mean over tasks with its standard error (NaN when it cannot be estimated)."""

    mean: float
    standard_error: float


class Brier(NamedTuple):
    """``score = reliability - resolution + uncertainty + within_bin``.

    Attributes:
      score: mean over tasks of sum_c (p_c - 1[c = gold])^2; 0 is perfect, 2 is worst.
      reliability: how far predicted probabilities lie from the frequencies in their bin; 0 is
        perfect.
      resolution: how much the frequencies differ between bins; larger is better.
      uncertainty: what always predicting the base rate would score.
      within_bin: what binning hides: variance of the predictions inside a bin minus twice their
        covariance with the outcome; 0 when all predictions of a bin are equal.
    """

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bin: float


class CalibrationError(NamedTuple):
    """Binned calibration error next to what a perfectly calibrated predictor would show.

    Attributes:
      error: expected calibration error of the top label, equal-mass bins.
      null_mean: mean of the same statistic when labels are drawn from the predictions themselves.
      null_q95: its 95 % quantile. An ``error`` above it is evidence of miscalibration.
    """

    error: float
    null_mean: float
    null_q95: float


class CalibrationCurve(NamedTuple):
    """One entry per bin, from the least to the most confident.

    ``confidence`` and ``frequency`` are bin means, ``count`` the tasks in the bin, and
    ``null_lower``/``null_upper`` the central 90 % interval of ``frequency`` under perfect
    calibration.
    """

    confidence: np.ndarray
    frequency: np.ndarray
    count: np.ndarray
    null_lower: np.ndarray
    null_upper: np.ndarray


def log_scores(log_predictive: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """[N] log probability of the gold candidate, in nats; at most 0, larger is better."""
    return np.asarray(log_predictive)[np.arange(len(gold)), gold]


def mean_with_error(values: np.ndarray, cluster: np.ndarray | None = None) -> Estimate:
    """Mean of [N] values and its standard error.

    Args:
      values: one number per task.
      cluster: [N] labels, for instance the domain. If given, the error treats whole clusters as
        exchangeable: sqrt(G / (G - 1) * sum_g (sum of residuals in g)^2) / N. Use it to speak
        about domains that were not seen. With few clusters it is itself very uncertain.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("mean_with_error got no values; wanted at least one task.")
    with np.errstate(invalid="ignore"):
        mean = float(values.mean())
    if not np.isfinite(mean):
        return Estimate(mean, float("nan"))
    if cluster is None:
        groups = np.arange(len(values))
    else:
        groups = np.unique(np.asarray(cluster), return_inverse=True)[1]
    sums = np.bincount(groups, weights=values - mean)
    count = len(sums)
    if count < 2:
        return Estimate(mean, float("nan"))
    return Estimate(mean, float(np.sqrt(count / (count - 1) * np.sum(sums**2)) / len(values)))


def paired_difference(a: np.ndarray, b: np.ndarray, cluster: np.ndarray | None = None) -> Estimate:
    """Mean of a - b over the same tasks, with the standard error of the paired differences.

    Where both are -inf the difference is undefined and the mean is NaN.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"paired_difference needs the same tasks in both, got shapes {a.shape} and {b.shape}."
        )
    with np.errstate(invalid="ignore"):
        return mean_with_error(a - b, cluster)


def top_label(log_predictive: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N] confidence in the most probable candidate, and [N] whether it is gold.

    A tie between m candidates counts 1/m if gold is among them: its expectation under a fair
    draw between them.
    """
    probability = np.exp(log_predictive)
    confidence = probability.max(axis=1)
    top = probability >= confidence[:, None] - _TIE
    hit = top[np.arange(len(gold)), gold] / top.sum(axis=1)
    return confidence, hit


def accuracy(log_predictive: np.ndarray, gold: np.ndarray) -> Estimate:
    """Share of tasks whose most probable candidate is gold; ties count by expectation."""
    return mean_with_error(top_label(log_predictive, gold)[1])


def brier(log_predictive: np.ndarray, gold: np.ndarray, num_bins: int = 10) -> Brier:
    """Multiclass Brier score and its decomposition (Murphy 1973; Stephenson et al. 2008).

    The decomposition pools all (task, candidate) pairs into equal-mass bins of predicted
    probability, and is scaled by pairs per task, so that the parts sum to the score exactly.
    """
    observed = np.isfinite(log_predictive)
    outcome = np.zeros(observed.shape)
    outcome[np.arange(len(gold)), gold] = 1
    # A padded candidate is never gold; one with probability zero that is gold still counts.
    pairs = observed | (outcome > 0)
    p, y = np.exp(log_predictive)[pairs], outcome[pairs]
    scale = len(p) / len(gold)
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    starts = _bin_starts(len(p), num_bins)
    count = np.diff(np.append(starts, len(p)))
    share = count / len(p)
    mean_p, mean_y = np.add.reduceat(p, starts) / count, np.add.reduceat(y, starts) / count
    bin_of = np.repeat(np.arange(len(starts)), count)
    residual_p, residual_y = p - mean_p[bin_of], y - mean_y[bin_of]
    base = y.mean()
    return Brier(
        score=float(scale * np.mean((p - y) ** 2)),
        reliability=float(scale * np.sum(share * (mean_p - mean_y) ** 2)),
        resolution=float(scale * np.sum(share * (mean_y - base) ** 2)),
        uncertainty=float(scale * base * (1 - base)),
        within_bin=float(scale * np.mean(residual_p**2 - 2 * residual_p * residual_y)),
    )


def calibration_error(
    log_predictive: np.ndarray,
    gold: np.ndarray,
    num_bins: int = 10,
    num_simulations: int = 1000,
    seed: int = 0,
) -> CalibrationError:
    """Expected calibration error of the top label, next to its simulated null.

    sum_b (n_b / N) |mean confidence - frequency| over equal-mass bins (Nixon et al. 2019). The
    statistic is biased upwards: with N = 100 and confidences from Beta(2, 2), a perfectly
    calibrated predictor scores about 0.113 in 10 bins. So read ``error`` against the null, in
    which each task's label is drawn from the predictor's own probabilities, never alone.
    """
    confidence, hit = top_label(log_predictive, gold)
    error, null = calibration_error_of(confidence, hit, num_bins, num_simulations, seed)
    return CalibrationError(error, float(null.mean()), float(np.quantile(null, 0.95)))


def calibration_error_of(
    confidence: np.ndarray,
    hit: np.ndarray,
    num_bins: int = 10,
    num_simulations: int = 1000,
    seed: int = 0,
) -> tuple[float, np.ndarray]:
    """The same from [N] confidences and hits: the error, and [num_simulations] null draws."""
    order = np.argsort(confidence, kind="stable")
    confidence, hit = np.asarray(confidence)[order], np.asarray(hit, np.float64)[order]
    starts = _bin_starts(len(confidence), num_bins)

    def error(hits: np.ndarray) -> float:
        return float(np.abs(np.add.reduceat(confidence - hits, starts)).sum() / len(confidence))

    rng = np.random.default_rng(seed)
    draws = (rng.random(len(confidence)) < confidence for _ in range(num_simulations))
    return error(hit), np.array([error(draw) for draw in draws])


def calibration_curve(
    log_predictive: np.ndarray,
    gold: np.ndarray,
    num_bins: int = 10,
    num_simulations: int = 1000,
    seed: int = 0,
) -> CalibrationCurve:
    """Frequency against confidence of the top label in equal-mass bins, with its null band."""
    confidence, hit = top_label(log_predictive, gold)
    order = np.argsort(confidence, kind="stable")
    confidence, hit = confidence[order], hit[order]
    starts = _bin_starts(len(confidence), num_bins)
    count = np.diff(np.append(starts, len(confidence)))
    rng = np.random.default_rng(seed)
    null = np.stack(
        [
            np.add.reduceat((rng.random(len(confidence)) < confidence) * 1.0, starts) / count
            for _ in range(num_simulations)
        ]
    )
    lower, upper = np.quantile(null, [0.05, 0.95], axis=0)
    return CalibrationCurve(
        confidence=np.add.reduceat(confidence, starts) / count,
        frequency=np.add.reduceat(hit, starts) / count,
        count=count,
        null_lower=lower,
        null_upper=upper,
    )


def _bin_starts(num_values: int, num_bins: int) -> np.ndarray:
    """First index of each equal-mass bin of sorted values; sizes differ by at most one."""
    if num_values < 1:
        raise ValueError("calibration and Brier bins need at least one task, got none.")
    if num_bins < 1:
        raise ValueError(f"num_bins must be >= 1, got {num_bins}. 10 is usual.")
    num_bins = min(num_bins, num_values)
    size, extra = divmod(num_values, num_bins)
    sizes = np.full(num_bins, size)
    sizes[:extra] += 1
    return np.concatenate([[0], np.cumsum(sizes)[:-1]])
