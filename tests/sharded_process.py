"""Run by test_sharding.py in a process of its own, which has eight devices. Prints JSON."""

import dataclasses
import json
import os
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer.util import potential_energy, unconstrain_fn
from simulate import simulate_figure2
from simulate_full import GRAPHS, simulate_full

from bayesmeta.inference.nuts import nuts
from bayesmeta.inference.sharding import is_sharded, shard_tasks, task_axes
from bayesmeta.models.figure2 import HIERARCHICAL, figure2
from bayesmeta.models.figure2_full import figure2_full

#: Divided by eight it leaves five, and the next multiple occurs as no other size below.
NUM_TASKS, PADDED = 101, 104
#: Few, so that rounding cannot have been amplified into other draws.
NUTS = {"num_chains": 2, "num_warmup": 10, "num_samples": 10, "decenter": ("v",)}


def case(name):
    """(program, data, prior) of the working model or of a graph; with a strategy for each task,
    tasks are as many as devices divide."""
    rng = np.random.default_rng(0)
    if name == "figure2":
        return figure2, simulate_figure2(rng, num_tasks=NUM_TASKS)[0], HIERARCHICAL
    graph = GRAPHS[name]
    own = graph.strategy != "categorical" and graph.strategy_per == "task"
    data, prior, _ = simulate_full(graph, rng, num_tasks=PADDED if own else NUM_TASKS)
    return lambda data, prior: figure2_full(data, prior, graph), data, prior


def densities(name):
    """Log density and gradient on one device and on eight, and how eight compute them."""
    model, data, prior = case(name)
    spread = shard_tasks(data)
    point = somewhere(model, data, prior)

    def log_density(point, data):
        return -potential_energy(model, (data, prior), {}, point)

    evaluate = jax.jit(jax.value_and_grad(log_density))
    program = evaluate.lower(point, spread).compile()
    unweighted = dataclasses.replace(spread, scale=jax.numpy.ones_like(spread.scale))
    return {
        "one": flat(evaluate(point, data)),
        "eight": flat(program(point, spread)),
        "padding_with_weight_one": flat(evaluate(point, unweighted)),
        "collectives": collectives(program.as_text()),
        "whole": whole(program.as_text()),
    }


def somewhere(model, *args):
    """A point of the unconstrained space: a draw from the prior."""
    trace = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(*args)
    latent = {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    return unconstrain_fn(model, args, {}, latent)


def flat(value_and_gradient):
    value, gradient = value_and_gradient
    return [float(value), *ravel_pytree(gradient)[0].tolist()]


def collectives(text):
    """Names of the operations of a compiled program by which devices exchange numbers."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    return re.findall(rf" ({kinds})(?:-start)?\(", text)


def whole(text):
    """Shapes in the program of one device that have all tasks, padding included."""
    return sorted(set(re.findall(rf"\w+\[(?:\d+,)*{PADDED}(?:,\d+)*\]", text)))


def closed_over():
    """What a program holds on each device when it is not given the arrays but refers to them."""
    model, data, prior = case("figure2")
    spread = shard_tasks(data)
    evaluate = jax.jit(lambda point: potential_energy(model, (spread, prior), {}, point))
    return whole(evaluate.lower(somewhere(model, data, prior)).compile().as_text())


def posteriors():
    """The same few draws on one device and on eight, and what was compiled for eight."""
    model, data, prior = case("figure2")
    spread = shard_tasks(data)
    eight = nuts(model, spread, prior, **NUTS)
    programs = [
        module.to_string()
        for executable in jax.devices()[0].client.live_executables()
        for module in executable.hlo_modules()
    ]
    one = nuts(model, data, prior, **NUTS)
    # Tasks are numbered, too: no evidence is in that.
    programs = [text for text in programs if not text.startswith("HloModule jit_iota")]
    return {
        "samplers": sum(" while(" in text and bool(collectives(text)) for text in programs),
        "whole": sorted({shape for text in programs for shape in whole(text)}),
        "one": {name: values.tolist() for name, values in one.samples.items()},
        "eight": {name: values.tolist() for name, values in eight.samples.items()},
    }


def placement():
    """How many tasks each device holds of each array, and what was put in as padding."""
    _, data, prior = case("figure2")
    spread = shard_tasks(data)
    axes = task_axes(data)
    return {
        "held": {
            name: [
                (shard.data.shape[axis], shard.device.id)
                for shard in getattr(spread, name).addressable_shards
            ]
            for name, axis in axes.items()
        },
        "padding_weights": np.asarray(spread.scale)[NUM_TASKS:].tolist(),
        "sharded": [is_sharded(spread, prior), is_sharded(data, prior)],
        "on_two": [
            shard.data.shape[-1]
            for shard in shard_tasks(data, jax.devices()[:2]).log_p.addressable_shards
        ],
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    names = sys.argv[1:]
    print(json.dumps({name: densities(name) for name in names}))
    if "figure2" in names:
        print(json.dumps({"closed_over": closed_over(), **placement()}))
        print(json.dumps(posteriors()))
