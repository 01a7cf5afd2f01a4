"""The held-out table: was the posterior over strategies worth having?"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from bayesmeta import metrics
from bayesmeta.baselines import BOUNDS, all_strategies
from bayesmeta.skill_scores import SkillScores, check_strategy, one_hot

#: Name of the row that all differences are taken to.
POSTERIOR = "posterior"
TOP_SKILL = "posterior, top skill only"

#: A skill with at most this weight is not run when the cost of a strategy is counted.
MIN_WEIGHT = 0.01

_BOUND = "bound, reads the labels"


def heldout_table(
    reflect: SkillScores,
    heldout: SkillScores,
    strategies: Mapping[str, np.ndarray],
    *,
    cluster_by_domain: bool = False,
    num_bins: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Score the posterior's strategy and every baseline on the held-out tasks.

    Args:
      reflect: what the baselines learn from.
      heldout: what everything is judged on.
      strategies: [N_held_out, K] strategies by name; must contain ``"posterior"``, the posterior
        mean strategy. Entries with the name of a baseline replace it.
      cluster_by_domain: give the paired differences standard errors that are clustered by domain.
      num_bins: equal-mass bins of the calibration error.
      seed: of the simulated null of the calibration error.

    Returns:
      One row per strategy, best log score first, with columns ``log_score`` and ``log_score_se``
      (nats per task), ``diff_to_posterior`` and ``diff_se`` (nats per task, paired by task;
      negative: worse than the posterior), ``accuracy``, ``brier``, ``ece``, ``ece_null`` and
      ``ece_null_q95`` (see `bayesmeta.metrics.CalibrationError`), ``tokens_per_task`` (all tokens
      of the skills with weight above 0.01, each run alone) and ``skills_per_task`` (how many
      those are), ``kind`` (posterior, baseline, or a bound that reads the labels), ``n``.
    """
    if POSTERIOR not in strategies:
        raise ValueError(
            f"strategies must contain {POSTERIOR!r}, got {list(strategies)}. "
            "Pass the posterior mean strategy [tasks, skills] under that name."
        )
    if not heldout.num_tasks:
        raise ValueError("there are no held-out tasks to judge on; mark some as held_out.")
    posterior = check_strategy(strategies[POSTERIOR], heldout.num_tasks, heldout.num_skills)
    rows = {
        POSTERIOR: posterior,
        TOP_SKILL: one_hot(posterior.argmax(axis=1), heldout.num_skills),
        **all_strategies(reflect, heldout),
        **dict(strategies),
    }
    own = {POSTERIOR, TOP_SKILL, *strategies}
    reference = metrics.log_scores(heldout.mix(posterior), heldout.gold)
    cluster = heldout.domain if cluster_by_domain else None
    table = {}
    for name, strategy in rows.items():
        row = _score(heldout, strategy, reference, cluster, num_bins, seed)
        kind = _BOUND if name in BOUNDS else "posterior" if name in own else "baseline"
        table[name] = row | {"kind": kind, "n": heldout.num_tasks}
    frame = pd.DataFrame.from_dict(table, orient="index")
    frame.index.name = "strategy"
    return frame.sort_values("log_score", ascending=False, kind="stable")


def _score(
    heldout: SkillScores,
    strategy: np.ndarray,
    reference: np.ndarray,
    cluster: np.ndarray | None,
    num_bins: int,
    seed: int,
) -> dict[str, float | str]:
    weights = check_strategy(strategy, heldout.num_tasks, heldout.num_skills)
    predictive = heldout.mix(weights)
    scores = metrics.log_scores(predictive, heldout.gold)
    log_score = metrics.mean_with_error(scores)
    difference = metrics.paired_difference(scores, reference, cluster)
    calibration = metrics.calibration_error(predictive, heldout.gold, num_bins, seed=seed)
    used = weights > MIN_WEIGHT
    return {
        "log_score": log_score.mean,
        "log_score_se": log_score.standard_error,
        "diff_to_posterior": difference.mean,
        "diff_se": difference.standard_error,
        "accuracy": metrics.accuracy(predictive, heldout.gold).mean,
        "brier": metrics.brier(predictive, heldout.gold).score,
        "ece": calibration.error,
        "ece_null": calibration.null_mean,
        "ece_null_q95": calibration.null_q95,
        "tokens_per_task": float((heldout.tokens * used).sum(axis=1).mean()),
        "skills_per_task": float(used.sum(axis=1).mean()),
    }


def skills_matter(heldout: SkillScores) -> metrics.Estimate:
    """Oracle over skills minus the best single skill, nats per task: what choosing could gain.

    The best single skill is the best on these same tasks, so that the gain is not overstated.
    """
    log_likelihood = heldout.log_likelihood
    best = int(np.argmax(log_likelihood.mean(axis=0)))
    return metrics.paired_difference(log_likelihood.max(axis=1), log_likelihood[:, best])


