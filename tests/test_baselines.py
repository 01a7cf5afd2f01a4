import dataclasses

import numpy as np
import pytest
from reference.metrics_by_hand import em_stacking
from scipy.optimize import minimize
from simulated_scores import SKILLS, simulate

from bayesmeta import baselines
from bayesmeta.skill_scores import SkillScores, check_strategy

REFLECT, HELD_OUT = simulate(160, seed=1), simulate(120, seed=2)


def objective(weights, log_likelihood):
    return np.log(np.exp(log_likelihood) @ weights).mean()


@pytest.mark.parametrize("name", list(baselines.BASELINES))
def test_every_baseline_returns_a_strategy(name):
    weights = baselines.BASELINES[name](REFLECT, HELD_OUT)
    assert weights.shape == (120, 4)
    check_strategy(weights, 120, 4)


@pytest.mark.parametrize("name", [n for n in baselines.BASELINES if n not in baselines.BOUNDS])
def test_only_bounds_read_the_held_out_labels(name):
    blind = dataclasses.replace(
        HELD_OUT, gold=(HELD_OUT.gold + 1) % 4, log_p=np.roll(HELD_OUT.log_p, 1, axis=0)
    )
    fit = baselines.BASELINES[name]
    np.testing.assert_array_equal(fit(REFLECT, HELD_OUT), fit(REFLECT, blind))
    oracle = baselines.oracle
    assert (oracle(REFLECT, HELD_OUT) != oracle(REFLECT, blind)).any()


def test_stacking_equals_plain_em_and_a_solver_in_other_coordinates():
    log_likelihood = REFLECT.log_likelihood
    weights = baselines.stack(log_likelihood, tolerance=1e-9)
    slow = em_stacking(np.exp(log_likelihood).tolist(), 3000)
    np.testing.assert_allclose(weights, slow, atol=1e-4)
    solved = minimize(
        lambda free: -objective(np.exp(free) / np.exp(free).sum(), log_likelihood),
        np.zeros(4),
        tol=1e-12,
    )
    assert objective(weights, log_likelihood) == pytest.approx(-solved.fun, abs=1e-8)


def test_stacking_of_a_dominated_skill_goes_to_the_vertex():
    log_likelihood = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]))
    np.testing.assert_allclose(baselines.stack(log_likelihood), [1, 0], atol=1e-5)


def test_stacking_closed_form_for_two_skills():
    # a tasks with likelihoods (1, 0) and b with (0, 1): w = a / (a + b), as for coin flips.
    with np.errstate(divide="ignore"):
        log_likelihood = np.log(np.array([[1.0, 0.0]] * 7 + [[0.0, 1.0]] * 3))
    np.testing.assert_allclose(baselines.stack(log_likelihood), [0.7, 0.3], atol=1e-6)
    # A task that no skill explains says nothing about the weights.
    impossible = np.vstack([log_likelihood, np.full((1, 2), -np.inf)])
    np.testing.assert_allclose(baselines.stack(impossible), [0.7, 0.3], atol=1e-6)


def test_stacking_on_reflect_beats_every_other_fixed_strategy_there():
    best = objective(baselines.stack(REFLECT.log_likelihood), REFLECT.log_likelihood)
    rng = np.random.default_rng(0)
    others = [*rng.dirichlet(np.ones(4), 300), *np.eye(4), np.full(4, 0.25)]
    assert best >= max(objective(w + 1e-300, REFLECT.log_likelihood) for w in others) - 1e-6


def test_no_pooling_is_stacking_in_each_domain_and_falls_back():
    renamed = np.where(HELD_OUT.domain == "domain 3", "new", HELD_OUT.domain)
    weights = baselines.no_pooling(REFLECT, dataclasses.replace(HELD_OUT, domain=renamed))
    for name in ("domain 0", "domain 1"):
        own = baselines.stack(REFLECT.log_likelihood[REFLECT.domain == name])
        np.testing.assert_allclose(weights[renamed == name], np.tile(own, (30, 1)))
    overall = baselines.stack(REFLECT.log_likelihood)
    np.testing.assert_allclose(weights[renamed == "new"], np.tile(overall, (30, 1)))


def small(probability_of_gold, domain):
    """Two candidates, gold first."""
    p = np.asarray(probability_of_gold)
    n, k = p.shape
    return SkillScores(
        log_p=np.log(np.stack([p, 1 - p], axis=2)),
        gold=np.zeros(n, int),
        domain=np.array(domain),
        features=np.zeros((n, 0)),
        tokens=np.ones((n, k)),
        skills=SKILLS[:k],
    )


def test_domain_counts_by_hand():
    reflect = small(
        # a: skill 1 is right twice, skill 0 once (but with the better log score). b: one right
        # each, so the log score decides. Over all: skill 0 two, skill 1 three, skill 2 none.
        [[0.9, 0.6, 0.4], [0.45, 0.6, 0.4], [0.8, 0.55, 0.4]],
        ["a", "a", "b"],
    )
    heldout = small(np.full((3, 3), 0.5), ["a", "b", "new"])
    choice = baselines.domain_counts(reflect, heldout).argmax(axis=1)
    assert choice.tolist() == [1, 0, 1]
    assert baselines.best_single(reflect, heldout).argmax(axis=1).tolist() == [0, 0, 0]


