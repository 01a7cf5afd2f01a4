"""Small inputs for every reading of Figure 2, to draw outcomes for and to fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from bayesmeta.models.figure2 import Figure2Data
from bayesmeta.models.full_data import Answers, Attempts, FullData, Steps
from bayesmeta.models.graph import Graph

#: Standard deviation of the logits of made-up language models, in nats. At 1.5 the skills differ
#: about as much as real ones do.
SHARPNESS = 1.5


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything there is."""

    num_tasks: int = 40
    num_skills: int = 3
    num_domains: int = 8
    num_features: int = 1
    num_candidates: int = 4
    num_steps: int = 2
    num_choices: int = 2


def figure2_inputs(sizes: Sizes, seed: int = 0) -> Figure2Data:
    """Inputs of the working model. The observed answers are placeholders."""
    rng = np.random.default_rng(seed)
    N, K = sizes.num_tasks, sizes.num_skills
    log_p = _scores(rng, sizes.num_candidates, K, N)
    return Figure2Data(
        log_p=log_p,
        log_likelihood=log_p[0],
        gold=jnp.zeros(N, jnp.int32),
        domain=jnp.asarray(np.arange(N) % sizes.num_domains),
        x=_float(rng.normal(size=(N, sizes.num_features))),
        scale=jnp.ones(N, jnp.result_type(float)),
        num_domains=sizes.num_domains,
    )


def figure2_observed(data: Figure2Data, drawn: Mapping[str, Any]) -> Figure2Data:
    """The same inputs with these answers."""
    log_likelihood = jnp.take_along_axis(data.log_p, drawn["O"][None, None], 0)[0]
    return dataclasses.replace(data, gold=drawn["O"], log_likelihood=log_likelihood)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Tempered:
    """Inputs from which answers are drawn at beta = 1, to be fitted at another.

    At beta = 1 the fit is right, at any other it is wrong on purpose. Since beta is an array, the
    right fit and the wrong ones are one program.
    """

    data: Figure2Data
    beta: jax.Array

    @classmethod
    def of(cls, data: Figure2Data, beta: float) -> "Tempered":
        return cls(data, jnp.asarray(beta, data.x.dtype))

    def observed(self, drawn: Mapping[str, Any]) -> "Tempered":
        """What fitting sees: these answers, and scores to the power of beta, renormalised."""
        log_p = jax.nn.log_softmax(self.beta * self.data.log_p, 0)
        data = figure2_observed(dataclasses.replace(self.data, log_p=log_p), drawn)
        return Tempered(data, self.beta)


def full_inputs(graph: Graph, sizes: Sizes, *, seed: int = 0) -> FullData:
    """Inputs of the full model that this graph can read. Outcomes are placeholders.

    A graph that composes steps, or whose steps do not see the question, gets reasoning step by
    step, as all the traces that exist: the program's sum over traces is then exact.
    """
    rng = np.random.default_rng(seed)
    N, K, C = sizes.num_tasks, sizes.num_skills, sizes.num_candidates
    none_yet = jnp.zeros(N, jnp.int32)
    outcome: Answers | Steps | Attempts
    if graph.outcome != "answer":
        outcome = Attempts(
            successes=none_yet,
            attempts=jnp.asarray(rng.integers(3, 9, N)),
            log_odds=_float(SHARPNESS * rng.normal(size=(K, N))),
            max_attempts=8,
        )
    elif graph.composition != "trace_mixture" or not graph.g_to_a:
        outcome = _steps(rng, sizes)
    else:
        outcome = Answers(none_yet, *(_scores(rng, C, K, N) for _ in range(4)))
    return FullData(
        outcome=outcome,
        domain=jnp.asarray(np.arange(N) % sizes.num_domains),
        x=_float(rng.normal(size=(N, sizes.num_features))),
        scale=jnp.ones(N, jnp.result_type(float)),
        num_domains=sizes.num_domains,
        num_skills=K,
    )


def full_observed(data: FullData, drawn: Mapping[str, Any]) -> FullData:
    """The same inputs with these outcomes."""
    field = "successes" if isinstance(data.outcome, Attempts) else "gold"
    outcome = dataclasses.replace(data.outcome, **{field: drawn["O"]})
    return dataclasses.replace(data, outcome=outcome)


def _steps(rng: np.random.Generator, sizes: Sizes) -> Steps:
    N, K, C = sizes.num_tasks, sizes.num_skills, sizes.num_candidates
    T, B = sizes.num_steps, sizes.num_choices
    traces = np.indices((B,) * T).reshape(T, -1)  # [T, S], every trace once
    S = traces.shape[1]
    log_pi, blind = np.empty((B, T, S, K, N)), np.empty((B, T, S, K, N))
    for t in range(T):
        # Traces that begin alike have the same probabilities for their next step.
        _, begun = np.unique(traces[:t], axis=1, return_inverse=True)
        begun = np.ravel(begun) if t else np.zeros(S, int)
        shape = (B, begun.max() + 1, K)
        log_pi[:, t] = log_softmax(SHARPNESS * rng.normal(size=(*shape, N)), 0)[:, begun]
        blind[:, t] = log_softmax(SHARPNESS * rng.normal(size=(*shape, 1)), 0)[:, begun]
    return Steps(
        gold=jnp.zeros(N, jnp.int32),
        log_pi=_float(log_pi),
        chosen=jnp.asarray(np.broadcast_to(traces[:, :, None], (T, S, N))),
        used=jnp.ones((T, S, N), jnp.result_type(float)),
        log_weight=jnp.zeros((S, N), jnp.result_type(float)),
        log_p=_scores(rng, C, S, K, N),
        log_p_without_skill=_scores(rng, C, S, N),
        log_pi_without_question=_float(blind),
    )


def _scores(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Log-probabilities in nats, normalised over the first axis."""
    return _float(log_softmax(SHARPNESS * rng.normal(size=shape), 0))


def _float(values: np.ndarray) -> jax.Array:
    return jnp.asarray(values, jnp.result_type(float))
