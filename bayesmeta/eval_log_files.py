"""Reading the files that evaluation logs are kept in: lines of JSON, and archives of JSON."""

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The uncompressed size of one member of an archive, in bytes, beyond which it is refused.
_LARGEST_MEMBER = 2**29
_ZSTD = 93


class EvalLogError(ValueError):
    """A log, or a sample in it, that cannot be read; says where, what and what to do."""


def jsonl_samples(path: Path) -> Iterator[tuple[str, Any]]:
    """Each line as ``(line number, object)``; an error instead of an object that is not one."""
    for line, raw in enumerate(_bytes(path).split(b"\n"), start=1):
        if raw.strip():
            yield str(line), _json(raw)


def _json(raw: bytes) -> Any:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return EvalLogError(f"it is not complete JSON ({error})")
    return value if isinstance(value, dict) else EvalLogError("it is not a JSON object")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvalLogError(
            f"{path}: cannot be read ({error.strerror or error}). Give the path of a log file."
        ) from error


def inspect_samples(path: Path) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The header of an Inspect log and its samples."""
    if path.suffix == ".eval":
        header, samples = _inspect_archive(path)
    else:
        header = _json(_bytes(path))
        samples = header.get("samples") if isinstance(header, dict) else None
        samples = [(f"sample {i}", sample) for i, sample in enumerate(samples or [], start=1)]
    if isinstance(header, EvalLogError):
        raise EvalLogError(f"{path}: {header}. Give an Inspect log, .json or .eval.")
    evaluation = header.get("eval")
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("task"), str):
        raise EvalLogError(f"{path}: not an Inspect log: it has no eval.task. Give .json or .eval.")
    return header, samples


def _inspect_archive(path: Path) -> tuple[Any, list[tuple[str, Any]]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # An unfinished run has no header yet, only the journal's start.
            head = "header.json" if "header.json" in names else "_journal/start.json"
            header = _json(_member(archive, head))
            inside = sorted(n for n in names if n.startswith("samples/") and n.endswith(".json"))
            return header, [(name, _json(_member(archive, name))) for name in inside]
    except (OSError, zipfile.BadZipFile, KeyError, zlib.error, EOFError, RuntimeError) as error:
        raise EvalLogError(
            f"{path}: not a readable .eval archive ({error}). Copy it again, or write it as JSON "
            "with `inspect log convert --to json`."
        ) from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > _LARGEST_MEMBER:
        raise EvalLogError(
            f"{archive.filename}: {name} holds {info.file_size} bytes, at most {_LARGEST_MEMBER} "
            "are read. Write the log without images and attachments."
        )
    if info.compress_type != _ZSTD:
        return archive.read(name)
    try:
        return archive.read(name)  # from Python 3.14 on
    except NotImplementedError:
        return _zstd_member(archive, info)


def _zstd_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Newer Inspect compresses with Zstandard, which zipfile reads from Python 3.14 on."""
    try:
        import zstandard
    except ImportError as error:
        raise EvalLogError(
            f"{archive.filename}: this log is compressed with Zstandard, which this Python cannot "
            "read. Install the package zstandard, use Python 3.14, or write the log as JSON with "
            "`inspect log convert --to json`."
        ) from error
    with open(str(archive.filename), "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"no local header for {info.filename}")
        skip = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        file.seek(skip, os.SEEK_CUR)
        packed = file.read(info.compress_size)
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
        content = reader.read(info.file_size + 1)
    except zstandard.ZstdError as error:
        raise zipfile.BadZipFile(f"{info.filename}: {error}") from error
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile(f"{info.filename} is damaged")
    return content
