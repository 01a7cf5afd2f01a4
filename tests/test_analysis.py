"""The comparison, the learning curve and the report, on simulated evidence with a planted truth."""

import re

import numpy as np
import pandas as pd
import pytest
from simulate import planted_evidence

import bayesmeta
from bayesmeta.analysis import judge, write_analysis
from bayesmeta.demo import format_curve
from bayesmeta.evidence_join import split
from bayesmeta.inference.nuts_batch import NutsBatch
from bayesmeta.refit import Refitter, refitted_learning_curve
from bayesmeta.skill_scores import skill_scores
from bayesmeta.temperature import beta_curve, choose_beta


@pytest.fixture(scope="module")
def evidence():
    return planted_evidence(num_tasks=160)


@pytest.fixture(scope="module")
def posterior(evidence):
    return bayesmeta.fit(evidence, num_warmup=500, num_samples=500)


@pytest.fixture(scope="module")
def analysis(posterior, evidence):
    return judge(posterior, evidence)


def test_posterior_beats_one_skill_for_all_and_the_oracle_beats_it(analysis):
    table = analysis.table
    worse = table.loc["best single skill"]
    assert worse["diff_to_posterior"] < -2 * worse["diff_se"]
    assert table.loc["oracle over skills", "diff_to_posterior"] > 0
    assert analysis.gain.mean > 0.3
    np.testing.assert_allclose(analysis.strategy.sum(1), 1)


def test_judging_needs_both_splits(posterior, evidence):
    reflect, _ = split(evidence)
    with pytest.raises(ValueError, match="no complete held_out tasks"):
        judge(posterior, reflect)


def test_report_is_one_file_without_a_network(tmp_path, posterior, evidence, analysis):
    path = tmp_path / "report.html"
    curve = pd.DataFrame(
        {
            "size": [2, 2, 4, 4],
            "method": ["posterior", "uniform mixture"] * 2,
            "log_score": [-1.0, -1.2, -0.9, -1.2],
            "log_score_se": 0.01,
            "diff": [0.0, 0.2, 0.0, 0.3],
            "diff_se": [0.0, 0.02, 0.0, 0.02],
            "num_subsets": 3,
            "reflect_tasks": [8.0, 8.0, 16.0, 16.0],
        }
    )
    write_analysis(path, posterior, evidence, analysis, reproduce=["make demo"], curve=curve)
    text = path.read_text()
    assert text.count("<img") >= 8
    assert "CONVERGED" in text.upper() and "Learning curve" in text
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", text)


def test_refitted_strategies_agree_with_a_single_fit(posterior, evidence):
    reflect, heldout = split(evidence)
    everything = np.arange(reflect.sizes["task"])
    refitter = Refitter(reflect, heldout, 1.0)
    together, half = refitter([everything, everything[::2]])
    alone = bayesmeta.predict(posterior, heldout)["weight"].values
    # Both are means over some hundred effective draws of weights whose sd is below 0.15.
    assert np.abs(together - alone).max() < 4 * 0.15 * np.sqrt(2 / 100)
    assert np.abs(half - alone).mean() > 2 * np.abs(together - alone).mean()


def test_learning_curve_rises_and_prints(evidence):
    curve = refitted_learning_curve(evidence, 1.0, sizes=(2, 16), num_subsets=3)
    mine = curve.set_index(["method", "size"])["log_score"]
    assert float(mine["posterior", 16]) > float(mine["posterior", 2])
    assert "posterior" in format_curve(curve) and "16" in format_curve(curve)
    curve.attrs["num_unconverged"] = 4
    assert "4 of the posterior's 6 fits did not converge" in format_curve(curve)


def test_refits_that_did_not_converge_are_counted_and_compiled_once(evidence):
    refitter = Refitter(*split(evidence), 1.0)
    refitter._sample = NutsBatch.of(refitter._sample.model, num_warmup=1, num_samples=4)
    refitter([np.arange(20), np.arange(30)])
    assert refitter.num_unconverged == 2
    refitter([np.arange(10), np.arange(40)])
    assert refitter.num_unconverged == 4
    assert len(refitter._sample.compiled) == 1


def test_beta_is_found_where_answers_were_drawn_sharper_than_scores():
    flat = planted_evidence(num_tasks=400, temper=0.5)
    chosen = choose_beta(split(flat)[0])
    assert 1.4 <= chosen <= 2.0
    curve = beta_curve(split(flat)[0], (0.25, 2.0))
    assert curve[1] > curve[0]


def test_choosing_beta_needs_some_tasks(evidence):
    with pytest.raises(ValueError, match="at least 10 reflect tasks, got 5"):
        choose_beta(evidence.isel(task=slice(0, 5)))


def test_a_skill_that_was_not_tried_predicts_nothing(evidence):
    gap = evidence.copy(deep=True)
    gap["observed"].values[0, 1] = False
    gap["log_likelihood"].values[0, 1] = -np.inf
    scores = skill_scores(gap)
    np.testing.assert_allclose(scores.log_p[0, 1], np.log(0.25))
    reflect = gap.isel(task=gap["split"].values == "reflect")
    tree = bayesmeta.fit(reflect, num_warmup=300, num_samples=300, num_chains=2)
    assert np.isfinite(tree["log_likelihood"]["O"].values).all()
