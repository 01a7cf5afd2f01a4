"""The demonstration on the evidence that ships with the package, without the live part."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

import bayesmeta
from bayesmeta.demo import run_demo
from bayesmeta.evidence_join import split
from bayesmeta.record import fresh_tasks, recorded_path, recorded_tasks
from bayesmeta.skill_scores import skill_scores
from bayesmeta.skills import default_skills


@pytest.fixture(scope="module")
def recorded():
    return bayesmeta.load_evidence(recorded_path())


def test_recorded_evidence_is_small_and_says_where_it_comes_from(recorded):
    assert recorded_path().stat().st_size < 3e6
    assert recorded.attrs["llm"].startswith("SmolLM2-135M-Instruct")
    hashes = {skill.name: skill.content_hash() for skill in default_skills()}
    assert json.loads(recorded.attrs["skill_hashes"]) == hashes
    tasks = recorded_tasks()
    assert [task.id for task in tasks] == list(recorded["task"].values)
    assert [task.gold for task in tasks] == list(recorded["gold"].values)
    assert [task.split for task in tasks] == list(recorded["split"].values)


def test_skills_matter_in_it(recorded):
    _, heldout = split(recorded)
    table = skill_scores(heldout).log_likelihood
    gain = table.max(1) - table[:, table.mean(0).argmax()]
    assert gain.mean() - 2 * gain.std() / np.sqrt(len(gain)) > 0.3
    best = skill_scores(split(recorded)[0])
    by_domain = {
        best.skills[best.log_likelihood[best.domain == d].mean(0).argmax()]
        for d in np.unique(best.domain)
    }
    assert len(by_domain) >= 3


def test_fresh_tasks_are_not_recorded(recorded):
    asked = set(map(str, recorded["question"].values))
    fresh = fresh_tasks(2)
    assert len(fresh) == 20 and not asked & {task.question for task in fresh}
    assert {task.split for task in fresh} == {"held_out"}


def test_the_demonstration_runs_to_its_end(tmp_path):
    shown = io.StringIO()
    run_demo(
        tmp_path / "demo",
        console=Console(file=shown, width=100),
        fresh_per_family=0,
        learning_curve_subsets=0,
    )
    text = shown.getvalue()
    assert "CONVERGED" in text and "oracle over skills" in text and "Skills matter by" in text
    assert (tmp_path / "demo" / "report.html").read_text().count("<img") >= 8
    tree = bayesmeta.load_posterior(tmp_path / "demo" / "posterior.nc")
    assert tree["log_likelihood"]["O"].sizes["task"] == 360
