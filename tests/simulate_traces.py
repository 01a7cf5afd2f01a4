"""Made-up states and candidate steps, and traces that are drawn among them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from bayesmeta.models.inverse_planning import ABSENT, PlannedSteps, TraceData


def states(rng, traces=6, goals=1, steps=4, choices=3, skills=3, sharpness=1.5, ragged=True):
    """Candidates with log-probabilities, and placeholders for what is chosen."""
    shape = (traces, goals, steps, choices, skills)
    log_q = np.asarray(jax.nn.log_softmax(sharpness * rng.normal(size=shape), axis=-2)).copy()
    seen = np.ones((traces, steps), bool)
    if ragged:
        log_q[0, :, 1, -1] = ABSENT  # a state with fewer candidates
        seen[1, -1] = False  # a shorter trace
        seen[2, 1] = False  # a hidden step
    real = jnp.result_type(float)
    return TraceData(
        log_q=jnp.asarray(log_q, real),
        chosen=jnp.zeros((traces, steps), jnp.int32),
        seen=jnp.asarray(seen),
        log_goal=jnp.full((traces, goals), -np.log(goals), real),
        log_outcome=jnp.zeros((traces, goals, skills), real),
    )


def drawn(data, key, weight, beta_a=1.0, switch=None):
    """The same states with steps chosen under the model."""
    planned = PlannedSteps(jnp.log(jnp.asarray(weight)), beta_a, data, switch)
    return dataclasses.replace(data, chosen=planned.sample(key))


def as_dataset(data, goals=False, **more):
    """One trace a task, as `observe_steps` lays them out."""
    log_pi = np.asarray(jax.nn.log_softmax(data.log_q, axis=-2), np.float64)
    log_pi = log_pi - np.log(np.exp(log_pi).sum(3, keepdims=True))  # in double precision
    log_pi = np.where(log_pi < -1e6, -np.inf, log_pi)[:, None]
    dims = ("task", "trace", "goal", "step", "choice", "skill")
    variables = {
        "log_pi": (dims, log_pi) if goals else (dims[:2] + dims[3:], log_pi[:, :, 0]),
        "chosen": (("task", "trace", "step"), np.asarray(data.chosen)[:, None]),
        "used": (("task", "trace", "step"), np.asarray(data.seen)[:, None]),
        **more,
    }
    coords = {
        "task": [f"t{n}" for n in range(len(data.chosen))],
        "skill": ["a", "b", "c"],
        **({"goal": ["this", "that", "other"]} if goals else {}),
    }
    return xr.Dataset(variables, coords)
