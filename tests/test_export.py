"""Every program compiles for a GPU without one at hand, and single precision is enough for it.

`jax.export` lowers a function for another platform. What it writes is StableHLO, in which
everything that is not an operation of the compiler is a ``custom_call`` with a name: routines of
the vendor's libraries, and callbacks into Python, which would stop the device at every step.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import simulate_full
from jax import export
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import NUTS
from numpyro.infer.util import potential_energy
from simulate import simulate_figure2

from bayesmeta import proof_reasoning, proof_selection
from bayesmeta.inference.svi_guides import FullRank, LowRank
from bayesmeta.inference.svi_target import Target, array_leaves
from bayesmeta.models.figure2 import HIERARCHICAL, HIERARCHICAL_BETA, figure2
from bayesmeta.models.figure2_full import figure2_full
from bayesmeta.models.priors import HORSESHOE

#: Dense linear algebra of NVIDIA's libraries, and JAX's own random numbers on a GPU.
ALLOWED = re.compile(r"cusolver_\w+_ffi|cublas_\w+_ffi|cu_threefry2x32_ffi")

#: Priors of the working model that draw sites of their own.
PRIORS = {
    "figure2": HIERARCHICAL,
    "figure2_beta": HIERARCHICAL_BETA,
    "figure2_horseshoe": HORSESHOE,
}
CASES = [*PRIORS, *simulate_full.GRAPHS]
#: Models of observed reasoning and of choices, as they are proven.
PROVEN = {
    cell.model: cell
    for cell in (*proof_reasoning.cells(), *proof_selection.cells())
    if cell.engine.startswith("nuts") and not cell.must_fail
}
#: At least one for each density and each way of composing; the others compile much the same.
QUICK = ["figure2_beta", "literal", "reliability", "steps_in_context", "attempts", "verifier"]
BOTH_PRECISIONS = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES
]


@pytest.fixture(autouse=True)
def outcomes_at_hand(monkeypatch):
    """Any outcome will do here, and drawing them from the program takes longer than all else."""
    monkeypatch.setattr(
        simulate_full,
        "draw_everything",
        lambda key, data, prior, graph: {"O": jnp.asarray(np.arange(data.num_tasks) % 2)},
    )


def make(name: str, num_tasks: int) -> tuple[Callable[..., Any], Any, Any]:
    """Program, data and prior of a case."""
    if name in PROVEN:
        case = PROVEN[name].case(PROVEN[name].tiny)
        # Indicators have their turn in a Gibbs update; this is the density between two of them.
        gibbs = "gibbs" in PROVEN[name].engine
        given = {"s": np.ones(len(case.data.K), np.float32)} if gibbs else {}
        program = handlers.condition(case.model, given)
        return (lambda data, prior: program(data)), case.data, None
    rng = np.random.default_rng(0)
    if name in simulate_full.GRAPHS:
        graph = simulate_full.GRAPHS[name]
        data, prior, _ = simulate_full.simulate_full(
            graph, rng, num_tasks=num_tasks, num_evidence_features=1
        )
        return functools.partial(figure2_full, graph=graph), data, prior
    data, _ = simulate_figure2(rng, num_tasks=num_tasks, num_domains=3)
    if name == "figure2_beta":
        scores = jnp.stack([data.log_p, data.log_p[::-1]], 1)
        weights = jnp.full(scores.shape[1:], -np.log(2.0))
        data = dataclasses.replace(data, scores=scores, log_trace_weight=weights)
    return figure2, data, PRIORS[name]


def point_shapes(model: Callable[..., Any], data: Any, prior: Any) -> dict[str, Any]:
    """Shapes of the unconstrained coordinates of every latent site."""

    def coordinates(data):
        trace = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(data, prior)
        return {
            name: biject_to(site["fn"].support).inv(site["value"])
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        }

    return jax.eval_shape(coordinates, data)


def log_density(model, prior) -> Callable[..., Any]:
    """(unconstrained point, data) -> log density in nats, change of variables included."""
    return lambda z, data: -potential_energy(model, (data, prior), {}, z)


def gradient_step(model, prior, key, z, data):
    """The log density and its gradient."""
    return jax.value_and_grad(log_density(model, prior))(z, data)


def nuts_step(model, prior, key, z, data):
    """A first step size, and one transition."""
    density = jax.jit(log_density(model, prior))
    kernel = NUTS(potential_fn=lambda z: -density(z, data))
    return kernel.sample(kernel.init(key, 1, z, (), {}), (), {}).z


def svi_step(model, prior, key, z, data):
    """One step of Adam on the ELBO of a Gaussian guide, with four draws."""
    start, unravel = ravel_pytree(z)
    key_guide, key_noise = jax.random.split(key)
    guide = LowRank.start(start, 2, key_guide)
    noise = jax.random.normal(key_noise, (4, guide.num_noise))
    density = jax.jit(log_density(model, prior))

    def loss(params):
        values = jax.vmap(lambda flat: density(unravel(flat), data))(guide.place(params, noise))
        return -values.mean() - guide.entropy(params)

    optimiser = optax.adam(1e-2)
    updates, _ = optimiser.update(jax.grad(loss)(guide.params), optimiser.init(guide.params))
    return optax.apply_updates(guide.params, updates)


def for_cuda(function: Callable[..., Any], *args: Any) -> str:
    """The function as StableHLO for an NVIDIA GPU. Only shapes of ``args`` matter."""
    exported = export.export(jax.jit(function), platforms=["cuda"])(*args)
    assert exported.platforms == ("cuda",)
    return exported.mlir_module()


def custom_calls(text: str) -> set[str]:
    """Names of what a program calls beside the compiler's own operations."""
    assert "stablehlo." in text
    return set(re.findall(r"custom_call @([\w.$]+)", text))


