"""``bayesmeta reflect`` and ``bayesmeta memory``: learning over episodes, and looking at it."""

from pathlib import Path
from typing import Annotated

import typer

from bayesmeta.cli_terminal import (
    FAILED,
    NOT_CONVERGED,
    CommandError,
    Commands,
    interruptible,
    named_or_json,
    note,
    say,
    say_table,
    waiting,
)

memory = typer.Typer(
    cls=Commands, no_args_is_help=True, help="What has been learned over episodes of evidence."
)
Folder = Annotated[Path, typer.Argument(help="Folder of the memory.")]


def reflect(
    evidence: Annotated[Path, typer.Argument(help="From `bayesmeta observe` or `import`.")],
    into: Annotated[Path, typer.Option("--memory", help="Folder of the memory.")] = Path("memory"),
    internal: Annotated[
        float, typer.Option(help="How much one episode leaves of the internal view, in (0, 1].")
    ] = 0.99,
    external: Annotated[
        float, typer.Option(help="How much it leaves of the external view, in (0, 1].")
    ] = 0.7,
    prior: Annotated[
        str | None, typer.Option(help="First episode: a named prior, or a JSON file of one.")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="First episode: inverse temperature of the scores.")
    ] = None,
    text: Annotated[str, typer.Option("--note", help="For the history.")] = "",
    seed: Annotated[int, typer.Option(help="Fixes every draw.")] = 0,
) -> None:
    """Take the reflect tasks of some evidence into memory, as one episode.

    A fit that does not converge is not taken in (exit code 3), nor are tasks that memory has
    taken in before (exit code 2).

    \b
    Example: bayesmeta reflect monday.nc --memory memory --external 0.8
    """
    import bayesmeta
    from bayesmeta.memory import Memory
    from bayesmeta.models.prior import Prior
    from bayesmeta.models.priors import PRIORS
    from bayesmeta.reflection import Forgetting
    from bayesmeta.reflection import reflect as run

    for name, value in (("--internal", internal), ("--external", external)):
        if not 0 < value <= 1:
            raise CommandError(f"{name} is {value}, wanted a number in (0, 1]. 1 forgets nothing.")
    loaded = bayesmeta.load_evidence(evidence)
    chosen = None
    if prior is not None:
        chosen = named_or_json(prior, PRIORS, Prior.from_json, "--prior")
    opened = Memory(into)
    with waiting(f"reflecting on {loaded.sizes['task']} tasks"):
        found = interruptible(
            lambda: run(
                opened,
                loaded,
                prior=chosen,
                beta=beta,
                forgetting=Forgetting(internal, external),
                rng_seed=seed,
                note=text or evidence.name,
            )
        )
    say(f"{found.num_tasks} reflect tasks, {found.seconds:.1f} s: {found.status}")
    if not found.accepted:
        note(f"bayesmeta: the fit did not converge, so {into} is as it was.")
        raise typer.Exit(NOT_CONVERGED)
    say(f"episode {found.belief.episode} is in {into}.")
    if found.new_domains:
        say(f"new domains: {', '.join(found.new_domains)}.")
    if len(found.moved):
        rows = []
        for view, part in found.moved.groupby("view"):
            shift = part["shift"].abs()
            rows.append([str(view), f"{shift.mean():.2f}", f"{shift.max():.2f}"])
        say_table(["view", "mean shift (sd)", "largest"], rows)


@memory.command()
def show(folder: Folder) -> None:
    """The strategy of every domain, and what is known of skills in general.

    \b
    Example: bayesmeta memory show memory
    """
    from bayesmeta.memory import Memory, views

    belief = Memory(folder).belief
    internal, external = views(belief)
    say(
        f"{folder}: {belief.episode} episodes, {len(belief.seen)} tasks, "
        f"{len(belief.domains)} domains."
    )
    table = internal.table()
    say_table(
        ["skill", *table.columns],
        [[str(name), *(f"{v:.2f}" for v in table.loc[name])] for name in table.index],
    )
    table = external.table().reset_index()
    rows = [
        [r["domain"], r["skill"], f"{r['weight']:.2f}", f"{r['lower']:.2f}..{r['upper']:.2f}"]
        for r in table.to_dict("records")
    ]
    say_table(["domain", "skill", "weight", "90 %"], rows)


@memory.command()
def history(folder: Folder) -> None:
    """What was done to a memory, oldest first.

    \b
    Example: bayesmeta memory history memory
    """
    from bayesmeta.memory import Memory

    table = Memory(folder).history()
    rows = [
        [row["time"], row["action"], str(row["episode"]), row["sha256"][:12], row["note"]]
        for row in table.to_dict("records")
    ]
    say_table(["time (UTC)", "action", "episode", "hash", "note"], rows)


@memory.command()
def rollback(
    folder: Folder,
    to: Annotated[int, typer.Option(help="Episode to go back to; 0 for none.", min=0)],
) -> None:
    """Go back to an earlier episode. Later ones stay on disk and in the history.

    \b
    Example: bayesmeta memory rollback memory --to 3
    """
    from bayesmeta.memory import Memory

    Memory(folder).rollback(to)
    say(f"{folder} is back at episode {to}.")


@memory.command()
def check(folder: Folder) -> None:
    """Read every episode again and compare it with its hash. Exit code 1 if one is damaged.

    \b
    Example: bayesmeta memory check memory
    """
    from bayesmeta.memory_store import MemoryStore

    if not folder.is_dir():
        raise CommandError(f"no memory at {folder}. `bayesmeta reflect` makes one.")
    found = MemoryStore(folder).check()
    for problem in found:
        note(f"bayesmeta: {problem}")
    if found:
        raise typer.Exit(FAILED)
    say(f"{folder} is whole.")


@memory.command()
def recover(folder: Folder) -> None:
    """After damage to head.json, write a new one that names the last whole episode.

    \b
    Example: bayesmeta memory recover memory
    """
    from bayesmeta.memory_store import MemoryStore

    if not folder.is_dir():
        raise CommandError(f"no memory at {folder}. `bayesmeta reflect` makes one.")
    entry = MemoryStore(folder).recover()
    say(f"{folder} is at episode {entry.episode}; the old head is kept as head.damaged.json.")
