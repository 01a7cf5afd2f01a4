"""``bayesmeta choose``: which skill for which domain, from records of right and wrong."""

from pathlib import Path
from typing import Annotated

import typer

from bayesmeta.cli_terminal import (
    CommandError,
    check_out,
    finish,
    interruptible,
    is_netcdf,
    named_or_json,
    say,
    say_table,
    waiting,
)


def choose(
    verdicts: Annotated[
        Path,
        typer.Argument(
            help="CSV: task, skill, correct (0 or 1); domain, split (reflect or held_out), tokens "
            "and feature_* if there are any. Or evidence that holds verdicts, as netCDF."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="CSV of a row a domain and skill; the posterior goes beside it."),
    ] = None,
    cost_per_token: Annotated[
        float, typer.Option(help="In right answers: 1e-4 if 1,000 tokens are worth 0.1 of one.")
    ] = 0.0,
    prior: Annotated[
        str,
        typer.Option(
            help="solvability, pooled_domains, pooled_choice, separate_domains, no_difficulty, "
            "independent_attempts, or a JSON file of a prior."
        ),
    ] = "solvability",
    features: Annotated[bool, typer.Option(help="Use the features of the tasks.")] = True,
    interval: Annotated[float, typer.Option(help="Probability of the intervals.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Fixes every draw.")] = 0,
) -> None:
    """Choose a skill for each domain by expected success less the price of its tokens.

    Exits with 3 if the fit did not converge; its table is still written.

    \b
    Example: bayesmeta choose verdicts.csv --cost-per-token 1e-4 --out choices.csv
    """
    from bayesmeta.evidence_io import load
    from bayesmeta.metrics import mean_with_error
    from bayesmeta.models.prior import Prior
    from bayesmeta.models.solvability import SOLVABILITY_PRIORS
    from bayesmeta.strategy_choice import choose_strategies

    chosen = named_or_json(prior, SOLVABILITY_PRIORS, Prior.from_json, "--prior")
    if not verdicts.is_file():
        raise CommandError(f"there is no file {verdicts}. Check the name.")
    if out is not None:
        check_out(out)
    evidence = load(verdicts) if is_netcdf(verdicts) else verdicts
    with waiting(f"learning from {verdicts.name}"):
        found = interruptible(
            lambda: choose_strategies(
                evidence,
                cost_per_token=cost_per_token,
                interval=interval,
                use_features=features,
                prior=chosen,
                rng_seed=seed,
            )
        )
    table = found.table
    numbers = ("probability", "lower", "upper", "utility")
    rows = [
        [
            row["domain"],
            row["skill"],
            *(f"{row[name]:.3f}" for name in numbers),
            f"{row['tokens']:.0f}",
            "chosen" if row["chosen"] else "",
        ]
        for row in table.to_dict("records")
    ]
    say_table(["domain", "skill", *numbers, "tokens", ""], rows)
    if found.heldout is not None:
        say(f"\n{len(found.heldout)} held-out tasks, the skill chosen for each:")
        for name, unit in (
            ("success", "right"),
            ("regret", "of a right answer lost to the best skill in hindsight"),
            ("tokens", "generated"),
            ("log_score", "nats a verdict"),
        ):
            score = mean_with_error(found.heldout[name].to_numpy(float))
            say(f"{name}: {score.mean:.3f} (SE {score.standard_error:.3f}) {unit}")
    finish(table.set_index(["domain", "skill"]), found.tree, out)
