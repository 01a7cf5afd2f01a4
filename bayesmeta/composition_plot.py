"""What it means to use two skills at once, drawn."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bayesmeta.models.full_data import Steps

_COLOURS = {
    "trace_mixture": "#0072B2",
    "step_composition": "#D55E00",
    "product_of_experts": "#009E73",
}


def composition_curves(
    steps: "Steps", task: int = 0, num_points: int = 41
) -> dict[str, np.ndarray]:
    """Probability of the first answer as the strategy moves from the first skill to the second.

    Args:
      steps: reasoning step by step of K >= 2 skills, answers scored without the instruction.
      task: which of its tasks.
      num_points: how many strategies (1 - t, t, 0, ...) from one vertex to the other.

    Returns:
      Composition -> [num_points] p(answer 0 | F), and ``t`` -> the second skill's share.
    """
    import jax
    import jax.numpy as jnp

    from bayesmeta.models.composition import log_answer

    num_skills = steps.log_pi.shape[3]
    share = np.linspace(0.0, 1.0, num_points)
    strategies = np.zeros((num_points, num_skills))
    strategies[:, 0], strategies[:, 1] = 1 - share, share
    curves = {"t": share}
    for composition in _COLOURS:

        def probability(F, composition=composition):
            log_F = jnp.log(jnp.maximum(F, 1e-30))[:, None] * jnp.ones(steps.gold.shape[0])
            log_p = log_answer(log_F, steps, composition, f_to_o=False, g_to_a=True)
            return jax.nn.softmax(log_p[:, task])[0]

        curves[composition] = np.asarray(jax.vmap(probability)(jnp.asarray(strategies)))
    return curves


def plot_compositions(curves: dict[str, np.ndarray]) -> "Figure":
    """The curves of `composition_curves`: equal at both ends, different between."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for composition, colour in _COLOURS.items():
        label = composition.replace("_", " ")
        axis.plot(curves["t"], curves[composition], color=colour, lw=2.2, label=label)
    for end in (0, -1):
        axis.plot(curves["t"][end], curves["trace_mixture"][end], "o", color="black", zorder=3)
    axis.set_xlabel("share of the second skill in the strategy F")
    axis.set_ylabel("probability of the answer")
    axis.legend(frameon=False)
    return figure
