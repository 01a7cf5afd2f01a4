"""The commands ``evidence``, ``tasks`` and ``skills``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayesmeta.cli_observe import Format, OnError, guess
from bayesmeta.cli_terminal import CommandError, check_out, note, say, say_table

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_SETTINGS = {"no_args_is_help": True, "rich_markup_mode": "rich"}
evidence = typer.Typer(help="Import, check and look at evidence.", **_SETTINGS)
tasks = typer.Typer(help="Make tasks.", **_SETTINGS)
skills = typer.Typer(help="Look at skills.", **_SETTINGS)

EvidencePath = Annotated[Path, typer.Argument(help="Evidence (netCDF).")]


@evidence.command("import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="One CSV with the columns task, skill, correct (optionally domain, split, tokens, "
            "feature_*), or logs of lm-evaluation-harness or Inspect."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the evidence.")] = Path("evidence.nc"),
    skill: Annotated[
        list[str] | None,
        typer.Option(help="Name of what each log tried, once per log (default: the log's own)."),
    ] = None,
    noise: Annotated[
        float, typer.Option(help="Error rate of the verifier, between 0 and 0.5.")
    ] = 0.05,
    on_error: Annotated[OnError, typer.Option(help="skip leaves bad rows out.")] = OnError.RAISE,
    format: Annotated[Format, typer.Option(help="What the logs are.")] = Format.AUTO,
    held_out: Annotated[
        float, typer.Option(min=0, max=1, help="Logs: share of each domain that is held out.")
    ] = 0.4,
    seed: Annotated[int, typer.Option(help="Logs: of the split.")] = 0,
) -> None:
    """Make evidence from records of right and wrong, without a language model.

    \b
    Examples:
      bayesmeta evidence import verdicts.csv --out evidence.nc
      bayesmeta evidence import direct.eval cot.eval --skill direct --skill cot
    """
    check_out(out, netcdf=True)

    from bayesmeta.evidence import summarise
    from bayesmeta.evidence_io import save
    from bayesmeta.verdicts import from_verdicts

    if len(files) == 1 and files[0].suffix.lower() == ".csv":
        made = from_verdicts(files[0], noise=noise, on_error=on_error.value)
    else:
        table = _verdict_table(files, skill, format, on_error, held_out, seed)
        made = from_verdicts(table, noise=noise, on_error=on_error.value)
    save(made, out)
    for row in json.loads(made.attrs["skipped_rows"]):
        note(f"bayesmeta: skipped row {row['row']}: {row['problem']}")
    if skipped := int(made.attrs["num_skipped_rows"]):
        note(f"bayesmeta: {skipped} rows were skipped.")
    say(summarise(made))
    say(f"\nWritten to {out}")


@evidence.command()
def check(file: EvidencePath) -> None:
    """Check the schema, every cell and the content hash of a file.

    \b
    Example: bayesmeta evidence check evidence.nc
    """
    from bayesmeta.evidence_io import load

    found = load(file)
    sizes = found.sizes
    say(
        f"{file} is sound: {sizes['task']} tasks, {sizes['skill']} skills, "
        f"content hash {found.attrs['content_hash']}"
    )


@evidence.command()
def show(
    file: EvidencePath,
    task: Annotated[str | None, typer.Option(help="Show this task in full.")] = None,
) -> None:
    """Print what is in a file, or everything about one task.

    \b
    Examples:
      bayesmeta evidence show evidence.nc
      bayesmeta evidence show evidence.nc --task basic_arithmetic-0-3
    """
    from bayesmeta.evidence import subset, summarise
    from bayesmeta.evidence_io import load

    found = load(file)
    if task is None:
        say(summarise(found))
    else:
        _show_task(subset(found, [task]))


@tasks.command()
def make(
    families: Annotated[
        list[str] | None, typer.Argument(help="Names; the ten default families if none.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Tasks of each family.")] = 20,
    seed: Annotated[int, typer.Option(help="Selects tasks, distractors and split.")] = 0,
    held_out: Annotated[
        float, typer.Option(min=0, max=1, help="Share of each family that is held out.")
    ] = 0.4,
    out: Annotated[Path, typer.Option(help="JSONL or CSV.")] = Path("tasks.jsonl"),
) -> None:
    """Make tasks with reasoning_gym and write them to a file.

    \b
    Example: bayesmeta tasks make basic_arithmetic word_sorting -n 30 --out tasks.jsonl
    """
    check_out(out)

    from bayesmeta.families import make_tasks
    from bayesmeta.task_files import write_tasks

    made = make_tasks(families or None, n, seed, held_out_fraction=held_out)
    write_tasks(made, out)
    domains = dict.fromkeys(task.domain for task in made)
    say(f"{len(made)} tasks in {len(domains)} domains written to {out}")


@tasks.command("families")
def list_families() -> None:
    """List the families of tasks; those of the default set come first.

    \b
    Example: bayesmeta tasks families
    """
    from bayesmeta.families import default_families, families

    default = default_families()
    rows = [[name, "yes" if name in default else "", text] for name, text in families().items()]
    say_table(["family", "default", "what it asks"], rows)


@skills.command("list")
def list_skills(
    skills: Annotated[Path | None, typer.Option(help="JSON or TOML file of skills.")] = None,
) -> None:
    """List the default skills, or those of a file.

    \b
    Example: bayesmeta skills list --skills skills.json
    """
    from bayesmeta.skills import default_skills, load_skills

    rows = [
        [s.name, s.version, len(s.stages), s.recall, s.tool or "", s.instruction]
        for s in (default_skills() if skills is None else load_skills(skills))
    ]
    say_table(["skill", "version", "stages", "examples", "tool", "instruction"], rows)


@skills.command("show")
def show_skills(
    names: Annotated[list[str] | None, typer.Argument(help="Names; all if none.")] = None,
    skills: Annotated[Path | None, typer.Option(help="JSON or TOML file of skills.")] = None,
) -> None:
    """Print skills as JSON, which is a skill file to change and use.

    \b
    Examples:
      bayesmeta skills show calculator
      bayesmeta skills show > skills.json
    """
    from bayesmeta.skills import default_skills, load_skills

    known = {s.name: s for s in (default_skills() if skills is None else load_skills(skills))}
    for name in names or ():
        if name not in known:
            raise CommandError(f"there is no skill {name!r}. Known: {', '.join(known)}.")
    rows = [known[name].to_dict() for name in names or known]
    say(json.dumps({"skills": rows}, indent=2))


def _verdict_table(
    files: list[Path],
    skill: list[str] | None,
    form: Format,
    on_error: OnError,
    held_out: float,
    seed: int,
) -> "pd.DataFrame":
    import pandas as pd

    from bayesmeta.distractors import seeded
    from bayesmeta.eval_logs import verdicts_from_inspect, verdicts_from_lm_eval
    from bayesmeta.tasks import HELD_OUT, REFLECT

    if skill and len(skill) != len(files):
        raise CommandError(
            f"{len(files)} logs but {len(skill)} --skill. Give one for each log, in order, or none."
        )
    verdicts = []
    for path, name in zip(files, skill or [None] * len(files), strict=True):
        if not path.is_file():
            raise CommandError(f"there is no file {path}. Check the name.")
        if path.suffix.lower() == ".csv":
            raise CommandError(f"{path}: give one CSV alone, or logs. Join tables into one CSV.")
        kind = guess(path) if form is Format.AUTO else form
        if kind is Format.INSPECT:
            verdicts += verdicts_from_inspect(path, name, on_error=on_error.value)
        else:
            verdicts += verdicts_from_lm_eval(path, name or "lm-eval", on_error=on_error.value)
    table = pd.DataFrame(verdicts)
    held: set[str] = set()
    for domain, rows in table.groupby("domain", sort=False):
        ids = list(dict.fromkeys(rows["task"]))
        held.update(seeded("split", domain, seed).sample(ids, round(held_out * len(ids))))
    table["split"] = [HELD_OUT if task in held else REFLECT for task in table["task"]]
    return table


def _show_task(found: "xr.Dataset") -> None:
    """Everything about the one task in ``found``. All of its text is data."""
    import numpy as np

    from bayesmeta.outcomes import skill_predictive

    one = found.isel(task=0)
    gold, scores = int(one["gold"]), np.exp(skill_predictive(found)[0])
    candidates = np.flatnonzero(found["observed"].values.any((0, 1, 2)))
    texts = one["candidate_text"].values if "candidate_text" in one else None
    names = [str(c) if texts is None or not texts[c] else str(texts[c]) for c in candidates]
    say(f"Task {one['task'].item()}, domain {one['domain'].item()}, split {one['split'].item()}")
    if "question" in one:
        say(f"\n{one['question'].item()}\n")
    say_table(
        [
            "probability of",
            *(f"{n} (gold)" if c == gold else n for n, c in zip(names, candidates, strict=True)),
        ],
        [
            [skill, *("" if np.isnan(p) else f"{p:.3f}" for p in scores[k, candidates])]
            for k, skill in enumerate(found["skill"].values.tolist())
        ],
    )
    if "trace_text" not in one:
        return
    present = one["observed"].values.any(-1)
    for k, skill in enumerate(found["skill"].values.tolist()):
        for s, text in enumerate(one["trace_text"].values[k].tolist()):
            if present[k, s] and text:
                say(f"\n--- {skill}, trace {s} ---\n{text}")
