"""Observe: the numbers are the model's, whatever the batches, the cache or an interruption."""

import json
import math

import numpy as np
import pytest
from conftest import FALSE_ALARM
from reference.character_llm import END, CharacterLLM, log_prob
from scipy.stats import norm

from bayesmeta.cache import EvidenceCache
from bayesmeta.cells import DictCache
from bayesmeta.evidence import load, save, validate
from bayesmeta.llm.base import Score, ScoreRequest
from bayesmeta.llm.tabular import TabularLLM
from bayesmeta.observation import ObserveError, observe
from bayesmeta.prompting import join, user_text
from bayesmeta.recall import ExternalMemory
from bayesmeta.skills import Skill, Stage
from bayesmeta.tasks import HELD_OUT, REFLECT, Task

DIRECT = Skill("direct", "Say it.")
THINK = Skill("think", "Think.", stages=(Stage("Hm,", 7, (".",)), Stage("so", 5)))
RECALL = Skill("recall", "Likewise.", recall=2)
CALC = Skill("calc", "Compute.", stages=(Stage("[calc:", 6),), tool="calculator")
SKILLS = (DIRECT, THINK, RECALL, CALC)
TASKS = tuple(
    Task(
        f"t{i}",
        f"What is {i} + {i * i}?",
        str(i + i * i),
        (str(i + i * i), "-1", "x")[: 2 + i % 2],
        domain=f"d{i % 2}",
        split=HELD_OUT if i % 3 == 2 else REFLECT,
        features={"size": float(i)},
    )
    for i in range(7)
)


def _same(a, b):
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=str(name))


@pytest.fixture(scope="module")
def evidence():
    return observe(CharacterLLM(), TASKS, SKILLS, num_traces=3)


def test_every_number_is_the_models_own(evidence):
    """The obvious twin: one cell at a time, from the trace texts that the evidence shows."""
    validate(evidence)
    llm, memory = CharacterLLM(), ExternalMemory(t for t in TASKS if t.split == REFLECT)
    for n, task in enumerate(TASKS):
        for k, skill in enumerate(SKILLS):
            examples = [r.task for r in memory.recall(task, skill.recall)][::-1]
            used = 3 if skill.stages else 1
            scored = []
            for s in range(3):
                cell = evidence.isel(task=n, skill=k, trace=s)
                observed = cell["observed"].values
                assert observed.sum() == (len(task.candidates) if s < used else 0)
                if s >= used:
                    continue
                text = str(cell["trace_text"].values)
                context = llm.render(
                    user_text(task, skill, examples), join(text, skill.answer_opening)
                )
                want = [log_prob(context, f" {c}{END}") for c in task.candidates]
                np.testing.assert_allclose(cell["log_likelihood"].values[observed], want, rtol=1e-6)
                scored.append(len(context) + sum(len(f" {c}{END}") for c in task.candidates))
            tokens = evidence["num_tokens"].values[n, k]
            assert tokens[0] == round(sum(scored) / used)
            assert (tokens[1] > 0) == bool(skill.stages) and tokens[1] <= 3 * 24


def test_what_the_evidence_says_about_itself(evidence):
    attrs = evidence.attrs
    assert attrs["model"] == "characters" and attrs["quality"] == "exact"
    assert json.loads(attrs["sampling"]) == {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "num_traces": 3,
    }  # fmt: skip
    assert tuple(Skill.from_dict(skill) for skill in json.loads(attrs["skills"])) == SKILLS
    assert json.loads(attrs["skill_hashes"])["think"] == THINK.content_hash()
    assert evidence["gold"].values.tolist() == [0] * 7
    assert evidence["features"].values[:, 0].tolist() == [float(i) for i in range(7)]
    assert evidence["split"].values.tolist() == [task.split for task in TASKS]
    assert not evidence["log_weight"].values.any() and json.loads(attrs["skipped"]) == []


