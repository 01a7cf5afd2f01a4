"""Steps observed from a language model, against enumeration of all that it can write."""

import itertools
import json
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FALSE_ALARM
from reference.character_llm import CharacterLLM, log_prob
from scipy.special import logsumexp

from bayesmeta.arrays import Encoding
from bayesmeta.cells import DictCache, ObserveError
from bayesmeta.evidence_schema import EvidenceError
from bayesmeta.llm.base import Score
from bayesmeta.llm.tabular import TabularLLM
from bayesmeta.models.composition import log_answer
from bayesmeta.skills import Skill, Stage
from bayesmeta.step_evidence import check_steps, observe_steps, steps_data
from bayesmeta.step_tree import StepSettings
from bayesmeta.tasks import Task

Z = statistics.NormalDist().inv_cdf(1 - FALSE_ALARM / 2)
SKILLS = tuple(Skill(name, f"Do {name}.") for name in ("x", "y", "z"))
TASKS = tuple(
    Task(
        f"t{i}",
        f"Question {i}?",
        "BAB"[i],
        ("A", "B") if i == 1 else ("A", "B", "C"),
        domain=f"d{i % 2}",
        features={"size": float(i)},
    )
    for i in range(3)
)
SYMBOLS = StepSettings(step_end="", max_step_tokens=1, vocabulary=("α", "β"))


def tabular():
    return TabularLLM(seed=1, alphabet="αβ", max_length=2, answers=("A", "B", "C"))


@pytest.fixture(scope="module")
def enumerated():
    return observe_steps(tabular(), TASKS, SKILLS, num_traces=None, settings=SYMBOLS)


def brute_force(task, F, candidate, *, per_step, with_skill=True, with_question=True):
    """p(candidate | F) by loops over the next-token distributions of the language model."""
    llm, total = tabular(), 0.0
    users = [f"{task.question}\n\n{skill.instruction}" for skill in SKILLS]
    hidden = [skill.instruction for skill in SKILLS]

    def next_step(k, text):
        turn = users[k] if with_question else hidden[k]
        return llm.next_tokens(f"{turn}\n\n{text}")

    def answer(k, text):
        turn = users[k] if with_skill else task.question
        cue = f"{text}\nAnswer:" if text else "Answer:"
        probs = {c: llm.next_tokens(f"{turn}\n\n{cue}")[f" {c}"] for c in task.candidates}
        return probs[candidate] / sum(probs.values())

    for length in range(3):
        for symbols in itertools.product("αβ", repeat=length):
            path = [*symbols, "<end>"]
            p = np.array(
                [[next_step(k, "".join(path[:t]))[a] for k in range(3)] for t, a in enumerate(path)]
            )
            answers = np.array([answer(k, "".join(symbols)) for k in range(3)])
            total += np.prod(p @ F) * (answers @ F) if per_step else F @ (p.prod(0) * answers)
    return total


def log_answers(dataset, F, composition, **switches):
    """[C, N], in float64."""
    with jax.enable_x64(True):
        log_F = jnp.log(jnp.repeat(jnp.asarray(F)[:, None], dataset.sizes["task"], 1))
        switches = {"f_to_o": True, "g_to_a": True, **switches}
        return np.asarray(log_answer(log_F, steps_data(dataset).outcome, composition, **switches))


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize(("f_to_o", "g_to_a"), [(True, True), (False, True), (True, False)])
def test_enumerated_steps_are_exact(enumerated, per_step, f_to_o, g_to_a):
    F = np.array([0.5, 0.2, 0.3])
    composition = "step_composition" if per_step else "trace_mixture"
    ours = log_answers(enumerated, F, composition, f_to_o=f_to_o, g_to_a=g_to_a)
    for n, task in enumerate(TASKS):
        for c, candidate in enumerate(task.candidates):
            exact = brute_force(
                task, F, candidate, per_step=per_step, with_skill=f_to_o, with_question=g_to_a
            )
            assert abs(ours[c, n] - np.log(exact)) < 1e-8
    assert (ours[2, 1] < -1e8) and len(TASKS[1].candidates) == 2


def test_the_marginal_of_one_skill_is_the_oracle_s(enumerated):
    llm, task = tabular(), TASKS[0]
    for k, skill in enumerate(SKILLS):
        user = f"{task.question}\n\n{skill.instruction}"
        exact = llm.exact_log_marginal(
            llm.render(user, ""),
            "B",
            answer_context=lambda a, user=user: llm.render(
                user, f"{a}\nAnswer:" if a else "Answer:"
            ),
        )
        ours = log_answers(enumerated, np.eye(3)[k] * (1 - 1e-12) + 1e-13, "trace_mixture")[1, 0]
        assert abs(ours - exact) < 1e-8


