"""Slow, obvious twin of inverse planning: a sum over every goal and every path of skills."""

import itertools
import math

import numpy as np


def paths(num_skills, num_steps, switching):
    if switching:
        return list(itertools.product(range(num_skills), repeat=num_steps))
    return [(k,) * num_steps for k in range(num_skills)]


def joint(data, n, weight, beta_a, switch=None):
    """{(goal, path): p(goal, path, steps of trace n)}, probabilities and not their logs."""
    log_q, seen = np.asarray(data.log_q), np.asarray(data.seen)
    _, G, T, _, K = log_q.shape
    found = {}
    for g in range(G):
        for path in paths(K, T, switch is not None):
            p = math.exp(float(data.log_goal[n, g])) * weight[path[0]]
            if switch is not None:
                for before, after in itertools.pairwise(path):
                    p *= (1 - switch) * (before == after) + switch * weight[after]
            last = max((t for t in range(T) if seen[n, t]), default=None)
            for t, k in enumerate(path):
                if seen[n, t]:
                    powers = np.exp(beta_a * log_q[n, g, t, :, k])
                    p *= powers[int(data.chosen[n, t])] / powers.sum()
                if t == last:
                    p *= math.exp(float(data.log_outcome[n, g, k]))
            found[g, path] = p
    return found


def evidence(data, weight, beta_a, switch=None):
    return np.array(
        [sum(joint(data, n, weight, beta_a, switch).values()) for n in range(len(data.chosen))]
    )


def goals_and_skills(data, weight, beta_a, switch=None):
    """p(goal | steps) [N, G] and p(skill of each step | steps) [N, T, K]."""
    N, G, T, _, K = np.asarray(data.log_q).shape
    goal, skill = np.zeros((N, G)), np.zeros((N, T, K))
    for n in range(N):
        table = joint(data, n, weight, beta_a, switch)
        total = sum(table.values())
        for (g, path), p in table.items():
            goal[n, g] += p / total
            for t, k in enumerate(path):
                skill[n, t, k] += p / total
    return goal, skill