def test_it_is_stored_and_read_back(evidence, tmp_path):
    save(evidence, tmp_path / "evidence.nc")
    _same(load(tmp_path / "evidence.nc"), evidence)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_do_not_matter(evidence, batch_size):
    _same(observe(CharacterLLM(), TASKS, SKILLS, num_traces=3, batch_size=batch_size), evidence)


def test_one_call_scores_a_batch_and_one_samples_a_stage():
    llm = CharacterLLM()
    observe(llm, TASKS, (DIRECT, THINK), num_traces=3, batch_size=4)
    assert llm.calls == ["sample", "sample", "score"] * 2
    assert len(llm.sampled) == len(TASKS) * 3 * 2


def test_order_and_company_of_tasks_do_not_matter(evidence):
    memory = ExternalMemory(task for task in TASKS if task.split == REFLECT)
    part = observe(CharacterLLM(), TASKS[4:1:-1], SKILLS[::-1], num_traces=3, memory=memory)
    whole = evidence.sel(task=["t4", "t3", "t2"], skill=part["skill"].values)
    _same(part, whole)


def test_seeds_and_more_traces(evidence):
    other = observe(CharacterLLM(), TASKS, SKILLS, num_traces=3, seed=1)
    assert (other["trace_text"].values != evidence["trace_text"].values)[:, 1].mean() > 0.9
    more = observe(CharacterLLM(), TASKS, SKILLS, num_traces=5)
    _same(more.isel(trace=slice(3)).drop_vars("num_tokens"), evidence.drop_vars("num_tokens"))


def test_estimates_are_unbiased_over_traces():
    """E exp log_likelihood over traces = sum over all traces of p(trace) p(answer | trace)."""
    llm, draws = TabularLLM(seed=3, scale=2.0), 2000
    task, skill = Task("t", "?", "A", ("A", "B")), Skill("one", "i.", stages=(Stage("so "),))
    got = observe(llm, [task], [skill], num_traces=draws)["log_likelihood"].values[0, 0, :, 0]
    traces = llm.traces(llm.render("?\n\ni.", "so "))
    contexts = [llm.render("?\n\ni.", join(f"so {trace}", "Answer:")) for trace in traces]
    scores = llm.log_likelihood([ScoreRequest(c, " A" + llm.end_of_answer) for c in contexts])
    given = np.exp([score.log_likelihood for score in scores])
    truth = np.exp(list(traces.values())) @ given
    estimate = np.exp(got.astype(float))
    tolerance = norm.isf(FALSE_ALARM / 2) * estimate.std() / math.sqrt(draws)
    assert abs(estimate.mean() - truth) < tolerance
    # Power: a sampler that ignores the model's probabilities would not pass.
    assert abs(given.mean() - truth) > tolerance


def test_nothing_is_paid_for_twice(tmp_path):
    first, again = CharacterLLM(), CharacterLLM()
    a = observe(first, TASKS, SKILLS, num_traces=2, cache=tmp_path)
    b = observe(again, TASKS, SKILLS, num_traces=2, cache=tmp_path, batch_size=3)
    assert first.calls and not again.calls
    _same(a, b)
    more = CharacterLLM()
    observe(more, TASKS, SKILLS, num_traces=3, cache=tmp_path)
    assert len(more.sampled) == len({p for p in more.sampled}) > 0
    # One more trace for the two skills that have stages; the calculator may need a second call.
    assert len(TASKS) * 3 <= len(more.sampled) < len(TASKS) * 6
    assert len(more.scored) == 2 * sum(len(task.candidates) for task in TASKS)


def test_a_new_version_of_one_skill_is_computed_anew_and_alone():
    cache, llm = DictCache(), CharacterLLM()
    observe(llm, TASKS, (DIRECT, THINK), cache=cache)
    count = len(llm.scored)
    observe(llm, TASKS, (Skill("direct", "Say it.", version="2"), THINK), cache=cache)
    assert len(llm.scored) - count == sum(len(task.candidates) for task in TASKS)


