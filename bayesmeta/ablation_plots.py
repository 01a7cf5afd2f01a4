"""Pictures of an ablation: what a change of prior does to scores, strategies and certainty.

As in `bayesmeta.plots`: matplotlib figures that are never shown, in colours that readers with any
common colour blindness can tell apart.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bayesmeta.plots import _GREY, PALETTE, _figure, _style, _wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Sensitivities above this are worth a look (Kallioinen et al. 2024).
SENSITIVE = 0.05
_MARKERS = "osD^vPX*<>"


def elpd_differences(table: pd.DataFrame) -> "Figure":
    """Forest plot of the elpd minus the base's, by leave-one-out and by held-out domain (2 SE).

    Args:
      table: from `bayesmeta.ablation.ablate`. Cells that did not converge are drawn hollow.
    """
    panels = [
        ("elpd_diff", "each task left out"),
        ("elpd_domain_diff", "each domain left out"),
    ]
    panels = [panel for panel in panels if np.isfinite(table[panel[0]].to_numpy(float)).any()]
    labels = _labels(table)
    with _style():
        figure = _figure(4.8 * len(panels) + 2.6, 0.44 * len(table) + 1.9)
        axes = figure.subplots(1, max(len(panels), 1), sharey=True, squeeze=False).ravel()
        for axis, (column, title) in zip(axes, panels, strict=False):
            _forest(axis, table, column)
            axis.set_title(title)
            axis.set_xlabel("elpd minus the base's (nats; bars: ±2 SE)")
        axes[0].set_yticks(range(len(table)), [_wrap(label, 34) for label in labels])
        axes[0].set_ylim(len(table) - 0.5, -0.5)
    return figure


def strategies(
    draws: Mapping[str, np.ndarray],
    domains: Sequence[str],
    skills: Sequence[str],
    num_domains: int = 4,
) -> "Figure":
    """Strategy of some domains under each prior: mean and 90 % interval of every skill's weight.

    Args:
      draws: prior -> [draws, D, K] weights.
      domains, skills: the D and K names.
      num_domains: how many domains to draw: those on which the priors disagree most.
    """
    for name, values in draws.items():
        if values.shape[1:] != (len(domains), len(skills)):
            raise ValueError(
                f"draws of {name!r} must have shape [draws, {len(domains)}, {len(skills)}], "
                f"got {values.shape}."
            )
    means = np.stack([values.mean(0) for values in draws.values()])
    spread = np.ptp(means, axis=0).max(-1)
    shown = np.sort(np.argsort(-spread, kind="stable")[:num_domains])
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    step = 0.8 / max(len(draws), 1)
    with _style():
        height = rows * (len(skills) * (0.13 * len(draws) + 0.25) + 0.8) + 1.4
        figure = _figure(5.6 * columns + 1.4, height)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis, d in zip(axes, shown, strict=False):
            for i, (name, values) in enumerate(draws.items()):
                place = np.arange(len(skills)) - 0.4 + step * (i + 0.5)
                low, high = np.quantile(values[:, d], [0.05, 0.95], axis=0)
                colour = PALETTE[i % len(PALETTE)]
                axis.hlines(place, low, high, color=colour, lw=2, alpha=0.7)
                axis.plot(
                    values[:, d].mean(0),
                    place,
                    _MARKERS[i % len(_MARKERS)],
                    color=colour,
                    ms=6,
                    mec="white",
                    mew=0.7,
                    label=_wrap(name, 40),
                )
            for k in range(1, len(skills)):
                axis.axhline(k - 0.5, color="#E5E5E5", lw=1, zorder=0)
            axis.axvline(1 / len(skills), color=_GREY, ls=":", lw=1.5, zorder=0)
            axis.set_title(_wrap(domains[d], 40))
            axis.set_yticks(range(len(skills)), [_wrap(skill, 22) for skill in skills])
            axis.set(xlim=(-0.03, 1.03), ylim=(len(skills) - 0.5, -0.5))
            axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        figure.supxlabel(
            "weight of the skill   (mean and 90 % interval; dotted: uniform)", fontsize=13
        )
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=min(len(draws), 4),
            frameon=False,
        )
    return figure


def certainty(table: pd.DataFrame) -> "Figure":
    """Two heat maps of cells by sites: how far data narrowed the prior, and how much it matters.

    Left: contraction 1 - Var_post / Var_prior, 1 where data decide everything. Right: sensitivity
    to scaling the prior by a power, in bold where it is above 0.05.
    """
    labels = [_wrap(label, 34) for label in _labels(table)]
    with _style():
        sites = [c.removeprefix("contraction_") for c in table if c.startswith("contraction_")]
        width = 1.05 * len(sites)
        figure = _figure(2 * width + 6.4, 0.5 * len(table) + 1.9)
        left, right = figure.subplots(1, 2, sharey=True)
        for axis, kind, title, top in (
            (left, "contraction", "contraction (1: data decide)", 1.0),
            (right, "sensitivity", "sensitivity to the prior", 4 * SENSITIVE),
        ):
            values = table[[f"{kind}_{site}" for site in sites]].to_numpy(float)
            image = axis.imshow(values, cmap="cividis", aspect="auto", vmin=0.0, vmax=top)
            for (row, column), value in np.ndenumerate(values):
                axis.text(
                    column,
                    row,
                    f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–",
                    ha="center",
                    va="center",
                    color="black" if not np.isfinite(value) or value > 0.55 * top else "white",
                    fontweight="bold" if kind == "sensitivity" and value > SENSITIVE else "normal",
                )
            axis.set_xticks(range(len(sites)), sites)
            axis.tick_params(length=0)
            axis.set_title(title)
            figure.colorbar(image, ax=axis, extend="max" if kind == "sensitivity" else "min")
        left.set_yticks(range(len(table)), labels)
    return figure


def _forest(axis: "Axes", table: pd.DataFrame, column: str) -> None:
    rows = zip(table[column], table[f"{column}_se"], table["status"], strict=True)
    for place, (value, error, status) in enumerate(rows):
        if not np.isfinite(value):
            axis.text(0, place, "  not finite", va="center", color=_GREY)
            continue
        colour = (
            PALETTE[1] if value - 2 * error > 0 else PALETTE[0] if value + 2 * error < 0 else _GREY
        )
        axis.errorbar(
            value,
            place,
            xerr=2 * error if np.isfinite(error) else None,
            fmt="o",
            mfc=colour if status == "converged" else "white",
            color=colour,
            ms=8,
            lw=2.5,
            capsize=4,
        )
    axis.axvline(0, color="black", lw=1.5)
    axis.grid(axis="x", color="#E5E5E5")
    axis.set_axisbelow(True)


def _labels(table: pd.DataFrame) -> list[str]:
    """What tells the cells apart: the prior, and whatever else varies in the grid."""
    labels = []
    varying = [c for c in ("graph", "seed", "evidence") if len(set(table[c])) > 1]
    for row in table.to_dict("records"):
        others = [f"seed {row[c]}" if c == "seed" else str(row[c]) for c in varying]
        labels.append(", ".join([str(row["prior"]), *others]))
    return labels
