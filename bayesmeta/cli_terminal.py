"""What the commands share: errors as one sentence, tables, a progress bar, and Ctrl-C."""

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

#: Exit codes. Those of the command line itself (an unknown option) are BAD_INPUT too.
FAILED, BAD_INPUT, NOT_CONVERGED, INTERRUPTED = 1, 2, 3, 130

#: What errors call an argument, and what the command line calls it.
_OPTIONS = {
    'on_error="skip"': "--on-error skip",
    "num_chains": "--chains",
    "num_samples": "--samples",
    "num_warmup": "--warmup",
    "num_steps": "--steps",
    "num_traces": "--traces",
    "target_accept": "--target-accept",
    "api_key_env": "--api-key-env",
}
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class CommandError(Exception):
    """Ends a command with a message and an exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


class Commands(TyperGroup):
    """A group of commands in which every error becomes one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        with _short_warnings():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                _end("interrupted.", INTERRUPTED)
            except BrokenPipeError:  # the reader of our output has seen enough
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 flushed at exit
                raise typer.Exit(0) from None
            except Exception as error:
                described = describe(error)
                if described is None:  # the command line's own errors print themselves
                    raise
                if os.environ.get("BAYESMETA_DEBUG") == "1":
                    traceback.print_exc()
                _end(*described)


def describe(error: Exception) -> tuple[str, int] | None:
    """The message and the exit code for an error; None for what typer handles itself."""
    kind = type(error)
    if kind.__module__.split(".")[0] in ("typer", "click"):
        return None
    if isinstance(error, CommandError):
        return str(error), error.code
    from bayesmeta.cells import ObserveError
    from bayesmeta.posterior import NotConvergedError

    if isinstance(error, NotConvergedError):
        return f"the fit did not converge: {error}", NOT_CONVERGED
    if isinstance(error, ObserveError):
        refused = isinstance(error.__cause__, ValueError)
        return _with_notes(error), BAD_INPUT if refused else FAILED
    if isinstance(error, ModuleNotFoundError):
        return _missing_module(error), FAILED
    if isinstance(error, MemoryError):
        return "out of memory. Use fewer tasks or chains, or a smaller model.", FAILED
    if isinstance(error, OSError):
        missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
        return _with_notes(error), BAD_INPUT if missing else FAILED
    if isinstance(error, ValueError | TypeError) and _is_ours(error):
        return _with_notes(error), BAD_INPUT
    return (
        f"{kind.__name__}: {error}. This should not happen; BAYESMETA_DEBUG=1 shows where it did.",
        FAILED,
    )


def as_options(text: str) -> str:
    """A message for Python, with its arguments named as the options that set them."""
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return text


def say(text: str = "") -> None:
    """Print to standard output, with control characters made visible."""
    _write(sys.stdout, text)


def note(text: str) -> None:
    """Print to standard error."""
    _write(sys.stderr, text)


def plain(text: object) -> str:
    """Text that cannot steer a terminal: what a language model wrote is data."""
    return "".join(_visible(c) if not c.isprintable() else c for c in str(text))


def say_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table: drawn by rich on a terminal, else aligned columns that are never cut."""
    cells = [[plain(cell).replace("\n", " ") for cell in row] for row in rows]
    numeric = [
        all(_is_number(row[i]) for row in cells) and bool(cells) for i in range(len(headings))
    ]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading, right in zip(headings, numeric, strict=True):
            table.add_column(Text(heading), justify="right" if right else "left")
        for row in cells:
            table.add_row(*map(Text, row))  # never read as markup
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(list(headings), *cells, strict=True)]
    for row in (list(headings), *cells):
        line = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        say("  ".join(line).rstrip())


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar with the time left as ``progress(done, total, message)``; silent off a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, message: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        line = bar.add_task("starting", total=None)
        yield lambda done, total, message: bar.update(
            line, completed=done, total=total, description=plain(message)
        )


@contextlib.contextmanager
def waiting(message: str) -> Iterator[None]:
    """A spinner for work whose length is not known; silent off a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(plain(message))):
        yield