def test_drawn_traces_are_unbiased_and_carry_their_weights(enumerated):
    F, num_traces = np.array([0.6, 0.1, 0.3]), 300
    drawn = observe_steps(tabular(), TASKS[:2], SKILLS, num_traces=num_traces, settings=SYMBOLS)
    many, log_q = drawn.sizes["trace"], enumerated["log_proposal"].values
    assert many == 3 * num_traces
    np.testing.assert_allclose(logsumexp(log_q, axis=1), 0, atol=1e-12)
    texts = [[str(text) for text in row] for row in enumerated["trace_text"].values]
    index = np.array([[texts[n].index(str(text)) for text in drawn["trace_text"].values[n]]
                      for n in range(2)])  # fmt: skip
    np.testing.assert_allclose(
        drawn["log_proposal"], np.take_along_axis(log_q[:2], index, 1), atol=1e-12
    )
    np.testing.assert_allclose(drawn["log_weight"] + drawn["log_proposal"], -np.log(many))
    for composition in ("trace_mixture", "step_composition", "product_of_experts"):
        each = np.stack(  # what each trace there is adds to the sum, [trace, task]
            [
                np.exp(log_answers(enumerated.isel(trace=[s], task=[0, 1]), F, composition)[1])
                for s in range(enumerated.sizes["trace"])
            ]
        )
        exact = np.exp(log_answers(enumerated, F, composition)[1, :2])
        np.testing.assert_allclose(each.sum(0), exact, atol=1e-12)
        terms = np.take_along_axis(each.T / np.exp(log_q[:2]), index, 1)
        estimate = np.exp(log_answers(drawn, F, composition)[1])
        np.testing.assert_allclose(estimate, terms.mean(1), atol=1e-12)
        error = terms.std(1, ddof=1) / np.sqrt(many)
        assert (np.abs(estimate - exact) < Z * error).all()
        # Without their weights traces count as often as they were drawn, and again.
        assert (np.abs(np.take_along_axis(each.T, index, 1).mean(1) - exact) > Z * error).all()


def test_more_traces_keep_those_there_were_and_batches_do_not_matter():
    few = observe_steps(tabular(), TASKS, SKILLS, num_traces=2, settings=SYMBOLS)
    many = observe_steps(tabular(), TASKS, SKILLS, num_traces=3, settings=SYMBOLS, batch_size=1)
    assert few["drawn_under"].values[0].tolist() == ["x", "x", "y", "y", "z", "z"]
    kept = many["trace_text"].values.reshape(3, 3, 3)[:, :, :2].reshape(3, 6)
    assert few["trace_text"].values.tolist() == kept.tolist()


#: Steps that the model writes itself.
DRAWN = StepSettings(step_end=".", max_step_tokens=6, max_steps=2, num_draws=2, seed=3)


@pytest.fixture(scope="module")
def drawn():
    return observe_steps(CharacterLLM(), TASKS, SKILLS, num_traces=2, settings=DRAWN)


def test_every_step_is_scored_under_every_skill_and_weighted(drawn):
    llm = CharacterLLM()
    check_steps(drawn)
    text, used = drawn["choice_text"].values, drawn["used"].values
    for n, s in itertools.product(range(3), range(drawn.sizes["trace"])):
        prefix = ""
        for t in range(used[n, s].sum()):
            choices = [c for c in text[n, s, t] if c]
            assert len(set(choices)) == len(choices) <= 6
            contexts = [
                llm.render(f"{TASKS[n].question}\n\n{skill.instruction}", prefix)
                for skill in SKILLS
            ]
            raw = np.array([[log_prob(context, c) for context in contexts] for c in choices])
            # Six draws, so that repeats can be told from the number of candidates.
            if len(choices) == 6:
                weight = raw - logsumexp(raw, axis=1, keepdims=True)
                np.testing.assert_allclose(
                    drawn["log_pi"].values[n, s, t, :6],
                    weight - logsumexp(weight, axis=0),
                    atol=1e-12,
                )
            chosen = choices[drawn["chosen"].values[n, s, t]]
            prefix += "" if chosen == llm.end_of_answer else chosen
        assert prefix == drawn["trace_text"].values[n, s]
    # Weighted by the model's probability once more, one token that ends the trace would always
    # have won against steps of many.
    assert (drawn["trace_text"].values != "").mean() > 0.8


