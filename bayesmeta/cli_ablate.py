"""The command ``ablate``."""

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesmeta.cli_terminal import (
    CommandError,
    interruptible,
    named_or_json,
    note,
    progress_bar,
    say,
    say_table,
)

if TYPE_CHECKING:
    from bayesmeta.models.graph import Graph
    from bayesmeta.models.prior import Prior

#: Word for the evidence that ships with the package.
RECORDED = "recorded"


class Jobs(StrEnum):
    """How the cells are computed."""

    ONE = "one"
    RAY = "ray"


def ablate(
    evidence: Annotated[
        list[str],
        typer.Argument(help=f"Evidence files, or {RECORDED}, what ships with the package."),
    ],
    priors: Annotated[
        str,
        typer.Option(help="Names or JSON files, with commas; the first is the base. Or all."),
    ] = "all",
    graphs: Annotated[
        str, typer.Option(help="Names or JSON files of readings of Figure 2, with commas.")
    ] = "working",
    seeds: Annotated[str, typer.Option(help="Seeds of the sampler, with commas.")] = "0",
    out: Annotated[
        Path, typer.Option(help="Folder for cells, table.csv, pictures, ablation.html.")
    ] = Path("ablation"),
    beta: Annotated[
        str, typer.Option(help="Inverse temperature of the scores: a number, or held_out.")
    ] = "held_out",
    jobs: Annotated[
        Jobs, typer.Option(help="ray computes cells side by side (needs bayesmeta\\[ray]).")
    ] = Jobs.ONE,
    chains: Annotated[int | None, typer.Option(min=2, help="Chains per fit.")] = None,
    samples: Annotated[int | None, typer.Option(min=4, help="Draws kept per chain.")] = None,
    warmup: Annotated[int | None, typer.Option(min=1, help="Steps adapted, not kept.")] = None,
    target_accept: Annotated[
        float | None, typer.Option(min=0.1, max=0.999, help="Higher against divergences.")
    ] = None,
    leave_out_domains: Annotated[
        bool, typer.Option(help="Also refit without each domain in turn.")
    ] = True,
    allow_unidentified: Annotated[
        bool, typer.Option(help="Fit parameters too that the data cannot inform.")
    ] = False,
) -> None:
    """Refit under other priors: how much does each conclusion depend on them?

    Asks no language model. Every finished fit is kept in the folder, so that the
    same command goes on where it was stopped. A fit that did not converge is a
    row that says so.

    \b
    Examples:
      bayesmeta ablate recorded --out ablation
      bayesmeta ablate evidence.nc --priors hierarchical,horseshoe,mine.json
      bayesmeta ablate evidence.nc --graphs working,no_question --seeds 0,1 --jobs ray
    """
    from bayesmeta.ablation import Settings
    from bayesmeta.ablation import ablate as run

    given = {
        "num_chains": chains,
        "num_samples": samples,
        "num_warmup": warmup,
        "target_accept": target_accept,
        "by_domain": leave_out_domains,
        "allow_unidentified": allow_unidentified,
    }
    settings = dataclasses.replace(
        Settings(), **{name: value for name, value in given.items() if value is not None}
    )
    chosen = _priors(priors)
    readings = _graphs(graphs)
    numbers = _seeds(seeds)
    inverse_temperature = _beta(beta)
    sets = _evidence(evidence)
    with progress_bar() as progress:
        result = interruptible(
            lambda: run(
                sets,
                chosen,
                graphs=readings,
                seeds=numbers,
                folder=out,
                beta=inverse_temperature,
                settings=settings,
                parallel="ray" if jobs is Jobs.RAY else None,
                progress=progress,
            )
        )
    _report(
        result,
        out,
        f"bayesmeta ablate {' '.join(evidence)} --priors {priors} "
        f"--graphs {graphs} --seeds {seeds} --beta {beta} --out {out}",
    )


def _report(result: Any, out: Path, command: str) -> None:
    from bayesmeta.ablation_report import write_ablation

    table = result.table
    varying = [c for c in ("graph", "seed", "evidence") if table[c].nunique() > 1]
    headings = [
        "prior",
        *varying,
        "elpd LOO",
        "diff",
        "elpd domain",
        "diff",
        "KL",
        "calibr.",
        "regret",
        "contraction",
        "prior sens.",
        "seconds",
        "status",
    ]
    say_table(
        headings,
        [
            [
                row["prior"],
                *(row[c] for c in varying),
                f"{row['elpd_loo']:.1f}",
                f"{row['elpd_diff']:+.1f} ± {row['elpd_diff_se']:.1f}",
                f"{row['elpd_domain']:.1f}",
                f"{row['elpd_domain_diff']:+.1f} ± {row['elpd_domain_diff_se']:.1f}",
                f"{row['divergence']:.4f}",
                f"{row['calibration_error']:+.3f}",
                f"{row['regret']:.3f} ± {row['regret_se']:.3f}",
                f"{row['contraction']:.2f}",
                f"{row['psense_prior']:.2f}",
                f"{row['seconds']:.0f}",
                row["status"],
            ]
            for _, row in table.iterrows()
        ],
    )
    prior, graph = result.base
    say(
        f"\nelpd: nats over the reflect tasks; differences to {prior} ({graph}), ± their paired "
        "standard error. KL and regret: nats per held-out task. calibr.: error on the held-out "
        "tasks, less what a calibrated predictor would show."
    )
    for _, row in table.loc[table["status"] != "converged"].iterrows():
        note(f"bayesmeta: {row['prior']}, {row['graph']}, seed {row['seed']}: {row['advice']}")
    kept = len(table) - result.num_computed
    say(f"\n{result.num_computed} cells computed, {kept} found on disk.")
    for path in write_ablation(out, result, reproduce=[command]):
        say(f"Written to {path}")


def _priors(text: str) -> "list[Prior]":
    from bayesmeta.models.prior import Prior
    from bayesmeta.models.priors import PRIORS

    if text == "all":
        return list(PRIORS.values())
    return [
        named_or_json(name, PRIORS, Prior.from_json, "--priors")
        for name in _names(text, "--priors")
    ]


def _graphs(text: str) -> "list[Graph]":
    from bayesmeta.models.graph import GRAPHS, Graph

    return [
        named_or_json(name, GRAPHS, Graph.from_json, "--graphs")
        for name in _names(text, "--graphs")
    ]


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise CommandError(f"{option} is empty. Give one name or more, with commas between.")
    return names


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in _names(text, "--seeds")]
    except ValueError:
        raise CommandError(f"--seeds is {text!r}, wanted whole numbers such as 0,1,2.") from None


def _beta(text: str) -> Any:
    if text == "held_out":
        return text
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise CommandError(f"--beta is {text!r}, wanted a number > 0 or held_out.")
    return value


def _evidence(names: list[str]) -> dict[str, Any]:
    from bayesmeta.evidence_io import load
    from bayesmeta.record import recorded_path

    stems = [Path(name).stem for name in names]
    labels = stems if len(set(stems)) == len(stems) else names
    return {
        label: load(recorded_path() if name == RECORDED else name)
        for label, name in zip(labels, names, strict=True)
    }
