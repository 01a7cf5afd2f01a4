"""The command ``observe``, and where its tasks and its language model come from."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayesmeta.cli_terminal import (
    INTERRUPTED,
    CommandError,
    check_out,
    interruptible,
    note,
    progress_bar,
    say,
    waiting,
)

if TYPE_CHECKING:
    from bayesmeta.llm.base import AbstractLLM
    from bayesmeta.tasks import Task

#: Tasks per family where a source names families but no number.
_PER_FAMILY = 20
_FAMILIES = ("default", "reasoning_gym")


class OnError(StrEnum):
    """What to do about a bad row, or a cell that the model refuses."""

    RAISE = "raise"
    SKIP = "skip"


class Format(StrEnum):
    """What a file of tasks is."""

    AUTO = "auto"
    TASKS = "tasks"
    LM_EVAL = "lm-eval"
    INSPECT = "inspect"


class Template(StrEnum):
    """How a server's model is addressed."""

    CHATML = "chatml"
    PLAIN = "plain"


SOURCE_HELP = (
    "A JSONL or CSV file of tasks; default:N or reasoning_gym:NAME,NAME:N for N generated tasks "
    "per family; or a log of lm-evaluation-harness or Inspect."
)


def observe(
    tasks: Annotated[list[str], typer.Argument(help=SOURCE_HELP, metavar="TASKS...")],
    llm: Annotated[
        str,
        typer.Option(
            help="embedded, a GGUF file, a folder, an id on the Hugging Face hub, or the URL of a "
            "vLLM, llama.cpp or OpenAI-compatible server."
        ),
    ] = "embedded",
    skills: Annotated[
        Path | None, typer.Option(help="JSON or TOML file of skills; see `bayesmeta skills`.")
    ] = None,
    traces: Annotated[int, typer.Option(min=1, help="Traces per task and skill.")] = 4,
    seed: Annotated[int, typer.Option(help="Root of all randomness.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of what the model already said (default: per user)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the evidence.")] = Path("evidence.nc"),
    on_error: Annotated[
        OnError, typer.Option(help="skip leaves bad rows and refused cells out, and lists them.")
    ] = OnError.RAISE,
    format: Annotated[Format, typer.Option(help="What the files are.")] = Format.AUTO,
    held_out: Annotated[
        float, typer.Option(min=0, max=1, help="Share held out where tasks name no split.")
    ] = 0.4,
    batch_size: Annotated[int, typer.Option(min=1, help="Tasks observed at a time.")] = 8,
    model: Annotated[
        str | None, typer.Option(help="Server: the model's name, if it serves several.")
    ] = None,
    template: Annotated[
        Template, typer.Option(help="Server: how its model is addressed.")
    ] = Template.CHATML,
    timeout: Annotated[float, typer.Option(help="Server: seconds for one attempt.")] = 60.0,
    retries: Annotated[int, typer.Option(help="Server: further attempts.")] = 4,
    api_key_env: Annotated[
        str | None, typer.Option(help="Server: environment variable that holds its key.")
    ] = None,
) -> None:
    """Ask a language model about every task under every skill; write evidence.

    What the model says is cached as it comes. After Ctrl-C, a crash or a full
    disk, run the same command again: nothing is asked twice.

    \b
    Examples:
      bayesmeta observe default:20 --out evidence.nc
      bayesmeta observe reasoning_gym:word_sorting,calendar_arithmetic:10
      bayesmeta observe tasks.jsonl --llm http://127.0.0.1:8000 --out e.nc
    """
    import bayesmeta
    from bayesmeta.skills import load_skills

    check_out(out, netcdf=True)
    chosen = None if skills is None else load_skills(skills)
    found = read_sources(tasks, format, on_error, held_out, seed)
    folder = cache_folder(cache)
    with resumable(folder), contextlib.ExitStack() as stack:
        with waiting(f"loading the language model {llm}"):
            asked = open_llm(llm, model, template, timeout, retries, api_key_env, stack)
        with progress_bar() as progress:
            evidence = interruptible(
                lambda: bayesmeta.observe(
                    asked,
                    found,
                    chosen,
                    num_traces=traces,
                    seed=seed,
                    cache=folder,
                    batch_size=batch_size,
                    progress=progress,
                    on_error=on_error.value,
                )
            )
    bayesmeta.save_evidence(evidence, out)
    skipped = json.loads(evidence.attrs["skipped"])
    for cell in skipped[:20]:
        note(f"bayesmeta: skipped {cell['task']}, {cell['skill']}: {cell['reason']}")
    if skipped:
        note(f"bayesmeta: {len(skipped)} cells were skipped; the attribute skipped lists them.")
    say(bayesmeta.summarise(evidence))
    say(f"\nWritten to {out}")


