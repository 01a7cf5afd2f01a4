"""Slow, obvious twin of the explanations: shares of a sum over every goal and path of skills."""

import numpy as np

from bayesmeta.proof_enumeration_reasoning import trace_joint


def goals_and_skills(data, weight, beta_a, switch=None):
    """p(goal | steps) [N, G] and p(skill of each step | steps) [N, T, K]."""
    N, G, T, _, K = np.asarray(data.log_q).shape
    goal, skill = np.zeros((N, G)), np.zeros((N, T, K))
    for n in range(N):
        table = trace_joint(data, n, weight, beta_a, switch)
        total = sum(table.values())
        for (g, path), p in table.items():
            goal[n, g] += p / total
            for t, k in enumerate(path):
                skill[n, t, k] += p / total
    return goal, skill
