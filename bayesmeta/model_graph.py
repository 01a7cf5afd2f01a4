"""Figure 2 of Yan et al. (ICML 2025) drawn with matplotlib: no graphviz needed."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"

#: name: (x, y, label, caption, caption side, kind)
_NODES = {
    "Theta_I": (1.3, 8.6, r"$\Theta_I$", "slow parameters", "left", "latent"),
    "Theta_E": (6.7, 8.6, r"$\Theta_E$", "fast parameters", "right", "latent"),
    "I": (2.7, 6.9, "$I$", "internal view", "left", "latent"),
    "E": (5.3, 6.9, "$E$", "external view", "right", "latent"),
    "F": (4.0, 5.3, "$F$", "strategy", "left", "latent"),
    "A": (4.0, 3.4, "$A$", "reasoning", "left", "summed"),
    "O": (4.0, 1.6, "$O$", "outcome", "left", "observed"),
    "G": (6.1, 1.6, "$G$", "goal", "right", "observed"),
}

#: source, target, kind, curvature
_EDGES = (
    ("Theta_I", "I", "solid", 0.0),
    ("Theta_E", "E", "solid", 0.0),
    ("I", "F", "solid", 0.0),
    ("E", "F", "solid", 0.0),
    ("F", "A", "solid", 0.0),
    ("A", "O", "solid", 0.0),
    ("E", "O", "solid", -0.22),
    ("G", "O", "solid", 0.0),
    ("O", "F", "learning", -1.0),
    ("F", "I", "learning", -0.45),
    ("F", "E", "learning", 0.45),
)
_ADDED = (("G", "F", "added", 0.16), ("G", "A", "added", 0.0))


def model_graph(literal: bool = False) -> "Figure":
    """The graph as a matplotlib figure.

    Args:
      literal: draw only the edges of the published figure. Otherwise also the two that this
        package adds: from the goal (the question and its features) to strategy and reasoning,
        without which neither could depend on the question.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

    figure = Figure(figsize=(8.6, 9.6), layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(-0.7, 8.9), ylim=(-1.7, 9.3), aspect="equal")
    axis.axis("off")
    for (x, y, width, height), label in (
        ((0.1, -0.35, 7.9, 8.1), "meta-level: domains $m = 1 … M$"),
        ((1.4, 0.45, 6.3, 3.75), "task-level: tasks $n = 1 … N$"),
    ):
        axis.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.25",
                fill=False,
                ec=_GREY,
                lw=1.8,
            )
        )
        axis.text(
            x + width - 0.15, y + 0.14, label, ha="right", va="bottom", fontsize=13, color=_GREY
        )
    styles = {
        "solid": {"color": "black", "lw": 1.8, "ls": "-"},
        "learning": {"color": _ORANGE, "lw": 1.8, "ls": (0, (5, 3))},
        "added": {"color": _BLUE, "lw": 1.8, "ls": (0, (1, 1.5))},
    }
    circles = {}
    for name, (x, y, label, caption, side, kind) in _NODES.items():
        circle = Circle(
            (x, y),
            0.46,
            fc="#D9D9D9" if kind == "observed" else "white",
            ec="black",
            lw=1.8,
            zorder=3,
        )
        axis.add_patch(circle)
        circles[name] = circle
        if kind == "summed":
            axis.add_patch(Circle((x, y), 0.38, fill=False, ec="black", lw=1.0, zorder=4))
        axis.text(x, y, label, ha="center", va="center", fontsize=19, zorder=5)
        shift = -0.6 if side == "left" else 0.6
        axis.text(
            x + shift,
            y,
            caption,
            ha="right" if side == "left" else "left",
            va="center",
            fontsize=13,
            zorder=6,
        )
    for source, target, kind, curve in _EDGES + (() if literal else _ADDED):
        axis.add_patch(
            FancyArrowPatch(
                _NODES[source][:2],
                _NODES[target][:2],
                patchA=circles[source],
                patchB=circles[target],
                shrinkA=0,
                shrinkB=0,
                arrowstyle="-|>",
                mutation_scale=19,
                connectionstyle=f"arc3,rad={curve}",
                zorder=2,
                **styles[kind],
            )
        )
    legend = [
        (styles["solid"], "generates"),
        (styles["learning"], "meta-reflection: the posterior update"),
        *([] if literal else [(styles["added"], "added here: the question informs both")]),
    ]
    handles = [Line2D([], [], label=label, **style) for style, label in legend]
    marker = {"marker": "o", "ls": "", "mec": "black", "ms": 13}
    handles += [
        Line2D([], [], label="observed", mfc="#D9D9D9", **marker),
        Line2D([], [], label="latent (double ring: summed out)", mfc="white", **marker),
    ]
    axis.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.115),
        ncols=2,
        frameon=False,
        fontsize=12,
    )
    return figure


def model_graph_svg(literal: bool = False) -> str:
    """The graph as a self-contained SVG document."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "bayesmeta"}):
        model_graph(literal).savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