def compare(table: pd.DataFrame) -> dict[str, list[str]]:
    """Names of the baselines that the posterior ``beats``, ``loses`` to, and ``ties`` with.

    A difference counts when it exceeds two of its standard errors. Bounds are not baselines.
    """
    groups: dict[str, list[str]] = {"beats": [], "loses": [], "ties": []}
    rows = table.loc[table["kind"] == "baseline"]
    differences = np.asarray(rows["diff_to_posterior"], float)
    errors = np.asarray(rows["diff_se"], float)
    for name, difference, error in zip(rows.index, differences, errors, strict=True):
        # Every comparison with NaN is false, so what cannot be estimated ends among the ties.
        if difference == -np.inf or difference < -2 * error:
            groups["beats"].append(str(name))
        elif difference > 2 * error:
            groups["loses"].append(str(name))
        else:
            groups["ties"].append(str(name))
    return groups


def verdict(table: pd.DataFrame) -> Literal["won", "lost", "open"]:
    """``won`` against every baseline, ``lost`` to at least one, or ``open``."""
    groups = compare(table)
    if groups["loses"]:
        return "lost"
    return "open" if groups["ties"] or not groups["beats"] else "won"


def explain(table: pd.DataFrame) -> str:
    """Say in plain words whether the posterior won, lost or cannot be told from each baseline."""
    groups = compare(table)
    count = sum(map(len, groups.values()))
    posterior = table.loc[POSTERIOR]
    openings = {
        "beats": "It beats {} of {} baselines: {}.",
        "loses": "It loses to {} of {}: {}.",
        "ties": "It cannot be told apart from {} of {} (less than two standard errors): {}.",
    }
    sentences = [
        opening.format(len(groups[key]), count, ", ".join(groups[key]))
        for key, opening in openings.items()
        if groups[key]
    ]
    endings = {
        "won": "Verdict: the posterior won against every baseline.",
        "lost": "Verdict: the posterior lost; a simpler method did better here.",
        "open": "Verdict: the posterior lost to none, but did not beat every simpler method.",
    }
    score = _cell(float(posterior["log_score"]), "{:.3f}")
    return " ".join(
        [
            f"On {int(posterior['n'])} held-out tasks the posterior's strategy scores {score} nats "
            f"per task (standard error {posterior['log_score_se']:.3f}; higher is better, 0 is "
            "perfect).",
            *sentences,
            endings[verdict(table)],
        ]
    )


#: Column, heading, format, and what it means, in the order in which tables show them.
COLUMNS = (
    ("log_score", "log score", "{:.3f}", "nats per task of the gold answer; higher is better"),
    ("log_score_se", "SE", "{:.3f}", "standard error over tasks"),
    (
        "diff_to_posterior",
        "vs posterior",
        "{:+.3f}",
        "log score minus that of the posterior, paired by task; negative is worse",
    ),
    ("diff_se", "SE of that", "{:.3f}", "standard error of the paired difference"),
    ("accuracy", "accuracy", "{:.3f}", "most probable candidate is gold"),
    ("brier", "Brier", "{:.3f}", "0 is perfect, 2 is worst"),
    ("ece", "ECE", "{:.3f}", "calibration error of the top answer; compare with its null"),
    ("ece_null", "null", "{:.3f}", "what perfect calibration would show on average"),
    ("ece_null_q95", "null 95 %", "{:.3f}", "an ECE above this is miscalibrated"),
    ("tokens_per_task", "tokens/task", "{:.0f}", "cost of running the skills with weight > 0.01"),
    ("skills_per_task", "skills", "{:.1f}", "how many skills those are"),
    ("n", "n", "{:.0f}", "held-out tasks"),
)


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text cells with readable headings; bounds are marked as such."""
    names = [
        f"{name} (bound)" if kind == _BOUND else str(name)
        for name, kind in zip(table.index, table["kind"], strict=True)
    ]
    cells = {
        heading: [_cell(value, form) for value in table[column]]
        for column, heading, form, _ in COLUMNS
    }
    return pd.DataFrame({"strategy": names} | cells)


def _cell(value: float, form: str) -> str:
    text = form.format(value) if np.isfinite(value) else str(float(value))
    return text.replace("-", "−").replace("nan", "n/a")


def format_table(table: pd.DataFrame) -> str:
    """The table for a terminal: aligned columns, at most about 140 characters wide."""
    frame = formatted(table)
    columns = [
        [str(heading), *(str(cell) for cell in frame.iloc[:, i])]
        for i, heading in enumerate(frame.columns)
    ]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        first, *rest = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def format_table_html(table: pd.DataFrame) -> str:
    """The table as one HTML ``<table>`` with every cell escaped."""
    return formatted(table).to_html(index=False, escape=True, border=0)
