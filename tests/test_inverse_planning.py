"""Inverse planning against enumeration, on an exact language model, and with bad input."""

import dataclasses

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FALSE_ALARM
from reference import inverse_planning_by_hand as by_hand
from scipy import stats
from simulate_traces import as_dataset, drawn, states
from two_languages import disagreements

from bayesmeta.evidence_schema import EvidenceError
from bayesmeta.inverse_planning import TraceWarning, explain_traces, infer_skills
from bayesmeta.models import inverse_planning_pyro
from bayesmeta.models.contrasts import contrast
from bayesmeta.models.inverse_planning import (
    STATIC,
    SWITCHING,
    PlannedSteps,
    explain,
    inverse_planning,
)
from bayesmeta.proof_enumeration_reasoning import trace_evidence, trace_joint
from bayesmeta.record import recorded_steps_path
from bayesmeta.step_io import load_steps
from bayesmeta.trace_data import read_traces

WEIGHT = np.array([0.5, 0.3, 0.2])
QUICK = {"num_chains": 2, "num_warmup": 300, "num_samples": 500}
CASES = [(goals, switch) for goals in (1, 3) for switch in (None, 0.3)]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def case(goals=1, switch=None, outcomes=True, seed=0):
    rng = np.random.default_rng(seed)
    data = states(rng, goals=goals)
    if outcomes:
        data = dataclasses.replace(
            data, log_outcome=jnp.asarray(rng.normal(size=data.log_outcome.shape))
        )
    return drawn(data, jax.random.key(seed), WEIGHT, 1.3, switch)


class TestDensity:
    @pytest.mark.parametrize(("goals", "switch"), CASES)
    def test_evidence_is_the_sum_over_goals_and_paths(self, x64, goals, switch):
        data = case(goals, switch)
        ours = PlannedSteps(jnp.log(WEIGHT), 0.7, data, switch).log_prob(data.chosen)
        wanted = trace_evidence(data, WEIGHT, 0.7, switch)
        np.testing.assert_allclose(np.exp(np.asarray(ours)), wanted, rtol=1e-8)
        if switch is not None:
            one_skill = trace_evidence(data, WEIGHT, 0.7)
            assert not np.allclose(one_skill, wanted, rtol=1e-2)

    @pytest.mark.parametrize("beta_a", [1.0, 7.4, 20.0])
    def test_gradient_in_a_sampler_is_that_outside(self, beta_a):
        """In a compiled loop products are not rounded before a sum: those of absent candidates
        then differ by hundreds, which no exponential may see."""
        data = read_traces(load_steps(recorded_steps_path())).data
        C = contrast(4)

        def density(z, data):
            log_weight = jax.nn.log_softmax(jnp.asarray(C, z.dtype) @ z[1:])
            return PlannedSteps(log_weight, jnp.exp(z[0]), data).log_prob(data.chosen).sum()

        slope = jax.grad(density)

        @jax.jit
        def in_a_loop(z):
            def step(_, state):
                return state[0] + 1e-9 * slope(state[0], data), slope(state[0], data)

            return jax.vmap(lambda z: jax.lax.fori_loop(0, 3, step, (z, 0 * z))[1])(z)

        point = np.array([np.log(beta_a), 0.17, 0.32, 1.74], np.float32)
        found = in_a_loop(jnp.asarray(np.tile(point, (4, 1))))
        with jax.enable_x64(True):
            exact = jax.tree.map(
                lambda v: jnp.asarray(np.asarray(v), float if v.dtype == jnp.float32 else v.dtype),
                data,
            )
            wanted = np.asarray(slope(jnp.asarray(point, float), exact))
        np.testing.assert_allclose(found, np.tile(wanted, (4, 1)), rtol=1e-3, atol=0.05)

    @pytest.mark.parametrize(("goals", "switch"), CASES)
    def test_explanations_are_marginals(self, x64, goals, switch):
        data = case(goals, switch)
        found = explain(data, jnp.log(WEIGHT), jnp.asarray(0.7), switch)
        goal, skill = by_hand.goals_and_skills(data, WEIGHT, 0.7, switch)
        np.testing.assert_allclose(np.exp(found.log_goal), goal, atol=1e-10)
        np.testing.assert_allclose(np.exp(found.log_skill), skill, atol=1e-10)
        evidence = trace_evidence(data, WEIGHT, 0.7, switch)
        np.testing.assert_allclose(np.exp(found.log_evidence), evidence, rtol=1e-8)
        for n in range(len(data.chosen)):
            table = trace_joint(data, n, WEIGHT, 0.7, switch)
            best_goal = int(goal[n].argmax())
            best = max((k for k in table if k[0] == best_goal), key=lambda k: table[k])
            assert tuple(map(int, found.path[n])) == best[1]

    def test_probabilities_of_all_that_may_be_written_sum_to_one(self, x64):
        data = states(np.random.default_rng(1), traces=1, steps=3, ragged=False)
        for switch in (None, 0.4):
            planned = PlannedSteps(jnp.log(WEIGHT), 1.7, data, switch)
            grid = np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 1, 3)
            total = sum(float(jnp.exp(planned.log_prob(jnp.asarray(one))[0])) for one in grid)
            assert total == pytest.approx(1, abs=1e-10)

    def test_what_all_skills_share_in_a_state_cancels(self, x64):
        data = case()
        shift = np.random.default_rng(2).normal(size=(*data.log_q.shape[:3], 1, 1))
        moved = dataclasses.replace(data, log_q=data.log_q + shift)
        args = (jnp.log(WEIGHT), 0.7)
        before = PlannedSteps(*args, data).log_prob(data.chosen)
        np.testing.assert_allclose(PlannedSteps(*args, moved).log_prob(data.chosen), before)

    def test_without_an_arrow_to_outcomes_they_change_nothing(self, x64):
        """E6: o is ignored unless F -> O is on."""
        data, on = case(outcomes=False), case(outcomes=True)
        args = (jnp.log(WEIGHT), jnp.asarray(0.7))
        assert not np.allclose(explain(data, *args).log_skill, explain(on, *args).log_skill)
        equal = dataclasses.replace(on, log_outcome=jnp.full_like(on.log_outcome, -1.3))
        np.testing.assert_allclose(
            explain(equal, *args).log_skill, explain(data, *args).log_skill, atol=1e-12
        )

    @pytest.mark.parametrize("prior", [STATIC, SWITCHING])
    def test_both_languages_have_one_density(self, x64, prior):
        args = (case(2), prior)
        rng = np.random.default_rng(0)
        twin = inverse_planning_pyro.inverse_planning
        assert disagreements(inverse_planning, twin, args, rng) == {}

        def wrong(data, prior):
            other = dataclasses.replace(data, log_outcome=0 * data.log_outcome)
            twin(other, prior)

        assert "steps" in disagreements(inverse_planning, wrong, args, rng)

    @pytest.mark.parametrize("switch", [None, 0.4])
    def test_draws_have_the_probabilities_of_the_density(self, switch):
        data = states(np.random.default_rng(3), traces=1, goals=2, steps=2, ragged=False)
        planned = PlannedSteps(jnp.log(WEIGHT), 1.0, data, switch)
        count = 20_000
        value = np.asarray(planned.sample(jax.random.key(0), (count,)))[:, 0]
        seen = np.bincount(value[:, 0] * 3 + value[:, 1], minlength=9)
        grid = np.stack(np.divmod(np.arange(9), 3), 1)
        p = np.array([float(jnp.exp(planned.log_prob(jnp.asarray(g[None]))[0])) for g in grid])
        assert stats.chisquare(seen, count * p / p.sum()).pvalue > FALSE_ALARM
        other = PlannedSteps(jnp.log(WEIGHT[::-1]), 1.0, data, switch)
        q = np.array([float(jnp.exp(other.log_prob(jnp.asarray(g[None]))[0])) for g in grid])
        assert stats.chisquare(seen, count * q / q.sum()).pvalue < FALSE_ALARM


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(4)
    data = states(rng, traces=150, goals=3, steps=6, ragged=False)
    data = drawn(data, jax.random.key(4), WEIGHT, 1.4, 0.15)
    return data, infer_skills(as_dataset(data, goals=True), SWITCHING, **QUICK)