def read_sources(
    sources: Sequence[str], form: Format, on_error: OnError, held_out: float, seed: int
) -> list["Task"]:
    """The tasks of all sources, in order."""
    return [
        task for source in sources for task in _read_source(source, form, on_error, held_out, seed)
    ]


def _read_source(
    source: str, form: Format, on_error: OnError, held_out: float, seed: int
) -> list["Task"]:
    path = Path(source)
    kind, _, rest = source.partition(":")
    if kind in _FAMILIES and not path.exists():
        return _generate(source, kind, rest, held_out, seed)
    if not path.exists():
        raise CommandError(
            f"there is no task file {source}. Give a JSONL or CSV file, a log, default:20 or "
            "reasoning_gym:NAME:20 (`bayesmeta tasks families` lists the names)."
        )
    if form is Format.AUTO:
        form = guess(path)
    if form is Format.TASKS:
        from bayesmeta.task_files import read_tasks

        tasks, skipped = read_tasks(path, on_error.value, held_out_fraction=held_out, seed=seed)
        for row in skipped[:20]:
            note(f"bayesmeta: skipped {path}:{row.line}: {row.reason}")
        if skipped:
            note(f"bayesmeta: {len(skipped)} rows of {path} were skipped, {len(tasks)} are used.")
        return tasks
    from bayesmeta.eval_logs import tasks_from_inspect, tasks_from_lm_eval
    from bayesmeta.families import assign_splits

    read = tasks_from_lm_eval if form is Format.LM_EVAL else tasks_from_inspect
    return assign_splits(read(path, on_error.value), held_out, seed)


def _generate(source: str, kind: str, rest: str, held_out: float, seed: int) -> list["Task"]:
    from bayesmeta.families import make_tasks

    names, _, count = rest.rpartition(":") if ":" in rest else (rest, "", "")
    if kind == "default":
        names, count = "", rest
    elif rest.isdecimal():
        names = ""
    families = [name.strip() for name in names.split(",") if name.strip()]
    if (kind != "default" and not families) or (count and not count.isdecimal()):
        raise CommandError(
            f"cannot read the task source {source!r}. Wanted default:N or "
            "reasoning_gym:NAME,NAME:N, such as reasoning_gym:basic_arithmetic:20."
        )
    return make_tasks(
        families or None, int(count) if count else _PER_FAMILY, seed, held_out_fraction=held_out
    )


def guess(path: Path) -> Format:
    if path.suffix in (".eval", ".json"):
        return Format.INSPECT
    if path.suffix != ".csv" and path.is_file():
        with path.open("rb") as file:
            first = file.readline(2**24)
        try:
            sample = json.loads(first)
        except (ValueError, RecursionError):
            return Format.TASKS
        if isinstance(sample, dict) and {"doc_id", "arguments"} <= set(sample):
            return Format.LM_EVAL
    return Format.TASKS


def open_llm(
    name: str,
    model: str | None,
    template: Template,
    timeout: float,
    retries: int,
    api_key_env: str | None,
    stack: contextlib.ExitStack,
) -> "AbstractLLM":
    """The language model that ``--llm`` names; ``stack`` closes its connections."""
    if name.startswith(("http://", "https://")):
        from bayesmeta.llm.server import ServerLLM

        server = ServerLLM(
            name,
            model,
            template=template.value,
            timeout=timeout,
            retries=retries,
            api_key_env=api_key_env,
        )

        def close(kind: type[BaseException] | None, *_: object) -> None:
            if kind is not KeyboardInterrupt:  # else its requests are still on their way
                server.close()

        stack.push(close)
        return server
    path = Path(name).expanduser()
    if name.startswith(("/", "./", "../", "~")) and not path.exists():
        raise CommandError(f"there is no language model at {name}. Check the path.")
    if path.is_file() or path.suffix == ".gguf":
        # Before torch is loaded, which takes seconds.
        from bayesmeta.llm.embedded import gguf_quantisation

        gguf_quantisation(path)
    from bayesmeta.llm.local import LocalLLM

    try:
        return LocalLLM(None if name == "embedded" else str(path) if path.exists() else name)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CommandError(
            f"the language model {name!r} cannot be loaded: {' '.join(str(error).split())}"
        ) from error


def cache_folder(given: Path | None) -> Path:
    """The folder of the cache: the one given, or the user's own."""
    if given is not None:
        return given
    import platformdirs

    return Path(platformdirs.user_cache_dir("bayesmeta")) / "evidence"


@contextlib.contextmanager
def resumable(cache: Path) -> Iterator[None]:
    """Ctrl-C within says where the finished work is, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise CommandError(
            f"interrupted. What was computed is kept in {cache}; run the same command to resume.",
            INTERRUPTED,
        ) from None
