"""Variational inference over minibatches against closed forms and against all data at once."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import FALSE_ALARM
from scipy import stats
from simulate import simulate_figure2

from bayesmeta.inference.minibatch_svi import minibatch_svi
from bayesmeta.inference.status import Outcome
from bayesmeta.inference.svi import svi
from bayesmeta.inference.svi_fit import matched_noise
from bayesmeta.inference.svi_natural import Direction, Gaussian
from bayesmeta.models.figure2 import HIERARCHICAL, figure2

SIZE, TASKS, BATCH = 6, 600, 50
RNG = np.random.default_rng(0)
# Inputs on scales and with correlations that plain gradient steps would struggle with.
A = RNG.normal(size=(TASKS, SIZE)) @ (np.eye(SIZE) + 0.7) * np.array([0.1, 1, 1, 3, 1, 1])
Y = A @ RNG.normal(size=SIZE) + RNG.normal(size=TASKS)


def regression(batch):
    design, outcome, scale = batch
    weights = numpyro.sample("b", dist.Normal(0, 3).expand([SIZE]).to_event(1))
    numpyro.factor("y", (scale * dist.Normal(design @ weights, 1.0).log_prob(outcome)).sum())


def batches(width=BATCH, scale=None):
    """An `epoch` over the regression data; the last batch is padded."""
    count = -(-TASKS // width)
    weight = np.zeros(count * width)
    weight[:TASKS] = count if scale is None else scale
    rows = np.resize(np.arange(TASKS), count * width)

    def epoch(rng):
        for index in rng.permutation(count):
            at = slice(index * width, (index + 1) * width)
            parts = (A[rows[at]], Y[rows[at]], weight[at])
            yield tuple(jnp.asarray(part, float) for part in parts)

    return epoch


def exact_posterior():
    covariance = np.linalg.inv(A.T @ A + np.eye(SIZE) / 9.0)
    return covariance @ A.T @ Y, covariance


def check_draws(result):
    """The draws' normal against the exact posterior, by Kullback-Leibler divergence in nats.

    For n draws of an exact fit, 2n times the divergence is chi-square with a degree of freedom
    for each mean and covariance. Roots of small divergences add up like distances: to the
    draws' comes at most what the fit itself says is left to gain.
    """
    mean, covariance = exact_posterior()
    draws = np.asarray(result.samples["b"][0], np.float64)
    ours, shift = np.cov(draws.T), draws.mean(0) - mean
    precision = np.linalg.inv(covariance)
    log_ratio = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(ours)[1]
    found = 0.5 * (np.trace(precision @ ours) - SIZE + shift @ precision @ shift + log_ratio)
    by_chance = stats.chi2.ppf(1 - FALSE_ALARM, SIZE * (SIZE + 3) / 2) / (2 * len(draws))
    gain = max(result.status.diagnostics["gain_left"], 0.0)
    assert found < (np.sqrt(by_chance) + np.sqrt(gain)) ** 2


@pytest.fixture(scope="module")
def fitted():
    return minibatch_svi(regression, batches())


@pytest.mark.parametrize("width", [BATCH, 64, TASKS])  # 64 does not divide the number of tasks
def test_a_gaussian_posterior_is_recovered(width, fitted):
    result = fitted if width == BATCH else minibatch_svi(regression, batches(width))
    assert result.status.converged, result.status
    assert result.status.diagnostics["log_ratio_sd"] < 0.01
    check_draws(result)


def test_batches_without_their_scale_are_noticed():
    result = minibatch_svi(regression, batches(scale=1.0))
    with pytest.raises(AssertionError):
        check_draws(result)


def test_the_check_uses_all_data(fitted):
    evidence = stats.multivariate_normal(cov=9.0 * A @ A.T + np.eye(TASKS)).logpdf(Y)
    # Ratios that hardly vary leave only the rounding of sums in 32 bit.
    np.testing.assert_allclose(fitted.status.diagnostics["elbo"], evidence, rtol=1e-6)


def test_one_short_epoch_is_reported():
    result = minibatch_svi(regression, batches(10), num_epochs=1)
    assert result.status.outcome is Outcome.NOT_SETTLED, result.status


@pytest.mark.parametrize(
    ("width", "outcome"), [(BATCH, Outcome.NOT_FINITE), (5, Outcome.CONVERGED)]
)
def test_skipped_steps_are_counted_and_are_few_or_flagged(width, outcome):
    passes = itertools.count()

    def epoch(rng):
        poisoned = 3 if next(passes) == 1 else None
        for index, (design, answer, weight) in enumerate(batches(width)(rng)):
            yield design, answer * (np.nan if index == poisoned else 1.0), weight

    result = minibatch_svi(regression, epoch)
    assert result.status.diagnostics["skipped_steps"] == 1
    assert result.status.outcome is outcome, result.status


def test_a_pass_that_overshoots_goes_back():
    # Newton's method diverges from far out where the density is a logarithm of a cosh.
    def cosh(batch):
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.factor("y", -batch.sum() * jnp.logaddexp(z - 3.0, 3.0 - z))

    result = minibatch_svi(cosh, lambda rng: iter([jnp.ones(4)] * 3), num_epochs=15)
    assert result.status.diagnostics["gain_left"] < 0.01
    assert abs(result.samples["z"].mean() - 3.0) < 4 * result.samples["z"].std() / np.sqrt(2000)


def figure2_parts(data, count):
    """An `epoch` over equal parts of the data; fewer of them where told to leave some out."""

    def epoch(rng, left_out=0):
        parts = rng.permutation(len(data.gold)).reshape(count, -1)[left_out:]
        for rows in parts:
            yield dataclasses.replace(
                data,
                log_p=data.log_p[..., rows],
                log_likelihood=data.log_likelihood[:, rows],
                gold=data.gold[rows],
                domain=data.domain[rows],
                x=data.x[rows],
                scale=len(parts) * data.scale[rows],
            )

    return epoch


def test_strategies_agree_with_a_fit_to_all_data():
    data, _ = simulate_figure2(
        np.random.default_rng(1), num_tasks=1200, num_domains=4, num_features=1
    )
    epoch = figure2_parts(data, 4)

    def fit(rng_seed, epoch=epoch):
        return minibatch_svi(figure2, epoch, HIERARCHICAL, rng_seed=rng_seed)

    runs = [fit(seed) for seed in range(3)]
    whole = svi(figure2, data, HIERARCHICAL, num_particles=512)
    assert set(runs[0].samples) == set(whole.samples)
    mean, root = whitening(whole)
    replicates = [location(run, mean, root) for run in runs]
    assert disagreement(replicates) < 1
    # A fit that never sees a quarter of the tasks.
    partial = fit(0, lambda rng: epoch(rng, left_out=1))
    assert disagreement([location(partial, mean, root)], replicates) > 1


def log_strategy(result):
    """[draw, coordinate] log F over the domains, less what makes each sum to one."""
    strategy = np.log(np.asarray(result.samples["F"][0], np.float64))
    return (strategy[..., :-1] - strategy[..., -1:]).reshape(len(strategy), -1)


def whitening(result):
    draws = log_strategy(result)
    return draws.mean(0), np.linalg.cholesky(np.cov(draws.T))


def location(result, mean, root):
    """Mean of log strategies, in standard deviations of the posterior away from ``mean``."""
    return np.linalg.solve(root, log_strategy(result).mean(0) - mean)


def disagreement(replicates, errors=None):
    """How far the replicates' mean is from zero, over the most that chance explains.

    Zero is where one more run of a like error came out. Errors of runs are those of their draws
    and of their optimisation, in whitened coordinates about alike, and seen in how the replicates
    (or ``errors``) differ among themselves.
    """
    replicates, errors = np.array(replicates), np.array(errors or replicates)
    runs, size = errors.shape
    variance = errors.var(0, ddof=1).mean()
    statistic = np.square(replicates.mean(0)).mean() / (variance * (1 + 1 / len(replicates)))
    return statistic / stats.f.ppf(1 - FALSE_ALARM, size, size * (runs - 1))


def test_a_step_lands_on_a_gaussian_target():
    rng = np.random.default_rng(3)
    mean, factor = rng.normal(size=4), rng.normal(size=(4, 4))
    precision = factor @ factor.T + np.eye(4)
    guide = Gaussian(np.zeros(4), np.diag([1.0, 2.0, 0.5, 3.0]))
    noise = np.asarray(matched_noise(jax.random.key(0), 10, 4), np.float64)
    for _ in range(5):  # one, but for the limit on how much a precision falls at a time
        surplus = guide.surplus(-(guide.place(noise) - mean) @ precision, noise)
        guide = guide.moved(Direction.of(surplus, noise), 1.0)
    np.testing.assert_allclose(guide.loc, mean, atol=1e-4)
    np.testing.assert_allclose(guide.root @ guide.root.T, precision, atol=1e-4)


def test_no_step_makes_a_precision_negative():
    guide = Gaussian(np.zeros(2), np.eye(2))
    moved = guide.moved(Direction(np.zeros(2), np.diag([-50.0, 3.0])), 1.0)
    np.testing.assert_allclose(moved.root @ moved.root.T, np.diag([0.25, 4.0]))


def test_same_seed_same_result(fitted):
    again, other = (minibatch_svi(regression, batches(), rng_seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(fitted.samples["b"], again.samples["b"])
    assert (fitted.samples["b"] != other.samples["b"]).any()


def test_batches_of_another_shape_are_refused():
    widths = iter([50, 50, 40, 40])

    def epoch(rng):
        yield from batches(next(widths))(rng)

    with pytest.raises(ValueError, match="Pad short batches"):
        minibatch_svi(regression, epoch, num_epochs=3)


def test_an_empty_epoch_is_refused():
    with pytest.raises(ValueError, match="yielded no batch"):
        minibatch_svi(regression, lambda rng: iter(()))


@pytest.mark.parametrize("settings", [{"num_epochs": 0}, {"num_particles": 3}, {"num_checked": 10}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="got|must be"):
        minibatch_svi(regression, batches(), **settings)