def test_another_model_or_setting_shares_nothing():
    cache, llm = DictCache(), CharacterLLM()
    observe(llm, TASKS[:2], (THINK,), cache=cache)
    size = len(cache.entries)

    class Other(CharacterLLM):
        name = "another"  # pyright: ignore[reportAssignmentType]

    observe(Other(), TASKS[:2], (THINK,), cache=cache)
    assert len(cache.entries) == 2 * size
    observe(llm, TASKS[:2], (THINK,), cache=cache, seed=1)
    assert len(cache.entries) == 3 * size


def test_progress_counts_cells():
    seen = []
    observe(CharacterLLM(), TASKS, SKILLS, batch_size=3, progress=lambda *a: seen.append(a))
    done = [count for count, _, _ in seen]
    assert done == sorted(done) and seen[-1][:2] == (28, 28)
    assert {total for _, total, _ in seen} == {28} and len(set(done)) == 4
    assert any("think" in message for _, _, message in seen)


class _Short(CharacterLLM):
    """Refuses a prompt that mentions what it cannot bear."""

    def __init__(self, trigger):
        super().__init__()
        self.trigger = trigger

    def _check(self, texts):
        if any(self.trigger in text for text in texts):
            raise ValueError("the prompt has 9999 tokens, the context only 2048.")

    def log_likelihood(self, requests):
        self._check([r.context for r in requests])
        return super().log_likelihood(requests)

    def sample(self, prompts, **settings):
        self._check(prompts)
        return super().sample(prompts, **settings)


@pytest.mark.parametrize(
    ("trigger", "where"),
    [("is 4 + 16?\n\nThink", "skill 'think'"), ("is 4 + 16?\n\nSay it", "skill 'direct'")],
)
def test_a_refused_prompt_names_its_cell_and_loses_nothing(trigger, where, evidence):
    cache = DictCache()
    with pytest.raises(ObserveError, match=f"task 't4', {where}.*9999 tokens.*skip"):
        observe(_Short(trigger), TASKS, SKILLS, num_traces=3, cache=cache)
    assert cache.entries
    skipped = observe(_Short(trigger), TASKS, SKILLS, num_traces=3, cache=cache, on_error="skip")
    (entry,) = json.loads(skipped.attrs["skipped"])
    assert entry["task"] == "t4" and f"skill {entry['skill']!r}" == where
    missing = ~skipped["observed"].values.any((2, 3))
    assert missing.sum() == 1 and missing[4, [s.name for s in SKILLS].index(entry["skill"])]
    keep = [i for i in range(7) if i != 4]
    _same(skipped.isel(task=keep), evidence.isel(task=keep))


def test_if_everything_is_refused_there_is_no_evidence():
    with pytest.raises(ObserveError, match="all 28 cells were refused"):
        observe(_Short(""), TASKS, SKILLS, on_error="skip")


class _Dying(CharacterLLM):
    """Works for some scoring calls, then fails as told."""

    def __init__(self, calls, error):
        super().__init__()
        self.left, self.error = calls, error

    def log_likelihood(self, requests):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().log_likelihood(requests)


@pytest.mark.parametrize("error", [ConnectionError("refused"), MemoryError("none left")])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_dead_model_is_an_error_and_never_a_skip(error, on_error):
    with pytest.raises(
        ObserveError, match=r"task 't0', skill 'direct' \(and 27 more.*run the same"
    ):
        observe(_Dying(0, error), TASKS, SKILLS, on_error=on_error)


def test_ctrl_c_loses_only_the_batch_in_flight(tmp_path, evidence):
    with pytest.raises(KeyboardInterrupt):
        observe(
            _Dying(2, KeyboardInterrupt()), TASKS, SKILLS, num_traces=3, cache=tmp_path,
            batch_size=2,
        )  # fmt: skip
    llm = CharacterLLM()
    resumed = observe(llm, TASKS, SKILLS, num_traces=3, cache=tmp_path, batch_size=2)
    _same(resumed, evidence)
    # Four tasks were finished, and the traces of the two in flight were kept as well.
    assert {TASKS[6].question in prompt for prompt, _ in llm.sampled} == {True}
    assert not any(TASKS[3].question in r.context.split("\n")[0] for r in llm.scored)


