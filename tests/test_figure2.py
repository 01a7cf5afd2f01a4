"""The model against brute force, its hand-written derivative, and its exact invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from reference import figure2_by_hand
from simulate import simulate_figure2

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.figure2 import (
    HIERARCHICAL,
    HIERARCHICAL_BETA,
    domain_basis,
    figure2,
    temper,
)
from bayesmeta.models.mixture import LLMCategorical, log_mixture
from bayesmeta.models.prior import Prior, SitePrior

pytestmark = pytest.mark.usefixtures("double_precision")


def point(rng, num_skills, num_features, num_domains):
    return {
        "u": rng.normal(size=num_skills - 1),
        "U": rng.normal(size=(num_skills - 1, num_features)),
        "tau_E": np.asarray(0.4),
        "v": rng.normal(size=(num_domains, num_skills - 1)),
    }


def test_joint_density_equals_enumeration_over_all_skill_assignments():
    rng = np.random.default_rng(0)
    data, _ = simulate_figure2(rng, num_tasks=5, num_skills=3, num_domains=8, num_features=2)
    for _ in range(3):
        sites = point(rng, 3, 2, 8)
        ours, _ = log_density(figure2, (data, HIERARCHICAL), {}, sites)
        assert abs(float(ours) - figure2_by_hand.log_joint(data, **sites)) < 1e-8


def test_mixture_equals_its_slow_twin_and_a_wrong_one_does_not():
    rng = np.random.default_rng(1)
    logits, scores = rng.normal(size=(4, 7)), -np.abs(rng.normal(size=(4, 7)))
    exact = figure2_by_hand.log_mixture(logits, scores)
    np.testing.assert_allclose(
        log_mixture(jnp.asarray(logits), jnp.asarray(scores)), exact, atol=1e-12
    )
    # Tempering inside the sum is not the same as weighting the task outside it.
    tempered = log_mixture(jnp.asarray(logits), 0.3 * jnp.asarray(scores))
    assert np.abs(np.asarray(tempered) - 0.3 * exact).min() > 1e-3


def test_inside_and_outside_exponents_differ_as_computed_by_hand():
    scores, logits = jnp.array([[-1.0], [-6.0]]), jnp.zeros((2, 1))
    assert abs(float(log_mixture(logits, 0.3 * scores)[0]) + 0.792) < 5e-4
    assert abs(0.3 * float(log_mixture(logits, scores)[0]) + 0.506) < 5e-4


@pytest.mark.parametrize("argument", [0, 1])
def test_hand_written_derivative_equals_finite_differences(argument):
    rng = np.random.default_rng(2)
    inputs = [jnp.asarray(rng.normal(size=(3, 5))), jnp.asarray(-np.abs(rng.normal(size=(3, 5))))]
    direction = jnp.asarray(rng.normal(size=(3, 5)))

    def along(step):
        moved = list(inputs)
        moved[argument] = moved[argument] + step * direction
        return log_mixture(*moved).sum()

    numeric = (along(1e-5) - along(-1e-5)) / 2e-5
    reverse = (jax.grad(lambda *a: log_mixture(*a).sum(), argument)(*inputs) * direction).sum()
    assert abs(float(numeric - reverse)) < 1e-6


def test_derivative_is_finite_where_a_skill_has_probability_zero():
    scores = jnp.array([[-jnp.inf, -jnp.inf], [-1.0, -jnp.inf]])
    value, gradient = jax.value_and_grad(lambda eta: log_mixture(eta, scores)[0])(jnp.zeros((2, 2)))
    assert np.isfinite(float(value)) and np.isfinite(np.asarray(gradient)).all()


def test_strategy_does_not_change_when_skills_are_relabelled():
    rng = np.random.default_rng(3)
    data, _ = simulate_figure2(rng, num_tasks=20, num_skills=4)
    order = np.array([2, 0, 3, 1])
    moved = dataclasses.replace(
        data, log_likelihood=data.log_likelihood[order], log_p=data.log_p[:, order]
    )
    C = contrast(4)
    sites = point(rng, 4, 2, 8)
    turn = C.T @ np.eye(4)[order] @ C  # the same permutation in contrast coordinates
    turned = {**sites, "u": turn @ sites["u"], "U": turn @ sites["U"], "v": sites["v"] @ turn.T}
    before, _ = log_density(figure2, (data, HIERARCHICAL), {}, sites)
    after, _ = log_density(figure2, (moved, HIERARCHICAL), {}, turned)
    assert abs(float(before - after)) < 1e-8


def test_contrast_is_orthonormal_and_sums_to_zero():
    for size in (2, 3, 6):
        C = contrast(size)
        np.testing.assert_allclose(C.T @ C, np.eye(size - 1), atol=1e-12)
        np.testing.assert_allclose(C.sum(0), 0, atol=1e-12)
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        contrast(1)


def test_few_domains_sum_to_zero_and_many_do_not():
    np.testing.assert_allclose(domain_basis(4).sum(0), 0, atol=1e-12)
    assert domain_basis(8).shape == (8, 8)


def test_tempering_renormalises_each_trace_before_averaging():
    rng = np.random.default_rng(4)
    data, _ = simulate_figure2(rng, num_tasks=3, num_skills=2)
    scores = rng.normal(size=(4, 5, 2, 3))
    data = dataclasses.replace(
        data, scores=jnp.asarray(scores), log_trace_weight=jnp.full((5, 2, 3), -np.log(5.0))
    )
    by_hand = np.zeros((4, 2, 3))
    for s in range(5):
        powered = np.exp(0.7 * scores[:, s])
        by_hand += powered / powered.sum(0) / 5
    np.testing.assert_allclose(np.exp(temper(jnp.asarray(0.7), data)), by_hand, atol=1e-12)
    np.testing.assert_allclose(by_hand.sum(0), 1, atol=1e-12)


def test_a_free_beta_needs_scores_to_temper():
    data, _ = simulate_figure2(np.random.default_rng(5))
    with pytest.raises(ValueError, match="keep_scores=True"):
        log_density(
            figure2,
            (data, HIERARCHICAL_BETA),
            {},
            {**point(np.random.default_rng(0), 3, 2, 8), "beta": 1.0},
        )


def test_categorical_normalises_and_samples_in_proportion():
    rng = np.random.default_rng(6)
    data, _ = simulate_figure2(rng, num_tasks=2, num_skills=3)
    outcome = LLMCategorical(jnp.asarray(rng.normal(size=(3, 2))), data.log_p)
    probabilities = np.exp([np.asarray(outcome.log_prob(jnp.full(2, c))) for c in range(4)])
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-12)
    draws = np.asarray(outcome.sample(jax.random.key(0), (20_000,)))
    share = np.stack([(draws == c).mean(0) for c in range(4)])
    error = np.sqrt(probabilities * (1 - probabilities) / 20_000)
    assert (np.abs(share - probabilities) < 5 * error).all()
    assert not (np.abs(share - probabilities[::-1]) < 5 * error).all()


def test_untried_skills_leave_the_strategy_renormalised_over_the_others():
    rng = np.random.default_rng(7)
    data, _ = simulate_figure2(rng, num_tasks=4, num_skills=3)
    mask = np.zeros((3, 4))
    mask[1, 2] = -np.inf
    masked = dataclasses.replace(data, log_available=jnp.asarray(mask))
    sites = point(rng, 3, 2, 8)
    _, trace = log_density(figure2, (masked, HIERARCHICAL), {}, sites)
    site = trace["O"]
    C = contrast(3)
    logits = (C @ sites["u"] + (C @ sites["U"]) @ np.asarray(data.x)[2] + C @ sites["v"][2])[[0, 2]]
    weights = np.exp(logits) / np.exp(logits).sum()
    by_hand = np.log(weights @ np.exp(np.asarray(data.log_likelihood)[[0, 2], 2]))
    assert abs(float(site["fn"].log_prob(site["value"])[2]) - by_hand) < 1e-10


class TestPrior:
    def test_round_trip(self):
        assert Prior.from_json(HIERARCHICAL.to_json()) == HIERARCHICAL

    def test_swapping_one_site_leaves_the_original_alone(self):
        wide = HIERARCHICAL.replace("wide", tau_E=SitePrior("HalfCauchy", {"scale": 2.0}))
        assert wide["tau_E"].family == "HalfCauchy" and HIERARCHICAL["tau_E"].family == "HalfNormal"

    @pytest.mark.parametrize(
        ("family", "parameters", "message"),
        [
            ("Gauss", {}, "unknown prior family 'Gauss'"),
            ("Normal", {"mean": 0.0}, "no parameter 'mean'"),
            ("Normal", {"loc": 0.0, "scale": -1.0}, "needs scale in"),
        ],
    )
    def test_bad_sites_are_refused(self, family, parameters, message):
        with pytest.raises(ValueError, match=message):
            SitePrior(family, parameters)

    def test_missing_site_is_named(self):
        short = Prior("short", {k: v for k, v in HIERARCHICAL.sites.items() if k != "U"})
        data, _ = simulate_figure2(np.random.default_rng(0))
        with pytest.raises(ValueError, match=r"missing sites \['U'\]"):
            log_density(figure2, (data, short), {}, {})

    @pytest.mark.parametrize("text", ["", "[]", '{"name": "x"}', '{"name": "x", "sites": [1]}'])
    def test_text_that_is_no_prior_is_refused(self, text):
        with pytest.raises(ValueError, match="not a prior"):
            Prior.from_json(text)