def test_with_many_draws_candidates_have_the_model_s_own_probabilities():
    num_draws = 300
    settings = StepSettings(step_end="", max_step_tokens=1, max_steps=1, num_draws=num_draws)
    dataset = observe_steps(tabular(), TASKS[:1], SKILLS, num_traces=1, settings=settings)
    llm, choices = tabular(), dataset["choice_text"].values[0, 0, 0].tolist()
    assert set(choices) == {"α", "β", llm.end_of_answer}
    tables = [
        llm.next_tokens(llm.render(f"{TASKS[0].question}\n\n{skill.instruction}", ""))
        for skill in SKILLS
    ]
    p = np.array([[table[c] for table in tables] for c in choices])
    q = p.mean(1)
    for k in range(3):
        ratio = p[:, k] / q
        for c in range(3):
            spread = q @ (ratio * ((np.arange(3) == c) - p[c, k])) ** 2
            ours = np.exp(dataset["log_pi"].values[0, 0, 0, c, k])
            assert abs(ours - p[c, k]) < Z * np.sqrt(spread / (3 * num_draws))
    squared = p * q[:, None] / (p * q[:, None]).sum(0)
    assert np.abs(squared - p).max() > 0.05


def test_equal_states_have_equal_candidates(drawn):
    first = drawn["choice_text"].values[:, :, 0]
    assert (first == first[:, :1]).all()


def test_the_tree_is_a_distribution_under_every_composition():
    tree = observe_steps(CharacterLLM(), TASKS[:1], SKILLS, num_traces=None, settings=DRAWN)
    for composition in ("trace_mixture", "step_composition", "product_of_experts"):
        answers = np.exp(log_answers(tree, np.array([0.2, 0.5, 0.3]), composition))
        np.testing.assert_allclose(answers.sum(0), 1, atol=1e-10)


def test_a_cache_spares_the_model(drawn):
    cache, llm = DictCache(), CharacterLLM()
    observe_steps(llm, TASKS, SKILLS, num_traces=1, settings=DRAWN, cache=cache)
    asked = len(llm.calls)
    again = observe_steps(llm, TASKS, SKILLS, num_traces=1, settings=DRAWN, cache=cache)
    assert len(llm.calls) == asked > 0
    half = drawn.isel(trace=[0, 2, 4])
    assert again["trace_text"].values.tolist() == half["trace_text"].values.tolist()
    np.testing.assert_array_equal(again["log_proposal"], half["log_proposal"])


def test_recalled_examples_stay_in_sight_when_the_question_is_hidden():
    skills = (SKILLS[0], Skill("recall", "Likewise.", recall=1))
    seen = []

    class Watched(CharacterLLM):
        def log_likelihood(self, requests):
            seen.extend(requests)
            return super().log_likelihood(requests)

    observe_steps(Watched(), TASKS, skills, num_traces=1, settings=StepSettings(max_steps=1))
    contexts = {request.context for request in seen}
    assert any(c.startswith("Solved before:\n\nQ: Question") for c in contexts)
    assert any(c.startswith("Do x.\n>") for c in contexts)
    # The question alone, followed by a trace, is where answers are scored without a skill.
    assert any(c.startswith("Question 1?\n>") and c.endswith("Answer:") for c in contexts)
    seen.clear()
    plain = observe_steps(
        Watched(), TASKS, skills, num_traces=1, without_question=False, without_skill=False
    )
    assert "log_pi_without_question" not in plain and "log_p_without_skill" not in plain
    assert all("Question" in request.context.split(">")[0] for request in seen)
    assert steps_data(plain).outcome.log_pi_without_question is None


def test_arrays_use_the_encoding_of_the_fitted_tasks(enumerated):
    encoding = Encoding.of(enumerated)
    data = steps_data(enumerated.isel(task=[2]), encoding, task_weight=np.array([2.0]))
    assert (data.num_domains, data.num_skills, data.num_tasks) == (2, 3, 1)
    assert data.domain.tolist() == [0] and data.scale.tolist() == [2.0]
    assert float(data.x[0, 0]) == pytest.approx(1 / np.sqrt(2 / 3), rel=1e-6)
    with pytest.raises(ValueError, match=r"domains \['d1'\]"):
        steps_data(enumerated, Encoding.of(enumerated.isel(task=[0, 2])))
    settings = json.loads(enumerated.attrs["steps"])
    assert settings["vocabulary"] == ["α", "β"] and enumerated.attrs["num_traces"] == "all"


