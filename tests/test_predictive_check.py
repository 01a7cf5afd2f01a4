"""Replicated outcomes against observed ones."""

import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import FALSE_ALARM
from scipy import stats
from simulate import planted_evidence

import bayesmeta
from bayesmeta.inference.structure import prior_draws
from bayesmeta.posterior import group
from bayesmeta.predictive_check import plot_predictive_check, predictive_check


@pytest.fixture(scope="module")
def fitted():
    evidence = planted_evidence(num_tasks=160)
    settings = {"num_chains": 2, "num_warmup": 300, "num_samples": 300}
    return evidence, bayesmeta.fit(evidence, **settings)


def test_a_right_model_replicates_what_was_observed(fitted):
    evidence, posterior = fitted
    table = predictive_check(posterior, evidence)
    assert list(table.index) == ["d0", "d1", "d2", "d3"]
    assert table["tasks"].to_numpy().sum() == 120
    # Under the right model p is about uniform: four values below 0.001 or above 0.999 by chance
    # have probability 0.008.
    p = table["p"].to_numpy()
    assert ((p > 0.001) & (p < 0.999)).all()
    low, middle, high = (table[name].to_numpy() for name in ("low", "replicated", "high"))
    assert ((low <= middle) & (middle <= high) & (high <= 1)).all()


def test_outcomes_of_another_model_are_noticed(fitted):
    evidence, posterior = fitted
    wrong = evidence.copy(deep=True)
    favourite = wrong["log_likelihood"].mean(("skill", "trace")).argmin("candidate")
    wrong["gold"] = ("task", np.asarray(favourite.values, np.int64))
    assert predictive_check(posterior, wrong)["p"].to_numpy().max() > 0.99


def test_the_observed_share_is_a_count(fitted):
    evidence, posterior = fitted
    table = predictive_check(posterior, evidence)
    tasks = group(posterior, "posterior_predictive")["task"].values
    own = evidence.sel(task=tasks)
    favourite = np.exp(own["log_likelihood"].isel(trace=0)).mean("skill").argmax("candidate")
    right = (favourite.values == own["gold"].values)[own["domain"].values == "d1"]
    assert table.loc["d1", "observed"] == pytest.approx(right.mean())


def test_the_picture_names_every_domain(fitted):
    evidence, posterior = fitted
    figure = plot_predictive_check(predictive_check(posterior, evidence))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["d0", "d1", "d2", "d3"]
    plt.close("all")


def test_answers_do_not_repeat_what_was_drawn_before_them():
    """Keys derived from one key by splitting and by folding can be equal."""

    def program():
        latent = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.0)
        numpyro.deterministic("twice", 2 * latent)

    draws, answers = prior_draws(program, num_samples=1000)
    np.testing.assert_allclose(draws["twice"], 2 * draws["z"], rtol=1e-6)
    limit = stats.norm.isf(FALSE_ALARM / 2) / np.sqrt(1000)
    assert abs(np.corrcoef(draws["z"][0], answers["y"][0])[0, 1]) < limit
