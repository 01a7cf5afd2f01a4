"""Write a file so that it is there whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then put it in the place of ``path``.

    Whatever goes wrong (a full disk, an exception, Ctrl-C, a kill), a file that was at ``path``
    stays as it was. The temporary file keeps the ending of ``path``, because some writers choose
    the format by it, and is removed unless the process is killed outright. A link is followed.

    Args:
      path: the destination; its folder must exist.
      write: gets the path of the temporary file, which it must create and close.

    Returns:
      The path written.

    Raises:
      OSError: the disk is full, or the folder is missing or not writable; the message says
        which file is concerned and what to do.
    """
    wanted = Path(path)
    final = Path(os.path.realpath(wanted))
    if not final.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"cannot write {wanted}: there is no folder {final.parent}. Create it"
        )
    if final.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, f"cannot write {wanted}: it is a folder. Name a file inside it"
        )
    part = final.with_name(f".{final.stem}.{secrets.token_hex(6)}.part{final.suffix}")
    try:
        write(part)
        _flush(part)
        if final.exists():
            shutil.copymode(final, part)
        os.replace(part, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.errno in _FULL:
            kept = "The file that was there is unchanged" if final.exists() else "Nothing is left"
            raise OSError(
                error.errno,
                f"cannot write {wanted}: the disk or the quota is full. {kept}. Free some space "
                "or choose another place, then save again",
            ) from error
        if isinstance(error, PermissionError):
            raise PermissionError(
                error.errno,
                f"cannot write {wanted}: no permission in {final.parent}. Choose a folder that "
                "you may write to",
            ) from error
        raise
    with contextlib.suppress(OSError):  # not every system lets a folder be flushed
        _flush(final.parent)
    return wanted


def _flush(path: Path) -> None:
    """Have the content of a file, or the entries of a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
