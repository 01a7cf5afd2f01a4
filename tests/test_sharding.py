"""Tasks spread over eight devices: the same posterior, and no device holds all the evidence."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from simulate import simulate_figure2
from simulate_full import GRAPHS, simulate_full

from bayesmeta.inference.sharding import is_sharded, over_arrays, shard_tasks, task_axes

HERE = Path(__file__).parent
#: Relative to the largest number that occurs: sums of a hundred terms in another order.
ROUNDING = 1e-10


def run(*cases: str) -> list[dict]:
    """What sharded_process.py prints for some cases. Devices are made when a process starts."""
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags = f"--xla_force_host_platform_device_count=8 {quick}"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HERE / "sharded_process.py"), *cases],
        cwd=HERE.parent,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def working():
    densities, placement, posteriors = run("figure2")
    return densities["figure2"], placement, posteriors


def check_densities(found: dict) -> None:
    one, eight = np.array(found["one"]), np.array(found["eight"])
    tolerance = ROUNDING * np.abs(one).max()
    np.testing.assert_allclose(eight, one, rtol=0, atol=tolerance)
    # One sum over devices of the log density and its gradient, and nothing else, is exchanged.
    assert found["collectives"] == ["all-reduce"]
    assert found["whole"] == []


def test_log_density_and_gradient_are_the_same_and_the_evidence_stays(working):
    densities, _, _ = working
    check_densities(densities)
    wrong = np.array(densities["padding_with_weight_one"])
    assert np.abs(wrong - densities["one"]).max() > 0.1


def test_every_device_holds_as_many_tasks_and_padding_has_no_weight(working):
    _, placement, _ = working
    for held in placement["held"].values():
        assert sorted(held) == [[13, device] for device in range(8)]
    assert placement["padding_weights"] == [0, 0, 0]
    assert placement["sharded"] == [True, False]
    assert placement["on_two"] == [51, 51]


def test_nuts_draws_the_same_and_never_gathers_the_evidence(working):
    _, placement, posteriors = working
    for name, draws in posteriors["one"].items():
        # Twenty transitions amplify rounding some ten thousand times.
        np.testing.assert_allclose(posteriors["eight"][name], draws, rtol=0, atol=1e-6)
    assert posteriors["samplers"] > 0
    assert posteriors["whole"] == []
    # A program that refers to the arrays instead of being given them holds them all.
    assert "f64[3,104]" in placement["closed_over"]


@pytest.mark.slow
def test_every_graph_is_spread_with_one_exchange():
    (densities,) = run(*GRAPHS)
    assert set(densities) == set(GRAPHS)
    for found in densities.values():
        check_densities(found)


def test_axes_of_tasks_are_read_from_the_annotations():
    data, _ = simulate_figure2(np.random.default_rng(0), num_tasks=6)
    assert task_axes(data)["log_p"] == 2
    assert task_axes(data)["x"] == 0
    assert "log_available" not in task_axes(data)
    axes = {}

    def steps():
        full, _, _ = simulate_full(
            GRAPHS["literal"], np.random.default_rng(0), num_evidence_features=2
        )
        axes.update(task_axes(full))
        return full

    jax.eval_shape(steps)  # shapes suffice
    assert (axes["outcome.log_pi"], axes["outcome.log_p_without_skill"], axes["e"]) == (4, 2, 0)


def test_on_one_device_nothing_changes():
    data, _ = simulate_figure2(np.random.default_rng(0), num_tasks=7)
    spread = shard_tasks(data, jax.devices()[:1])
    for before, after in zip(jax.tree.leaves(data), jax.tree.leaves(spread), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not is_sharded(spread)


def test_a_program_over_its_arrays_keeps_what_is_no_array():
    def model(data, factor, name):
        return data["x"] * factor, name

    program, arrays = over_arrays(model, ({"x": jnp.ones(2)}, 3.0, "name"))
    assert len(arrays) == 1
    assert program(jnp.full(2, 2.0))[0].tolist() == [6.0, 6.0]
    assert program(*arrays)[1] == "name"


def test_data_that_cannot_be_spread_are_refused():
    data, _ = simulate_figure2(np.random.default_rng(0), num_tasks=7)
    with pytest.raises(TypeError, match="needs a dataclass of arrays, got dict"):
        shard_tasks({"x": jnp.ones(3)})
    with pytest.raises(ValueError, match="gold holds 6 tasks, but scale holds 7"):
        shard_tasks(dataclasses.replace(data, gold=data.gold[:6]))
    with pytest.raises(ValueError, match="there are no tasks"):
        shard_tasks(NoTasks(jnp.ones(0)))
    with pytest.raises(ValueError, match="devices is empty"):
        shard_tasks(data, [])
    with pytest.raises(TypeError, match="does not name the 1 axes"):
        shard_tasks(Unnamed(jnp.ones(2)))
    with pytest.raises(TypeError, match="no field scale"):
        shard_tasks(Unweighted(jnp.ones(2)))


@dataclasses.dataclass(frozen=True)
class NoTasks:
    scale: Float[Array, " task"]


@dataclasses.dataclass(frozen=True)
class Unnamed:
    scale: Array


@dataclasses.dataclass(frozen=True)
class Unweighted:
    x: Float[Array, " task"]
