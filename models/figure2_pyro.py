"""Figure 2 of Yan et al. (ICML 2025) as a generative program in Pyro: the working model.

The twin of `bayesmeta.models.figure2`, which explains it: the same sites under the same names, in
the same order, with the same density.

    Theta_I -> I: mu, W         internal view
    Theta_E -> E: delta_d       external view of each domain, shrunk towards nothing by tau_E
    I, E -> F                   strategy: w_n = softmax(mu + W x_n + delta_d(n))
    F -> A -> O <- G            skill and traces summed out, one factor per task
"""

from typing import Any

import pyro
import torch
from torch import Tensor

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.figure2 import HIERARCHICAL, SLAB, domain_basis
from bayesmeta.models.prior import Prior
from bayesmeta.models.pyro_data import check_tensors
from bayesmeta.models.pyro_outcomes import LLMCategorical
from bayesmeta.models.pyro_prior import draw


def figure2(data: Any, prior: Prior = HIERARCHICAL) -> None:
    """The Pyro program. Sites: u, U, tau_E, v, O; lambda_E and beta where the prior names them.

    Args:
      data: `bayesmeta.models.figure2.Figure2Data` of tensors, which
        `bayesmeta.models.pyro_data.to_torch` makes.
      prior: the same object as NumPyro's.
    """
    check_tensors(data)
    x = data.x
    num_skills, num_features = data.log_likelihood.shape[0], x.shape[1]
    optional = [site for site in ("lambda_E", "beta") if site in prior.sites]
    prior.require("u", "U", "tau_E", "v", *optional)
    prior.require_support(tau_E="positive", **dict.fromkeys(optional, "positive"))
    C = torch.from_numpy(contrast(num_skills)).to(x)
    B = torch.from_numpy(domain_basis(data.num_domains)).to(x)

    # Theta_I, the internal view.
    u = draw("u", prior, (num_skills - 1,), like=x)
    mu = C @ u
    pyro.deterministic("mu", mu)
    logits = mu[:, None]
    if num_features:
        U = draw("U", prior, (num_skills - 1, num_features), like=x)
        W = C @ U
        pyro.deterministic("W", W)
        logits = logits + W @ x.T

    # Theta_E, the external view of each domain.
    tau_E = draw("tau_E", prior, like=x)
    delta = x.new_zeros((data.num_domains, num_skills))
    # A single domain has no effect of its own that mu has not; tau_E = 0 means no effects at all.
    if data.num_domains > 1 and prior["tau_E"].fixed != 0:
        v_shape = (B.shape[1], num_skills - 1)
        scales = {"tau_E": tau_E}
        if "lambda_E" in prior.sites:
            lambda_E = draw("lambda_E", prior, v_shape, like=x)
            scales["local_E"] = horseshoe_scale(tau_E, lambda_E, SLAB)
        delta = B @ draw("v", prior, v_shape, like=x, **scales) @ C.T
    pyro.deterministic("delta", delta)

    # F, the strategy.
    pyro.deterministic("F", torch.softmax(mu + delta, -1))
    logits = logits + delta.T[:, data.domain]
    if data.log_available is not None:
        logits = logits + data.log_available

    # O, the outcome, with skill and traces summed out.
    log_p, log_likelihood = data.log_p, data.log_likelihood
    gold = data.gold
    if "beta" in prior.sites:
        beta = draw("beta", prior, like=x)
        log_p = temper(beta, data)
        log_likelihood = torch.take_along_dim(log_p, gold[None, None, :], 0)[0]
    outcome = LLMCategorical(logits, log_p, log_likelihood, data.scale)
    with pyro.plate("task", gold.shape[0]):
        pyro.sample("O", outcome, obs=gold)


def horseshoe_scale(tau: Tensor, local: Tensor, slab: float) -> Tensor:
    """tau * lambda where that is small, and at most ``slab``: the regularised horseshoe."""
    return tau * slab * local / torch.sqrt(slab**2 + (tau * local) ** 2)


def temper(beta: Tensor, data: Any) -> Tensor:
    """log p_beta(c | n, k), [candidate, skill, task]: each trace renormalised, then averaged."""
    if data.scores is None or data.log_trace_weight is None:
        raise ValueError(
            "the prior infers beta, but the data hold no raw scores to temper. Build them with "
            "figure2_data(..., keep_scores=True), or use a prior without 'beta'."
        )
    per_trace = torch.log_softmax(beta * data.scores, 0)
    return torch.logsumexp(per_trace + data.log_trace_weight, 1)
