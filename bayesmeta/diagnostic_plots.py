"""Sampler diagnostics as pictures, made by ArviZ."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def diagnostic_figures(
    datatree: xr.DataTree,
    var_names: Sequence[str] | None = None,
    *,
    num_traces: int = 6,
    num_pairs: int = 4,
) -> dict[str, "Figure"]:
    """ArviZ pictures of the quantities that mixed worst (lowest bulk effective sample size).

    Args:
      datatree: with group ``posterior``, dims (chain, draw, ...), and if the sampler has them
        ``sample_stats`` with ``diverging`` and ``energy``.
      var_names: variables to choose from; all by default.
      num_traces: quantities in the trace and rank pictures.
      num_pairs: quantities in the pair picture.

    Returns:
      Figures by name: ``trace``, ``rank`` (with two chains or more), ``pair`` (divergent draws
      marked), and ``energy``
      where the energy was recorded.
    """
    import arviz as az

    worst = worst_mixing(datatree, var_names, max(num_traces, num_pairs))
    names = [str(name) for name in worst.data_vars]
    groups = {"posterior": worst}
    stats = datatree.children.get("sample_stats")
    if stats is not None:
        groups["sample_stats"] = stats.to_dataset()
    tree = xr.DataTree.from_dict(groups)
    traced = names[:num_traces]
    plots = {
        "trace": az.plot_trace_dist(
            tree,
            var_names=traced,
            compact=False,
            backend="matplotlib",
            figure_kwargs={"figsize": (11, 1.5 * len(traced) + 0.6)},
        ),
    }
    if worst.sizes["chain"] > 1:  # ranks compare chains
        # Its test takes draws for independent, and would reject good chains too often otherwise.
        plots["rank"] = az.plot_rank(
            xr.DataTree.from_dict({"posterior": az.thin(worst[traced])}),
            var_names=traced,
            backend="matplotlib",
            col_wrap=3,
            figure_kwargs={"figsize": (11, 2.4 * -(-len(traced) // 3) + 0.6)},
        )
    if len(names) > 1:
        pair_names = names[:num_pairs]
        side = 2.5 * len(pair_names)
        plots["pair"] = az.plot_pair(
            tree,
            var_names=pair_names,
            backend="matplotlib",
            visuals={
                "scatter": {"alpha": 0.25, "size": 9},
                "divergence": {"color": "#D55E00", "alpha": 1.0, "size": 25}
                if "diverging" in groups.get("sample_stats", {})
                else False,
            },
            figure_kwargs={"figsize": (side, side)},
        )
    if "energy" in groups.get("sample_stats", {}):
        plots["energy"] = az.plot_energy(
            tree, backend="matplotlib", figure_kwargs={"figsize": (11, 2.8)}
        )
    return {
        name: _tidy(plot.viz["figure"].item(), narrow=name == "pair")
        for name, plot in plots.items()
    }


def worst_mixing(
    datatree: xr.DataTree, var_names: Sequence[str] | None = None, limit: int = 6
) -> xr.Dataset:
    """The ``limit`` scalar quantities with the lowest bulk ESS, as variables like ``mu[direct]``.

    Constant quantities have no effective sample size and are left out.
    """
    import arviz as az

    posterior = datatree["posterior"].to_dataset()
    chosen = list(posterior.data_vars) if var_names is None else list(var_names)
    missing = [name for name in chosen if name not in posterior]
    if missing:
        raise ValueError(
            f"the posterior has no variables {missing}; it has {list(posterior.data_vars)}."
        )
    scalars = {}
    for name in chosen:
        array = posterior[name]
        inner = [dim for dim in array.dims if dim not in ("chain", "draw")]
        for index in np.ndindex(*(array.sizes[dim] for dim in inner)):
            place = dict(zip(inner, index, strict=True))
            cell = array.isel(place)
            labels = [
                str(array[dim].values[i]) if dim in array.coords else str(i)
                for dim, i in place.items()
            ]
            if float(cell.max()) > float(cell.min()):
                label = f"{name}[{', '.join(labels)}]" if labels else str(name)
                scalars[label] = cell.drop_vars([c for c in cell.coords if c not in cell.dims])
    if not scalars:
        raise ValueError(f"none of {chosen} varies over the draws, so there is nothing to draw.")
    flat = xr.Dataset(scalars)
    ess = az.ess(flat)
    order = sorted(scalars, key=lambda label: float(ess[label]))
    return flat[order[:limit]]


def _tidy(figure: "Figure", narrow: bool) -> "Figure":
    """Keep labels apart, and take the figure out of pyplot's list so that it is never shown."""
    import matplotlib.pyplot as plt

    plt.close(figure)
    for axis in figure.axes:
        label = axis.get_ylabel()
        if "[" in label:
            lines = label.replace("[", "\n[", 1).replace(", ", ",\n")
            axis.set_ylabel(lines, rotation=0, ha="right", va="center")
        if narrow:
            axis.set_xlabel(axis.get_xlabel().replace("[", "\n[", 1).replace(", ", ",\n"))
    figure.set_layout_engine("constrained")
    return figure
