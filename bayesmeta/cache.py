"""What a language model has already said, kept on disk so that it is paid for once."""

import errno
import hashlib
import json
import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import diskcache

#: Seconds to wait for another process that is writing.
_WAIT = 60


class CacheError(OSError):
    """The cache cannot be read or written; says which folder and what to do."""


class CacheWarning(UserWarning):
    """An entry was damaged; it was dropped and will be computed again."""


class EvidenceCache:
    """Finished pieces of evidence by the hash of all that they depend on.

    Entries are text in one SQLite database: an entry is there whole or not at all, also after a
    kill at any moment, and several processes may share the folder. Nothing is ever evicted. Each
    entry carries a SHA-256 of its key and content; one that does not match is reported by a
    `CacheWarning`, counted in ``damaged``, dropped, and counts as absent. Nothing is unpickled.

    Use as a context manager, or call `close`.

    Args:
      folder: created if needed.

    Raises:
      CacheError: the folder cannot be created or written, or holds something else.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.damaged = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(
                error.errno,
                f"cache folder {self.folder} cannot be made: {error.strerror}. Choose another",
            ) from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise CacheError(
                errno.EACCES,
                f"cache folder {self.folder} cannot be written. Change its permissions or "
                "choose another",
            )
        with self._errors("opened"):
            # A look first: diskcache leaves its connection open when it fails to start.
            with closing(sqlite3.connect(self.folder / "cache.db")) as connection:
                connection.execute("PRAGMA schema_version")
            self._store = diskcache.Cache(
                str(self.folder.resolve()),
                timeout=_WAIT,
                disk=_TextDisk,
                # Every entry was paid for: none is thrown out to save space, and all stay in
                # the database, where a write is one transaction.
                eviction_policy="none",
                cull_limit=0,
                size_limit=2**62,
                disk_min_file_size=2**40,
            )

    @staticmethod
    def key(**content: Any) -> str:
        """SHA-256 of the content as canonical JSON, as hex: the same for any order of names.

        Raises:
          TypeError: the content is not plain JSON (text keys; text, finite numbers, lists, None).
        """
        _check_plain(content, "content")
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry, or None if it is absent or damaged. Floats come back exactly as put."""
        with self._errors("read"):
            text = self._store.get(key)
        if text is None:
            return None
        digest, _, content = text.partition("\n") if isinstance(text, str) else ("", "", "")
        if digest == _digest(key, content):
            return json.loads(content)
        self.damaged += 1
        with self._errors("written"):
            self._store.delete(key)
        warnings.warn(
            f"cache entry {key} in {self.folder} is damaged. It was dropped and will be computed "
            "again; check the disk if this recurs.",
            CacheWarning,
            stacklevel=2,
        )
        return None

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Store an entry, replacing what is there; on return it outlives a kill of the process.

        Args:
          key: any text, by use from `key`.
          value: plain JSON; NaN and infinities are allowed.

        Raises:
          TypeError: the value is not plain JSON.
          CacheError: the disk is full, or another process blocks the cache.
        """
        _check_plain(value, "value")
        content = json.dumps(dict(value), separators=(",", ":"))
        with self._errors("written"):
            self._store.set(key, f"{_digest(key, content)}\n{content}")

    def __contains__(self, key: str) -> bool:
        """Whether there is an entry, sound or damaged."""
        with self._errors("read"):
            return key in self._store

    def __len__(self) -> int:
        with self._errors("read"):
            count: Any = self._store.__len__()  # typed too widely upstream
        return count

    def keys(self) -> Iterator[str]:
        """All keys, in the order in which they were first put."""
        with self._errors("read"):
            yield from map(str, self._store)

    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file())

    def clear(self) -> int:
        """Drop every entry; returns how many there were."""
        with self._errors("written"):
            return self._store.clear()

    def close(self) -> None:
        """Close the database; the cache opens again by itself if it is used again."""
        self._store.close()

    def __enter__(self) -> "EvidenceCache":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn what SQLite raises into one sentence with a remedy."""
        try:
            yield
        except diskcache.Timeout as error:
            raise CacheError(
                errno.EAGAIN,
                f"cache {self.folder} could not be {action} within {_WAIT} s: another process "
                "holds it, or it is read-only. End that process or choose another folder",
            ) from error
        except sqlite3.Error as error:
            full = "full" in str(error)
            remedy = (
                "Free some space and run the same command again: what was stored is kept"
                if full
                else "If another program damaged it, delete the folder to start afresh"
            )
            raise CacheError(
                errno.ENOSPC if full else errno.EIO,
                f"cache {self.folder} could not be {action}: {error}. {remedy}",
            ) from error


class _TextDisk(diskcache.Disk):
    """Stores text and nothing else, so that reading a cache can never run what is in it."""

    def put(self, key: Any) -> tuple[str, bool]:
        if not isinstance(key, str):
            raise TypeError(f"cache key is {key!r}, wanted text. Make it with EvidenceCache.key.")
        return key, True

    def get(self, key: Any, raw: Any) -> Any:
        return key if isinstance(key, str) else repr(key)

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> Any:
        # Anything that is not text was not written here; it fails the check of its hash.
        return value if isinstance(value, str) else ""


def _digest(key: str, content: str) -> str:
    return hashlib.sha256(f"{key}\n{content}".encode("utf-8", "surrogatepass")).hexdigest()


def _check_plain(value: Any, where: str) -> None:
    if value is None or isinstance(value, (str, bool, int, float)):
        return
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{where} has the key {name!r}, wanted text. Use str({name!r}).")
            _check_plain(item, f"{where}[{name!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    else:
        raise TypeError(
            f"{where} is a {type(value).__name__}, wanted plain JSON. Convert it first, arrays "
            "with .tolist()."
        )
