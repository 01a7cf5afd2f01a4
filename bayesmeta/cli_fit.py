"""The command ``fit``."""

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesmeta.cli_terminal import (
    NOT_CONVERGED,
    CommandError,
    check_out,
    interruptible,
    named_or_json,
    say,
    say_table,
    waiting,
)

if TYPE_CHECKING:
    import xarray as xr


class Engine(StrEnum):
    """How the posterior is computed."""

    NUTS = "nuts"
    SVI = "svi"
    WHITENED_NUTS = "whitened_nuts"
    WHITENED_HMC = "whitened_hmc"
    PYRO_NUTS = "pyro_nuts"
    PYRO_SVI = "pyro_svi"


#: Diagnostic: how it is printed, and what it should be.
_DIAGNOSTICS = {
    "rhat": ("R-hat, worst", "{:.4f}"),
    "ess_bulk": ("ESS bulk, worst", "{:.0f}"),
    "ess_tail": ("ESS tail, worst", "{:.0f}"),
    "divergences": ("divergences", "{:.0f}"),
    "bfmi": ("E-BFMI, worst chain", "{:.2f}"),
    "pareto_k": ("Pareto k-hat", "{:.2f}"),
    "elbo": ("ELBO (nats)", "{:.2f}"),
    "log_ratio_sd": ("SD of the log ratios (nats)", "{:.2f}"),
    "gain_left": ("ELBO left to gain (nats)", "{:.2g}"),
}