def foreign(text: str) -> list[str]:
    """Those that are not on the list of the allowed."""
    return sorted(name for name in custom_calls(text) if not ALLOWED.fullmatch(name))


@functools.cache
def shapes(name: str) -> tuple[Callable[..., Any], Any, Any, Any, Any]:
    """Program, prior, key, point and data of a case, arrays as shapes: an export needs no more."""
    rest = {}

    def data():
        rest["model"], data, rest["prior"] = make(name, num_tasks=5)
        return data

    data = jax.eval_shape(data)
    key = jax.eval_shape(lambda: jax.random.key(0))
    model, prior = rest["model"], rest["prior"]
    return model, prior, key, point_shapes(model, data, prior), data


@pytest.mark.parametrize("step", [gradient_step, nuts_step, svi_step])
@pytest.mark.parametrize("name", [*CASES, *PROVEN])
def test_every_model_is_exported_for_cuda_without_a_callback(name, step):
    model, prior, *arrays = shapes(name)
    assert foreign(for_cuda(functools.partial(step, model, prior), *arrays)) == []


def test_what_the_engines_run_is_exported_too():
    model, prior, key, _, data = shapes("figure2")

    def nuts_from_nothing(key, data):
        kernel = NUTS(model)
        state = kernel.sample(kernel.init(key, 1, None, (data, prior), {}), (data, prior), {})
        return kernel.postprocess_fn((data, prior), {})(state.z)

    def full_rank_guide(key, data):
        target = Target.of(model, (data, prior), key)
        guide = FullRank.start(target.centre, jnp.eye(target.size))
        z = guide.place(guide.params, jax.random.normal(key, (16, guide.num_noise)))
        log_q = guide.density(guide.params).log_prob(z)
        return target.evaluate(z, array_leaves((data, prior))), log_q, guide.entropy(guide.params)

    assert foreign(for_cuda(nuts_from_nothing, key, data)) == []
    text = for_cuda(full_rank_guide, key, data)
    assert foreign(text) == []
    # Its eigenvectors are the vendor's: a list that is always empty would prove nothing.
    assert any("syevd" in name for name in custom_calls(text))


def ask_the_host(z, data):
    shape = jax.ShapeDtypeStruct((), z["u"].dtype)
    return jax.pure_callback(lambda u: np.sum(u), shape, z["u"])


def print_on_the_host(z, data):
    jax.debug.print("u = {u}", u=z["u"])
    return z["u"].sum()


def tell_the_host(z, data):
    jax.debug.callback(lambda u: None, z["u"])
    return z["u"].sum()


@pytest.mark.parametrize("wrong", [ask_the_host, print_on_the_host, tell_the_host])
def test_a_program_that_calls_the_host_is_caught(wrong):
    model, prior, _, z, data = shapes("figure2")
    density = log_density(model, prior)

    def program(z, data):
        return density(z, data) + wrong(z, data)

    # For a GPU, JAX refuses to write a callback into this process, which has none.
    with pytest.raises(ValueError, match="lowering platform cuda"):
        for_cuda(program, z, data)
    # Where a callback is written, the list catches it.
    assert any("callback" in name for name in foreign(jax.jit(program).lower(z, data).as_text()))


def as_precision(data: Any, dtype: Any, stored_as: Any) -> Any:
    """The same data in a precision, their numbers having been stored in another."""

    def convert(leaf):
        leaf = np.asarray(leaf)
        is_float = leaf.dtype.kind == "f"
        return np.asarray(leaf.astype(stored_as), dtype) if is_float else leaf.astype(np.int32)

    return jax.tree.map(convert, data)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", BOTH_PRECISIONS)
def test_single_precision_is_enough_and_half_is_not(name):
    # The compiler's quickest setting: these programs run three times.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    num_tasks, rng = 40, np.random.default_rng(1)
    with jax.enable_x64(True):
        model, data, prior = make(name, num_tasks)
        z = {
            # Numbers that both precisions have.
            site: rng.uniform(-1, 1, shape.shape).astype(np.float32)
            for site, shape in point_shapes(model, data, prior).items()
        }

        def evaluator():
            slopes = jax.value_and_grad(log_density(model, prior))
            return jax.jit(slopes, compiler_options=options)

        exact, slope = evaluator()(as_precision(z, np.float64, np.float32), data)
        assert exact.dtype == np.float64
    single = evaluator()

    def errors(stored_as):
        value, gradient = single(z, as_precision(data, np.float32, stored_as))
        assert {leaf.dtype for leaf in jax.tree.leaves((value, gradient))} == {np.dtype("float32")}
        return abs(float(value) - float(exact)), np.abs(flat(gradient) - flat(slope)).max()

    # One term for each task and each coordinate, rounded by an epsilon of the largest number that
    # occurs in one; at worst all of these errors have the same sign.
    num_terms = num_tasks + flat(z).size
    largest = max(np.abs(flat(tree)).max() for tree in (z, slope, data))
    tolerance = num_terms * np.finfo(np.float32).eps * largest
    assert max(errors(np.float32)) < tolerance
    # Scores kept in bfloat16, which a GPU would be faster with, are too coarse for this.
    assert min(errors(jnp.bfloat16)) > tolerance
