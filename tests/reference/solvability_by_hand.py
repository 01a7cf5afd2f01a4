"""Slow, obvious twin of the solvability model: loops, SciPy densities, a fine grid."""

import numpy as np
from scipy import stats
from scipy.special import expit


def verdict_density(logits, correct, tried, sigma_b, phi):
    """Density of one task's verdicts [K] at success logits [K], difficulty integrated out.

    The integrand is smooth and vanishes at both ends, where a sum over a fine grid is exact.
    """
    b = np.linspace(-12, 12, 4001) * sigma_b if sigma_b else np.zeros(1)
    density = stats.norm.pdf(b, 0, sigma_b) * (b[1] - b[0]) if sigma_b else np.ones(1)
    for eta, y, m in zip(logits, correct, tried, strict=True):
        p, q = expit(float(eta) - b), expit(b - float(eta))
        if phi is None:
            density = density * stats.binom.pmf(y, m, p)
        elif m > 0:
            density = density * stats.betabinom.pmf(y, m, phi * p, phi * q)
    return density.sum()


def log_joint(data, prior_scales, sites, contrast, basis):
    """Log density of all sites and verdicts under the default prior's families.

    ``prior_scales``: of level and the half-normal and log-normal sites (loc, scale for phi).
    """
    total = stats.norm.logpdf(sites["level"], 0, prior_scales["level"])
    for name in ("tau_theta", "tau_delta", "tau_gamma", "tau_W", "sigma_b"):
        total += stats.halfnorm.logpdf(sites[name], 0, prior_scales[name])
    scales = {"u": "tau_theta", "a": "tau_delta", "v": "tau_gamma", "W": "tau_W"}
    for name, scale in scales.items():
        total += stats.norm.logpdf(sites[name], 0, sites[scale]).sum()
    phi = None
    if data.max_attempts > 1:
        phi = sites["phi"]
        loc, scale = prior_scales["phi"]
        total += stats.lognorm.logpdf(phi, scale, 0, np.exp(loc))
    theta = contrast @ sites["u"]
    delta = basis @ sites["a"]
    gamma = basis @ sites["v"] @ contrast.T
    for n in range(len(data.domain)):
        d = int(data.domain[n])
        eta = sites["level"] + theta + delta[d] + gamma[d] + sites["W"] @ np.asarray(data.x)[n]
        density = verdict_density(
            eta, np.asarray(data.correct)[n], np.asarray(data.tried)[n], sites["sigma_b"], phi
        )
        total += float(data.weight[n]) * np.log(density)
    return total
