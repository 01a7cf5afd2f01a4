"""``bayesmeta prefer``: rewards from who was preferred to whom."""

from pathlib import Path
from typing import Annotated

import typer

from bayesmeta.cli_terminal import (
    CommandError,
    finish,
    interruptible,
    named_or_json,
    say,
    say_table,
    waiting,
)


def prefer(
    comparisons: Annotated[
        Path,
        typer.Argument(
            help="CSV: item_1, item_2, winner (1, 2, or 0 for a tie); judge, first, length_1, "
            "length_2 and other pairs NAME_1, NAME_2 if there are any."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="CSV of a row an item; the posterior goes beside it.")
    ] = None,
    prior: Annotated[
        str,
        typer.Option(help="bradley_terry, no_position, equal_judges, or a JSON file of a prior."),
    ] = "bradley_terry",
    engine: Annotated[str, typer.Option(help="nuts or pyro_nuts.")] = "nuts",
    interval: Annotated[float, typer.Option(help="Probability of the intervals.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Fixes every draw.")] = 0,
) -> None:
    """Rank items, and judge the judges, by a Bradley-Terry model with ties and biases.

    Exits with 3 if the fit did not converge; its table is still written.

    \b
    Example: bayesmeta prefer pairs.csv --out rewards.csv
    """
    from bayesmeta.models.bradley_terry import BRADLEY_TERRY, EQUAL_JUDGES, NO_POSITION
    from bayesmeta.models.prior import Prior
    from bayesmeta.posterior import group
    from bayesmeta.preferences import fit_preferences

    if engine not in ("nuts", "pyro_nuts"):
        raise CommandError(f"--engine is {engine!r}, wanted nuts or pyro_nuts.")
    if not 0 < interval < 1:
        raise CommandError(f"--interval is {interval}, wanted a probability such as 0.9.")
    priors = {one.name: one for one in (BRADLEY_TERRY, NO_POSITION, EQUAL_JUDGES)}
    chosen = named_or_json(prior, priors, Prior.from_json, "--prior")
    if not comparisons.is_file():
        raise CommandError(f"there is no file {comparisons}. Check the name.")
    with waiting(f"comparing the items of {comparisons.name}"):
        found = interruptible(
            lambda: fit_preferences(
                comparisons,
                chosen,
                engine=engine,  # pyright: ignore[reportArgumentType]
                interval=interval,
                rng_seed=seed,
            )
        )
    _say_rows(found.table, ["reward", "lower", "upper", "probability_best", "comparisons"])
    say("")
    _say_rows(found.judges, [str(column) for column in found.judges])
    posterior = group(found.tree, "posterior")
    for p, name in enumerate(posterior["covariate"].values if "zeta" in posterior else ()):
        draws = posterior["zeta"][..., p]
        say(f"bias by {name}: {float(draws.mean()):+.3f} (sd {float(draws.std()):.3f})")
    finish(found.table, found.tree, out)


def _say_rows(table, columns: list[str]) -> None:
    rows = [
        [name, *(f"{row[c]:.3f}" if table[c].dtype.kind == "f" else str(row[c]) for c in columns)]
        for name, row in table.iterrows()
    ]
    say_table([table.index.name, *columns], rows)
