"""A memory's files: whole at any moment, never overwritten, and honest about damage."""

import errno
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
from memory_process import belief

from bayesmeta import memory_store
from bayesmeta.memory_store import (
    MemoryConflictError,
    MemoryDamagedError,
    MemoryStore,
    StoreError,
)

SCRIPT = Path(__file__).parent / "memory_process.py"


@pytest.fixture
def store(tmp_path):
    """Three episodes."""
    store = MemoryStore(tmp_path / "memory")
    for number in (1, 2, 3):
        store.append(belief("test", number), after=store.head(), note=f"n{number}")
    return store


def head_path(store):
    return store.folder / "head.json"


def test_episodes_come_back_as_they_were_written(store):
    head = store.head()
    assert head.episode == 3 and store.check() == []
    for number in (1, 2, 3):
        xr.testing.assert_identical(store.read(store.entry(number)), belief("test", number))
    assert [(e.action, e.episode, e.note) for e in store.history()] == [
        ("append", n, f"n{n}") for n in (1, 2, 3)
    ]


def test_an_empty_memory_is_no_error_and_touches_nothing(tmp_path):
    store = MemoryStore(tmp_path / "new")
    assert store.head() is None and store.history() == [] and store.check() == []
    assert not (tmp_path / "new").exists()


def test_rollback_keeps_what_it_leaves_behind(store):
    later = store.entry(3)
    store.rollback(1)
    assert store.head().episode == 1
    with pytest.raises(StoreError, match=r"no episode 3; it has \[1\]"):
        store.entry(3)
    xr.testing.assert_identical(store.read(later), belief("test", 3))
    store.append(belief("test", 20), after=store.head())
    assert store.head().episode == 2
    assert store.read(store.head()).attrs["number"] == 20
    assert [e.action for e in store.history()] == ["append"] * 3 + ["rollback", "append"]
    store.rollback(0)
    assert store.head() is None
    store.append(belief("test", 1), after=None)
    assert store.head().episode == 1


def test_a_belief_worked_out_from_what_is_no_longer_current_is_refused(store):
    stale = store.head()
    store.append(belief("fast", 4), after=stale)
    before = head_path(store).read_bytes()
    with pytest.raises(MemoryConflictError, match="moved on to episode 4.*Nothing is lost"):
        store.append(belief("slow", 4), after=stale)
    assert head_path(store).read_bytes() == before
    # After a rollback the number alone would fit: the content decides.
    store.rollback(3)
    store.append(belief("other", 4), after=store.head())
    first = store.history()[3]
    with pytest.raises(MemoryConflictError):
        store.append(belief("slow", 5), after=first)


@pytest.mark.parametrize("change", ["cut", "flip", "missing"])
def test_a_damaged_episode_is_noticed_and_the_last_whole_one_named(store, change):
    path = store.folder / "episodes" / store.head().file
    image = path.read_bytes()
    if change == "cut":
        path.write_bytes(image[: len(image) // 2])
    elif change == "flip":
        path.write_bytes(image[:2000] + bytes([image[2000] ^ 1]) + image[2001:])
    else:
        path.unlink()
    with pytest.raises(MemoryDamagedError, match="back to episode 2.*rollback .* --to 2"):
        store.read(store.head())
    assert len(store.check()) == 1
    with pytest.raises(MemoryDamagedError):
        store.rollback(3)
    store.rollback(2)
    assert store.read(store.head()).attrs["number"] == 2


def test_a_damaged_head_is_recovered_from_the_episodes(store):
    head_path(store).write_text('{"format": 1, "log": [{"act')
    with pytest.raises(MemoryDamagedError, match=r"head.json is damaged.*memory recover"):
        store.head()
    assert "damaged" in store.check()[0]
    assert store.recover().episode == 3
    assert store.read(store.head()).attrs["number"] == 3
    assert (store.folder / "head.damaged.json").exists()
    head_path(store).unlink()
    with pytest.raises(MemoryDamagedError, match="3 episodes but no head.json"):
        store.head()
    # A damaged episode does not become current.
    (store.folder / "episodes" / "000009-0123456789abcdef.nc").write_bytes(b"half")
    assert store.recover().episode == 3


def test_nothing_whole_cannot_be_recovered(tmp_path):
    store = MemoryStore(tmp_path)
    with pytest.raises(MemoryDamagedError, match="no whole episode"):
        store.recover()


def test_another_version_is_refused_and_left_alone(store):
    content = json.loads(head_path(store).read_text())
    content["format"] = 99
    head_path(store).write_text(json.dumps(content))
    before = head_path(store).read_bytes()
    with pytest.raises(StoreError, match="has format 99.*reads 1.*Use the version"):
        store.head()
    with pytest.raises(StoreError):
        store.append(belief("test", 4), after=None)
    assert head_path(store).read_bytes() == before


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "memory").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        MemoryStore(tmp_path / "memory").history()


def test_a_full_disk_changes_nothing(store, monkeypatch):
    before = {p: p.read_bytes() for p in store.folder.rglob("*") if p.is_file()}

    def full(part, image):
        part.write_bytes(image[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(memory_store, "_write", full)
    with pytest.raises(OSError, match="disk or the quota is full"):
        store.append(belief("test", 4), after=store.head())
    assert {p: p.read_bytes() for p in store.folder.rglob("*") if p.is_file()} == before


def test_a_lock_that_is_never_given_back_is_named(store, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(memory_store, "_PATIENCE", 0.2)
    with FileLock(store.folder / ".lock"):
        with pytest.raises(MemoryConflictError, match="another process has been writing"):
            store.append(belief("test", 4), after=store.head())
    store.append(belief("test", 4), after=store.head())


def start(folder, name, count):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_lose_nothing(tmp_path):
    writers = [start(tmp_path, name, 8) for name in ("a", "b")]
    numbers = [list(map(int, w.communicate()[0].split())) for w in writers]
    assert all(w.returncode == 0 for w in writers)
    assert sorted(numbers[0] + numbers[1]) == list(range(1, 17))
    store = MemoryStore(tmp_path)
    head = store.head()
    assert store.check() == [] and head is not None and head.episode == 16
    for name, mine in zip("ab", numbers, strict=True):
        for number in mine:
            assert store.read(store.entry(number)).attrs == {"writer": name, "number": number}


def test_a_kill_at_any_moment_leaves_whole_episodes_in_order(tmp_path):
    """Kills fall at moments that a hash spreads over the time that an episode takes."""
    store, known = MemoryStore(tmp_path), 0
    for attempt in range(12):
        writer = start(tmp_path, "w", 1000)
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        # An episode takes some 20 ms; wait for a share of a few of them that looks random.
        share = int(hashlib.sha256(str(attempt).encode()).hexdigest()[:8], 16) / 2**32
        try:
            writer.wait(timeout=0.1 * share)
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        printed = [first, *map(int, writer.communicate()[0].split())]
        head = store.head()
        # What was reported is there, and at most the one in the making besides.
        assert (
            head is not None
            and first == known + 1
            and head.episode in (printed[-1], printed[-1] + 1)
        )
        known = head.episode
        assert store.check() == []
    assert known >= 12
    for number in range(1, known + 1):
        xr.testing.assert_identical(store.read(store.entry(number)), belief("w", number))
