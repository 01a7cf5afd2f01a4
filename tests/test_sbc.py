"""Simulation-based calibration: right posteriors pass, and every kind of wrong one is caught."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import FALSE_ALARM
from scipy import stats

from bayesmeta.inference.calibration import Calibration
from bayesmeta.inference.ecdf_bands import EcdfBands
from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.nuts_batch import NutsBatch
from bayesmeta.inference.sbc import batched_nuts, entry, one_by_one, sbc, simulate
from bayesmeta.inference.status import Outcome, Status

NUM_TASKS, PRIOR_SD = 3, 2.0
CONVERGED = Status(Outcome.CONVERGED, "", {})


def conjugate(data):
    """A normal mean with known spread: the posterior is known in closed form."""
    m = jnp.asarray(numpyro.sample("m", dist.Normal(0.0, PRIOR_SD)))
    numpyro.deterministic("twice", jnp.stack([m, 2 * m]))
    with numpyro.plate("task", NUM_TASKS):
        numpyro.sample("O", dist.Normal(m, 1.0), obs=data)


def observed(data, drawn):
    return drawn["O"]


def exact_engine(spread=1.0, shift=0.0, use_data=True):
    """Draws from the posterior, or from one that is wrong in a chosen way."""

    def engine(program, drawn, data, *, rng_seed):
        rng = np.random.default_rng(rng_seed)
        fits = []
        for outcome in np.asarray(drawn["O"], np.float64):
            count = len(outcome) if use_data else 0
            variance = 1 / (count + PRIOR_SD**-2)
            mean = variance * outcome[:count].sum() + shift
            draws = mean + spread * np.sqrt(variance) * rng.normal(size=(1, 400))
            fits.append(FitResult({"m": draws.astype(np.float32)}, {}, CONVERGED, 0.0, {}))
        return fits

    return engine


def calibrate(engine, **settings):
    return sbc(
        conjugate,
        jnp.zeros(NUM_TASKS),
        with_observations=observed,
        engine=engine,
        quantities=("m", "log_likelihood"),
        **settings,
    )


class TestSbc:
    def test_exact_posteriors_are_calibrated(self):
        found = calibrate(exact_engine())
        assert found.calibrated(), found.table()
        assert found.num_replications == 200 and found.unconverged() == {}
        variance = 1 / (NUM_TASKS + PRIOR_SD**-2)
        # The relative error of a variance of 200 truths is about sqrt(2 / 200) = 0.1.
        assert abs(found.contraction()[0] - (1 - variance / PRIOR_SD**2)) < 5 * 0.1 * 0.08

    @pytest.mark.parametrize("wrong", [{"spread": 0.6}, {"spread": 1.6}, {"shift": 0.3}])
    def test_posteriors_too_narrow_too_wide_or_biased_are_not(self, wrong):
        assert not calibrate(exact_engine(**wrong)).calibrated()

    def test_a_posterior_that_ignores_the_data_is_seen_by_the_log_likelihood_alone(self):
        found = calibrate(exact_engine(use_data=False))
        p_value = dict(zip(found.quantities, found.p_values(), strict=True))
        assert p_value["m"] > found.p_limit() > p_value["log_likelihood"]

    def test_truths_and_data_are_drawn_from_the_program(self):
        found = simulate(conjugate, jnp.zeros(NUM_TASKS), num_replications=4000)
        m, outcome = found.truth["m"], found.drawn["O"]
        assert outcome.shape == (4000, NUM_TASKS) and found.truth["twice"].shape == (4000, 2)
        for draws, sd in ((m, PRIOR_SD), ((outcome - m[:, None])[:, 0], 1.0)):
            assert stats.kstest(draws / sd, "norm").pvalue > FALSE_ALARM

    def test_entries_of_deterministic_sites_can_be_ranked(self):
        found = sbc(
            conjugate,
            jnp.zeros(NUM_TASKS),
            with_observations=observed,
            engine=exact_engine(),
            quantities=("m", "twice[1]"),
            num_replications=60,
        )
        np.testing.assert_array_equal(found.ranks[:, 0], found.ranks[:, 1])

    def test_an_engine_that_sees_one_data_set_at_a_time(self):
        whole = exact_engine()

        def single(program, drawn, data, *, rng_seed):
            assert drawn["O"].shape == (NUM_TASKS,)
            return whole(program, {"O": drawn["O"][None]}, data, rng_seed=rng_seed)[0]

        assert calibrate(one_by_one(single)).calibrated()

    def test_unconverged_fits_are_counted_and_kept(self):
        def engine(*args, **kwargs):
            fits = exact_engine()(*args, **kwargs)
            bad = Status(Outcome.ESS, "", {})
            return [dataclasses.replace(fits[0], status=bad), *fits[1:]]

        found = calibrate(engine, num_replications=60)
        assert found.unconverged() == {"ESS": 1} and len(found.ranks) == 60

    @pytest.mark.parametrize(
        ("quantity", "message"),
        [("q", "no site 'q'"), ("twice", "shape \\(2,\\)"), ("m[a]", "wanted a site")],
    )
    def test_quantities_that_are_none_are_refused(self, quantity, message):
        with pytest.raises(ValueError, match=message):
            sbc(
                conjugate,
                jnp.zeros(NUM_TASKS),
                with_observations=observed,
                engine=exact_engine(),
                quantities=(quantity,),
                num_replications=2,
            )

    def test_a_program_without_observations_is_refused(self):
        def prior_only(data):
            numpyro.sample("m", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match="no observed site"):
            sbc(
                prior_only,
                None,
                with_observations=observed,
                engine=exact_engine(),
                quantities=("m",),
            )

    def test_names_of_entries(self):
        assert entry("F[0,1]") == ("F", (0, 1)) and entry("tau_E") == ("tau_E", ())


def calibration_of(ranks, **changes):
    """A calibration with these ranks [replication, quantity] and unit normal moments."""
    ranks = np.asarray(ranks)
    zeros = np.zeros(ranks.shape)
    names = tuple(f"q{i}" for i in range(ranks.shape[1]))
    fields = dict(
        quantities=names,
        truth=np.random.default_rng(0).normal(size=ranks.shape),
        ranks=ranks,
        mean=zeros,
        sd=zeros + 1,
        ess=zeros + 500,
        outcomes=("CONVERGED",) * len(ranks),
        num_draws=99,
        seconds=1.0,
        rng_seed=0,
    )
    return Calibration(**{**fields, **changes})


class TestCalibration:
    def test_bands_are_those_of_the_binomial_distribution(self):
        assert calibration_of(np.zeros((200, 5))).band(of_all=False) == (168, 190)
        assert calibration_of(np.zeros((60, 5))).band(of_all=False) == (47, 59)
        low, high = calibration_of(np.zeros((200, 5))).band()
        outside = stats.binom.cdf(low - 1, 200, 0.9) + stats.binom.sf(high, 200, 0.9)
        assert outside < 0.01 / 5

    def test_hits_count_ninety_of_the_hundred_ranks(self):
        assert calibration_of(np.arange(100)[:, None]).hits() == [90]
        assert calibration_of(np.array([[4], [95]])).hits() == [0]
        assert calibration_of(np.array([[5], [94]])).hits() == [2]

    def test_uniform_ranks_pass_as_often_as_promised(self):
        ranks = np.random.default_rng(1).integers(0, 100, (200, 400))
        p_values = calibration_of(ranks).p_values()
        # The statistic is discrete, so its p-values are near uniform only.
        assert stats.binomtest(int((p_values < 0.05).sum()), 400, 0.05).pvalue > FALSE_ALARM

    def test_draws_are_thinned_evenly_and_ties_broken(self):
        values = np.arange(990.0).reshape(1, 1, 990, 1)
        found = Calibration.of(
            ("q",), np.array([[494.6]]), values, statuses=[CONVERGED], num_draws=99
        )
        assert found.ranks[0, 0] in (49, 50)
        same = np.zeros((500, 1, 99, 1))
        tied = Calibration.of(
            ("q",), np.zeros((500, 1)), same, statuses=[CONVERGED] * 500, num_draws=99
        )
        assert stats.kstest((tied.ranks[:, 0] + 0.5) / 100, "uniform").pvalue > FALSE_ALARM

    def test_too_few_draws_are_refused(self):
        with pytest.raises(ValueError, match="50 draws, fewer than the 99"):
            Calibration.of(
                ("q",), np.zeros((1, 1)), np.zeros((1, 1, 50, 1)), statuses=[], num_draws=99
            )

    def test_json_round_trip_and_selection(self):
        found = calibration_of(np.arange(60).reshape(30, 2))
        again = Calibration.from_json(found.to_json())
        np.testing.assert_array_equal(again.ranks, found.ranks)
        assert again.quantities == found.quantities and again.outcomes == found.outcomes
        assert found.where(np.arange(30) < 10).num_replications == 10

    def test_transforms_for_arviz_lie_within_their_ranks(self):
        found = calibration_of(np.arange(100)[:, None])
        pit = found.to_datatree()["prior_sbc"]["q0"].values[0]
        np.testing.assert_array_equal(np.floor(pit * 100), np.arange(100))


class TestEcdfBands:
    def test_uniform_curves_leave_the_band_as_often_as_promised(self):
        bands, rng = EcdfBands.of(60, 99), np.random.default_rng(5)
        low, high = bands.band(0.95)
        outside = 0
        for _ in range(1000):
            counts = bands.counts(rng.integers(0, 100, 60))
            outside += bool(((counts < low) | (counts > high)).any())
        # The level is itself estimated, from 4000 curves: variances add.
        error = np.sqrt(0.05 * 0.95 * (1 / 1000 + 1 / 4000))
        assert abs(outside / 1000 - 0.05) < stats.norm.ppf(1 - FALSE_ALARM / 2) * error + 0.01

    def test_curves_of_wrong_posteriors_leave_it(self):
        bands, rng = EcdfBands.of(200, 99), np.random.default_rng(6)
        assert bands.p_value(rng.integers(0, 100, 200)) > 0.01
        assert bands.p_value(rng.binomial(99, 0.5, 200)) < 0.001  # posterior far too wide
        assert bands.p_value(rng.integers(0, 80, 200)) < 0.001  # posterior too high


def test_one_chain_per_data_set_is_judged_by_its_halves_and_compiled_once():
    def program(drawn):
        conjugate(drawn["O"])

    batch = NutsBatch.of(program, num_chains=1, num_warmup=200, num_samples=400, max_tree_depth=5)
    drawn = {"O": jnp.asarray(np.random.default_rng(0).normal(size=(8, NUM_TASKS)))}
    fits = batch(drawn, rng_seed=1)
    assert all(np.isfinite(fit.status.diagnostics["rhat"]) for fit in fits)
    again = batch(jax.tree.map(lambda v: v + 1, drawn), rng_seed=1)
    assert len(batch.compiled) == 1
    # Moving all data by 1 moves the posterior mean by the share that data have in it.
    shift = np.mean(
        [a.samples["m"].mean() - f.samples["m"].mean() for a, f in zip(again, fits, strict=True)]
    )
    share = NUM_TASKS / (NUM_TASKS + PRIOR_SD**-2)
    assert abs(shift - share) < 5 * np.sqrt(2 / (NUM_TASKS * 8 * 100))
    assert all(fit.status.diagnostics["rhat"] < 1.1 for fit in fits)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        NutsBatch.of(program, num_chains=0)


def test_data_sets_in_blocks_have_the_posteriors_of_all_at_once():
    def program(drawn):
        conjugate(drawn["O"])

    sizes = dict[str, Any](num_chains=1, num_warmup=200, num_samples=2000, max_tree_depth=5)
    # Far apart, so that a block out of place would be seen.
    drawn = {"O": jnp.asarray(np.random.default_rng(0).normal(size=(3, NUM_TASKS)))}
    drawn["O"] = drawn["O"] + 5.0 * jnp.arange(3.0)[:, None]
    batch = NutsBatch.of(program, at_once=2, **sizes)
    fits = batch(drawn, rng_seed=1)
    assert len(batch.compiled) == 1  # the last block holds one set and is filled up
    assert len(fits) == 3
    for fit, other in zip(fits, NutsBatch.of(program, **sizes)(drawn, rng_seed=1), strict=True):
        means = [f.samples["m"].mean() for f in (fit, other)]
        errors = [
            f.samples["m"].std() / np.sqrt(f.status.diagnostics["ess_bulk"]) for f in (fit, other)
        ]
        assert abs(means[0] - means[1]) < 4 * np.hypot(*errors)
    # Threads change nothing: not even a digit, as the blocks are the same.
    threaded = NutsBatch.of(program, at_once=2, threads=2, **sizes)(drawn, rng_seed=1)
    for fit, other in zip(fits, threaded, strict=True):
        np.testing.assert_array_equal(fit.samples["m"], other.samples["m"])
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        NutsBatch.of(program, threads=0)
    with pytest.raises(ValueError, match="at_once must be at least 1, or None for all, got 0"):
        NutsBatch.of(program, at_once=0)


@pytest.mark.slow
def test_ranks_are_distributed_as_those_of_simuk():
    """The same model by another implementation: two samples of ranks of one distribution."""
    simuk = pytest.importorskip("simuk")
    from numpyro.infer import NUTS

    def program(O=None):  # noqa: E741 the argument's name must be the site's
        m = jnp.asarray(numpyro.sample("m", dist.Normal(0.0, PRIOR_SD)))
        with numpyro.plate("task", NUM_TASKS):
            numpyro.sample("O", dist.Normal(m, 1.0), obs=O)

    theirs = simuk.SBC(
        NUTS(program),
        num_simulations=40,
        sample_kwargs=dict(num_warmup=200, num_samples=99, progress_bar=False),
        data_dir={"O": np.zeros(NUM_TASKS)},
    )
    theirs.run_simulations()
    ranks = theirs.simulations["prior_sbc"]["m"].values.ravel()
    ours = calibrate(batched_nuts(num_chains=1, num_warmup=200, num_samples=500))
    assert stats.ks_2samp(ranks, ours.ranks[:, 0]).pvalue > FALSE_ALARM