class TestInferSkills:
    def test_parameters_are_recovered(self, simulated):
        posterior = simulated[1].tree["posterior"]
        assert simulated[1].tree.attrs["status"] == "CONVERGED"
        truth = {"beta_a": 1.4, "switch": 0.15, "F": WEIGHT}
        for name, value in truth.items():
            draws = np.asarray(posterior[name]).reshape(1000, -1)
            assert (np.abs(draws.mean(0) - value) < 4 * draws.std(0)).all(), name
        assert float(np.asarray(posterior["beta_a"]).std()) < 0.25

    def test_skills_and_goals_add_up_and_beat_chance(self, simulated):
        found = simulated[1]
        np.testing.assert_allclose(found.traces[["a", "b", "c"]].sum(axis=1), 1, atol=1e-4)
        np.testing.assert_allclose(found.steps.sum("skill"), 1, atol=1e-4)
        np.testing.assert_allclose(found.goals.sum(axis=1), 1, atol=1e-4)
        assert list(found.goals.columns) == ["this", "that", "other"]
        assert found.paths.shape == (150, 6)

    def test_arviz_reads_the_tree(self, simulated):
        tree = simulated[1].tree
        assert np.isfinite(az.loo(tree).elpd)
        assert {"beta_a", "switch", "mu[a]"} <= set(az.summary(tree).index)

    def test_a_fit_explains_other_traces(self, simulated):
        _, found = simulated
        rng = np.random.default_rng(9)
        other = states(rng, traces=300, steps=6, ragged=False)
        key = jax.random.key(1)
        right = 0.0
        for k in range(3):  # traces of one skill each
            weight = np.full(3, 1e-12) + np.eye(3)[k]
            told = explain_traces(found.tree, as_dataset(drawn(other, key, weight, 1.4)))
            right += (told.traces["most_probable"] == "abc"[k]).mean() / 3
        assert right > 1 / 3 + 5 * np.sqrt(0.25 / 900)

    def test_two_languages_agree(self):
        data = drawn(states(np.random.default_rng(6), traces=25), jax.random.key(6), WEIGHT)
        dataset = as_dataset(data)
        one = infer_skills(dataset, **QUICK)
        two = infer_skills(
            dataset, engine="pyro_nuts", num_chains=2, num_warmup=150, num_samples=250
        )
        a, b = (np.asarray(f.tree["posterior"]["mu"]).reshape(-1, 3) for f in (one, two))
        ess = float(az.ess(two.tree, var_names=["mu"])["mu"].min())
        assert (np.abs(a.mean(0) - b.mean(0)) < 4.5 * np.sqrt(2 / ess) * b.std(0)).all()

    def test_hidden_steps_are_summed_over(self):
        data = drawn(states(np.random.default_rng(7), ragged=False), jax.random.key(7), WEIGHT)
        dataset = as_dataset(data)
        seen = dataset["used"].copy()
        seen[:, :, 1] = False
        with_hidden = read_traces(dataset.assign(seen=seen)).data
        wrong_choice = dataset["chosen"].copy()
        wrong_choice[:, :, 1] = 0
        other = read_traces(dataset.assign(seen=seen, chosen=wrong_choice)).data
        args = (jnp.log(jnp.asarray(WEIGHT)), 1.0)
        np.testing.assert_allclose(
            PlannedSteps(*args, with_hidden).log_prob(with_hidden.chosen),
            PlannedSteps(*args, other).log_prob(other.chosen),
        )


