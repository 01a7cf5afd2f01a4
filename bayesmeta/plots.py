"""Pictures of strategies, calibration and comparisons, as matplotlib figures that are never shown.

Every function returns a `matplotlib.figure.Figure` made without pyplot, so that nothing global
changes and nothing has to be closed. Colours are those of Okabe & Ito (2008), which readers with
any common colour blindness can tell apart; text is large enough for a slide.
"""

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayesmeta.heldout import POSTERIOR
from bayesmeta.metrics import CalibrationCurve
from bayesmeta.skill_scores import SkillScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D00")
_MARKERS = "osD^vPX*"
_GREY = "#666666"


def strategy_weights(
    draws: np.ndarray, domains: Sequence[str], skills: Sequence[str], by: str = "domain"
) -> "Figure":
    """Posterior of the strategy in each domain: mean as a dot, 50 % and 90 % intervals as bars.

    Args:
      draws: [draws, D, K] weights that sum to one over K.
      by: ``"domain"`` for one panel per domain with the skills as rows, or ``"skill"`` for the
        reverse.
    """
    draws = np.asarray(draws)
    if draws.ndim != 3 or draws.shape[1:] != (len(domains), len(skills)):
        raise ValueError(
            f"draws must have shape [draws, {len(domains)}, {len(skills)}], got {draws.shape}."
        )
    if by not in ("domain", "skill"):
        raise ValueError(f'by must be "domain" or "skill", got {by!r}.')
    panels, rows = (domains, skills) if by == "domain" else (skills, domains)
    values = draws if by == "domain" else draws.swapaxes(1, 2)
    low90, low50, high50, high90 = np.quantile(values, [0.05, 0.25, 0.75, 0.95], axis=0)
    mean = values.mean(axis=0)
    columns = min(len(panels), 4)
    height = -(-len(panels) // columns)
    with _style():
        figure = _figure(3.1 * columns + 1.4, height * (0.36 * len(rows) + 0.9) + 0.8)
        axes = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).ravel()
        place = np.arange(len(rows))
        for i, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
            for k in range(len(rows)):
                colour = PALETTE[(k if by == "domain" else i) % len(PALETTE)]
                axis.plot([low90[i, k], high90[i, k]], [k, k], color=colour, lw=2)
                axis.plot([low50[i, k], high50[i, k]], [k, k], color=colour, lw=6, alpha=0.55)
                axis.plot(mean[i, k], k, "o", color=colour, ms=7, mec="white", mew=1)
            axis.axvline(1 / len(skills), color=_GREY, ls=":", lw=1.5, zorder=0)
            axis.set_title(_wrap(panel, 24))
            axis.set_yticks(place, [_wrap(row, 22) for row in rows])
            axis.set(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5))
            axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            if i + columns >= len(panels):  # the lowest panel of its column
                axis.tick_params(labelbottom=True)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        figure.supxlabel(
            "weight of the skill   (dot: posterior mean; bars: 50 % and 90 %; dotted: uniform)",
            fontsize=13,
        )
    return figure


def calibration(curves: Mapping[str, CalibrationCurve], title: str = "") -> "Figure":
    """Frequency against confidence, one panel per predictor, over the band of perfect calibration.

    Points far outside the band show miscalibration that chance does not explain; one point in
    ten lies outside anyway.
    """
    with _style():
        figure = _figure(5.0 * max(len(curves), 1), 5.0)
        axes = figure.subplots(1, max(len(curves), 1), sharey=True, squeeze=False).ravel()
        for axis, (name, curve) in zip(axes, curves.items(), strict=True):
            axis.plot([0, 1], [0, 1], ls=":", color=_GREY, lw=1.5)
            axis.fill_between(
                curve.confidence,
                curve.null_lower,
                curve.null_upper,
                color="#CCCCCC",
                lw=0,
                label="90 % if perfectly calibrated",
            )
            axis.plot(
                curve.confidence, curve.frequency, "o-", color=PALETTE[0], ms=8, label="observed"
            )
            axis.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="confidence in the top answer")
            axis.set_title(_wrap(name, 30))
            axis.set_aspect("equal")
        axes[0].set_ylabel("share that is right")
        axes[0].legend(loc="upper left", frameon=False)
        if title:
            figure.suptitle(title)
    return figure


