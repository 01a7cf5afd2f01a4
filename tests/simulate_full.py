"""Small data sets for every reading of Figure 2, drawn from the program itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from bayesmeta.models.figure2_full import figure2_full
from bayesmeta.models.full_data import Answers, Attempts, FullData, Steps
from bayesmeta.models.graph import EVERY_ARROW, LITERAL, LITERAL_ANSWERS, WORKING, Graph
from bayesmeta.models.prior import Prior
from bayesmeta.models.priors import prior_for

#: Every kind of node and every switch at least once.
GRAPHS: dict[str, Graph] = {
    graph.name: graph
    for graph in (
        WORKING,
        LITERAL,
        EVERY_ARROW,
        Graph("reliability", e_to_o="reliability"),
        LITERAL_ANSWERS,
        Graph("without_e", e_to_o="off"),
        Graph("without_skill", f_to_o=False),
        Graph("no_question", g_to_f=False),
        Graph(
            "domain_dirichlet",
            strategy="dirichlet",
            strategy_per="domain",
            g_to_f=False,
        ),
        Graph("steps_mixture", composition="trace_mixture", f_to_o=False),
        Graph("steps", composition="step_composition", strategy="dirichlet", f_to_o=False),
        Graph("steps_in_context", composition="step_composition", strategy="logistic_normal"),
        Graph("steps_blind", composition="step_composition", strategy="dirichlet", g_to_a=False),
        Graph(
            "experts", composition="product_of_experts", strategy="logistic_normal", f_to_o=False
        ),
        Graph("experts_in_context", composition="product_of_experts", strategy="dirichlet"),
        Graph("success", outcome="success", e_to_o="off"),
        Graph(
            "attempts", outcome="success", strategy="dirichlet", skill_per="attempt", i_to_o=True
        ),
        Graph("verifier", outcome="verifier", e_to_o="off"),
        Graph("verifier_abilities", outcome="verifier", i_to_o=True),
    )
}


def simulate_full(
    graph: Graph,
    rng: np.random.Generator,
    *,
    num_tasks: int = 12,
    num_skills: int = 3,
    num_domains: int = 3,
    num_features: int = 1,
    num_candidates: int = 3,
    num_evidence_features: int = 0,
    num_steps: int = 3,
    num_choices: int = 2,
    prior: Prior | None = None,
) -> tuple[FullData, Prior, dict[str, np.ndarray]]:
    """Data of the right kind for a graph, with outcomes drawn from the program.

    Steps are enumerated: the traces are all there are, so that the model is exact.

    Returns the data, the prior, and the sites that were drawn.
    """
    N, K, C = num_tasks, num_skills, num_candidates
    inputs = _log_softmax(1.5 * rng.normal(size=(4, C, K, N)), 1)
    zeros = jnp.zeros(N, jnp.int32)
    if graph.outcome != "answer":
        outcome = Attempts(
            successes=zeros,
            attempts=jnp.asarray(rng.integers(2, 7, N)),
            log_odds=_float(rng.normal(size=(K, N))),
        )
    elif graph.composition != "trace_mixture" or graph.name.startswith("steps") or graph is LITERAL:
        outcome = enumerated_steps(rng, N, K, C, num_steps, num_choices)
    else:
        outcome = Answers(zeros, *(_float(table) for table in inputs))
    e = rng.normal(size=(N, num_evidence_features)) if num_evidence_features else None
    data = FullData(
        outcome=outcome,
        domain=jnp.asarray(np.arange(N) % num_domains),
        x=_float(rng.normal(size=(N, num_features))),
        scale=jnp.ones(N, float),
        num_domains=num_domains,
        num_skills=K,
        e=None if e is None else _float(e),
    )
    prior = prior or prior_for(graph, data)
    key = jax.random.key(int(rng.integers(2**31)))
    sites = draw_everything(key, data, prior, graph)
    return with_outcomes(data, sites["O"]), prior, sites


def draw_everything(key, data: FullData, prior: Prior, graph: Graph) -> dict[str, np.ndarray]:
    """One joint draw of every site, the observed one included."""
    program = handlers.seed(handlers.uncondition(figure2_full), key)
    trace = handlers.trace(program).get_trace(data, prior, graph)
    return {name: site["value"] for name, site in trace.items() if site["type"] != "plate"}


def with_outcomes(data: FullData, outcomes) -> FullData:
    """The same data with other observed outcomes, [N]."""
    field = "successes" if isinstance(data.outcome, Attempts) else "gold"
    return dataclasses.replace(data, outcome=dataclasses.replace(data.outcome, **{field: outcomes}))


def enumerated_steps(
    rng: np.random.Generator, N: int, K: int, C: int, num_steps: int, num_choices: int
) -> Steps:
    """All num_choices ** num_steps traces, steps scored under every skill."""
    traces = np.stack(
        np.meshgrid(*[np.arange(num_choices)] * num_steps, indexing="ij"), -1
    ).reshape(-1, num_steps)
    S = len(traces)
    prefix_tables: dict[tuple[int, ...], np.ndarray] = {}
    blind_tables: dict[tuple[int, ...], np.ndarray] = {}
    log_pi = np.empty((num_choices, num_steps, S, K, N))
    blind = np.empty_like(log_pi)
    for s, trace in enumerate(traces):
        for t in range(num_steps):
            prefix = tuple(trace[:t])
            if prefix not in prefix_tables:
                prefix_tables[prefix] = _log_softmax(rng.normal(size=(num_choices, K, N)), 0)
                blind_tables[prefix] = _log_softmax(rng.normal(size=(num_choices, K, 1)), 0)
            log_pi[:, t, s] = prefix_tables[prefix]
            blind[:, t, s] = blind_tables[prefix]
    return Steps(
        gold=jnp.zeros(N, jnp.int32),
        log_pi=_float(log_pi),
        chosen=jnp.asarray(np.broadcast_to(traces.T[:, :, None], (num_steps, S, N))),
        used=jnp.ones((num_steps, S, N), float),
        log_weight=jnp.zeros((S, N), float),
        log_p=_float(_log_softmax(1.5 * rng.normal(size=(C, S, K, N)), 0)),
        log_p_without_skill=_float(_log_softmax(1.5 * rng.normal(size=(C, S, N)), 0)),
        log_pi_without_question=_float(blind),
    )


def _log_softmax(values: np.ndarray, axis: int) -> np.ndarray:
    from scipy.special import log_softmax

    return log_softmax(values, axis=axis)


def _float(values) -> jax.Array:
    return jnp.asarray(values, float)
