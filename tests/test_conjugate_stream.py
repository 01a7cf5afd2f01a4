"""Streams in closed form: what forgetting does, exactly; and MAML as a prior."""

import numpy as np
import pytest

from bayesmeta.inference import maml
from bayesmeta.inference.conjugate_stream import DirichletStream, LinearStream

RNG = np.random.default_rng(0)


def test_counts_of_t_episodes_ago_weigh_lambda_to_the_t():
    counts = RNG.integers(0, 9, (7, 3))
    prior, forget = np.array([0.5, 1.0, 2.0]), 0.8
    belief = DirichletStream.start(prior)
    for episode in counts:
        belief = belief.update(episode, forget)
    age = np.arange(len(counts))[::-1]
    wanted = prior + (forget ** age[:, None] * counts).sum(0)
    np.testing.assert_allclose(belief.concentration, wanted, rtol=1e-13)
    assert belief.effective_count == pytest.approx((forget**age * counts.sum(1)).sum())
    # The prior itself is never forgotten: without news the belief returns to it.
    for _ in range(300):
        belief = belief.update(np.zeros(3), forget)
    np.testing.assert_allclose(belief.concentration, prior, rtol=1e-10)


def test_without_forgetting_a_stream_is_the_batch_in_any_order():
    counts = RNG.integers(0, 9, (5, 4))
    one, other = DirichletStream.start(np.ones(4)), DirichletStream.start(np.ones(4))
    for a, b in zip(counts, counts[::-1], strict=True):
        one, other = one.update(a), other.update(b)
    np.testing.assert_array_equal(one.concentration, 1 + counts.sum(0))
    np.testing.assert_array_equal(other.concentration, one.concentration)


@pytest.mark.parametrize("forget", [1.0, 0.7])
def test_a_linear_stream_is_the_weighted_batch(forget):
    size, noise = 3, 0.5
    prior = RNG.normal(size=size), np.diag([1.0, 2.0, 0.5])
    episodes = [(RNG.normal(size=(4, size)), RNG.normal(size=4)) for _ in range(6)]
    belief = LinearStream.start(*prior)
    for design, outcome in episodes:
        belief = belief.update(design, outcome, noise, forget)
    weight = np.repeat(forget ** np.arange(6)[::-1], 4) / noise**2
    X, y = (np.concatenate(part) for part in zip(*episodes, strict=True))
    # The prior is forgotten towards itself, so its weight stays one.
    precision = np.linalg.inv(prior[1]) + X.T @ (weight[:, None] * X)
    loc = np.linalg.solve(precision, np.linalg.solve(prior[1], prior[0]) + X.T @ (weight * y))
    np.testing.assert_allclose(belief.loc, loc, rtol=1e-10)
    np.testing.assert_allclose(belief.covariance, np.linalg.inv(precision), rtol=1e-10)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="two positive numbers"):
        DirichletStream.start(np.array([1.0, 0.0]))
    belief = DirichletStream.start(np.ones(2))
    with pytest.raises(ValueError, match=">= 0"):
        belief.update(np.array([1, -1]))
    for wrong in (0.0, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            belief.update(np.ones(2), wrong)


class TestMaml:
    size = 4
    basis, _ = np.linalg.qr(RNG.normal(size=(size, size)))
    hessian = basis @ np.diag([0.2, 0.7, 1.5, 3.0]) @ basis.T
    theta, optimum = RNG.normal(size=size), RNG.normal(size=size)

    @pytest.mark.parametrize("num_steps", [1, 3, 20])
    def test_descent_ends_at_the_mode_under_the_implied_prior(self, num_steps):
        precision = maml.implied_precision(self.hessian, 0.25, num_steps)
        adapted = maml.adapt(self.theta, self.hessian, self.optimum, 0.25, num_steps)
        found = maml.map_estimate(self.theta, precision, self.hessian, self.optimum)
        np.testing.assert_allclose(adapted, found, atol=1e-12)
        wrong = maml.map_estimate(self.theta, 1.01 * precision, self.hessian, self.optimum)
        assert np.abs(adapted - wrong).max() > 1e-6

    def test_the_best_initialisation_is_found_by_search_too(self):
        from scipy.optimize import minimize
        from scipy.stats import multivariate_normal

        hessians = np.stack([self.hessian, 2 * np.eye(self.size), np.diag([1.0, 2, 3, 3.5])])
        optima = RNG.normal(size=(3, self.size))
        precisions = np.stack([maml.implied_precision(h, 0.2, 4) for h in hessians])
        spread = [
            np.linalg.inv(p) + np.linalg.inv(h) for p, h in zip(precisions, hessians, strict=True)
        ]

        def loss(theta):
            return -sum(
                multivariate_normal.logpdf(o, theta, s) for o, s in zip(optima, spread, strict=True)
            )

        found = maml.best_initialisation(precisions, hessians, optima)
        searched = minimize(loss, np.zeros(self.size), method="BFGS", options={"gtol": 1e-9})
        np.testing.assert_allclose(found, searched.x, atol=1e-5)

    def test_steps_that_overshoot_and_flat_losses_are_refused(self):
        with pytest.raises(ValueError, match="overshoot"):
            maml.implied_precision(self.hessian, 0.5, 3)
        with pytest.raises(ValueError, match="flat direction"):
            maml.implied_precision(np.diag([1.0, 0.0]), 0.1, 3)
