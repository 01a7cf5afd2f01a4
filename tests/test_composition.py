"""Three ways in which a strategy acts on reasoning, on traces that a language model enumerates."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from reference import figure2_full_by_hand
from scipy.special import roots_jacobi
from simulate_full import enumerated_steps

from bayesmeta.llm.tabular import TabularLLM
from bayesmeta.models.composition import log_answer
from bayesmeta.models.figure2_full import figure2_full
from bayesmeta.models.full_data import FullData
from bayesmeta.models.graph import Graph
from bayesmeta.models.priors import prior_for
from bayesmeta.skills import Skill
from bayesmeta.step_data import steps_data
from bayesmeta.step_evidence import observe_steps
from bayesmeta.step_tree import StepSettings
from bayesmeta.tasks import Task

pytestmark = pytest.mark.usefixtures("double_precision")

COMPOSITIONS = ("trace_mixture", "step_composition", "product_of_experts")
SKILLS = tuple(Skill(name, f"Do {name}.") for name in "xyz")


@pytest.fixture(scope="module")
def steps():
    """Every trace of up to two symbols, and the end of each, on two tasks under three skills."""
    llm = TabularLLM(seed=2, alphabet="αβ", max_length=2, answers=("A", "B", "C"))
    tasks = [Task(f"t{i}", f"Question {i}?", "B", ("A", "B", "C")) for i in range(2)]
    settings = StepSettings(step_end="", max_step_tokens=1, vocabulary=("α", "β"))
    dataset = observe_steps(llm, tasks, SKILLS, num_traces=None, settings=settings)
    with jax.enable_x64(True):
        return steps_data(dataset).outcome


def answers_under(steps, F, composition, f_to_o=True, g_to_a=True):
    """[C, N] for one point of the simplex."""
    with np.errstate(divide="ignore"):
        log_F = jnp.asarray(np.log(np.repeat(np.asarray(F)[:, None], 2, 1)))
    return np.asarray(log_answer(log_F, steps, composition, f_to_o=f_to_o, g_to_a=g_to_a))


@pytest.mark.parametrize("f_to_o", [True, False])
@pytest.mark.parametrize("g_to_a", [True, False])
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_enumeration_over_traces_and_skills_gives_the_same_distribution(
    steps, composition, f_to_o, g_to_a
):
    F = np.array([0.5, 0.2, 0.3])
    ours = answers_under(steps, F, composition, f_to_o, g_to_a)
    graph = Graph("by hand", composition=composition, f_to_o=f_to_o, g_to_a=g_to_a)
    for n, c in itertools.product(range(2), range(3)):
        by_hand = figure2_full_by_hand.p_answer(n, c, F, steps, graph)
        assert abs(ours[c, n] - np.log(by_hand)) < 1e-8
    np.testing.assert_allclose(np.exp(ours).sum(0), 1, atol=1e-12)


@pytest.mark.parametrize("f_to_o", [True, False])
def test_compositions_agree_at_vertices_and_only_there(steps, f_to_o):
    for k in range(3):
        vertex = [answers_under(steps, np.eye(3)[k], c, f_to_o) for c in COMPOSITIONS]
        np.testing.assert_allclose(vertex[1], vertex[0], atol=1e-8)
        np.testing.assert_allclose(vertex[2], vertex[0], atol=1e-8)
    inside = [answers_under(steps, np.array([0.4, 0.3, 0.3]), c, f_to_o) for c in COMPOSITIONS]
    for one, other in itertools.combinations(inside, 2):
        assert np.abs(one - other).max() > 1e-3


def beta_mean(function, a, b, num_nodes=6):
    """E[function(F)] over F ~ Beta(a, b), exact for polynomials: Gauss-Jacobi quadrature."""
    with np.errstate(invalid="ignore"):  # SciPy divides 0 by 0, unused, where a + b = 1
        nodes, weights = roots_jacobi(num_nodes, b - 1, a - 1)
    values = np.array([function(x) for x in (nodes + 1) / 2])
    return (weights @ values) / weights.sum()


@pytest.mark.parametrize("w", [0.5, 0.2])
def test_one_observation_says_nothing_about_the_concentration(steps, w):
    """F ~ Dirichlet(kappa w) enters a trace mixture through its mean alone, a new skill per step
    through its spread too, so that kappa is identified by steps and not by single outcomes."""

    def likelihood(composition, kappa):
        def at(first):
            F = np.array([first, 1 - first, 0.0])
            return np.exp(answers_under(steps, F, composition)[1])

        return np.log(beta_mean(at, kappa * w, kappa * (1 - w)))

    flat = [likelihood("trace_mixture", kappa) for kappa in (1.0, 10.0, 100.0)]
    np.testing.assert_allclose(flat, np.broadcast_to(flat[0], (3, 2)), atol=1e-8)
    curved = [likelihood("step_composition", kappa) for kappa in (1.0, 10.0, 100.0)]
    assert np.ptp(curved, axis=0).min() > 1e-4


def one_observed_trace(rng, num_tasks=3):
    """Reasoning that was seen: one trace per task, with weight one."""
    steps = enumerated_steps(rng, num_tasks, 3, 3, 3, 2)
    cut = {
        name: getattr(steps, name)[..., [4], :, :]
        for name in ("log_pi", "log_pi_without_question", "log_p")
    }
    cut |= {
        name: getattr(steps, name)[..., [4], :]
        for name in ("chosen", "used", "log_weight", "log_p_without_skill")
    }
    steps = dataclasses.replace(steps, **cut)
    return FullData(
        outcome=steps,
        domain=jnp.arange(num_tasks) % 2,
        x=jnp.zeros((num_tasks, 0)),
        scale=jnp.ones(num_tasks),
        num_domains=2,
        num_skills=3,
    )


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_where_reasoning_is_seen_the_outcome_says_nothing_more_about_the_strategy(composition):
    """O is independent of F given A: the log-ratio of two outcomes is constant in the strategy,
    unless the answer was scored with the instruction in context."""
    rng = np.random.default_rng(0)
    data = one_observed_trace(rng)
    logits = jnp.asarray(rng.normal(size=(5, 3, 3)))

    def ratio(f_to_o):
        tables = [
            log_answer(
                jax.nn.log_softmax(eta, 0), data.outcome, composition, f_to_o=f_to_o, g_to_a=True
            )
            for eta in logits
        ]
        return np.array([table[0] - table[2] for table in tables])

    assert np.ptp(ratio(False), axis=0).max() < 1e-12
    assert np.ptp(ratio(True), axis=0).min() > 1e-3


def test_in_the_whole_program_too_the_posterior_ignores_the_outcome():
    rng = np.random.default_rng(1)
    data = one_observed_trace(rng)
    graph = Graph("steps", strategy="dirichlet", composition="step_composition", f_to_o=False)
    prior = prior_for(graph, data)

    def density(graph, gold, point):
        outcome = dataclasses.replace(data.outcome, gold=jnp.full(3, gold))
        seen = dataclasses.replace(data, outcome=outcome)
        return float(log_density(figure2_full, (seen, prior, graph), {}, point)[0])

    points = [figure2_full_by_hand.draw(data, prior, graph, rng) for _ in range(3)]
    off = [density(graph, 0, point) - density(graph, 2, point) for point in points]
    assert np.ptp(off) < 1e-10
    on = graph.replace("on", f_to_o=True)
    assert np.ptp([density(on, 0, point) - density(on, 2, point) for point in points]) > 1e-3


def test_padding_changes_nothing(steps):
    """Candidates, choices, steps and traces that are not there."""

    def pad(array, axis, fill):
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, 2)
        return np.pad(np.asarray(array), widths, constant_values=fill)

    zero = -np.inf
    tables = {}
    for name in ("log_pi", "log_pi_without_question"):
        table = pad(pad(pad(getattr(steps, name), 2, zero), 1, zero), 0, zero)
        tables[name] = jnp.asarray(table)
    for name in ("chosen", "used"):
        tables[name] = jnp.asarray(pad(pad(getattr(steps, name), 1, 0), 0, 0))
    tables["log_weight"] = jnp.asarray(pad(steps.log_weight, 0, zero))
    for name in ("log_p", "log_p_without_skill"):
        tables[name] = jnp.asarray(pad(pad(getattr(steps, name), 1, zero), 0, zero))
    padded = dataclasses.replace(steps, **tables)
    F = np.array([0.5, 0.2, 0.3])
    cases = list(itertools.product(COMPOSITIONS, (True, False)))
    for composition, f_to_o in cases:
        before = answers_under(steps, F, composition, f_to_o)
        after = answers_under(padded, F, composition, f_to_o)
        np.testing.assert_allclose(after[:3], before, atol=1e-12)
        assert (after[3:] < -1e8).all()

    @jax.jit
    def gradients(eta):
        def total(eta, composition, f_to_o):
            log_F = jax.nn.log_softmax(eta, 0)
            return log_answer(log_F, padded, composition, f_to_o=f_to_o, g_to_a=True)[1].sum()

        return [jax.grad(total)(eta, *case) for case in cases]

    assert np.isfinite(gradients(jnp.zeros((3, 2)))).all()


def test_scores_that_are_missing_are_named(steps):
    poor = dataclasses.replace(
        steps, log_pi_without_question=None, log_p=None, log_p_without_skill=None
    )
    log_F = jnp.zeros((3, 2))
    for f_to_o, g_to_a, message in (
        (True, False, "log_pi_without_question, or use g_to_a=True"),
        (True, True, "Steps.log_p. Score the answers that way, or use f_to_o=False"),
        (False, True, "log_p_without_skill.*or use f_to_o=True"),
    ):
        with pytest.raises(ValueError, match=message):
            log_answer(log_F, poor, "trace_mixture", f_to_o=f_to_o, g_to_a=g_to_a)
