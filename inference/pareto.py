"""Pareto-smoothed importance sampling (Vehtari et al. 2024, arXiv 1507.02646), through ArviZ."""

import numpy as np


def pareto_smooth(log_ratios: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed log weights [S] that sum to one, and Pareto k-hat, from log ratios [S] in nats."""
    from arviz_stats.base.array import array_stats

    finite = np.isfinite(log_ratios)
    if finite.sum() < 25:
        return np.full(log_ratios.shape, -np.log(log_ratios.size)), float("inf")
    floor = log_ratios[finite].min() - 50.0
    try:
        log_weights, pareto_k = array_stats.psislw(np.where(finite, log_ratios, floor))
    except ValueError:  # ratios so far apart that a tail cannot be fitted: one draw has all weight
        return np.full(log_ratios.shape, -np.log(log_ratios.size)), float("inf")
    return np.asarray(log_weights), float(pareto_k)


def max_pareto_k(num_draws: int) -> float:
    """Largest k-hat at which ``num_draws`` importance draws can be trusted."""
    return min(1.0 - 1.0 / np.log10(num_draws), 0.7)