def finish(table: Any, tree: Any, out: Path | None) -> None:
    """Write a fit's table, and its posterior beside it; exit with NOT_CONVERGED if it did not."""
    if out is not None:
        from bayesmeta.atomic import atomic_write
        from bayesmeta.posterior import save_posterior

        atomic_write(out, lambda part: table.to_csv(part))
        save_posterior(tree, out.with_suffix(".nc"))
        say(f"wrote {out} and {out.with_suffix('.nc')}")
    if tree.attrs["status"] != "CONVERGED":
        note(f"bayesmeta: not converged: {tree.attrs['status_detail']}")
        raise typer.Exit(NOT_CONVERGED)


def interruptible[T](work: Callable[[], T]) -> T:
    """Run ``work`` so that Ctrl-C is answered at once, also within compiled code.

    The work goes on in a thread that ends with the process: what it must not lose has to be safe
    from a kill anyway, as everything in the cache is.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    # The handler only takes note. An exception raised from a handler can surface in a finaliser or
    # a callback that happens to run, and be swallowed there.
    asked = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set()) if in_main else None
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive() and not asked.is_set():
            thread.join(0.2)
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)
    if asked.is_set():
        raise KeyboardInterrupt
    if failures:
        raise failures[0]
    return results[0]


def check_out(path: Path, *, netcdf: bool = False) -> None:
    """Refuse a place that cannot be written, before hours are spent on what goes there.

    With ``netcdf`` also refuse to replace a file that is not netCDF-4: it was named by mistake.
    """
    folder = path.resolve().parent
    if not folder.is_dir():
        raise CommandError(f"cannot write {path}: there is no folder {folder}. Create it.")
    if path.is_dir():
        raise CommandError(f"cannot write {path}: it is a folder. Name a file inside it.")
    if not os.access(folder, os.W_OK):
        raise CommandError(f"cannot write {path}: no permission in {folder}. Choose another.")
    if netcdf and path.is_file() and path.stat().st_size and not is_netcdf(path):
        raise CommandError(
            f"--out {path} exists and is not a netCDF file, so it will not be replaced. "
            "Choose another name."
        )


def is_netcdf(path: Path) -> bool:
    """Whether a file starts as a netCDF-4 (HDF5) file does."""
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _end(message: str, code: int) -> NoReturn:
    note(f"bayesmeta: {as_options(message)}")
    raise typer.Exit(code) from None


def _is_ours(error: Exception) -> bool:
    """Whether this package raised it: then it speaks of the input, else it is a fault of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return name.split(".")[0] == "bayesmeta"


def _with_notes(error: Exception) -> str:
    """The error's own words, without the number of an operating system's error."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        text = f"{where}{error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and "full" not in text:
            text += ". The disk is full: free some space and run the same command again."
    else:
        text = str(error) or type(error).__name__
    notes = getattr(error, "__notes__", []) or getattr(error.__cause__, "__notes__", [])
    return " ".join([text, *notes])


def named_or_json(name: str, known: Mapping[str, Any], from_json: Any, option: str) -> Any:
    """What ``known`` has under this name, or what the JSON file of this name holds."""
    if name in known:
        return known[name]
    path = Path(name)
    if not path.is_file():
        raise CommandError(
            f"{option} names {name!r}, which is neither one of {', '.join(known)} nor a JSON file."
        )
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error


def _missing_module(error: ModuleNotFoundError) -> str:
    name = (error.name or "").split(".")[0]
    extras = {"reasoning_gym": "tasks", "torch": "llm", "transformers": "llm", "gguf": "llm"}
    extras |= {"pyro": "pyro", "ray": "ray"}
    if name in extras:
        return f"{name} is not installed. Install it with: pip install 'bayesmeta[{extras[name]}]'"
    return f"{error}. Install the missing package."


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings as one line each, without the source line that raised them."""

    def show(message: Warning | str, *others: Any, **more: Any) -> None:
        note(f"bayesmeta: warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _write(stream: Any, text: str) -> None:
    safe = "".join(c if c.isprintable() or c in "\n\t" else _visible(c) for c in text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(safe.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or not (
        code < 160 or character in _DIRECTIONS or 0xD800 <= code < 0xE000
    ):
        return character  # joiners within emoji and uncommon spaces are harmless
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%").replace("\u2212", "-") or "nan")
    except ValueError:
        return False
    return True
