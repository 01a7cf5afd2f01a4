"""Which skill was it? From observed reasoning to a posterior over the skills behind it.

found = infer_skills(steps)                  # steps from observe_steps
found.traces                                 # a row a trace: a probability for each skill
explain_traces(found.tree, other_steps)      # what was learned, applied to other traces
"""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from bayesmeta.posterior import group
from bayesmeta.posterior_tree import datatree
from bayesmeta.trace_data import Traces, read_traces

if TYPE_CHECKING:
    from bayesmeta.models.prior import Prior

DIMS = {
    "u": ["contrast"],
    "mu": ["skill"],
    "F": ["skill"],
    "steps": ["trace", "step"],
    "chosen": ["trace", "step"],
    "seen": ["trace", "step"],
}


class TraceWarning(UserWarning):
    """The traces say less than they seem to."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TracesExplained:
    """What was behind each trace, averaged over the posterior of the parameters.

    Attributes:
      traces: a row for each trace: ``task``, ``trace``, ``drawn_under``; the probability of every
        skill under its name (of the skill of a step chosen at random, where skills switch);
        ``most_probable``; ``log_evidence``, the log posterior predictive of its steps, nats.
      steps: probabilities [trace, step, skill].
      paths: [trace, step] indices of skills: the most probable path at the posterior mean.
      goals: a row for each trace and a column for each goal; one column of ones if goals are known.
      tree: the fit, for ArviZ; its attribute ``status`` says whether to believe it.
      flags: what the traces cannot say, in words.
    """

    traces: pd.DataFrame
    steps: xr.DataArray
    paths: xr.DataArray
    goals: pd.DataFrame
    tree: xr.DataTree
    flags: tuple[str, ...]


def infer_skills(
    steps: xr.Dataset | Traces,
    prior: "Prior | None" = None,
    *,
    outcomes: bool = False,
    engine: Literal["nuts", "pyro_nuts"] = "nuts",
    rng_seed: int = 0,
    **settings: Any,
) -> TracesExplained:
    """Infer the skills, the rationality and the goals behind traces (math.md section 5.5).

    Args:
      steps: see `bayesmeta.trace_data.read_traces`.
      prior: by default `bayesmeta.models.inverse_planning.STATIC`, one skill a trace; with
        ``SWITCHING`` skills change between steps.
      outcomes: let the answers that were given speak for skills too, see `read_traces`.
      engine: ``"nuts"``, or ``"pyro_nuts"`` for the same model in Pyro.
      rng_seed, settings: see `bayesmeta.inference.nuts.nuts`.

    Warns:
      TraceWarning: traces without steps, or steps without alternatives.

    Raises:
      EvidenceError: the steps are unsound.
      ValueError: the engine or the prior is none.
    """
    from bayesmeta.models.inverse_planning import STATIC

    known = steps if isinstance(steps, Traces) else read_traces(steps, outcomes=outcomes)
    for flag in known.flags:
        warnings.warn(flag, TraceWarning, stacklevel=2)
    prior = STATIC if prior is None else prior
    model_args: tuple[Any, ...] = (known.data, prior)
    language: Literal["numpyro", "pyro"] = "numpyro"
    if engine == "pyro_nuts":
        from bayesmeta.inference.pyro_nuts import pyro_nuts as run
        from bayesmeta.models.inverse_planning_pyro import inverse_planning
        from bayesmeta.models.pyro_data import to_torch

        model_args, language = to_torch(model_args), "pyro"
    elif engine == "nuts":
        from bayesmeta.inference.nuts import nuts as run
        from bayesmeta.models.inverse_planning import inverse_planning
    else:
        raise ValueError(f"engine must be 'nuts' or 'pyro_nuts', got {engine!r}.")
    result = run(inverse_planning, *model_args, rng_seed=rng_seed, **settings)
    tree = datatree(
        result,
        inverse_planning,
        model_args,
        observed={"steps": known.data.chosen},
        constant={"seen": known.data.seen},
        coords={"skill": list(known.skill), "trace": _labels(known)},
        dims=DIMS,
        attributes={"model": "inverse_planning", "prior": prior.to_json()},
        language=language,
    )
    return explain_traces(tree, known)


def explain_traces(
    tree: xr.DataTree, steps: xr.Dataset | Traces, *, outcomes: bool = False
) -> TracesExplained:
    """What is behind traces, by a fit to these or to others.

    Args:
      tree: of `infer_skills`.
      steps: traces scored under the same skills.
      outcomes: see `infer_skills`.

    Raises:
      EvidenceError: the steps are unsound.
      ValueError: skills are not those of the fit.
    """
    import jax
    import jax.numpy as jnp

    from bayesmeta.models.inverse_planning import explain

    known = steps if isinstance(steps, Traces) else read_traces(steps, outcomes=outcomes)
    posterior = group(tree, "posterior")
    fitted = tuple(map(str, posterior["skill"].values))
    if fitted != known.skill:
        raise ValueError(
            f"steps are scored under the skills {list(known.skill)}, and the fit has "
            f"{list(fitted)}. Score them under the same skills, in that order."
        )
    real = known.data.log_q.dtype
    draws = {
        name: jnp.asarray(np.asarray(posterior[name]).reshape(-1, *posterior[name].shape[2:]), real)
        for name in ("mu", "beta_a", "switch")
        if name in posterior
    }

    def one(draw):
        weight = jax.nn.log_softmax(draw["mu"])
        return explain(known.data, weight, draw["beta_a"], draw.get("switch"))

    @jax.jit
    def average(draws):
        def step(total, draw):
            found = one(draw)
            evidence = jnp.logaddexp(total[2], found.log_evidence)
            goal, skill = total[0] + jnp.exp(found.log_goal), total[1] + jnp.exp(found.log_skill)
            return (goal, skill, evidence), None

        first = one(jax.tree.map(lambda leaf: leaf[0], draws))
        start = (jnp.zeros_like(first.log_goal), jnp.zeros_like(first.log_skill))
        start = (*start, jnp.full_like(first.log_evidence, -jnp.inf))
        (goal, skill, evidence), _ = jax.lax.scan(step, start, draws)
        count = len(draws["beta_a"])
        middle = one(jax.tree.map(lambda leaf: leaf.mean(0), draws))
        return goal / count, skill / count, evidence - jnp.log(count), middle.path

    goal, skill, evidence, path = map(np.asarray, average(draws))
    labels, seen = _labels(known), np.asarray(known.data.seen)
    # Where nothing was seen the first step's skill, which nothing moved, stands for the trace.
    share = np.where(seen.any(1)[:, None], seen, np.arange(seen.shape[1]) == 0)
    by_trace = (skill * share[..., None]).sum(1) / share.sum(1, keepdims=True)
    traces = pd.DataFrame(
        {
            "task": known.task,
            "trace": known.number,
            "drawn_under": known.drawn_under,
            **{name: by_trace[:, k] for k, name in enumerate(known.skill)},
            "most_probable": [known.skill[int(k)] for k in by_trace.argmax(1)],
            "log_evidence": evidence,
        },
        index=pd.Index(labels, name="label"),
    )
    coords = {"trace": labels, "skill": list(known.skill)}
    return TracesExplained(
        traces,
        xr.DataArray(skill, coords, ("trace", "step", "skill"), "skill_probability"),
        xr.DataArray(path, {"trace": labels}, ("trace", "step"), "path"),
        pd.DataFrame(goal, index=traces.index, columns=list(known.goal)),
        tree,
        known.flags,
    )


def _labels(known: Traces) -> list[str]:
    return [f"{task}/{number}" for task, number in zip(known.task, known.number, strict=True)]
