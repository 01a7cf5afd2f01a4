"""Work in several processes: all of it is done, side by side, and no failure is lost."""

import functools
import os
import time
from pathlib import Path

import pytest

from bayesmeta.workers import WorkerDiedError, in_workers


def leave_a_mark(name: str, folder: Path) -> None:
    cores = " ".join(map(str, sorted(os.sched_getaffinity(0))))
    (folder / name).write_text(f"{os.getpid()}: {cores}", encoding="utf-8")
    deadline = time.monotonic() + 60
    # Both of the first two must be running at once for either to go on.
    while not all((folder / first).exists() for first in ("a", "b")):
        assert time.monotonic() < deadline, "no other process came"
        time.sleep(0.01)


def fail_at_b(name: str, folder: Path) -> None:
    (folder / name).touch()
    if name == "b":
        raise ValueError("no such thing")


def die_at_b(name: str) -> None:
    if name == "b":
        os._exit(7)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_everything_is_done_side_by_side_on_separate_cores(tmp_path):
    names = ["a", "b", "c", "d", "e"]
    work = functools.partial(leave_a_mark, folder=tmp_path)
    assert sorted(in_workers(work, names, 2)) == names
    marks = [(tmp_path / name).read_text(encoding="utf-8").split(": ") for name in names]
    cores_of = {int(pid): set(map(int, cores.split())) for pid, cores in marks}
    assert len(cores_of) == 2 and os.getpid() not in cores_of
    one, other = cores_of.values()
    here = os.sched_getaffinity(0)
    assert one | other == here
    assert len(here) == 1 or not one & other


def test_an_error_is_raised_with_the_name_and_stops_the_rest(tmp_path):
    with pytest.raises(ValueError, match="no such thing") as caught:
        list(in_workers(functools.partial(fail_at_b, folder=tmp_path), list("abc"), 1))
    assert caught.value.__notes__ == ["while working on 'b'"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_process_that_dies_is_named():
    done = in_workers(die_at_b, list("abc"), 1)
    assert next(done) == "a"
    with pytest.raises(WorkerDiedError, match=r"'b' ended with code 7.*fewer"):
        next(done)


def test_no_worker_is_refused():
    with pytest.raises(ValueError, match="workers is 0"):
        list(in_workers(die_at_b, ["a"], 0))
