"""``bayesmeta explain``: which skills were behind observed reasoning."""

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


def explain(
    steps: Annotated[Path, typer.Argument(help="Steps, from bayesmeta.step_io.save_steps.")],
    out: Annotated[
        Path | None, typer.Option(help="CSV of a row a trace; the posterior goes beside it.")
    ] = None,
    prior: Annotated[
        str, typer.Option(help="static, switching, or a JSON file of a prior.")
    ] = "static",
    outcomes: Annotated[
        bool, typer.Option(help="Let the answers given speak for skills, as F -> O would.")
    ] = False,
    engine: Annotated[str, typer.Option(help="nuts or pyro_nuts.")] = "nuts",
    rows: Annotated[int, typer.Option(help="Traces to print.")] = 10,
    seed: Annotated[int, typer.Option(help="Fixes every draw.")] = 0,
) -> None:
    """Infer which skill wrote each trace of reasoning, from its steps alone.

    Exits with 3 if the fit did not converge; its table is still written.

    \b
    Example: bayesmeta explain steps.nc --prior switching --out explained.csv
    """
    from bayesmeta.inverse_planning import infer_skills
    from bayesmeta.models.inverse_planning import STATIC, SWITCHING
    from bayesmeta.models.prior import Prior
    from bayesmeta.posterior import group
    from bayesmeta.step_io import load_steps

    if engine not in ("nuts", "pyro_nuts"):
        raise CommandError(f"--engine is {engine!r}, wanted nuts or pyro_nuts.")
    priors = {one.name: one for one in (STATIC, SWITCHING)}
    chosen = named_or_json(prior, priors, Prior.from_json, "--prior")
    loaded = load_steps(steps)
    with waiting(f"explaining {steps.name}"):
        found = interruptible(
            lambda: infer_skills(
                loaded,
                chosen,
                outcomes=outcomes,
                engine=engine,  # pyright: ignore[reportArgumentType]
                rng_seed=seed,
            )
        )
    posterior = group(found.tree, "posterior")
    for site, what in (("beta_a", "rationality"), ("switch", "chance that a step switches skill")):
        if site in posterior:
            draws = posterior[site]
            say(f"{what}: {float(draws.mean()):.2f} (sd {float(draws.std()):.2f})")
    strategy = posterior["F"].mean(("chain", "draw"))
    spread = posterior["F"].std(("chain", "draw"))
    say_table(
        ["skill", "share", "sd"],
        [
            [str(name), f"{float(strategy[k]):.3f}", f"{float(spread[k]):.3f}"]
            for k, name in enumerate(strategy["skill"].values)
        ],
    )
    names = list(map(str, strategy["skill"].values))
    shown = found.traces.head(rows)
    say(f"the first {len(shown)} of {len(found.traces)} traces:")
    say_table(
        ["trace", *names, "log evidence, nats"],
        [
            [str(label), *(f"{row[name]:.2f}" for name in names), f"{row['log_evidence']:.2f}"]
            for label, row in shown.iterrows()
        ],
    )
    finish(found.traces, found.tree, out)
