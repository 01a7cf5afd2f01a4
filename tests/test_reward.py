"""Rewards by language model and by preference, and the strategies that they make likely."""

import numpy as np
import pytest
from simulate import planted_evidence
from simulate_preferences import simulate_preferences

from bayesmeta.preferences import draws_of, fit_preferences
from bayesmeta.reward import llm_reward, strategy_given_preferences, strategy_given_reward
from bayesmeta.skill_scores import skill_scores


def test_with_tau_one_the_rule_is_that_of_bayes():
    evidence = planted_evidence(num_tasks=40)
    reward = llm_reward(evidence, null="b")
    assert reward.dims == ("task", "skill") and list(reward["skill"].values) == ["a", "c"]
    scores = skill_scores(evidence)
    prior = np.array([0.3, 0.7])
    found = strategy_given_reward(np.log(prior), reward.values)
    joint = prior * np.exp(scores.log_likelihood[:, [0, 2]])
    np.testing.assert_allclose(found, joint / joint.sum(1, keepdims=True), atol=1e-12)
    softer = strategy_given_reward(np.log(prior), reward.values, tau=10.0)
    assert (np.abs(softer - prior) <= np.abs(found - prior) + 1e-12).all()


def test_preferences_give_a_gibbs_posterior():
    table, R = simulate_preferences(np.random.default_rng(0), num_items=4, num_pairs=200)
    fit = fit_preferences(table, num_chains=2, num_warmup=200, num_samples=300)
    found = strategy_given_preferences(fit, tau=0.5)
    draws = draws_of(fit.tree, "R")
    by_hand = np.mean([np.exp(r / 0.5) / np.exp(r / 0.5).sum() for r in draws], 0)
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    assert str(found["item"].values[found.values.argmax()]) == f"item{R.argmax()}"


def test_bad_input():
    with pytest.raises(ValueError, match="no skill 'null'"):
        llm_reward(planted_evidence(num_tasks=8))
    with pytest.raises(ValueError, match="tau is 0"):
        strategy_given_reward(np.zeros(2), np.zeros(2), tau=0.0)
