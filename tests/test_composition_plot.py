"""The three compositions as curves: equal at the vertices, different inside."""

import numpy as np
import pytest

from bayesmeta.composition_plot import composition_curves, plot_compositions
from bayesmeta.llm.tabular import TabularLLM
from bayesmeta.skills import Skill
from bayesmeta.step_evidence import StepSettings, observe_steps, steps_data
from bayesmeta.tasks import Task


@pytest.fixture(scope="module")
def curves():
    llm = TabularLLM(seed=5, alphabet="αβ", max_length=2, answers=("A", "B"), scale=2.0)
    tasks = [Task("t", "Which?", "A", ("A", "B"))]
    settings = StepSettings(step_end="", max_step_tokens=1, vocabulary=("α", "β"))
    skills = [Skill("x", "One way."), Skill("y", "Another.")]
    observed = observe_steps(llm, tasks, skills, num_traces=None, settings=settings)
    return composition_curves(steps_data(observed).outcome, num_points=11)


def test_vertices_agree_and_the_inside_differs(curves):
    ends = curves[curves["share"].isin([0.0, 1.0])]
    assert ends["distance"].max() < 1e-6
    assert ends.groupby("share")["answer"].agg(np.ptp).max() < 1e-6
    middle = curves[curves["share"] == 0.5].set_index("composition")["distance"]
    assert middle["trace_mixture"] == 0
    assert middle["step_composition"] > 0.02 and middle["product_of_experts"] > 0.02


def test_the_trace_mixture_is_linear_in_the_strategy(curves):
    own = curves[curves["composition"] == "trace_mixture"]
    straight = np.interp(own["share"], own["share"].iloc[[0, -1]], own["answer"].iloc[[0, -1]])
    np.testing.assert_allclose(own["answer"], straight, atol=1e-6)
    other = curves[curves["composition"] == "product_of_experts"]["answer"]
    assert np.abs(other.values - straight).max() > 1e-2


def test_the_picture_has_a_line_for_each(curves):
    left, right = plot_compositions(curves).axes
    assert len(left.get_legend_handles_labels()[1]) == 3
    assert left.get_xlabel() == right.get_xlabel()