def fit(
    evidence: Annotated[Path, typer.Argument(help="From `bayesmeta observe` or `import`.")],
    out: Annotated[Path, typer.Option(help="Where to write the posterior.")] = Path("posterior.nc"),
    prior: Annotated[
        str | None,
        typer.Option(help="A named prior, hierarchical_beta, or a JSON file of a prior."),
    ] = None,
    graph: Annotated[
        str | None,
        typer.Option(help="A named reading of Figure 2, or a JSON file of one."),
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(help="nuts is the reference; whitened_* suit thousands of tasks."),
    ] = Engine.NUTS,
    beta: Annotated[
        str,
        typer.Option(help="Inverse temperature of the scores: a number, held_out, or infer."),
    ] = "1.0",
    seed: Annotated[int, typer.Option(help="Fixes every draw.")] = 0,
    chains: Annotated[int | None, typer.Option(help="NUTS: chains, at least 2.")] = None,
    samples: Annotated[int | None, typer.Option(min=4, help="Draws kept (per chain).")] = None,
    warmup: Annotated[
        int | None, typer.Option(min=1, help="NUTS: steps adapted, not kept.")
    ] = None,
    target_accept: Annotated[
        float | None, typer.Option(min=0.1, max=0.999, help="NUTS: higher against divergences.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=10, help="SVI: gradient steps.")] = None,
    force: Annotated[
        bool, typer.Option(help="Let a fit that did not converge replace one that did.")
    ] = False,
) -> None:
    """Infer the strategy behind the outcomes of the reflect tasks; write the posterior.

    Exits with 3 if the fit did not converge. It is written all the same, marked
    as such, but never in the place of one that did.

    \b
    Examples:
      bayesmeta fit evidence.nc --out posterior.nc
      bayesmeta fit evidence.nc --beta held_out --chains 4 --samples 2000
      bayesmeta fit evidence.nc --engine svi --steps 20000
      bayesmeta fit evidence.nc --prior horseshoe --graph reliability
    """
    check_out(out, netcdf=True)
    inverse_temperature = _beta(beta)
    settings = _settings(engine, chains, samples, warmup, target_accept, steps)

    import bayesmeta
    from bayesmeta.posterior import NotConvergedError, check_converged, save_posterior

    loaded = bayesmeta.load_evidence(evidence)
    chosen = None if prior is None else _prior(prior)
    reading = None if graph is None else _graph(graph)
    with waiting(f"fitting {loaded.sizes['task']} tasks by {engine.value}"):
        tree = interruptible(
            lambda: bayesmeta.fit(
                loaded,
                chosen,
                engine=engine.value,
                graph=reading,
                beta=inverse_temperature,
                rng_seed=seed,
                **settings,
            )
        )
    say_table(["diagnostic", "value", "wanted"], _diagnostic_rows(tree))
    say(f"\nTook {tree.attrs['seconds']:.0f} s. beta = {tree.attrs['beta']}\n")
    say_table(["domain", *map(str, draws_of(tree)["skill"].values)], _strategy_rows(tree))
    try:
        check_converged(tree)
    except NotConvergedError as error:
        place = out if force or not _holds_converged(out) else _beside(out)
        save_posterior(tree, place)
        kept = "" if place == out else f" {out} holds one that converged and was kept (--force)."
        raise CommandError(
            f"the fit did not converge: {error} It is in {place}, marked as not to be used.{kept}",
            NOT_CONVERGED,
        ) from error
    save_posterior(tree, out)
    say(f"\nConverged: {tree.attrs['status_detail']}\nWritten to {out}")


def _beta(text: str) -> Any:
    if text in ("held_out", "infer"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise CommandError(f"--beta is {text!r}, wanted a number > 0, held_out or infer.")
    return value


def _prior(name: str) -> Any:
    from bayesmeta.models.figure2 import HIERARCHICAL_BETA
    from bayesmeta.models.prior import Prior
    from bayesmeta.models.priors import PRIORS

    known = {**PRIORS, HIERARCHICAL_BETA.name: HIERARCHICAL_BETA}
    return named_or_json(name, known, Prior.from_json, "--prior")


def _graph(name: str) -> Any:
    from bayesmeta.models.graph import GRAPHS, Graph

    return named_or_json(name, GRAPHS, Graph.from_json, "--graph")


def _settings(
    engine: Engine,
    chains: int | None,
    samples: int | None,
    warmup: int | None,
    target_accept: float | None,
    steps: int | None,
) -> dict[str, Any]:
    """What was given on the command line, under the engine's own names."""
    of_nuts = {"num_chains": chains, "num_warmup": warmup, "target_accept": target_accept}
    of_svi = {"num_steps": steps}
    mine, others = (
        (of_svi, of_nuts) if engine in (Engine.SVI, Engine.PYRO_SVI) else (of_nuts, of_svi)
    )
    foreign = [name for name, value in others.items() if value is not None]
    if foreign:
        option = foreign[0].removeprefix("num_").replace("_", "-")
        raise CommandError(f"--{option} does not go with --engine {engine.value}. Leave it out.")
    return {n: v for n, v in {**mine, "num_samples": samples}.items() if v is not None}


def _diagnostic_rows(tree: "xr.DataTree") -> list[list[str]]:
    from bayesmeta.inference.diagnose import MAX_RHAT, MIN_BFMI, MIN_ESS

    wanted: Mapping[str, str] = {
        "rhat": f"<= {MAX_RHAT}",
        "ess_bulk": f">= {MIN_ESS:.0f}",
        "ess_tail": f">= {MIN_ESS:.0f}",
        "divergences": "0",
        "bfmi": f">= {MIN_BFMI}",
    }
    rows = []
    for name, value in json.loads(tree.attrs["diagnostics"]).items():
        label, form = _DIAGNOSTICS.get(name, (name, "{:.4g}"))
        rows.append([label, form.format(value), wanted.get(name, "")])
    return rows


def _strategy_rows(tree: "xr.DataTree") -> list[list[str]]:
    """The mean strategy of each domain, with the bounds of its 90 % interval."""
    draws = draws_of(tree)
    strategy = draws["F"].transpose("chain", "draw", "domain", "skill")
    mean = strategy.mean(("chain", "draw")).values
    low, high = strategy.quantile([0.05, 0.95], ("chain", "draw")).values
    return [
        [str(domain)]
        + [f"{mean[d, k]:.2f} ({low[d, k]:.2f}-{high[d, k]:.2f})" for k in range(mean.shape[1])]
        for d, domain in enumerate(draws["domain"].values)
    ]


def draws_of(tree: "xr.DataTree") -> "xr.Dataset":
    """The draws of every parameter, by name."""
    return tree.children["posterior"].to_dataset()


def _holds_converged(path: Path) -> bool:
    """Whether there is a posterior at ``path`` that may be used."""
    from bayesmeta.posterior import NotConvergedError, check_converged, load_posterior

    if not path.is_file():
        return False
    try:
        check_converged(load_posterior(path))
    except (NotConvergedError, ValueError, KeyError):
        return False
    return True


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.not-converged{path.suffix}")
