"""The whole of Figure 2 against plain loops, for every reading of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simulate_full
from numpyro.infer.util import log_density
from reference import figure2_full_by_hand
from simulate import simulate_figure2
from simulate_full import GRAPHS

from bayesmeta.models.figure2 import HIERARCHICAL, figure2
from bayesmeta.models.figure2_full import figure2_full
from bayesmeta.models.full_data import Answers, Attempts, FullData
from bayesmeta.models.graph import WORKING, Graph
from bayesmeta.models.priors import COMPLETE_POOLING, HORSESHOE, prior_for

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.fixture
def simulated(monkeypatch):
    """Data for a graph with a point at which to compare: no draw is compiled, which is slow."""

    def simulate(graph, seed, **sizes):
        rng = np.random.default_rng(seed)

        def draw(key, data, prior, graph):
            seen = data.outcome
            most = seen.attempts + 1 if isinstance(seen, Attempts) else 3
            outcomes = np.floor(rng.uniform(size=data.num_tasks) * np.asarray(most))
            point = figure2_full_by_hand.draw(data, prior, graph, rng)
            return {**point, "O": jnp.asarray(outcomes, int)}

        monkeypatch.setattr(simulate_full, "draw_everything", draw)
        data, prior, sites = simulate_full.simulate_full(graph, rng, **sizes)
        return data, prior, {name: value for name, value in sites.items() if name != "O"}

    return simulate


@pytest.mark.parametrize("name", GRAPHS)
def test_joint_density_equals_the_slow_twin(name, simulated):
    graph = GRAPHS[name]
    recalled = 1 if graph.strategy_per == "task" and graph.outcome == "answer" else 0
    data, prior, point = simulated(graph, 1, num_tasks=5, num_evidence_features=recalled)
    value, trace = log_density(figure2_full, (data, prior, graph), {}, point)
    by_hand = figure2_full_by_hand.log_joint(data, prior, graph, point)
    assert abs(float(value) - by_hand) < 1e-8
    latent = {
        name for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]
    }
    assert latent == set(point) - unused(graph, prior)


def unused(graph, prior):
    """Sites with a prior that the graph has no place for."""
    return {"U"} & set(prior.sites) if not graph.g_to_f else set()


FEW = ["literal", "steps_in_context", "verifier_abilities"]


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in GRAPHS]
)
def test_gradient_is_finite_and_agrees_with_the_slow_twin(name, simulated):
    graph, rng = GRAPHS[name], np.random.default_rng(0)
    data, prior, point = simulated(graph, 2, num_tasks=4)

    @jax.jit
    def gradient(point):
        return jax.grad(lambda p: log_density(figure2_full, (data, prior, graph), {}, p)[0])(point)

    slopes = gradient({name: jnp.asarray(value) for name, value in point.items()})
    assert all(np.isfinite(np.asarray(slope)).all() for slope in slopes.values())
    # Along one direction of u, which no constraint bounds.
    direction = rng.normal(size=point["u"].shape)
    ends = [
        figure2_full_by_hand.log_joint(data, prior, graph, {**point, "u": point["u"] + step})
        for step in (1e-5 * direction, -1e-5 * direction)
    ]
    slope = (ends[0] - ends[1]) / 2e-5
    assert abs(slope - float(slopes["u"] @ direction)) < 1e-6 * max(1.0, abs(slope))


def test_the_twin_can_tell_graphs_apart(simulated):
    graph = GRAPHS["steps_in_context"]
    data, prior, point = simulated(graph, 3, num_tasks=4)
    value = figure2_full_by_hand.log_joint(data, prior, graph, point)
    for change in ({"composition": "product_of_experts"}, {"f_to_o": False}, {"g_to_a": False}):
        other = graph.replace("other", **change)
        assert abs(value - figure2_full_by_hand.log_joint(data, prior, other, point)) > 1e-3
        ours, _ = log_density(figure2_full, (data, prior, other), {}, point)
        assert abs(float(ours) - value) > 1e-3


@pytest.mark.parametrize("prior", [HORSESHOE, COMPLETE_POOLING])
def test_priors_with_other_sites(prior, simulated):
    data, prior, point = simulated(WORKING, 4, num_tasks=4, prior=prior)
    value, _ = log_density(figure2_full, (data, prior, WORKING), {}, point)
    assert abs(float(value) - figure2_full_by_hand.log_joint(data, prior, WORKING, point)) < 1e-8


def full_from_working(data) -> FullData:
    return FullData(
        outcome=Answers(gold=data.gold, log_p=data.log_p),
        domain=data.domain,
        x=data.x,
        scale=data.scale,
        num_domains=data.num_domains,
        num_skills=data.log_p.shape[1],
        log_available=data.log_available,
    )


@pytest.mark.parametrize("untried", [False, True])
def test_the_working_graph_is_the_working_model_exactly(untried):
    rng = np.random.default_rng(4)
    data, _ = simulate_figure2(rng, num_tasks=9, num_skills=3, num_domains=3)
    if untried:
        mask = np.zeros((3, 9))
        mask[1, 2] = -np.inf
        data = dataclasses.replace(data, log_available=jnp.asarray(mask))
    full_data = full_from_working(data)
    point = figure2_full_by_hand.draw(full_data, HIERARCHICAL, WORKING, rng)
    _, working = log_density(figure2, (data, HIERARCHICAL), {}, point)
    _, full = log_density(figure2_full, (full_data, HIERARCHICAL), {}, point)
    for name, site in working.items():
        if site["type"] == "plate":
            continue
        np.testing.assert_array_equal(site["value"], full[name]["value"], err_msg=name)
        if site["type"] == "sample":
            ours, theirs = (s["fn"].log_prob(s["value"]) for s in (site, full[name]))
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert {n for n, s in full.items() if s["type"] == "sample"} == {*HIERARCHICAL.sites, "O"}


def test_task_weights_multiply_each_task_outside_the_sum_over_skills(simulated):
    data, prior, point = simulated(WORKING, 5, num_tasks=6)
    weights = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
    weighted = dataclasses.replace(data, scale=jnp.asarray(weights))

    def per_task(data):
        site = log_density(figure2_full, (data, prior, WORKING), {}, point)[1]["O"]
        return np.asarray(site["fn"].log_prob(site["value"]))

    np.testing.assert_allclose(per_task(weighted), weights * per_task(data), atol=1e-12)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (GRAPHS["steps"], "needs Steps, but the data hold Answers"),
        (GRAPHS["success"], "needs Attempts, but the data hold Answers"),
        (Graph("blind", g_to_a=False), "no arrow G -> A"),
    ],
)
def test_data_that_do_not_fit_the_graph_are_refused(graph, message, simulated):
    data, prior, _ = simulated(WORKING, 6, num_tasks=4)
    with pytest.raises(ValueError, match=message):
        log_density(figure2_full, (data, prior, graph), {}, {})


def test_contexts_that_were_not_scored_are_named(simulated):
    data, _, point = simulated(WORKING, 7, num_tasks=4)
    poor = dataclasses.replace(
        data, outcome=dataclasses.replace(data.outcome, log_p_without_e=None)
    )
    graph = GRAPHS["without_e"]
    prior = prior_for(graph, poor)
    with pytest.raises(ValueError, match="not scored that way"):
        log_density(figure2_full, (poor, prior, graph), {}, point)