def learning_curve(table: pd.DataFrame, show: Sequence[str] | None = None) -> "Figure":
    """Held-out log score, and posterior minus each method, against reflect tasks per domain.

    Args:
      table: from `bayesmeta.learning_curve.learning_curve`.
      show: methods to draw; all but bounds by default.
    """
    names = [m for m in dict.fromkeys(table["method"]) if show is None or m in show]
    if show is None:
        names = [m for m in names if not m.startswith("oracle")]
    names = sorted(names, key=lambda name: name != POSTERIOR)
    with _style():
        figure = _figure(13, 5.6)
        left, right = figure.subplots(1, 2)
        for i, name in enumerate(names):
            rows = table.loc[table["method"] == name].sort_values(by="size")
            line: dict[str, Any] = {
                "color": PALETTE[i % len(PALETTE)],
                "marker": _MARKERS[i % len(_MARKERS)],
                "lw": 3.5 if name == POSTERIOR else 2,
                "ms": 8,
                "capsize": 3,
                "label": name,
            }
            shift = rows["size"] * (1 + 0.025 * (i - len(names) / 2))  # keep error bars apart
            left.errorbar(shift, rows["log_score"], 2 * rows["log_score_se"].fillna(0), **line)
            if name != POSTERIOR:
                right.errorbar(shift, rows["diff"], 2 * rows["diff_se"].fillna(0), **line)
        right.axhline(0, color=_GREY, ls=":", lw=2)
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            sizes = sorted(set(table["size"]))
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.set_xlabel("reflect tasks per domain")
        left.set_ylabel("held-out log score (nats/task)")
        right.set_ylabel("posterior minus method (nats/task)")
        right.set_title("above 0: the posterior is better", fontsize=13, color=_GREY)
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            frameon=False,
        )
    return figure


def heldout_differences(table: pd.DataFrame) -> "Figure":
    """Forest plot of each row of the held-out table minus the posterior (bars: 2 SE)."""
    rows = table.drop(index=POSTERIOR).sort_values("diff_to_posterior", ascending=False)
    with _style():
        figure = _figure(10.5, 0.44 * len(rows) + 1.7)
        axis = figure.subplots()
        bounds = rows["kind"].astype(str).str.startswith("bound").to_list()
        values = rows["diff_to_posterior"].to_numpy(float)
        errors = 2 * rows["diff_se"].to_numpy(float)
        for place, (value, error, bound) in enumerate(zip(values, errors, bounds, strict=True)):
            colour = _GREY if bound else PALETTE[1] if value - error > 0 else PALETTE[0]
            if not np.isfinite(value):
                axis.text(0, place, "  −∞ (no probability on a gold answer)", va="center")
                continue
            axis.errorbar(
                value,
                place,
                xerr=error if np.isfinite(error) else None,
                fmt="D" if bound else "o",
                mfc="white" if bound else colour,
                color=colour,
                ms=8,
                lw=2.5,
                capsize=4,
            )
        axis.axvline(0, color="black", lw=1.5)
        axis.set_yticks(
            range(len(rows)),
            [f"{n} (bound)" if b else str(n) for n, b in zip(rows.index, bounds, strict=True)],
        )
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel("log score minus the posterior's (nats/task; bars: ±2 SE)")
        axis.text(
            0,
            1.01,
            "worse than posterior  ◂  ▸  better",
            transform=axis.get_xaxis_transform(),
            ha="center",
            va="bottom",
            color=_GREY,
        )
        axis.grid(axis="x", color="#E5E5E5")
        axis.set_axisbelow(True)
    return figure