class TestBadInput:
    @pytest.fixture
    def dataset(self):
        data = states(np.random.default_rng(8), ragged=False)
        return as_dataset(drawn(data, jax.random.key(8), WEIGHT))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.drop_vars("chosen"), "no 'chosen'"),
            (lambda d: d.isel(skill=[0]), "1 skill leaves nothing to infer"),
            (lambda d: d.assign(used=d["used"] & False), "no trace has a step"),
            (lambda d: d.assign(log_pi=d["log_pi"] - 1), "task 't0', trace 0, step 0: .* sum to 1"),
            (lambda d: d.assign(log_pi=d["log_pi"] * np.nan), "numbers or -inf"),
            (lambda d: d.assign(chosen=d["chosen"] + 7), "an index below 3"),
            (lambda d: d.assign(used=d["used"].isel(step=0)), r"dimensions .* wanted"),
        ],
    )
    def test_one_clear_error(self, dataset, change, message):
        with pytest.raises(EvidenceError, match=message):
            read_traces(change(dataset))

    def test_a_step_that_no_skill_can_take(self, dataset):
        log_pi = dataset["log_pi"].copy()
        log_pi[2, 0, 1] = np.array([[-np.inf] * 3, [np.log(0.5)] * 3, [np.log(0.5)] * 3])
        chosen = dataset["chosen"].copy()
        chosen[2, 0, 1] = 0
        with pytest.raises(EvidenceError, match="task 't2', trace 0, step 1"):
            read_traces(dataset.assign(log_pi=log_pi, chosen=chosen))

    def test_traces_without_steps_are_flagged_and_get_the_prior(self, dataset):
        used = dataset["used"].copy()
        used[3] = False
        weight = (("task", "trace"), np.zeros((6, 1)))
        with pytest.warns(TraceWarning, match=r"1 traces have no step .*t3/0"):
            found = infer_skills(dataset.assign(used=used, log_weight=weight), **QUICK)
        strategy = np.asarray(found.tree["posterior"]["F"]).mean((0, 1))
        np.testing.assert_allclose(found.traces.loc["t3/0", ["a", "b", "c"]], strategy, atol=1e-4)
        assert found.traces.loc["t3/0", "log_evidence"] == pytest.approx(0, abs=1e-4)

    def test_steps_without_alternatives_are_flagged(self, dataset):
        log_pi = dataset["log_pi"].copy()
        log_pi[0, 0, 0] = np.array([[0.0] * 3, [-np.inf] * 3, [-np.inf] * 3])
        chosen = dataset["chosen"].copy()
        chosen[0, 0, 0] = 0
        (flag,) = read_traces(dataset.assign(log_pi=log_pi, chosen=chosen)).flags
        assert flag.startswith("1 of 24 steps had one candidate only")

    def test_other_skills_than_the_fit(self, dataset):
        found = infer_skills(dataset, **QUICK)
        with pytest.raises(ValueError, match="same skills, in that order"):
            explain_traces(found.tree, dataset.isel(skill=[1, 0, 2]))

    def test_an_unknown_engine(self, dataset):
        with pytest.raises(ValueError, match="'nuts' or 'pyro_nuts'"):
            infer_skills(dataset, engine="magic")
