"""From evidence and a posterior to everything a report shows."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from bayesmeta import metrics, plots
from bayesmeta.diagnostic_plots import diagnostic_figures
from bayesmeta.evidence_join import split
from bayesmeta.heldout import POSTERIOR, heldout_table, skills_matter
from bayesmeta.metrics import Estimate
from bayesmeta.model_graph import model_graph_svg
from bayesmeta.posterior import encoding_of, group
from bayesmeta.prediction import predict
from bayesmeta.report import Picture, standard_sections, write_report
from bayesmeta.skill_scores import SkillScores, skill_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Quantities in the report's diagnostics: those that mixed worst. The posterior holds all.
WORST = 15


@dataclasses.dataclass(frozen=True, slots=True)
class Analysis:
    """What a posterior is worth on held-out tasks.

    Attributes:
      table: from `bayesmeta.heldout.heldout_table`.
      gain: oracle over skills minus best single skill, held out, nats per task.
      reflect, heldout: the arrays that were compared.
      strategy: [N_held_out, K] posterior mean strategy.
    """

    table: pd.DataFrame
    gain: Estimate
    reflect: SkillScores
    heldout: SkillScores
    strategy: np.ndarray


def judge(posterior: xr.DataTree, evidence: xr.Dataset) -> Analysis:
    """Compare the posterior with every baseline on the held-out tasks of ``evidence``.

    Baselines learn from the reflect tasks and are scored at the posterior's own beta, so that
    they differ from it in the strategy alone. Tasks on which some skill was not tried are left
    out of the comparison.

    Raises:
      ValueError: no reflect or no held-out tasks.
      NotConvergedError: the fit may not be used.
    """
    evidence = evidence.sel(skill=list(encoding_of(posterior).skill))
    complete = evidence["observed"].values.any((2, 3)).all(1)
    reflect_part, heldout_part = split(evidence.isel(task=complete))
    for name, part in (("reflect", reflect_part), ("held_out", heldout_part)):
        if part.sizes["task"] == 0:
            raise ValueError(
                f"the evidence has no complete {name} tasks to compare on. Set split={name!r} on "
                "some tasks and observe them under every skill."
            )
    beta = posterior.attrs["beta"]
    if beta == "infer":
        beta = float(group(posterior, "posterior")["beta"].mean())
    reflect, heldout = skill_scores(reflect_part, beta), skill_scores(heldout_part, beta)
    strategy = predict(posterior, heldout_part)["weight"].values
    return Analysis(
        table=heldout_table(reflect, heldout, {POSTERIOR: strategy}),
        gain=skills_matter(heldout),
        reflect=reflect,
        heldout=heldout,
        strategy=strategy,
    )


def diagnostics_table(posterior: xr.DataTree) -> pd.DataFrame:
    """``az.summary`` of the free sites: mean, interval, effective sample sizes, R-hat."""
    import arviz as az

    names = [n for n in ("u", "U", "tau_E", "v", "beta") if n in posterior["posterior"]]
    return pd.DataFrame(az.summary(posterior, var_names=names, round_to="none"))


def result_figures(posterior: xr.DataTree, analysis: Analysis) -> dict[str, "Figure"]:
    """Caption -> figure, in reading order."""
    draws = group(posterior, "posterior")
    strategies = draws["F"].values.reshape((-1,) + draws["F"].shape[2:])
    heldout = analysis.heldout
    rows = analysis.table
    best = rows.index[rows["kind"].astype(str).str.startswith("baseline")][0]
    curves = {
        POSTERIOR: metrics.calibration_curve(heldout.mix(analysis.strategy), heldout.gold),
    }
    from bayesmeta.baselines import all_strategies

    curves[best] = metrics.calibration_curve(
        heldout.mix(all_strategies(analysis.reflect, heldout)[best]), heldout.gold
    )
    domains = list(map(str, draws["domain"].values))
    skills = list(map(str, draws["skill"].values))
    return {
        "Posterior strategy F in each domain: mean, 50 % and 90 % intervals.": (
            plots.strategy_weights(strategies, domains, skills)
        ),
        "Held-out log score of every method minus the posterior's, with two standard errors.": (
            plots.heldout_differences(rows)
        ),
        "Calibration on the held-out tasks, with the band in which a calibrated predictor stays.": (
            plots.calibration(curves)
        ),
        "Mean log-probability of the gold answer, by domain and skill (reflect tasks).": (
            plots.skill_by_domain(analysis.reflect)
        ),
        "The evidence: scores and costs.": plots.evidence_overview(analysis.reflect),
    }


def write_analysis(
    path: str | Path,
    posterior: xr.DataTree,
    evidence: xr.Dataset,
    analysis: Analysis,
    *,
    reproduce: Sequence[str],
    curve: pd.DataFrame | None = None,
) -> None:
    """Write the HTML report: one file, no network.

    Args:
      path: file to write.
      posterior, evidence, analysis: what is reported.
      reproduce: the commands that make it again.
      curve: from `bayesmeta.learning_curve.learning_curve`, if there is one.
    """
    figures = result_figures(posterior, analysis)
    if curve is not None:
        figures["Learning curve: held-out log score by reflect tasks per domain."] = (
            plots.learning_curve(curve)
        )
    status = f"{posterior.attrs['status'].lower()}: {posterior.attrs['status_detail']}"
    pictures = [
        Picture.of(figure, alt=caption, caption=caption) for caption, figure in figures.items()
    ]
    sections = standard_sections(
        provenance=provenance(posterior, evidence),
        status=status,
        converged=posterior.attrs["status"] == "CONVERGED",
        diagnostics=diagnostics_table(posterior).sort_values("ess_bulk").head(WORST),
        heldout=analysis.table,
        reproduce="\n".join(reproduce),
        gain=analysis.gain,
        pictures=pictures,
        diagnostic_pictures=[
            Picture.of(figure, alt=name, caption=name, form="png")
            for name, figure in diagnostic_figures(posterior, ["u", "tau_E"]).items()
        ],
        model_graph=model_graph_svg(),
    )
    write_report(path, sections)


def provenance(posterior: xr.DataTree, evidence: xr.Dataset) -> dict[str, object]:
    """What was run, for the head of a report."""
    attrs = posterior.attrs
    sizes = evidence.sizes
    prior = json.loads(attrs["prior"])
    return {
        "language model": attrs["llm"],
        "evidence": f"{sizes['task']} tasks x {sizes['skill']} skills x {sizes['trace']} traces, "
        f"fitted part {attrs['evidence_hash'][:12]}",
        "prior": prior["name"],
        "beta": attrs["beta"],
        "engine": f"{attrs['setting_engine']}, seed {attrs['setting_rng_seed']}",
        "fit": f"{attrs['seconds']:.0f} s on {attrs['device']}",
        "packages": ", ".join(f"{k} {v}" for k, v in json.loads(attrs["packages"]).items()),
    }
