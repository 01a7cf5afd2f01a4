"""What cannot be learned is said before it is fitted; and it is true that it cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from simulate_full import GRAPHS, simulate_full, with_outcomes

from bayesmeta.models.figure2_full import figure2_full
from bayesmeta.models.graph import LITERAL, WORKING, Graph
from bayesmeta.models.identify import (
    UnidentifiedError,
    require_identified,
    similar_skills,
    unidentified,
)
from bayesmeta.models.prior import SitePrior
from bayesmeta.models.priors import EXTRA


def _simulated(graph, **settings):
    data, prior, sites = simulate_full(graph, np.random.default_rng(0), **settings)
    return data, prior, sites


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_graphs_with_data_made_for_them_are_identified(graph):
    data, prior, _ = _simulated(graph)
    require_identified(graph, data, prior)


def _spread():
    graph = Graph("spread", strategy="dirichlet")
    return graph, *_simulated(graph)[:2]


def _domain_spread():
    data, prior, _ = _simulated(LITERAL)
    return LITERAL, data, prior.replace("free", sigma_F=EXTRA["sigma_F"])


def _reliability():
    graph = GRAPHS["reliability"]
    data, prior, _ = _simulated(graph)
    same = dataclasses.replace(data.outcome, log_p_without_e=data.outcome.log_p)
    return graph, dataclasses.replace(data, outcome=same), prior


def _one_attempt():
    graph = GRAPHS["success"]
    data, prior, _ = _simulated(graph)
    once = dataclasses.replace(
        data.outcome,
        attempts=jnp.ones(data.num_tasks, jnp.int32),
        successes=jnp.minimum(data.outcome.successes, 1),
    )
    return graph, dataclasses.replace(data, outcome=once), prior


def _equal_skills():
    graph = GRAPHS["success"]
    data, prior, _ = _simulated(graph)
    equal = dataclasses.replace(data.outcome, log_odds=jnp.zeros_like(data.outcome.log_odds))
    return graph, dataclasses.replace(data, outcome=equal), prior


def _bad_verifier():
    graph = GRAPHS["verifier"]
    data, prior, _ = _simulated(graph)
    even = SitePrior("Uniform", {"low": 0.0, "high": 1.0})
    return graph, data, prior.replace("even", eps_minus=even, eps_plus=even)


CASES = {
    "kappa_F": (_spread, "strategy='categorical'"),
    "sigma_F, tau_E": (_domain_spread, "Fix sigma_F"),
    "vartheta": (_reliability, "memory and evidence disagree"),
    "phi": (_one_attempt, "Repeat attempts"),
    "u, U, v, tau_E": (_equal_skills, "i_to_o=True"),
    "eps_minus, eps_plus": (_bad_verifier, "Beta\\(2, 10\\)"),
}


@pytest.mark.parametrize("sites", CASES)
def test_it_says_which_parameter_why_and_how_to_mend_it(sites):
    make, fix = CASES[sites]
    with pytest.raises(UnidentifiedError, match=f"{sites}: [a-z].*{fix}"):
        require_identified(*make())


@pytest.mark.parametrize("sites", ["phi", "u, U, v, tau_E", "vartheta"])
def test_the_likelihood_really_is_flat_there(sites):
    """Moving the named sites leaves the likelihood exactly where it was."""
    graph, data, prior = CASES[sites][0]()
    program = handlers.seed(figure2_full, jax.random.key(0))
    trace = handlers.trace(program).get_trace(data, prior, graph)
    values = {k: v["value"] for k, v in trace.items() if v["type"] == "sample"}

    def likelihood(values):
        moved = handlers.substitute(handlers.seed(figure2_full, 0), data=values)
        site = handlers.trace(moved).get_trace(data, prior, graph)["O"]
        return np.asarray(site["fn"].log_prob(site["value"]))

    before = likelihood(values)
    for site in sites.split(", "):
        after = likelihood(values | {site: values[site] * 0.5 + 0.1})
        np.testing.assert_allclose(after, before, rtol=2e-5, atol=2e-5)
    # A parameter that is identified does move it.
    moved = "difficulty" if "difficulty" in values else "u"
    if moved not in sites.split(", "):
        assert np.abs(likelihood(values | {moved: values[moved] + 1.0}) - before).max() > 1e-2


def test_a_fixed_parameter_is_nobodys_trouble():
    graph, data, prior = _spread()
    known = prior.replace("known", kappa_F=SitePrior("Fixed", {"value": 5.0}))
    assert not unidentified(graph, data, known)
    # So is one that repeated outcomes inform.
    attempts = GRAPHS["attempts"]
    assert not unidentified(attempts, *_simulated(attempts)[:2])


def test_skills_that_hardly_differ_are_listed():
    data, _, _ = _simulated(WORKING)
    assert not similar_skills(data)
    log_p = jnp.asarray(data.outcome.log_p)
    log_p = log_p.at[:, 2].set(log_p[:, 0] + 0.01)
    near = dataclasses.replace(data, outcome=dataclasses.replace(data.outcome, log_p=log_p))
    ((first, second, difference),) = similar_skills(near, ["direct", "steps", "check"])
    assert (first, second) == ("direct", "check")
    assert difference == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("graph", "made_for", "message"),
    [
        (Graph("s", composition="step_composition"), "working", "needs Steps.*hold Answers"),
        (Graph("v", outcome="verifier"), "working", "needs Attempts.*hold Answers"),
        (Graph("a"), "success", "needs Answers.*hold Attempts"),
        (Graph("b", g_to_a=False), "working", "no arrow G -> A.*log_pi_without_question"),
        (Graph("r", e_to_o="reliability"), "steps", "steps are scored with what was recalled"),
    ],
)
def test_data_of_another_kind_are_refused(graph, made_for, message):
    data, prior, _ = _simulated(GRAPHS[made_for])
    with pytest.raises(ValueError, match=message):
        handlers.trace(handlers.seed(figure2_full, 0)).get_trace(data, prior, graph)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "softmax"}, "strategy is 'softmax'; choose one of"),
        ({"strategy_per": "domain"}, "one skill for all its tasks"),
        ({"strategy_per": "domain", "strategy": "dirichlet"}, "features cannot reach it"),
        ({"i_to_o": True}, "gives skills abilities"),
        ({"outcome": "verifier", "e_to_o": "reliability"}, "reliability of E is about answers"),
        ({"skill_per": "attempt"}, "needs repeated attempts"),
        ({"outcome": "success", "composition": "step_composition"}, "summed out already"),
    ],
)
def test_graphs_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Graph("wrong", **changes)


def test_missing_contexts_are_named():
    graph = GRAPHS["without_skill"]
    data, prior, _ = _simulated(graph)
    bare = dataclasses.replace(
        data, outcome=dataclasses.replace(data.outcome, log_p_without_skill=None)
    )
    with pytest.raises(ValueError, match="f_to_o=False and e_to_o='on', but the evidence was not"):
        handlers.trace(handlers.seed(figure2_full, 0)).get_trace(bare, prior, graph)
    assert with_outcomes(data, data.outcome.gold) is not data


def test_graphs_survive_json():
    for graph in GRAPHS.values():
        assert Graph.from_json(graph.to_json()) == graph
    with pytest.raises(ValueError, match="not a graph"):
        Graph.from_json('{"arrows": 3}')
