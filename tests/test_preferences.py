"""Bradley-Terry with ties, judges and biases: density, recovery, and what cannot be known."""

import dataclasses

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpyro.infer.util import log_density
from scipy import stats
from simulate_preferences import simulate_preferences
from two_languages import disagreements

from bayesmeta.inference.structure import latent_sites
from bayesmeta.models import bradley_terry_pyro
from bayesmeta.models.bradley_terry import (
    BRADLEY_TERRY,
    EQUAL_JUDGES,
    NO_POSITION,
    bradley_terry,
)
from bayesmeta.preferences import (
    PreferenceWarning,
    draws_of,
    fit_preferences,
    read_preferences,
)
from bayesmeta.proof_enumeration_reasoning import bradley_terry_log_joint

QUICK = {"num_chains": 2, "num_warmup": 300, "num_samples": 600}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("drop", [(), ("first",), ("judge",), ("length_1", "length_2")])
@pytest.mark.parametrize("ties", [True, False])
def test_density_equals_a_loop(x64, drop, ties):
    rng = np.random.default_rng(0)
    table, _ = simulate_preferences(rng, num_items=4, num_pairs=25, tie=0.5 if ties else 0.0)
    known = read_preferences(table.drop(columns=list(drop)))
    data = known.data
    shapes = {k: v.shape for k, v in _values(data).items()}
    sites = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    ours = log_density(bradley_terry, (data, BRADLEY_TERRY), {}, sites)[0]
    theirs = bradley_terry_log_joint(sites, data, BRADLEY_TERRY)
    assert float(ours) == pytest.approx(theirs, abs=1e-9)
    assert ("g" in sites) == ("first" not in drop) and ("log_nu" in sites) == ties


def _values(data):
    from bayesmeta.inference.structure import trace_sites

    sites = trace_sites(bradley_terry, data, BRADLEY_TERRY)
    return {name: sites[name]["value"] for name in latent_sites(bradley_terry, data, BRADLEY_TERRY)}


@pytest.mark.parametrize("prior", [BRADLEY_TERRY, NO_POSITION, EQUAL_JUDGES])
def test_both_languages_have_one_density(x64, prior):
    table, _ = simulate_preferences(np.random.default_rng(1), num_items=5, num_pairs=30)
    data = read_preferences(table).data
    args = (data, prior)
    rng = np.random.default_rng(0)
    assert disagreements(bradley_terry, bradley_terry_pyro.bradley_terry, args, rng) == {}
    other = dataclasses.replace(data, order=-data.order)
    if prior is BRADLEY_TERRY:

        def wrong(data, prior):
            bradley_terry_pyro.bradley_terry(dataclasses.replace(data, order=-data.order), prior)

        assert "winner" in disagreements(bradley_terry, wrong, args, rng)
    assert (np.asarray(other.order) != 0).any()


@pytest.fixture(scope="module")
def fitted():
    table, R = simulate_preferences(
        np.random.default_rng(3), num_pairs=800, position=0.8, tie=0.4, length=0.6
    )
    return table, R, fit_preferences(table, **QUICK | {"num_warmup": 500, "num_samples": 1500})


def test_rewards_biases_and_reliabilities_are_recovered(fitted):
    table, R, found = fitted
    assert found.tree.attrs["status"] == "CONVERGED" and found.flags == ()
    estimate = found.table.loc[[f"item{k}" for k in range(8)], "reward"]
    assert stats.kendalltau(estimate, R).statistic > 0.85
    sd = draws_of(found.tree, "R").std(0)
    assert (np.abs(estimate.to_numpy() - R) < 4 * sd).all()
    g, zeta = draws_of(found.tree, "g"), draws_of(found.tree, "zeta")[:, 0]
    assert (np.abs(g.mean(0) - 0.8) < 4 * g.std(0)).all() and g.mean() > 4 * g.std() / 2
    assert abs(zeta.mean() - 0.6) < 4 * zeta.std() and zeta.mean() > 4 * zeta.std()
    a = draws_of(found.tree, "a")
    assert (a[:, 1] > a[:, 0]).mean() > 0.9
    np.testing.assert_allclose(np.log(a).sum(1), 0, atol=1e-4)
    np.testing.assert_allclose(draws_of(found.tree, "R").sum(1), 0, atol=1e-4)
    tie = found.judges["tie_rate"]
    assert ((tie > 0.4 / 2.4 - 0.1) & (tie < 0.4 / 2.4 + 0.1)).all()
    assert found.table["comparisons"].sum() == 1600


def test_four_hundred_pairs_rank_eight_items():
    table, R = simulate_preferences(np.random.default_rng(5), num_judges=1)
    found = fit_preferences(table[["item_1", "item_2", "winner"]], **QUICK)
    estimate = found.table.loc[[f"item{k}" for k in range(8)], "reward"]
    assert stats.kendalltau(estimate, R).statistic > 0.9


def test_arviz_reads_the_tree(fitted):
    tree = fitted[2].tree
    assert tree["log_likelihood"]["winner"].dims == ("chain", "draw", "comparison")
    loo = az.loo(tree)
    assert np.isfinite(loo.elpd) and (np.asarray(loo.pareto_k) < 0.7).all()
    assert set(tree["log_prior"].data_vars) == {"u", "zeta", "g", "log_a", "log_nu"}
    assert list(tree["posterior"]["R"].coords["item"].values) == [f"item{k}" for k in range(8)]
    table = az.psense_summary(tree, var_names=["R"])
    assert len(table) == 8


