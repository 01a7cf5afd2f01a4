"""The commands ``predict`` and ``report``: what a posterior is good for."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesmeta.cli_fit import draws_of
from bayesmeta.cli_observe import SOURCE_HELP, Format, OnError, read_sources
from bayesmeta.cli_terminal import (
    CommandError,
    check_out,
    interruptible,
    is_netcdf,
    note,
    progress_bar,
    say,
    say_table,
    waiting,
)

if TYPE_CHECKING:
    import xarray as xr

PosteriorPath = Annotated[Path, typer.Argument(help="From `bayesmeta fit`.")]


def predict(
    posterior: PosteriorPath,
    tasks: Annotated[
        list[str], typer.Argument(help="Evidence, or tasks: " + SOURCE_HELP, metavar="DATA...")
    ],
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("predictions.csv"),
    format: Annotated[Format, typer.Option(help="What a file of tasks is.")] = Format.AUTO,
    on_error: Annotated[OnError, typer.Option(help="What to do about bad rows.")] = OnError.RAISE,
    interval: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="Probability of the intervals.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="Of domains not seen before, and of tasks.")] = 0,
) -> None:
    """Predict the strategy of each task, and its answer where there is evidence; write a CSV.

    With evidence, a row has the answer predicted, its probability, and the weight
    of every skill with its interval. Tasks that no model was asked about get the
    strategy only: which skill to use.

    \b
    Examples:
      bayesmeta predict posterior.nc evidence.nc --out predictions.csv
      bayesmeta predict posterior.nc new_tasks.jsonl
    """
    check_out(out)

    from bayesmeta.atomic import atomic_write
    from bayesmeta.cli_predictions import answers_frame, strategies_frame
    from bayesmeta.evidence_io import load
    from bayesmeta.posterior import check_converged, load_posterior

    tree = load_posterior(posterior)
    check_converged(tree)
    paths = [Path(name) for name in tasks]
    netcdf = [path.is_file() and is_netcdf(path) for path in paths]
    missing = [name for name in tasks if name.endswith(".nc") and not Path(name).exists()]
    if missing:
        raise CommandError(f"there is no evidence file {missing[0]}. Check the name.")
    if any(netcdf) and len(paths) > 1:
        raise CommandError("give one evidence file, or sources of tasks, not both or several.")
    if any(netcdf):
        frame = answers_frame(tree, load(paths[0]), interval, seed)
    else:
        found = read_sources(tasks, format, on_error, 0.4, seed)
        frame = strategies_frame(tree, found, interval, seed)
    atomic_write(out, lambda part: frame.to_csv(part, index=False))
    counts = frame["skill"].value_counts()
    say_table(["best skill", "tasks"], [[name, count] for name, count in counts.items()])
    if "correct" in frame and len(frame):
        right, probability = frame["correct"].mean(), frame["gold_probability"].mean()
        say(f"\nRight: {right:.1%} of {len(frame)}; mean probability of gold {probability:.3f}")
    say(f"\nWritten to {out}")


def report(
    posterior: PosteriorPath,
    evidence: Annotated[Path, typer.Argument(help="What it was fitted to, held-out tasks in it.")],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("report.html"),
    curve: Annotated[
        int,
        typer.Option(min=0, help="Random subsets per size of a learning curve; 0 draws none."),
    ] = 0,
) -> None:
    """Judge the posterior on the held-out tasks, beside every simpler method.

    Prints the table, whatever comes out, and writes a page with pictures: one
    file that opens without a network.

    \b
    Examples:
      bayesmeta report posterior.nc evidence.nc --out report.html
      bayesmeta report posterior.nc evidence.nc --curve 20
    """
    check_out(out)

    from bayesmeta.analysis import judge, write_analysis
    from bayesmeta.evidence_io import content_hash, load
    from bayesmeta.fitting import reflect_part
    from bayesmeta.heldout import explain, format_table
    from bayesmeta.posterior import load_posterior

    tree, loaded = load_posterior(posterior), load(evidence)
    fitted, given = tree.attrs.get("evidence_hash", ""), content_hash(reflect_part(loaded))
    if fitted != given:
        note(
            f"bayesmeta: warning: {posterior} was fitted to other reflect tasks (hash "
            f"{fitted[:12] or 'unknown'}) than those of {evidence} (hash {given[:12]}). If tasks "
            "it learned from are held out here, the table flatters it."
        )
    with waiting("judging on the held-out tasks"):
        analysis = judge(tree, loaded)
    say(format_table(analysis.table))
    say(f"\n{explain(analysis.table)}")
    table = _curve(tree, loaded, curve) if curve else None
    with waiting("drawing"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name that the font cannot show
        write_analysis(
            out,
            tree,
            loaded,
            analysis,
            reproduce=[f"bayesmeta report {posterior} {evidence} --curve {curve} --out {out}"],
            curve=table,
        )
    say(f"\nWritten to {out}")


def _curve(tree: "xr.DataTree", evidence: "xr.Dataset", num_subsets: int) -> Any:
    from bayesmeta.refit import refitted_learning_curve

    beta = tree.attrs["beta"]
    if beta == "infer":
        beta = float(draws_of(tree)["beta"].mean())
    with progress_bar() as progress:
        return interruptible(
            lambda: refitted_learning_curve(
                evidence,
                float(beta),
                num_subsets=num_subsets,
                progress=lambda done, total: progress(done, total, "learning curve"),
            )
        )
