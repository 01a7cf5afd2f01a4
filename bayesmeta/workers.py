"""The same work for many names in several processes of this machine, each on cores of its own."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any


class WorkerDiedError(RuntimeError):
    """A process ended without an answer, as when the machine ran out of memory."""


def in_workers(work: Callable[[str], None], names: Sequence[str], workers: int) -> Iterator[str]:
    """Call ``work(name)`` for every name, in ``workers`` processes; yield names as they are done.

    Processes are started anew, so none inherits compiled code or locks, and each is kept to its
    share of the cores where the system allows that (Linux): threads of two numerical libraries
    that wait for each other's cores make both slower. They end with this process; where it is
    killed, after the work that they have in hand.

    Args:
      work: picklable. Keeps its own results; what it returns is dropped.
      names: what to call it with; begun in this order.
      workers: number of processes, at least 1.

    Raises:
      ValueError: no worker.
      WorkerDiedError: a process ended without an answer.
      Exception: whatever ``work`` raised first; the other processes are stopped.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; wanted at least 1.")
    context = multiprocessing.get_context("spawn")
    running: dict[Any, tuple[SpawnProcess, str]] = {}
    waiting, shares = list(names), _shares(workers)
    idle: list[tuple[SpawnProcess, Any]] = []
    with contextlib.ExitStack() as stack:
        for index in range(min(workers, len(waiting))):
            ours, theirs = context.Pipe()
            served = (work, theirs, shares[index])
            process = context.Process(target=_serve, args=served, daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(process.terminate)
            stack.callback(ours.close)
            idle.append((process, ours))
        while waiting or running:
            while waiting and idle:
                process, pipe = idle.pop()
                running[pipe] = (process, waiting.pop(0))
                # One that has died is noticed below, by the end of its pipe.
                with contextlib.suppress(BrokenPipeError):
                    pipe.send(running[pipe][1])
            ready: list[Any] = list(wait(list(running)))
            for pipe in ready:
                process, name = running.pop(pipe)
                try:
                    error = pipe.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    raise WorkerDiedError(
                        f"the process that worked on {name!r} ended with code {process.exitcode}, "
                        "perhaps for want of memory. What was done before is kept; run again with "
                        "fewer workers."
                    ) from None
                if error is not None:
                    raise error
                idle.append((process, pipe))
                yield name


def _serve(work: Callable[[str], None], pipe: Any, cores: Sequence[int]) -> None:
    if cores and sys.platform == "linux":
        os.sched_setaffinity(0, cores)
    # The end of the pipe is the end of the work.
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            name = pipe.recv()
            try:
                work(name)
            except Exception as error:
                error.add_note(f"while working on {name!r}")
                pipe.send(error)
            else:
                pipe.send(None)


def _shares(workers: int) -> list[list[int]]:
    """Cores for each worker; none where there are too few, or the system does not tell."""
    if sys.platform != "linux":
        return [[]] * workers
    cores = sorted(os.sched_getaffinity(0))
    return [cores[index::workers] for index in range(workers)]
