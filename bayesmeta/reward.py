"""What a strategy is worth: R(F; O, Theta_I, Theta_E), by language model or by preference.

R_LLM(n, k) = log p(o_n | n, k) - log p(o_n | n, null): how much likelier the observation is under a
skill's prompt than under a prompt that asks for nothing. Then p(F | O) is proportional to p(F)
exp(R / tau): with R_LLM and tau = 1 that is Bayes' rule, with a Bradley-Terry reward a Gibbs
posterior (math.md 5.6). Add the two only where preferences did not come from the same
log-probabilities.
"""

import numpy as np
import xarray as xr
from jaxtyping import Float

from bayesmeta.posterior import group
from bayesmeta.preferences import PreferenceFit, draws_of
from bayesmeta.skill_scores import skill_scores
from bayesmeta.skills import Skill

#: A prompt that asks for no particular way of reasoning.
NULL = Skill("null", "Answer.")


def llm_reward(evidence: xr.Dataset, null: str = NULL.name, beta: float = 1.0) -> xr.DataArray:
    """R_LLM [task, skill] in nats, of all skills but the null one.

    Args:
      evidence: of `bayesmeta.observe`, with the skill `NULL` or another that is named.
      null: name of the skill that the others are compared with.
      beta: inverse temperature of the scores.

    Raises:
      ValueError: the evidence has no such skill.
    """
    scores = skill_scores(evidence, beta)
    if null not in scores.skills:
        raise ValueError(
            f"the evidence has no skill {null!r} to compare with, only {list(scores.skills)}. "
            "Observe bayesmeta.reward.NULL too, or name another with null=."
        )
    place = scores.skills.index(null)
    kept = [k for k in range(len(scores.skills)) if k != place]
    reward = scores.log_likelihood - scores.log_likelihood[:, [place]]
    return xr.DataArray(
        reward[:, kept],
        dims=("task", "skill"),
        coords={
            "task": list(map(str, evidence["task"].values)),
            "skill": [scores.skills[k] for k in kept],
        },
        name="R_LLM",
        attrs={"units": "nats", "null": null},
    )


def strategy_given_reward(
    log_prior: Float[np.ndarray, "*batch skill"],
    reward: Float[np.ndarray, "*batch skill"],
    tau: float = 1.0,
) -> Float[np.ndarray, "*batch skill"]:
    """p(F | reward), proportional to p(F) exp(R / tau).

    Raises:
      ValueError: tau is not positive.
    """
    if not tau > 0:
        raise ValueError(f"tau is {tau}, wanted a positive number; 1 is Bayes' rule for R_LLM.")
    total = np.asarray(log_prior, np.float64) + np.asarray(reward, np.float64) / tau
    raised = np.exp(total - total.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def strategy_given_preferences(
    fit: PreferenceFit,
    log_prior: Float[np.ndarray, " item"] | None = None,
    tau: float = 1.0,
) -> xr.DataArray:
    """Gibbs posterior [item] over the items compared, averaged over the posterior of rewards."""
    rewards = draws_of(fit.tree, "R")
    log_prior = np.zeros(rewards.shape[-1]) if log_prior is None else log_prior
    weights = strategy_given_reward(log_prior, rewards, tau).mean(0)
    names = list(map(str, group(fit.tree, "posterior")["item"].values))
    return xr.DataArray(weights, dims=("item",), coords={"item": names}, name="F")
