"""Hidden Markov chains against a sum over every path."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesmeta.models.hmm import log_evidence, most_probable, smoothed, sticky

K, T = 3, 6


@pytest.fixture
def chain():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        initial = jax.nn.log_softmax(jnp.asarray(rng.normal(size=K)))
        transition = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(K, K))), axis=1)
        likelihood = jnp.asarray(2 * rng.normal(size=(T, K)))
        yield initial, transition, likelihood


def every_path(initial, transition, likelihood):
    """{path: joint probability}, no logs."""
    initial, transition, likelihood = map(
        np.exp, map(np.asarray, (initial, transition, likelihood))
    )
    found = {}
    for path in itertools.product(range(K), repeat=len(likelihood)):
        p = initial[path[0]] * np.prod([likelihood[t, k] for t, k in enumerate(path)])
        found[path] = p * np.prod([transition[i, j] for i, j in itertools.pairwise(path)])
    return found


def test_evidence_is_the_sum_over_paths(chain):
    total = sum(every_path(*chain).values())
    assert np.exp(float(log_evidence(*chain))) == pytest.approx(total, rel=1e-12)
    wrong = (chain[0], chain[1].T, chain[2])  # transitions read backwards
    assert np.exp(float(log_evidence(*wrong))) != pytest.approx(total, rel=1e-3)


def test_marginals_are_sums_over_paths(chain):
    table, marginal = every_path(*chain), np.zeros((T, K))
    for path, p in table.items():
        marginal[np.arange(T), path] += p / sum(table.values())
    np.testing.assert_allclose(np.exp(smoothed(*chain)), marginal, rtol=1e-10)
    forward_only = [log_evidence(chain[0], chain[1], chain[2][: t + 1]) for t in range(T)]
    assert len(set(map(float, forward_only))) == T


def test_the_most_probable_path_is_found(chain):
    table = every_path(*chain)
    assert tuple(map(int, most_probable(*chain))) == max(table, key=lambda path: table[path])
    by_step = tuple(map(int, np.asarray(smoothed(*chain)).argmax(1)))
    assert table[by_step] <= max(table.values())


def test_a_chain_of_one_step(chain):
    initial, transition, likelihood = chain
    one = likelihood[:1]
    wanted = jax.nn.log_softmax(initial + one[0])
    np.testing.assert_allclose(smoothed(initial, transition, one)[0], wanted, atol=1e-12)
    assert list(map(int, most_probable(initial, transition, one))) == [int(wanted.argmax())]


def test_a_step_not_seen_changes_nothing_that_it_could_not(chain):
    initial, transition, likelihood = chain
    hidden = jnp.concatenate([likelihood, jnp.zeros((2, K))])
    assert float(log_evidence(initial, transition, hidden)) == pytest.approx(
        float(log_evidence(*chain)), abs=1e-12
    )


@pytest.mark.parametrize("switch", [0.0, 0.3, 1.0])
def test_sticky_rows_are_distributions(switch):
    with jax.enable_x64(True):
        weight = jax.nn.log_softmax(jnp.asarray([0.3, -1.0, 0.5]))
        rows = np.exp(np.asarray(sticky(weight, switch)))
        wanted = (1 - switch) * np.eye(3) + switch * np.exp(np.asarray(weight))[None]
        np.testing.assert_allclose(rows, wanted, atol=1e-12)
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-12)
        # The strategy is what such a chain settles at.
        np.testing.assert_allclose(np.exp(weight) @ rows, np.exp(weight), atol=1e-12)
