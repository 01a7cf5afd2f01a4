"""A folder of beliefs, one file an episode: whole at any moment, and never overwritten.

    memory/head.json                    which episode is current, and everything that was done
    memory/episodes/000003-1f0c….nc     a belief; its name holds the hash of its content

An episode's file is complete before the head names it, and both are put in place at once or not
at all. So a process that is killed, or a disk that is full, leaves the memory as it was before or
as it was to be. Two processes take turns by a lock, and one that has worked from a belief that is
no longer current is told so instead of overwriting it.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import xarray as xr

from bayesmeta.atomic import atomic_write

#: Version of this layout.
FORMAT = 1
#: Seconds to wait for another process.
_PATIENCE = 30.0


class StoreError(ValueError):
    """A memory that cannot be read or written as it is; the message says what to do."""


class MemoryDamagedError(StoreError):
    """A file is not what was written."""


class MemoryConflictError(StoreError):
    """Another process was faster."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was done to a memory.

    Attributes:
      action: ``"append"`` or ``"rollback"``.
      episode: number of the episode that became current; 0 for none.
      file: name of its file; empty for none.
      sha256: of the file's bytes, as hex.
      time: when, in UTC, ISO 8601.
      note: free text.
    """

    action: str
    episode: int
    file: str
    sha256: str
    time: str
    note: str = ""


class MemoryStore:
    """The files of one memory. The folder appears with the first write."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def _head(self) -> Path:
        return self.folder / "head.json"

    def history(self) -> list[Entry]:
        """Everything that was done, oldest first.

        Raises:
          MemoryDamagedError: the head cannot be read.
          StoreError: another version of the package wrote it, or the folder is none.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"memory {self.folder} is a file. Name a folder, or a new one.")
        if not self._head.exists():
            if self._episodes():
                raise MemoryDamagedError(
                    f"memory {self.folder} holds {len(self._episodes())} episodes but no head.json "
                    f"to say which is current. {self._rescue()}"
                )
            return []
        try:
            content = json.loads(self._head.read_text(encoding="utf-8"))
            version = content["format"]
            entries = [Entry(**entry) for entry in content["log"]] if version == FORMAT else []
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MemoryDamagedError(
                f"{self._head} is damaged ({type(error).__name__}: {error}). {self._rescue()}"
            ) from error
        if version != FORMAT:
            raise StoreError(
                f"memory {self.folder} has format {version!r}, and this version of bayesmeta reads "
                f"{FORMAT}. Use the version that wrote it, or begin another memory."
            )
        return entries

    def head(self) -> Entry | None:
        """The current episode, or None before the first."""
        history = self.history()
        return history[-1] if history and history[-1].episode else None

    def entry(self, episode: int) -> Entry:
        """What an episode number stands for on the way that leads to the current one."""
        path = {e.episode: e for e in self._path(self.history())}
        if episode not in path:
            raise StoreError(
                f"memory {self.folder} has no episode {episode}; it has {sorted(path)}. Look at "
                "`bayesmeta memory history`."
            )
        return path[episode]

    def read(self, entry: Entry) -> xr.Dataset:
        """An episode's belief, checked against its hash.

        Raises:
          MemoryDamagedError: the file is missing or was changed.
        """
        path = self.folder / "episodes" / entry.file
        try:
            image = path.read_bytes()
        except OSError as error:
            raise MemoryDamagedError(
                f"episode {entry.episode} of memory {self.folder} cannot be read ({error}). "
                f"{self._rescue(entry)}"
            ) from error
        if hashlib.sha256(image).hexdigest() != entry.sha256:
            raise MemoryDamagedError(
                f"episode {entry.episode} of memory {self.folder} was changed or cut off: {path} "
                f"has {len(image)} bytes that do not have the hash written down for them. "
                f"{self._rescue(entry)}"
            )
        with xr.open_dataset(io.BytesIO(image), engine="h5netcdf") as opened:
            return opened.load()

    def append(self, belief: xr.Dataset, *, after: Entry | None, note: str = "") -> Entry:
        """Make a belief current.

        Args:
          belief: of the episode that follows ``after``.
          after: what was current when the belief was worked out.
          note: for the history.

        Raises:
          MemoryConflictError: something else is current by now; nothing is written.
          OSError: the disk is full, or the folder cannot be written; nothing is changed.
        """
        image = bytes(belief.to_netcdf(engine="h5netcdf"))
        digest = hashlib.sha256(image).hexdigest()
        number = 1 if after is None else after.episode + 1
        with self._locked():
            history = self.history()
            current = history[-1] if history and history[-1].episode else None
            if _identity(current) != _identity(after):
                raise MemoryConflictError(
                    f"memory {self.folder} has moved on to episode "
                    f"{current.episode if current else 0} while another was being worked out from "
                    f"episode {after.episode if after else 0}. Nothing is lost: reflect again, "
                    "which goes on from what is current."
                )
            if not self._head.exists():
                self._write_head([])  # so that an episode without a head is always damage
            file = f"{number:06d}-{digest[:16]}.nc"
            (self.folder / "episodes").mkdir(exist_ok=True)
            atomic_write(self.folder / "episodes" / file, lambda part: _write(part, image))
            entry = Entry("append", number, file, digest, _now(), note)
            self._write_head([*history, entry])
        return entry

    def rollback(self, episode: int) -> Entry:
        """Make an earlier episode current again; 0 for the time before the first.

        Later episodes stay in the folder and in the history.
        """
        with self._locked():
            history = self.history()
            if episode == 0:
                entry = Entry("rollback", 0, "", "", _now())
            else:
                found = self.entry(episode)
                self.read(found)  # not to a damaged one
                entry = dataclasses.replace(found, action="rollback", time=_now(), note="")
            self._write_head([*history, entry])
        return entry

    def recover(self) -> Entry:
        """Write a new head that names the last whole episode, after damage to the old one.

        Raises:
          MemoryDamagedError: no episode is whole.
        """
        with self._locked():
            found: dict[int, Entry] = {}
            # Of several with one number, which a rollback leaves, the newest was current last.
            for path in sorted(self._episodes(), key=lambda path: path.stat().st_mtime_ns):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                if path.stem.partition("-")[2] == digest[:16]:
                    number = int(path.stem.partition("-")[0])
                    found[number] = Entry("append", number, path.name, digest, _now(), "recovered")
            entries = [found[number] for number in sorted(found)]
            if not entries:
                raise MemoryDamagedError(
                    f"memory {self.folder} has no whole episode left. Begin another memory."
                )
            if self._head.exists():
                self._head.replace(self._head.with_name("head.damaged.json"))
            self._write_head(entries)
        return entries[-1]

    def check(self) -> list[str]:
        """What is wrong with the memory, one sentence each; empty if all is well."""
        try:
            history = self.history()
        except StoreError as error:
            return [str(error)]
        found = []
        for entry in dict.fromkeys(e for e in history if e.action == "append"):
            try:
                self.read(entry)
            except MemoryDamagedError as error:
                found.append(str(error))
        return found

    def _path(self, history: list[Entry]) -> list[Entry]:
        """Episodes from the first to the current one, without those that were rolled back."""
        path: list[Entry] = []
        for entry in history:
            if entry.action == "append":
                path.append(entry)
            else:
                path = [e for e in path if e.episode <= entry.episode]
        return path

    def _episodes(self) -> list[Path]:
        return sorted((self.folder / "episodes").glob("[0-9]*-*.nc"))

    def _rescue(self, damaged: Entry | None = None) -> str:
        if damaged is None:
            return "`bayesmeta memory recover` writes a new one that names the last whole episode."
        whole = []
        for entry in self._path(self.history()):
            path = self.folder / "episodes" / entry.file
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256:
                whole.append(entry.episode)
        before = [number for number in whole if number < damaged.episode]
        if not before:
            return "No earlier episode is whole. Begin another memory."
        return (
            f"Restore the file, or go back to episode {before[-1]}, the last whole one before it: "
            f"bayesmeta memory rollback {self.folder} --to {before[-1]}"
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=_PATIENCE):
                yield
        except Timeout as error:
            raise MemoryConflictError(
                f"another process has been writing to memory {self.folder} for {_PATIENCE:.0f} s. "
                "Wait for it, or stop it, and try again; the lock ends with it."
            ) from error

    def _write_head(self, entries: list[Entry]) -> None:
        content = {"format": FORMAT, "log": [dataclasses.asdict(entry) for entry in entries]}
        image = json.dumps(content, indent=1).encode()
        atomic_write(self._head, lambda part: _write(part, image))


def _identity(entry: Entry | None) -> tuple[int, str]:
    return (0, "") if entry is None else (entry.episode, entry.sha256)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write(part: Path, image: bytes) -> None:
    part.write_bytes(image)
