"""A posterior judged on held-out evidence, and the report that says how it came out."""

import dataclasses
import json

import numpy as np
import pandas as pd
import xarray as xr

from bayesmeta import heldout, metrics
from bayesmeta.evidence_join import split
from bayesmeta.outcomes import skill_mask
from bayesmeta.posterior import encoding_of
from bayesmeta.prediction import strategy_draws
from bayesmeta.report import Picture, Section, standard_sections
from bayesmeta.skill_scores import SkillScores, skill_scores


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Judged:
    """The held-out comparison, and what the pictures are drawn from."""

    table: pd.DataFrame
    reflect: SkillScores
    heldout: SkillScores
    strategy: np.ndarray


def judge(posterior: xr.DataTree, evidence: xr.Dataset) -> Judged:
    """Score the posterior's mean strategy and every baseline on the held-out tasks.

    The strategy is computed also if the fit did not converge, for a report that says so.

    Raises:
      ValueError: one of the splits is empty, or a fitted skill is missing.
    """
    encoding = encoding_of(posterior)
    missing = sorted(set(encoding.skill) - set(map(str, evidence["skill"].values)))
    if missing:
        raise ValueError(
            f"the evidence lacks the skills {missing} that the posterior weighs. "
            "Observe the tasks under them, or fit without them."
        )
    parts = split(evidence.sel(skill=list(encoding.skill)))
    for part, name in zip(parts, ("reflect", "held_out"), strict=True):
        if not part.sizes["task"]:
            raise ValueError(
                f"the evidence has no {name} task; the report compares methods that learn from "
                "the reflect tasks and are judged on the held-out ones. Mark some of each."
            )
    beta = _beta(posterior)
    weights = strategy_draws(posterior, parts[1]) * skill_mask(parts[1])
    strategy = (weights / weights.sum(-1, keepdims=True)).mean(0)
    reflect, held_out = (skill_scores(part, beta) for part in parts)
    table = heldout.heldout_table(reflect, held_out, {heldout.POSTERIOR: strategy})
    return Judged(table, reflect, held_out, strategy)


def sections(
    posterior: xr.DataTree,
    evidence: xr.Dataset,
    judged: Judged,
    *,
    reproduce: str,
    pictures: bool = True,
) -> list[Section]:
    """The sections of the report, for `bayesmeta.report.write_report`."""
    import arviz as az

    attrs = posterior.attrs
    names = [
        name for name in ("mu", "W", "tau_E", "delta", "beta") if name in posterior["posterior"]
    ]
    summary = az.summary(posterior, var_names=names, kind="all")
    return standard_sections(
        provenance=_provenance(posterior, evidence),
        status=f"{attrs['status'].capitalize().replace('_', ' ')}: {attrs['status_detail']}",
        converged=attrs["status"] == "CONVERGED",
        diagnostics=pd.DataFrame(summary),
        heldout=judged.table,
        reproduce=reproduce,
        gain=heldout.skills_matter(judged.heldout),
        pictures=_pictures(posterior, judged) if pictures else (),
        diagnostic_pictures=_diagnostic_pictures(posterior, names) if pictures else (),
        model_graph=_model_graph() if pictures else "",
    )


def _beta(posterior: xr.DataTree) -> float:
    beta = posterior.attrs["beta"]
    return float(posterior["posterior"]["beta"].mean()) if beta == "infer" else float(beta)


def _provenance(posterior: xr.DataTree, evidence: xr.Dataset) -> dict[str, object]:
    attrs, sizes = posterior.attrs, evidence.sizes
    settings = {
        name.removeprefix("setting_"): value
        for name, value in attrs.items()
        if name.startswith("setting_")
    }
    packages = json.loads(attrs["packages"])
    return {
        "language model": f"{evidence.attrs['model']} ({evidence.attrs['quantisation']}, "
        f"{evidence.attrs['dtype']}; log-likelihoods {evidence.attrs['quality']})",
        "evidence": f"{sizes['task']} tasks, {sizes['skill']} skills, up to {sizes['trace']} "
        f"traces, seed {evidence.attrs['seed']}",
        "evidence hash": evidence.attrs.get("content_hash", ""),
        "fitted to hash": attrs.get("evidence_hash", ""),
        "model and prior": f"{attrs['model']}, {attrs['prior']}",
        "beta": attrs["beta"],
        "engine": ", ".join(f"{name} {value}" for name, value in settings.items() if value != ""),
        "wall time": f"{attrs['seconds']:.0f} s on {attrs['device']}",
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }


def _pictures(posterior: xr.DataTree, judged: Judged) -> list[Picture]:
    from bayesmeta import plots

    encoding = encoding_of(posterior)
    strategy = posterior["posterior"]["F"].transpose("chain", "draw", "domain", "skill").values
    draws = strategy.reshape(-1, *strategy.shape[2:])
    scores = judged.heldout
    uniform = np.full(scores.num_skills, 1 / scores.num_skills)
    curves = {
        name: metrics.calibration_curve(scores.mix(weights), scores.gold)
        for name, weights in (("posterior", judged.strategy), ("uniform mixture", uniform))
    }
    return [
        Picture.of(
            plots.strategy_weights(draws, encoding.domain, encoding.skill),
            alt="Weights of the skills in each domain with intervals.",
            caption="The strategy of each domain, at the mean of its features.",
        ),
        Picture.of(
            plots.heldout_differences(judged.table),
            alt="Differences in log score to the posterior with error bars.",
            caption="Every method against the posterior, paired by held-out task.",
        ),
        Picture.of(
            plots.calibration(curves),
            alt="Share of right answers against confidence.",
            caption="Calibration of the predicted answer on the held-out tasks.",
        ),
        Picture.of(
            plots.skill_by_domain(scores),
            alt="Mean log-likelihood of the gold answer by skill and domain.",
            caption="What the posterior could have learned: each skill on the held-out tasks.",
        ),
    ]


def _diagnostic_pictures(posterior: xr.DataTree, names: list[str]) -> list[Picture]:
    from bayesmeta.diagnostic_plots import diagnostic_figures

    return [
        Picture.of(
            figure, alt=f"{name} plot of the quantities that mixed worst.", form="png", dpi=90
        )
        for name, figure in diagnostic_figures(posterior, names).items()
    ]


def _model_graph() -> str:
    from bayesmeta.model_graph import model_graph_svg

    return model_graph_svg()