def test_numbers_that_cannot_be_are_refused():
    class Liar(CharacterLLM):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def log_likelihood(self, requests):
            return [Score(self.value, 1, 1) for _ in requests]

    for value in (0.5, math.nan):
        with pytest.raises(ObserveError, match=f"task 't0', skill 'direct'.*{value}.*<= 0"):
            observe(Liar(value), TASKS, SKILLS)
    with pytest.raises(ObserveError, match="task 't0', skill 'direct'.*impossible"):
        observe(Liar(-math.inf), TASKS, (DIRECT,))
    assert (observe(Liar(1e-6), TASKS, (DIRECT,))["log_likelihood"].values <= 0).all()


def test_an_impossible_candidate_is_declared():
    task = Task("t", "?", "a", ("a", "\u00e9"))  # not in the alphabet of the model
    evidence = observe(CharacterLLM(), [task], (DIRECT,))
    assert evidence.attrs["allow_neg_inf"] == 1
    assert np.isneginf(evidence["log_likelihood"].values[0, 0, 0]).tolist() == [False, True]
    assert evidence["observed"].values.all()


def test_a_missing_score_is_noticed():
    class Forgetful(CharacterLLM):
        def log_likelihood(self, requests):
            return super().log_likelihood(requests)[:-1]

    with pytest.raises(ObserveError, match="scores for"):
        observe(Forgetful(), TASKS, SKILLS)


def test_a_memory_with_nothing_to_recall_says_so():
    with pytest.raises(ValueError, match="task 't2', skill 'recall'.*reflect tasks"):
        observe(CharacterLLM(), [TASKS[2]], SKILLS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "nothing to observe"),
        ({"tasks": [TASKS[0], TASKS[0]]}, "'t0' repeats"),
        ({"skills": []}, "at least one"),
        ({"skills": [DIRECT, DIRECT]}, "repeat"),
        ({"num_traces": 0}, "num_traces must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"on_error": "ignore"}, "got 'ignore'"),
    ],
)
def test_wrong_settings(change, message):
    settings = {"tasks": TASKS, "skills": SKILLS, **change}
    with pytest.raises(ValueError, match=message):
        observe(CharacterLLM(), **settings)


def test_a_full_disk_is_not_blamed_on_the_model(tmp_path):
    class Full(EvidenceCache):
        def put(self, key, value):
            raise OSError(28, "cache: the disk is full")

    with Full(tmp_path) as cache, pytest.raises(OSError, match="disk is full"):
        observe(CharacterLLM(), TASKS, SKILLS, cache=cache)


@pytest.mark.llm
def test_the_embedded_model():
    from bayesmeta.llm.local import LocalLLM
    from bayesmeta.skills import default_skills

    direct, *_, calculator, _check = default_skills()
    tasks = [Task(f"q{i}", f"What is {i} + 5?", str(i + 5), (str(i + 5), "11")) for i in (2, 3)]
    skills = (direct, calculator, Skill("recall", "Likewise.", recall=1))
    llm, cache = LocalLLM(), DictCache()
    evidence = observe(llm, tasks, skills, num_traces=2, cache=cache)
    alone = observe(
        llm, tasks[1:], skills, num_traces=2, memory=ExternalMemory(tasks), batch_size=1
    )
    part = evidence.isel(task=[1])
    assert alone["trace_text"].values.tolist() == part["trace_text"].values.tolist()
    seen = part["observed"].values
    np.testing.assert_allclose(
        alone["log_likelihood"].values[seen], part["log_likelihood"].values[seen], atol=1e-3
    )
    assert "[calc:" in str(evidence["trace_text"].values[0, 1, 0])
    assert (evidence["num_tokens"].values[:, 1, 1] > 0).all()
