"""Simulated skill predictives for the tests of comparisons, tables and pictures."""

import numpy as np

from bayesmeta.skill_scores import SkillScores

SKILLS = ("direct", "step by step", "recall", "calculator")


def simulate(
    num_tasks: int, seed: int, num_domains: int = 4, spread: float = 1.0, num_features: int = 2
) -> SkillScores:
    """Tasks on which skill k raises the logit of gold by an amount that depends on the domain.

    The amounts are the same for every seed, so two calls give two splits of one world.
    """
    rng = np.random.default_rng(seed)
    num_skills, num_candidates = len(SKILLS), 4
    lift = np.random.default_rng(99).normal(size=(num_domains, num_skills)) * spread
    domain = np.arange(num_tasks) % num_domains
    gold = rng.integers(0, num_candidates, num_tasks)
    logits = rng.normal(size=(num_tasks, num_skills, num_candidates))
    logits[np.arange(num_tasks), :, gold] += lift[domain] + 0.5
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return SkillScores(
        log_p=log_p,
        gold=gold,
        domain=np.array([f"domain {d}" for d in domain]),
        features=rng.normal(size=(num_tasks, num_features)),
        tokens=np.tile(np.array([10.0, 100.0, 50.0, 70.0]), (num_tasks, 1)),
        skills=SKILLS,
    )