def _set(name, where, value):
    def change(dataset):
        values = dataset[name].values.copy()
        values[where] = value
        return dataset.assign({name: (dataset[name].dims, values)})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("used", (1, 3), False), "used, task 't1', trace 3: there is none, wanted at least"),
        (_set("used", (1, 0, 0), False), "used, task 't1', trace 0, step 0.*Close the gap"),
        (_set("log_weight", 2, -np.inf), "log_weight, task 't2'.*at least one trace"),
        (_set("log_pi", (0, 1, 0, 0, 2), np.nan), "choice 0, skill 2: it is nan"),
        (_set("log_pi", (0, 1, 0, 0, 2), -9.0), "trace 1, step 0, skill 2.*sum of 1 over choices"),
        (_set("log_p", (0, 1, 2, 0), -9.0), "trace 1, skill 2.*sum of 1 over candidates"),
        (_set("chosen", (0, 0, 0), 7), "chosen, task 't0', trace 0, step 0: it is 7"),
        (_set("gold", 1, 5), "gold, task 't1': it is 5"),
        (lambda d: d.drop_vars("chosen"), "no 'chosen'. Make it with observe_steps"),
        (lambda d: d.rename(step="stage"), "log_pi has dimensions"),
    ],
)
def test_unsound_steps_are_refused_with_their_place(enumerated, change, message):
    with pytest.raises(EvidenceError, match=message):
        steps_data(change(enumerated))


def test_too_few_candidates_are_refused(enumerated):
    single = np.full(enumerated["log_pi"].shape, -np.inf)
    single[..., 0, :] = 0.0
    poor = enumerated.assign(
        log_pi=(enumerated["log_pi"].dims, single),
        log_pi_without_question=(enumerated["log_pi"].dims, single),
        chosen=enumerated["chosen"] * 0,
    )
    with pytest.raises(EvidenceError, match="task 't0'.*at least 2 candidates.*Raise num_draws"):
        steps_data(poor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "at least one"),
        ({"tasks": [TASKS[0]] * 2}, r"\['t0'\] repeat"),
        ({"skills": SKILLS[:1]}, "leaves nothing to compose"),
        ({"skills": (SKILLS[0], Skill("c", "?", stages=(Stage("["),), tool="calculator"))}, "tool"),
        ({"num_traces": 0}, "num_traces must be >= 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"settings": StepSettings(vocabulary=("<end>",))}, "always is a candidate"),
        ({"tasks": [TASKS[0], Task("u", "?", "A", ("A", "B"))]}, "same features"),
    ],
)
def test_wrong_settings(change, message):
    settings = {"tasks": TASKS, "skills": SKILLS, "settings": SYMBOLS, **change}
    with pytest.raises(ValueError, match=message):
        observe_steps(tabular(), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"max_steps": 0}, "max_steps must be >= 1"), ({"vocabulary": ("a", "a")}, "distinct")],
)
def test_wrong_step_settings(change, message):
    with pytest.raises(ValueError, match=message):
        StepSettings(**change)


def test_too_many_traces_say_so(monkeypatch):
    monkeypatch.setattr("bayesmeta.step_evidence.MAX_TRACES", 4)
    with pytest.raises(ValueError, match="after 2 steps.*more than 4 each"):
        observe_steps(tabular(), TASKS, SKILLS, num_traces=None, settings=SYMBOLS)


def test_a_model_that_fails_is_named_with_its_task():
    class Liar(CharacterLLM):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def log_likelihood(self, requests):
            return [Score(self.value, 1, 1) for _ in requests][: 1 if self.value == -1 else None]

    for value, message in (
        (0.5, "task 't0'.*log-likelihood of 0.5"),
        (np.nan, "log-likelihood of nan"),
        (-1, "1 scores came for"),
        (-np.inf, "task 't0', skill 'x'.*every candidate step impossible"),
    ):
        with pytest.raises(ObserveError, match=message):
            observe_steps(Liar(value), TASKS, SKILLS, num_traces=1)


@pytest.mark.llm
def test_the_embedded_model():
    from bayesmeta.llm.local import LocalLLM

    tasks = [Task(f"q{i}", f"What is {i} + 5?", str(i + 5), (str(i + 5), "11")) for i in (2, 3)]
    skills = (Skill("think", "Think step by step."), Skill("direct", "Reply with the answer only."))
    settings = StepSettings(max_steps=2, max_step_tokens=8, opening="So", seed=1)
    dataset = observe_steps(LocalLLM(), tasks, skills, num_traces=1, settings=settings)
    check_steps(dataset)
    assert dataset.sizes["trace"] == 2 and (dataset["log_proposal"].values <= 0).all()
    assert (dataset["trace_text"].values != "").any()
    answers = log_answers(dataset, np.array([0.5, 0.5]), "step_composition")
    assert np.isfinite(answers).all()