def test_router_gradient_against_finite_differences():
    rng = np.random.default_rng(3)
    design = np.hstack([np.ones((50, 1)), rng.normal(size=(50, 3))])
    likelihood = np.exp(rng.normal(size=(50, 4)) * 2)
    at = rng.normal(size=(4, 4))
    _, gradient = baselines.router_objective(at, design, likelihood, ridge=0.1)
    step = 1e-6
    for place in np.ndindex(4, 4):
        shift = np.zeros((4, 4))
        shift[place] = step
        up = baselines.router_objective(at + shift, design, likelihood, 0.1)[0]
        down = baselines.router_objective(at - shift, design, likelihood, 0.1)[0]
        assert (up - down) / (2 * step) == pytest.approx(gradient[place], abs=1e-6)


def test_router_without_features_and_one_domain_is_complete_pooling():
    def plain(scores):
        return dataclasses.replace(
            scores,
            features=np.zeros((scores.num_tasks, 0)),
            domain=np.full(scores.num_tasks, "only"),
        )

    reflect, heldout = plain(REFLECT), plain(HELD_OUT)
    routed = baselines.router(reflect, heldout)
    pooled = baselines.complete_pooling(reflect, heldout)
    np.testing.assert_allclose(routed, pooled, atol=2e-3)
    assert objective(routed[0], reflect.log_likelihood) == pytest.approx(
        objective(pooled[0], reflect.log_likelihood), abs=1e-6
    )


def test_router_uses_a_feature_and_ignores_its_scale():
    rng = np.random.default_rng(4)
    side = rng.normal(size=(200, 1))
    p = np.where(side > 0, [0.9, 0.2], [0.2, 0.9])
    data = dataclasses.replace(small(p, ["one"] * 200), features=side)
    weights = baselines.router(data, data)
    assert (weights.argmax(axis=1) == (side[:, 0] < 0)).mean() > 0.97
    scaled = dataclasses.replace(data, features=1000 * side + 7)
    clear = np.abs(side[:, 0]) > 0.1
    np.testing.assert_allclose(baselines.router(scaled, scaled)[clear], weights[clear], atol=1e-2)


def test_router_survives_constant_features_and_unseen_domains():
    constant = dataclasses.replace(REFLECT, features=np.ones((160, 1)))
    heldout = dataclasses.replace(
        HELD_OUT, features=np.full((120, 1), 5.0), domain=np.full(120, "new")
    )
    weights = baselines.router(constant, heldout)
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights, weights[:1].repeat(120, axis=0))


def test_oracle_is_the_best_skill_of_each_task():
    weights = baselines.oracle(REFLECT, HELD_OUT)
    log_likelihood = HELD_OUT.log_likelihood
    np.testing.assert_allclose((weights * log_likelihood).sum(1), log_likelihood.max(1))


def test_all_strategies_names_every_skill_and_baseline():
    names = baselines.all_strategies(REFLECT, HELD_OUT)
    assert list(names) == [*(f"skill: {s}" for s in SKILLS), *baselines.BASELINES]


def test_bad_input():
    empty = REFLECT.take(np.zeros(0, int))
    for name in ("best single skill", "complete pooling", "no pooling", "router"):
        with pytest.raises(ValueError, match="at least one reflect task"):
            baselines.BASELINES[name](empty, HELD_OUT)
    with pytest.raises(ValueError, match="unknown skill 'guess'"):
        baselines.single_skill("guess")(REFLECT, HELD_OUT)
    other = dataclasses.replace(HELD_OUT, skills=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="skills differ"):
        baselines.all_strategies(REFLECT, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": np.zeros(3, int)}, r"gold must have shape \(160,\), got \(3,\)"),
        ({"gold": np.full(160, 9)}, r"gold must lie in \[0, 4\), got 9..9"),
        ({"features": np.zeros(160)}, "without features pass|Without features pass"),
        ({"features": np.full((160, 1), np.nan)}, "features must be finite"),
        ({"skills": ("a",)}, "must name 4 skills"),
        ({"log_p": np.zeros((160, 4, 4))}, "sums to 4 over the candidates"),
        ({"log_p": np.full((160, 4, 4), np.nan)}, "task 0, skill 'direct', candidate 0 is nan"),
    ],
)
def test_scores_are_validated(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(REFLECT, **change)


def test_a_strategy_is_validated_by_row():
    weights = np.full((120, 4), 0.25)
    weights[5] = [0.5, 0.5, 0.5, 0.0]
    with pytest.raises(ValueError, match="strategy of task 5 .* sums to 1.5"):
        HELD_OUT.mix(weights)
    with pytest.raises(ValueError, match="must have shape"):
        HELD_OUT.mix(weights[:3])
    weights[5] = [np.nan, 0.5, 0.5, 0.0]
    with pytest.raises(ValueError, match="strategy of task 5"):
        HELD_OUT.mix(weights)


def test_ridge_shrinks_the_router_towards_equal_weights():
    free, shrunk = baselines.router(REFLECT, HELD_OUT), baselines.ridge_router(REFLECT, HELD_OUT)
    assert np.abs(shrunk - 0.25).mean() < np.abs(free - 0.25).mean()
    design = np.ones((160, 1))
    heavy = baselines.fit_router(design, REFLECT.log_likelihood, ridge=1e6)
    np.testing.assert_allclose(heavy, 0, atol=1e-3)
