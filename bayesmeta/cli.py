"""The command ``bayesmeta``. Everything heavy is imported inside the command that needs it."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bayesmeta import (
    cli_ablate,
    cli_choose,
    cli_data,
    cli_explain,
    cli_fit,
    cli_judge,
    cli_memory,
    cli_observe,
    cli_prefer,
    cli_prove,
)
from bayesmeta.cli_terminal import INTERRUPTED, Commands, check_out, interruptible, progress_bar
from bayesmeta.xla import compile_quickly

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("observe")(cli_observe.observe)
app.command("fit")(cli_fit.fit)
app.command("predict")(cli_judge.predict)
app.command("report")(cli_judge.report)
app.command("ablate")(cli_ablate.ablate)
app.command("prove")(cli_prove.prove)
app.command("reflect")(cli_memory.reflect)
app.command("choose")(cli_choose.choose)
app.command("explain")(cli_explain.explain)
app.command("prefer")(cli_prefer.prefer)
app.add_typer(cli_data.evidence, name="evidence")
app.add_typer(cli_data.tasks, name="tasks")
app.add_typer(cli_data.skills, name="skills")
app.add_typer(cli_memory.memory, name="memory")


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(f"bayesmeta {importlib.metadata.version('bayesmeta')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Bayesian meta-reasoning with language models: which way of reasoning suits which task.

    \b
    Example:
      bayesmeta observe default:20 --out evidence.nc   ask a model about tasks
      bayesmeta fit evidence.nc --out posterior.nc     infer the strategy
      bayesmeta report posterior.nc evidence.nc        was it worth having?

    \b
    Exit codes: 0 done; 2 bad input; 3 the fit did not converge;
    130 interrupted; 1 anything else.
    BAYESMETA_DEBUG=1 adds the traceback to an error.
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"),
) -> None:
    """Run everything once on a real language model: observe, fit, judge, report.

    \b
    Example: bayesmeta demo --out demo
    """
    from rich.console import Console

    from bayesmeta.demo import run_demo

    console = Console()
    with cli_observe.resumable(out / "cache"):
        try:
            interruptible(lambda: run_demo(out, console=console))
        finally:
            console.show_cursor()  # a progress bar that was interrupted leaves it hidden


@app.command()
def record(
    path: Annotated[Path, typer.Argument(help="Where to write the evidence (netCDF).")],
    cache: Annotated[
        Path | None, typer.Option(help="Folder of what the model already said.")
    ] = None,
) -> None:
    """Make the recorded evidence that ships with the package again, resuming where it stopped.

    \b
    Example: bayesmeta record bayesmeta/data/recorded_evidence.nc
    """
    from bayesmeta.record import record as make

    check_out(path, netcdf=True)
    folder = cli_observe.cache_folder(cache)
    with cli_observe.resumable(folder), progress_bar() as progress:
        interruptible(lambda: make(path, cache=folder, progress=progress))


def main() -> None:
    """Entry point of the command ``bayesmeta``."""
    compile_quickly()
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # Threads may still wait for a server or be inside compiled code: leave them there.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
