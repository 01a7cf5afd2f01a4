"""Dirichlet sites in other coordinates: the same distribution, and gradients that survive."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import FALSE_ALARM
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density
from scipy import stats

from bayesmeta.inference.simplex_reparam import DirichletReparam

CONCENTRATION = np.array([[0.05, 0.3, 4.0], [1.0, 1.0, 30.0]])


def program(concentration=CONCENTRATION):
    numpyro.sample("F_n", dist.Dirichlet(jnp.asarray(concentration)).to_event(1))


def moved(**config):
    return handlers.reparam(program, config={"F_n": DirichletReparam()} | config)


def test_the_site_keeps_its_distribution():
    drawn = Predictive(moved(), num_samples=20_000)(jax.random.key(0))["F_n"]
    draws = np.asarray(drawn, np.float64)
    np.testing.assert_allclose(draws.sum(-1), 1, atol=1e-5)
    for row, a in enumerate(CONCENTRATION):
        for k in range(3):
            law = stats.beta(a[k], a.sum() - a[k])
            # Mass below the smallest number of single precision is drawn as zero.
            draw = np.maximum(draws[:, row, k], 1e-30)
            u = np.clip(law.cdf(draw), 0, 1)
            keep = draw > 1e-30
            low = law.cdf(1e-30)
            assert abs((~keep).mean() - low) < 5 * np.sqrt(0.25 / 20_000)
            high = 1 - 1e-6  # and mass within rounding of one is one
            inside = keep & (draw < high)
            u = (u[inside] - low) / (law.cdf(high) - low)
            assert stats.kstest(u, "uniform").pvalue > FALSE_ALARM


def test_another_concentration_is_noticed():
    drawn = Predictive(moved(), num_samples=20_000)(jax.random.key(0))["F_n"]
    wrong = stats.beta(4.0, 1.35)  # instead of Beta(4, 0.35)
    assert stats.kstest(np.asarray(drawn)[:, 0, 2], wrong.cdf).pvalue < FALSE_ALARM


def test_density_and_gradient_are_finite_where_the_point_is_at_a_corner():
    point = {
        "F_n_gamma_decentered": jnp.zeros((2, 3)),
        "F_n_uniform_decentered": jnp.full((2, 3), -3.0),
    }
    value, slopes = jax.value_and_grad(lambda p: log_density(moved(), (), {}, p)[0])(point)
    assert bool(jnp.isfinite(value))
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(slopes))


def test_coordinates_integrate_to_one():
    """The density of one coordinate, on a grid, for concentrations far apart."""
    grid = jnp.linspace(-30.0, 12.0, 20_001)
    for a in (0.01, 1.0, 50.0):

        def at(y, a=a):
            point = {
                "F_n_gamma_decentered": jnp.array([[0.0, 0.0]]).at[0, 0].set(y),
                "F_n_uniform_decentered": jnp.zeros((1, 2)),
            }
            inner = handlers.reparam(
                lambda: program([[a, 2.0]]), config={"F_n": DirichletReparam()}
            )
            return log_density(inner, (), {}, point)[0]

        log_p = np.asarray(jax.vmap(at)(grid), np.float64)
        rest = _rest(a)
        assert abs(np.trapezoid(np.exp(log_p - rest), np.asarray(grid)) - 1) < 1e-3


def _rest(a):
    """Log density of the coordinates that the grid leaves at zero: two r and one y."""
    shape = 3.0
    loc, scale = np.log(shape) - 0.5 / shape, 1 / np.sqrt(shape - 0.4)
    log_gamma = stats.loggamma(shape).logpdf(loc) + np.log(scale)
    return 2 * stats.norm.logpdf(0) + log_gamma


def test_other_sites_are_refused():
    def normal():
        numpyro.sample("F_n", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="has a Normal distribution"):
        handlers.seed(handlers.reparam(normal, config={"F_n": DirichletReparam()}), 0)()
