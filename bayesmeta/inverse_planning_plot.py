"""Pictures of what was inferred about traces."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bayesmeta.inverse_planning import TracesExplained


def confusion_plot(matrices: Mapping[str, np.ndarray], names: Sequence[str]) -> "Figure":
    """Who is taken for whom, one panel for each way of telling.

    Args:
      matrices: title -> [true, inferred] mean probability.
      names: of the skills.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(matrices), figsize=(4.2 * len(matrices), 4), squeeze=False, layout="constrained"
    )
    for number, (axis, (title, matrix)) in enumerate(zip(axes[0], matrices.items(), strict=True)):
        axis.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        for (i, j), value in np.ndenumerate(matrix):
            colour = "white" if value > 0.55 else "#333333"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_yticks(range(len(names)), names if number == 0 else [""] * len(names))
        axis.set_xlabel("inferred skill")
        axis.set_title(title)
    axes[0][0].set_ylabel("skill that wrote the trace")
    plt.close(figure)
    return figure


def trace_plot(found: "TracesExplained", label: str, steps: Sequence[str]) -> "Figure":
    """The skill of each step of one trace, beside what was written.

    Args:
      found: of `bayesmeta.inverse_planning.infer_skills`.
      label: the trace, as in ``found.traces``.
      steps: what was written in each step.
    """
    import matplotlib.pyplot as plt

    table = found.steps.sel(trace=label).to_numpy()[: len(steps)]
    names = list(map(str, found.steps["skill"].values))
    figure, axis = plt.subplots(figsize=(8, 0.7 + 0.6 * len(steps)), layout="constrained")
    left = np.zeros(len(steps))
    for k, name in enumerate(names):
        axis.barh(range(len(steps)), table[:, k], left=left, label=name, color=f"C{k}")
        left += table[:, k]
    written = [text.strip() or "(end)" for text in steps]
    axis.set_yticks(range(len(steps)), [t[:60] + ("…" if len(t) > 60 else "") for t in written])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="probability of the skill behind the step")
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False)
    plt.close(figure)
    return figure
