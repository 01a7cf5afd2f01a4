"""Arrows of Figure 2 as contexts in which the same answers are scored."""

import dataclasses

import numpy as np
import pytest

from bayesmeta.contexts import score_contexts
from bayesmeta.evidence import append, load, save, split, validate
from bayesmeta.evidence_schema import CONTEXTS, EvidenceError
from bayesmeta.llm.base import ScoreRequest
from bayesmeta.llm.tabular import TabularLLM
from bayesmeta.observation import observe
from bayesmeta.skills import Skill, Stage
from bayesmeta.tasks import Task

TASKS = tuple(
    Task(f"t{i}", f"What is {i}?", "A", ("A", "B", "C"), split="reflect") for i in range(5)
)
SKILLS = (
    Skill("direct", "Say it."),
    Skill("think", "Think.", stages=(Stage("so "),)),
    Skill("recall", "Likewise.", recall=2),
)


@pytest.fixture(scope="module")
def evidence():
    return observe(TabularLLM(3), TASKS, SKILLS, num_traces=2)


@pytest.fixture(scope="module")
def scored(evidence):
    return score_contexts(TabularLLM(3), evidence, TASKS, SKILLS)


def _score(user, skill, trace, candidate):
    llm = TabularLLM(3)
    opening = f"{trace.rstrip()}\n{skill.answer_opening}" if trace else skill.answer_opening
    request = ScoreRequest(llm.render(user, opening), f" {candidate}{llm.end_of_answer}")
    return llm.log_likelihood([request])[0].log_likelihood


def test_without_the_instruction_only_question_and_trace_are_left(evidence, scored):
    skill = SKILLS[1]
    trace = str(evidence["trace_text"].sel(task="t3", skill="think").values[1])
    expected = _score("What is 3?", skill, trace, "B")
    cell = scored["log_likelihood_plain"].sel(task="t3", skill="think", trace=1, candidate=1)
    np.testing.assert_allclose(float(cell), expected, atol=1e-5)
    assert abs(float(evidence["log_likelihood"].sel(cell.coords)) - expected) > 1e-3


def test_memory_is_taken_from_skills_that_recall_and_from_no_other(evidence, scored):
    own, poorer = evidence["log_likelihood"], scored["log_likelihood_without_memory"]
    for name in ("direct", "think"):
        np.testing.assert_array_equal(own.sel(skill=name), poorer.sel(skill=name))
    expected = _score("What is 0?\n\nLikewise.", SKILLS[2], "", "C")
    cell = poorer.sel(task="t0", skill="recall", trace=0, candidate=2)
    np.testing.assert_allclose(float(cell), expected, atol=1e-5)
    assert (np.abs(own - poorer).sel(skill="recall", trace=0) > 1e-6).all()


def test_it_is_valid_evidence(scored, tmp_path):
    save(scored, tmp_path / "e.nc")
    loaded = load(tmp_path / "e.nc")
    for context in CONTEXTS:
        name = f"log_likelihood_{context}"
        np.testing.assert_array_equal(loaded[name], scored[name])
    reflect, heldout = split(loaded)
    assert reflect.sizes["task"] == 5 and heldout.sizes["task"] == 0


def test_contexts_are_checked_like_scores(scored):
    broken = scored.copy(deep=True)
    broken["log_likelihood_plain"].values[2, 1, 0, 1] = 0.5
    with pytest.raises(EvidenceError, match="log_likelihood_plain.*t2"):
        validate(broken)


def test_parts_join_with_the_contexts_that_both_have(evidence, scored):
    names = {"task": [f"other{i}" for i in range(5)]}
    joined = append(scored, scored.assign_coords(names))
    assert joined.sizes["task"] == 10
    np.testing.assert_array_equal(
        joined["log_likelihood_plain"].isel(task=slice(5, None)), scored["log_likelihood_plain"]
    )
    assert "log_likelihood_plain" not in append(scored, evidence.assign_coords(names))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"contexts": ["blind"]}, "unknown context 'blind'"),
        (lambda: {"tasks": TASKS[:3]}, "task 't3' of the evidence is not among"),
        (lambda: {"skills": SKILLS[:2]}, "not \\['direct', 'think'\\]"),
        (
            lambda: {"tasks": (dataclasses.replace(TASKS[0], question="Why?"), *TASKS[1:])},
            "task 't0' asks 'Why\\?'",
        ),
    ],
)
def test_what_does_not_match_is_refused(evidence, change, message):
    arguments = {"tasks": TASKS, "skills": SKILLS} | change()
    with pytest.raises(ValueError, match=message):
        score_contexts(TabularLLM(3), evidence, **arguments)