def test_a_model_without_position_bias_predicts_worse_where_there_is_one(fitted):
    table, _, found = fitted
    wrong = fit_preferences(table, NO_POSITION, **QUICK)
    difference = az.loo(found.tree, pointwise=True).elpd - az.loo(wrong.tree, pointwise=True).elpd
    assert difference > 10


def test_two_engines_agree():
    table, _ = simulate_preferences(np.random.default_rng(2), num_items=3, num_pairs=40)
    known = read_preferences(table)
    one = fit_preferences(known, **QUICK)
    two = fit_preferences(known, engine="pyro_nuts", num_chains=2, num_warmup=150, num_samples=250)
    means = [draws_of(f.tree, "R").mean(0) for f in (one, two)]
    ess = float(az.ess(two.tree, var_names=["R"])["R"].min())
    error = draws_of(two.tree, "R").std(0) / np.sqrt(ess)
    assert (np.abs(means[0] - means[1]) < 4.5 * np.sqrt(2) * error).all()


class TestWhatCannotBeKnown:
    def test_groups_that_never_met_are_named(self):
        rows = [["a", "b", 1], ["b", "a", 1], ["c", "d", 2], ["d", "c", 2]]
        table = pd.DataFrame(rows, columns=["item_1", "item_2", "winner"])
        known = read_preferences(table)
        assert known.groups == (("a", "b"), ("c", "d"))
        assert "2 groups" in known.flags[0] and "Only the prior ranks across" in known.flags[0]
        with pytest.warns(PreferenceWarning, match="never compared.*a, b; c, d"):
            found = fit_preferences(table, **QUICK)
        assert "never compared" in found.tree.attrs["flags"]
        # Across the gap the posterior is the prior's: as wide as two rewards are apart a priori.
        R = draws_of(found.tree, "R")
        between = (R[:, 0] + R[:, 1] - R[:, 2] - R[:, 3]) / 2
        assert abs(between.std() - 1) < 0.1

    def test_all_ties(self):
        table = pd.DataFrame(
            [["a", "b", 0]] * 20 + [["b", "c", 0]] * 20, columns=["item_1", "item_2", "winner"]
        )
        with pytest.warns(PreferenceWarning, match="every comparison is a tie"):
            found = fit_preferences(table, **QUICK)
        R = draws_of(found.tree, "R")
        assert (np.abs(R.mean(0)) < 4 * R.std(0) / np.sqrt(300)).all()

    def test_an_item_that_always_wins(self):
        rows = [["a", "b", 1]] * 5 + [["b", "c", 1], ["c", "b", 1]]
        known = read_preferences(pd.DataFrame(rows, columns=["item_1", "item_2", "winner"]))
        assert "Ford 1957" in known.flags[0] and len(known.groups) == 1
        tied = pd.DataFrame([*rows, ["a", "b", 0]], columns=["item_1", "item_2", "winner"])
        assert read_preferences(tied).flags == ()


GOOD = pd.DataFrame([["a", "b", 1], ["b", "a", 1]], columns=["item_1", "item_2", "winner"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (GOOD.drop(columns="winner"), r"lacks the columns \['winner'\]"),
        (GOOD.iloc[:0], "no comparisons"),
        (GOOD.assign(winner=[1, 3]), r"row 1: winner is 3, wanted one of \[0, 1, 2\]"),
        (GOOD.assign(winner=[1, np.nan]), "row 1: winner is nan"),
        (GOOD.assign(winner=["x", 1]), "row 0: winner is x"),
        (GOOD.assign(item_2=["a", "a"]), "row 0: item_1 is a, wanted two items"),
        (GOOD.assign(item_1=["a", None]), "row 1: item_1 is .*, wanted a name"),
        (GOOD.assign(first=[1, 7]), "row 1: first is 7"),
        (GOOD.assign(length_1=[1, 2], length_2=[3, 0]), "row 1: length_2 is 0, wanted a length"),
        (GOOD.assign(x_1=[1, 2], x_2=[3, np.inf]), "row 1: x_2 is inf, wanted a finite"),
    ],
)
def test_tables_that_make_no_sense_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        read_preferences(table)


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="interval is 2"):
        fit_preferences(GOOD, interval=2.0)
    with pytest.raises(ValueError, match="engine must be"):
        fit_preferences(GOOD, engine="magic")
    data = dataclasses.replace(read_preferences(GOOD).data, num_items=1)
    with pytest.raises(ValueError, match="1 items cannot be compared"):
        bradley_terry(data)
    with pytest.raises(ValueError, match=r"missing sites \['g'\]"):
        fit_preferences(GOOD, BRADLEY_TERRY.without("short", "g"))


def test_gradients_are_finite_at_extreme_rewards():
    data = read_preferences(simulate_preferences(np.random.default_rng(0))[0]).data
    sites = {k: 50.0 * jnp.ones_like(v) for k, v in _values(data).items()}

    def density(sites):
        return log_density(bradley_terry, (data, BRADLEY_TERRY), {}, sites)[0]

    assert all(np.isfinite(v).all() for v in jax.grad(density)(sites).values())
