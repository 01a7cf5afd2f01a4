"""Cells of the table of proofs for learning and for observed reasoning.

Inverse planning (static and switching), Bradley-Terry rewards, which skill solves which task, and
Figure 2's working model when its evidence comes in episodes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmeta.models.bradley_terry import BRADLEY_TERRY, PreferenceData, bradley_terry
from bayesmeta.models.inverse_planning import STATIC, SWITCHING, TraceData, inverse_planning
from bayesmeta.models.prior import Prior
from bayesmeta.models.solvability import SCALE_OF, SOLVABILITY, SolvabilityData, solvability
from bayesmeta.proof_cells import (
    REPLICATIONS,
    Case,
    ProofCell,
    Tier,
    batched,
    figure2_program,
    only_full,
)
from bayesmeta.proof_data import SHARPNESS, Sizes, Tempered, figure2_inputs

#: Traces and steps; skills and candidates come with `Sizes`.
_TRACES = Sizes(num_tasks=30, num_skills=3, num_candidates=3, num_steps=6)
_TINY_TRACES = Sizes(num_tasks=4, num_skills=3, num_candidates=3, num_steps=4)

_NUM_EPISODES = 3


def cells() -> list[ProofCell]:
    """In the order of the table."""
    static = ProofCell(
        "inverse planning, static",
        "nuts",
        _planning(STATIC),
        batched(),
        sizes=_TRACES,
        tiny=_TINY_TRACES,
        replications=dict[Tier, int | None](REPLICATIONS),
        ranked=("F[0]",),
        source=__name__,
    )
    return [
        static,
        dataclasses.replace(
            static,
            model="inverse planning, switching",
            case=_planning(SWITCHING),
            replications=only_full(200),
            minutes=6.0,
        ),
        dataclasses.replace(
            static,
            model="inverse planning, steps counted twice",
            case=_planning(STATIC, twice=True),
            replications=only_full(200),
            must_fail=True,
            note="each trace's likelihood squared",
        ),
        ProofCell(
            "bradley_terry",
            "nuts",
            _preferences,
            batched(),
            sizes=Sizes(num_tasks=150, num_skills=5, num_domains=2),
            tiny=Sizes(num_tasks=12, num_skills=3, num_domains=2),
            replications=only_full(200),
            ranked=("R[0]", "a[0]"),
            source=__name__,
        ),
        ProofCell(
            "solvability",
            "nuts",
            _solvability,
            # Long trajectories and a costly density: fewer together wait less for the longest.
            batched(*SCALE_OF, num_samples=1500, at_once=20),
            sizes=Sizes(num_tasks=60, num_domains=4),
            tiny=Sizes(num_tasks=5, num_domains=3),
            replications=only_full(200),
            tolerance=1e-3,
            ranked=("eta[0,0]",),
            source=__name__,
            minutes=15.0,
            note="difficulty by quadrature: compared with a fine grid",
        ),
        ProofCell(
            "figure2, evidence in episodes",
            "streaming",
            _episodes,
            lambda: in_episodes(_NUM_EPISODES),
            replications=only_full(200),
            vouched_only=True,
            source=__name__,
            note=f"{_NUM_EPISODES} episodes, nothing forgotten",
        ),
    ]


def _planning(prior: Prior, twice: bool = False) -> Callable[[Sizes], Case]:
    def model(inputs: TraceData) -> None:
        inverse_planning(inputs, prior)

    def observed(inputs: TraceData, found: Mapping[str, Any]) -> TraceData:
        data = dataclasses.replace(inputs, chosen=found["steps"])
        return _repeated(data) if twice else data

    def case(sizes: Sizes) -> Case:
        from bayesmeta.proof_enumeration_reasoning import inverse_planning_log_joint

        def enumeration(sites: Mapping[str, Any], data: TraceData) -> float:
            return inverse_planning_log_joint(sites, data, prior)

        return Case(model, trace_inputs(sizes), observed, None if twice else enumeration)

    return case


def trace_inputs(sizes: Sizes, seed: int = 0) -> TraceData:
    """States with known goals; some traces are short, and some steps hidden. What is chosen is a
    placeholder."""
    rng = np.random.default_rng(seed)
    N, T, B, K = sizes.num_tasks, sizes.num_steps, sizes.num_candidates, sizes.num_skills
    real = jnp.result_type(float)
    log_q = jax.nn.log_softmax(jnp.asarray(SHARPNESS * rng.normal(size=(N, 1, T, B, K)), real), 3)
    seen = np.arange(T) < rng.integers(2, T + 1, N)[:, None]
    seen[:, 1] &= rng.random(N) > 0.2
    return TraceData(
        log_q=log_q,
        chosen=jnp.zeros((N, T), jnp.int32),
        seen=jnp.asarray(seen),
        log_goal=jnp.zeros((N, 1), real),
        log_outcome=jnp.zeros((N, 1, K), real),
    )


def _repeated(data: TraceData) -> TraceData:
    """Every trace twice in a row, as if it had been seen twice."""
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), data)


def _preferences(sizes: Sizes) -> Case:
    from bayesmeta.proof_enumeration_reasoning import bradley_terry_log_joint

    rng = np.random.default_rng(0)
    C, K, J = sizes.num_tasks, sizes.num_skills, sizes.num_domains
    one = rng.integers(0, K, C)
    two = (one + rng.integers(1, K, C)) % K
    real = jnp.result_type(float)
    data = PreferenceData(
        item_1=jnp.asarray(one),
        item_2=jnp.asarray(two),
        winner=jnp.zeros(C, jnp.int32),
        judge=jnp.asarray(np.arange(C) % J),
        order=jnp.asarray(rng.choice([-1.0, 1.0], C), real),
        x=jnp.asarray(rng.normal(size=(C, sizes.num_features)), real),
        num_items=K,
        num_judges=J,
    )
    return Case(
        bradley_terry,
        data,
        lambda data, found: dataclasses.replace(data, winner=found["winner"]),
        lambda sites, data: bradley_terry_log_joint(sites, data, BRADLEY_TERRY),
    )


def _solvability(sizes: Sizes) -> Case:
    from bayesmeta.proof_enumeration_reasoning import solvability_log_joint

    rng = np.random.default_rng(0)
    N, K, D = sizes.num_tasks, sizes.num_skills, sizes.num_domains
    real = jnp.result_type(float)
    data = SolvabilityData(
        correct=jnp.zeros((N, K), jnp.int32),
        tried=jnp.asarray(rng.integers(1, 4, (N, K))),
        domain=jnp.asarray(np.arange(N) % D),
        x=jnp.asarray(rng.normal(size=(N, sizes.num_features)), real),
        weight=jnp.ones(N, real),
        num_domains=D,
        max_attempts=3,
    )
    return Case(
        solvability,
        data,
        lambda data, found: dataclasses.replace(data, correct=found["y"].astype(jnp.int32)),
        lambda sites, data: solvability_log_joint(sites, data, SOLVABILITY),
    )


def _episodes(sizes: Sizes) -> Case:
    """The working model; another cell compares it with enumeration."""
    model, _ = figure2_program(False)
    return Case(model, Tempered.of(figure2_inputs(sizes), 1.0), Tempered.observed)


def in_episodes(num_episodes: int) -> Callable[..., Any]:
    """An engine that takes in tasks 0, E, 2E, ..., then 1, E + 1, ..., and so on.

    What it returns are draws of the belief after the last episode, with the worst status of all.
    """
    from bayesmeta.inference.sbc import one_by_one
    from bayesmeta.inference.streaming import Stream

    streams: dict[Any, Stream] = {}  # compiled once for all replications

    def fit(program, drawn, data, *, rng_seed):
        if program not in streams:
            streams[program] = Stream.of(
                program, drawn, data, decenter=("v",), gaussianise=("tau_E",)
            )
        stream, state, results = streams[program], None, []
        turn = jnp.arange(data.data.x.shape[0]) % num_episodes
        for episode in range(num_episodes):
            scale = jnp.where(turn == episode, data.data.scale, 0.0)
            part = dataclasses.replace(data, data=dataclasses.replace(data.data, scale=scale))
            state, result = stream.update(state, drawn, part, rng_seed=rng_seed)
            results.append(result)
        assert state is not None
        sites = stream.sites(state, drawn, data, num_samples=990, rng_seed=rng_seed)
        worst = next((r.status for r in results if not r.status.converged), results[-1].status)
        return dataclasses.replace(results[-1], samples=sites, status=worst)

    return one_by_one(fit)