def skill_by_domain(scores: SkillScores) -> "Figure":
    """Heat map of the mean log p(gold | task, skill) per domain (nats); best skill in bold."""
    domains = np.unique(scores.domain)
    log_likelihood = scores.log_likelihood
    mean = np.stack([log_likelihood[scores.domain == name].mean(axis=0) for name in domains])
    with _style():
        figure = _figure(1.25 * scores.num_skills + 4.2, 0.55 * len(domains) + 2.2)
        axis = figure.subplots()
        finite = np.where(np.isfinite(mean), mean, np.nan)
        image = axis.imshow(finite, cmap="cividis", aspect="auto")
        middle = np.nanmean([np.nanmin(finite), np.nanmax(finite)])
        for d, row in enumerate(mean):
            for k, value in enumerate(row):
                axis.text(
                    k,
                    d,
                    f"{value:.2f}".replace("-", "−"),
                    ha="center",
                    va="center",
                    color="black" if value > middle else "white",
                    fontweight="bold" if k == int(np.argmax(row)) else "normal",
                    fontsize=13,
                )
        axis.set_xticks(
            range(scores.num_skills), [_wrap(s, 11) for s in scores.skills], fontsize=12
        )
        axis.set_yticks(range(len(domains)), [_wrap(d, 26) for d in domains])
        axis.tick_params(length=0)
        figure.colorbar(image, ax=axis, label="mean log-likelihood of gold (nats)")
        axis.set_title("How well each skill does in each domain (bold: best)")
    return figure


def evidence_overview(scores: SkillScores) -> "Figure":
    """Three panels: log-likelihood of gold by skill, cost by skill, and tasks by domain."""
    with _style():
        figure = _figure(15, 0.34 * max(scores.num_skills, len(np.unique(scores.domain))) + 2.9)
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.5, 1, 1])
        place = np.arange(scores.num_skills)
        log_likelihood = scores.log_likelihood
        boxes = left.boxplot(
            [column[np.isfinite(column)] for column in log_likelihood.T],
            positions=place,
            orientation="horizontal",
            widths=0.6,
            patch_artist=True,
            whis=(5, 95),
            showfliers=False,
            medianprops={"color": "black", "lw": 2},
        )
        for k, box in enumerate(boxes["boxes"]):
            box.set(facecolor=PALETTE[k % len(PALETTE)], alpha=0.6)
        left.set_yticks(place, [_wrap(s, 20) for s in scores.skills])
        left.invert_yaxis()
        left.set_xlabel("log p(gold | task, skill)  (nats)")
        left.set_title("quartiles, whiskers 5–95 %", fontsize=13)
        colours = [PALETTE[k % len(PALETTE)] for k in place]
        middle.barh(place, scores.tokens.mean(axis=0), height=0.6, color=colours, alpha=0.6)
        middle.set_yticks(place, [])
        middle.invert_yaxis()
        middle.set_xlabel("tokens per task")
        middle.set_title("cost of the skill alone", fontsize=13)
        domains, counts = np.unique(scores.domain, return_counts=True)
        right.barh(domains, counts, height=0.6, color=_GREY, alpha=0.6)
        right.set_yticks(range(len(domains)), [_wrap(d, 22) for d in domains])
        right.invert_yaxis()
        right.set_xlabel("tasks")
        right.set_title(f"{scores.num_tasks} tasks by domain", fontsize=13)
    return figure


def _style() -> AbstractContextManager[None]:
    from matplotlib import rc_context

    return rc_context(
        {
            "font.size": 13,
            "axes.titlesize": 14,
            "axes.labelsize": 13,
            "xtick.labelsize": 12,
            "ytick.labelsize": 12,
            "legend.fontsize": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.fonttype": "path",  # the picture looks the same where our fonts are missing
            "svg.hashsalt": "bayesmeta",  # the same picture gives the same bytes
        }
    )


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _wrap(text: object, width: int) -> str:
    # A dollar sign would start mathematics: names of skills and domains are data.
    clean = str(text).replace("_", " ").replace("$", r"\$")
    return "\n".join(textwrap.wrap(clean, width)) or clean
