"""What it means to use two skills at once, drawn."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bayesmeta.models.full_data import Steps

_COLOURS = {
    "trace_mixture": "#0072B2",
    "step_composition": "#D55E00",
    "product_of_experts": "#009E73",
}


def composition_curves(steps: "Steps", task: int = 0, num_points: int = 41) -> pd.DataFrame:
    """How the three compositions differ as the strategy moves from the first skill to the second.

    Args:
      steps: all traces of K >= 2 skills, answers scored without the instruction.
      task: which of its tasks.
      num_points: how many strategies (1 - share, share, 0, ...) from one vertex to the other.

    Returns:
      One row per composition and strategy: ``composition``, ``share`` of the second skill,
      ``answer`` (probability of the first candidate) and ``distance`` (total variation between
      the distribution of traces and that under the trace mixture).
    """
    import jax
    import jax.numpy as jnp

    from bayesmeta.models.composition import log_answer

    num_skills, num_traces = steps.log_pi.shape[3], steps.log_weight.shape[0]
    # Asking each trace to name itself turns the distribution of answers into that of traces.
    identity = jnp.where(jnp.eye(num_traces, dtype=bool), 0.0, -1e9)[:, :, None]
    itself = dataclasses.replace(
        steps,
        log_p_without_skill=jnp.broadcast_to(identity, (*identity.shape[:2], len(steps.gold))),
    )
    share = np.linspace(0.0, 1.0, num_points)
    strategies = np.zeros((num_points, num_skills))
    strategies[:, 0], strategies[:, 1] = 1 - share, share

    def probabilities(F, table, composition):
        log_F = jnp.log(jnp.maximum(F, 1e-30))[:, None] * jnp.ones(len(steps.gold))
        log_p = log_answer(log_F, table, composition, f_to_o=False, g_to_a=True)
        return jax.nn.softmax(log_p[:, task])

    over = jax.vmap(probabilities, (0, None, None))
    traces = {c: np.asarray(over(jnp.asarray(strategies), itself, c)) for c in _COLOURS}
    rows = [
        pd.DataFrame(
            {
                "composition": composition,
                "share": share,
                "answer": np.asarray(over(jnp.asarray(strategies), steps, composition))[:, 0],
                "distance": np.abs(traces[composition] - traces["trace_mixture"]).sum(1) / 2,
            }
        )
        for composition in _COLOURS
    ]
    return pd.concat(rows, ignore_index=True)


def plot_compositions(curves: pd.DataFrame) -> "Figure":
    """The curves of `composition_curves`: equal at both ends, different between."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    panels = {
        "answer": "probability of the first answer",
        "distance": "distance of traces\nfrom the trace mixture (TV)",
    }
    for axis, (column, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for composition, colour in _COLOURS.items():
            own = curves[curves["composition"] == composition]
            name = composition.replace("_", " ")
            axis.plot(own["share"], own[column], color=colour, lw=2.2, label=name)
            ends = own.iloc[[0, -1]]
            axis.plot(ends["share"], ends[column], "o", color="black", ms=5, zorder=3)
        axis.set_xlabel("share of the second skill in the strategy F")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    figure.axes[0].legend(frameon=False)
    return figure
