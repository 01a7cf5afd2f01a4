"""`bayesmeta demo`: the whole way, from a language model to a judged posterior."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import xarray as xr

if TYPE_CHECKING:
    from rich.console import Console

#: Fresh tasks per family scored live: about a minute on 2 cores.
FRESH_PER_FAMILY = 1

REPRODUCE = (
    "make demo",
    "# the same steps by hand:",
    "bayesmeta observe default:20 --out evidence.nc",
    "bayesmeta fit evidence.nc --beta held_out --out posterior.nc",
    "bayesmeta report posterior.nc evidence.nc --out report.html",
    "# the recorded evidence, made again:",
    "make evidence",
)


def run_demo(
    folder: Path,
    *,
    console: "Console",
    fresh_per_family: int = FRESH_PER_FAMILY,
    learning_curve_subsets: int = 20,
) -> None:
    """Observe fresh tasks live, join the recorded evidence, fit, judge, and write a report.

    Writes ``evidence.nc``, ``posterior.nc`` and ``report.html`` into ``folder``.

    Args:
      folder: created if absent. Scored cells are kept in its ``cache``, so that a second run, or
        one after an interruption, scores nothing again.
      console: where to print.
      fresh_per_family: tasks per family to score live; 0 for none.
      learning_curve_subsets: random subsets per size of the learning curve; 0 leaves it out.

    Raises:
      NotConvergedError: the fit must not be used; nothing is judged.
    """
    from bayesmeta.analysis import diagnostics_table, judge, write_analysis
    from bayesmeta.evidence_io import save
    from bayesmeta.fitting import fit
    from bayesmeta.heldout import explain, format_table
    from bayesmeta.posterior import check_converged, save_posterior

    folder.mkdir(parents=True, exist_ok=True)
    evidence = _evidence(folder, console, fresh_per_family)
    save(evidence, folder / "evidence.nc")

    console.rule("Fit")
    console.print("The Figure 2 model by NUTS, 4 chains, on the reflect tasks ...")
    # Twice the default draws: on other processors chains part, and R-hat must keep its distance.
    posterior = fit(evidence, beta="held_out", rng_seed=0, num_chains=4, num_samples=2000)
    save_posterior(posterior, folder / "posterior.nc")
    _print_diagnostics(posterior, diagnostics_table(posterior), console)
    check_converged(posterior)

    console.rule("Judge")
    analysis = judge(posterior, evidence)
    _say(console, format_table(analysis.table))
    console.print(explain(analysis.table), markup=False, highlight=False)
    gain, num_heldout = analysis.gain, analysis.heldout.num_tasks
    _say(
        console,
        f"Skills matter by {gain.mean:.2f} ± {gain.standard_error:.2f} nats per held-out task "
        f"(oracle over skills minus best single skill, n={num_heldout}).",
    )
    curve = None
    if learning_curve_subsets:
        from bayesmeta.refit import refitted_learning_curve

        console.print("\nLearning curve: the same with fewer reflect tasks ...")
        with progress_bar(console) as progress:
            curve = refitted_learning_curve(
                evidence,
                float(posterior.attrs["beta"]),
                num_subsets=learning_curve_subsets,
                progress=lambda done, total: progress(done, total, "fitting subsets"),
            )
        _say(console, format_curve(curve))
    write_analysis(
        folder / "report.html", posterior, evidence, analysis, reproduce=REPRODUCE, curve=curve
    )
    console.rule("Done")
    for name, what in (
        ("report.html", "pictures, diagnostics and the table; opens without a network"),
        ("posterior.nc", "the posterior, for ArviZ"),
        ("evidence.nc", "everything the language model said"),
    ):
        _say(console, f"{folder / name}: {what}")


def _evidence(folder: Path, console: "Console", fresh_per_family: int) -> xr.Dataset:
    from bayesmeta.evidence import summarise
    from bayesmeta.evidence_io import load
    from bayesmeta.evidence_join import append
    from bayesmeta.record import NUM_TRACES, fresh_tasks, recorded_path, recorded_tasks

    console.rule("Observe")
    evidence = load(recorded_path())
    if fresh_per_family:
        from bayesmeta.llm.local import LocalLLM
        from bayesmeta.observation import observe
        from bayesmeta.recall import reflect_memory

        tasks = fresh_tasks(fresh_per_family)
        llm = LocalLLM()
        console.print(f"{llm.name} answers {len(tasks)} fresh tasks, live ...", markup=False)
        with progress_bar(console) as progress:
            fresh = observe(
                llm,
                tasks,
                num_traces=NUM_TRACES,
                seed=0,
                cache=folder / "cache",
                memory=reflect_memory(recorded_tasks()),
                progress=progress,
            )
        evidence = append(evidence, fresh)
        console.print("... joined to the recorded evidence of the same model and skills:")
    _say(console, summarise(evidence))
    return evidence


@contextlib.contextmanager
def progress_bar(console: "Console") -> Iterator[Callable[[int, int, str], None]]:
    """A ``progress(done, total, message)`` callback, drawn as a bar where there is a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:28}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        job = shown.add_task("loading", total=None)

        def report(done: int, total: int, message: str) -> None:
            shown.update(job, completed=done, total=total, description=message)

        yield report


def _say(console: "Console", text: str) -> None:
    """Tables and model output: no markup, no colours, no line breaks of the console's own."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_diagnostics(posterior, table, console: "Console") -> None:
    attrs = posterior.attrs
    worst = table.sort_values("ess_bulk").head(8)
    _say(
        console,
        f"{attrs['status']}: {attrs['status_detail']} beta={attrs['beta']:.3g}, "
        f"{attrs['seconds']:.0f} s.",
    )
    console.print("The quantities that mixed worst:")
    _say(console, worst.to_string(float_format=lambda v: f"{v:.3g}"))


def format_curve(curve: pd.DataFrame) -> str:
    """The learning curve as text: log scores by size, then the posterior's lead with its error."""
    from bayesmeta.heldout import POSTERIOR

    def table(cell: Callable[[pd.Series], str]) -> str:
        columns = {
            size: {row["method"]: cell(row) for _, row in part.iterrows()}
            for size, part in curve.groupby("size")
        }
        return pd.DataFrame(columns).to_string()

    scores = table(lambda row: f"{row['log_score']:.3f}")
    leads = table(lambda row: f"{row['diff']:+.3f} ± {row['diff_se']:.3f}")
    fits = curve.loc[curve["method"] == POSTERIOR, "num_subsets"].sum()
    return (
        "Held-out log score in nats per task, by reflect tasks per domain "
        f"(mean over {curve['num_subsets'].max()} random subsets):\n{scores}\n"
        f"Posterior minus each method (± standard error over subsets):\n{leads}\n"
        f"{curve.attrs['num_unconverged']} of the posterior's {fits} fits did not converge "
        "(R-hat above 1.05, fewer than 100 effective draws, divergences, or low E-BFMI)."
    )
