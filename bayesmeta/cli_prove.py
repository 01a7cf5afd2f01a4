"""``bayesmeta prove``: the table of models and engines, and what each was found to be worth."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bayesmeta.cli_terminal import (
    FAILED,
    CommandError,
    interruptible,
    note,
    progress_bar,
    say,
    say_table,
)


class Tiers(Enum):
    """How much is proven."""

    FAST = "fast"
    FULL = "full"


def prove(
    tier: Annotated[
        Tiers, typer.Option(help="fast: a few cells, as in the tests. full: everything.")
    ] = Tiers.FULL,
    out: Annotated[Path, typer.Option(help="Folder for the table, the pictures and the cells.")] = (
        Path("proof")
    ),
    only: Annotated[
        list[str] | None, typer.Option(help="A model or an engine; may be given several times.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes side by side; each may take 4 GB of memory.")
    ] = 1,
) -> None:
    """Check every model under every engine by simulation, and every density by enumeration.

    Goes on where it stopped if it was interrupted. Exit code 1 if a cell fails.

    \b
    Example: bayesmeta prove --tier full --out proof --workers 2
    """
    from bayesmeta.proof import prove as run

    if out.exists() and not out.is_dir():
        raise CommandError(f"--out {out} is a file. Name a folder.")
    with progress_bar() as progress:
        table = interruptible(
            lambda: run(out, tier.value, only=only or (), progress=progress, workers=workers)
        )
    shown = {
        "model": "model",
        "engine": "engine",
        "status": "status",
        "replications": "R",
        "unconverged": "unconverged",
        "judged": "judged",
        "p_value": "SBC p",
        "p_limit": "limit",
        "hits": "hits",
        "hits_wanted": "wanted",
        "recovered": "recovered",
        "contraction": "contraction",
        "enumeration_error": "enumeration",
        "seconds": "seconds",
    }
    rows = [[_text(row[name]) for name in shown] for row in table.to_dict("records")]
    say_table(list(shown.values()), rows)
    say(
        "Hits: how often 90 % intervals hold the truth, over all quantities of a cell. p: the "
        "smallest of the chi-square tests of rank uniformity. Details and pictures are in "
        f"{out}."
    )
    if not table.attrs["accepted"]:
        note("bayesmeta: a cell fails; its row says which test.")
        raise typer.Exit(FAILED)


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
