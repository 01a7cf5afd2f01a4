"""Tasks from and to files: one JSON object per line (JSONL), or CSV with a header."""

import csv
import dataclasses
import difflib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bayesmeta.atomic import atomic_write
from bayesmeta.distractors import candidate_set, distract
from bayesmeta.families import assign_splits
from bayesmeta.features import question_features
from bayesmeta.tasks import HELD_OUT, REFLECT, Task
from bayesmeta.verify import VERIFIERS, canonical

#: The fields of a task file. Only the question and the answer are required.
FIELDS = tuple(field.name for field in dataclasses.fields(Task))
_FEATURE = "feature:"
_LONGEST_SHOWN = 80


class TaskFileError(ValueError):
    """A task file, or a line of it, that cannot be read; says where, what and what to do."""


class SkippedRow(NamedTuple):
    """A row that was left out: its line number (from 1) and why."""

    line: int
    reason: str


def read_tasks(
    path: str | os.PathLike[str],
    on_error: Literal["raise", "skip"] = "raise",
    *,
    held_out_fraction: float = 0.4,
    seed: int = 0,
) -> tuple[list[Task], list[SkippedRow]]:
    """Reads tasks from JSONL, or from CSV where the name ends in ``.csv``.

    Fields: ``question`` and ``answer`` (required), ``id`` (default: file name and line),
    ``candidates`` (JSON list; in CSV also ``;``-separated), ``domain``, ``split`` (``reflect`` or
    ``held_out``), ``features`` and ``metadata`` (JSON objects), ``verifier``. A CSV column
    ``feature:NAME`` is one feature. What is left out is filled in: candidates by
    `bayesmeta.distractors`, with the answers of the domain's other tasks where the answer itself
    has no near miss; features by `bayesmeta.features.question_features`; and, if no row has a
    split, the split by domain.

    Args:
      on_error: ``"raise"`` stops at the first bad row; ``"skip"`` leaves it out and lists it.
      held_out_fraction: share of each domain that is held out, used only where no row has a split.
      seed: of that split.

    Raises:
      TaskFileError: a bad row (with ``"raise"``), or a file that is missing, empty or has no
        usable row.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}.")
    path = Path(path)
    rows: list[tuple[int, dict[str, Any]]] = []
    skipped: list[SkippedRow] = []

    def bad(line: int, reason: str) -> None:
        if on_error == "raise":
            raise TaskFileError(f"{path}:{line}: {reason}")
        skipped.append(SkippedRow(line, reason))

    seen: dict[str, int] = {}
    read = _csv_rows if path.suffix.lower() == ".csv" else _jsonl_rows
    for line, row in read(path, _content(path)):
        try:
            if isinstance(row, TaskFileError):
                raise row
            row = _checked(row, f"{path.stem}-{line}")
            if row["id"] in seen:
                raise TaskFileError(
                    f"the id {row['id']!r} is already used in line {seen[row['id']]}. "
                    "Give every task its own id, or leave the column out."
                )
        except (TaskFileError, RecursionError) as error:
            bad(line, str(error))
            continue
        seen[row["id"]] = line
        rows.append((line, row))

    answers: dict[str, list[str]] = {}
    for _, row in rows:
        answers.setdefault(row["domain"], []).append(row["answer"])
    tasks: list[Task] = []
    for line, row in rows:
        try:
            tasks.append(_task(row, answers[row["domain"]]))
        except ValueError as error:
            bad(line, str(error))
    if not tasks:
        raise TaskFileError(
            f"{path}: no usable task in it ({len(skipped)} rows skipped"
            + (f", the first in line {skipped[0].line}: {skipped[0].reason}" if skipped else "")
            + '). A line looks like {"question": "What is 2 + 2?", "answer": "4"}.'
        )
    if not any("split" in row for _, row in rows):
        tasks = assign_splits(tasks, held_out_fraction, seed)
    return tasks, sorted(skipped)


def write_tasks(tasks: Iterable[Task], path: str | os.PathLike[str]) -> None:
    """Writes tasks as CSV where the name ends in ``.csv``, else as JSONL.

    The file appears whole or not at all: it is written beside its place and then renamed.

    Raises:
      OSError: the folder cannot be written to, or the disk is full. An older file is untouched.
    """
    path = Path(path)
    rows = [dataclasses.asdict(task) for task in tasks]
    if path.suffix.lower() == ".csv":
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for row in rows:
            for field in ("candidates", "features", "metadata"):
                row[field] = _dumps(row[field])
            writer.writerow(row)
        text = buffer.getvalue()
    else:
        text = "".join(_dumps(row) + "\n" for row in rows)
    content = text.encode()

    def write(part: Path) -> None:
        part.write_bytes(content)

    atomic_write(path, write)


def _dumps(value: object) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskFileError(
            f"{path}: cannot be read ({error.strerror or error}). Give the path of a JSONL or CSV "
            "file with one task per line."
        ) from error
    if not content.strip():
        raise TaskFileError(
            f"{path}: the file is empty. It should hold one task per line, such as "
            '{"question": "What is 2 + 2?", "answer": "4"}.'
        )
    return content.removeprefix(b"\xef\xbb\xbf")


Rows = Iterator[tuple[int, "dict[str, Any] | TaskFileError"]]


def _jsonl_rows(path: Path, content: bytes) -> Rows:
    for line, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            yield line, _not_utf8(error)
        except (ValueError, RecursionError) as error:
            yield (
                line,
                TaskFileError(
                    f"not a JSON object ({_short(str(error))}): "
                    f"{_short(raw.decode('utf-8', 'replace'))}. Write one complete object per line."
                ),
            )
        else:
            if isinstance(row, dict):
                yield line, row
            else:
                yield (
                    line,
                    TaskFileError(
                        f"a JSON object was wanted, got a {type(row).__name__}. "
                        'Write {"question": ..., "answer": ...}.'
                    ),
                )


def _csv_rows(path: Path, content: bytes) -> Rows:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise TaskFileError(f"{path}:{line}: {_not_utf8(error)}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        missing = {"question", "answer"} - set(header)
        if missing or len(set(header)) != len(header):
            problem = f"lacks {sorted(missing)}" if missing else "repeats a column"
            raise TaskFileError(
                f"{path}:1: the header {_short(','.join(header))} {problem}. The first line names "
                f"the columns: question, answer and any of {', '.join(FIELDS)}, feature:NAME."
            )
        start = reader.line_num + 1
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not cells or not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                yield (
                    line,
                    TaskFileError(
                        f"{len(header)} cells were wanted as in the header, got {len(cells)}. "
                        "Put text that contains commas in double quotes."
                    ),
                )
                continue
            # An empty cell is a field that was left out.
            row = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
            yield line, _from_cells(row)
    except (csv.Error, StopIteration) as error:
        raise TaskFileError(
            f"{path}:{reader.line_num}: not valid CSV ({error}). Check for a double quote that "
            "is never closed."
        ) from error


def _from_cells(row: dict[str, Any]) -> dict[str, Any] | TaskFileError:
    """Parses the cells of a CSV row that hold more than text."""
    try:
        for field in ("candidates", "features", "metadata"):
            cell = row.get(field)
            if cell is None:
                continue
            if field == "candidates" and not cell.lstrip().startswith("["):
                row[field] = [part.strip() for part in cell.split(";")]
            else:
                row[field] = json.loads(cell, parse_constant=_no_constant)
        for name in [name for name in row if name.startswith(_FEATURE)]:
            features = row.setdefault("features", {})
            if not isinstance(features, dict):
                break
            cell = row.pop(name)
            features[name.removeprefix(_FEATURE)] = float(cell)
    except (ValueError, RecursionError) as error:
        return TaskFileError(
            f"a cell cannot be read ({_short(str(error))}). candidates is a JSON list or separated "
            "by ';', features and metadata are JSON objects, feature:NAME is a number."
        )
    return row


def _checked(row: dict[str, Any], default_id: str) -> dict[str, Any]:
    """The row with its types checked, and the defaults of the fields that need no other row."""
    for name in row:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            raise TaskFileError(
                f"unknown field {_short(name)!r}. "
                + (f"Did you mean {close[0]!r}? " if close else "")
                + f"Fields: {', '.join(FIELDS)}; a number may be a column feature:NAME in CSV, "
                "anything else belongs in metadata."
            )
    row = {name: value for name, value in row.items() if value is not None}
    for name in ("question", "answer"):
        value = row.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and name == "answer":
            value = row[name] = str(value)
        if not isinstance(value, str) or not value.strip():
            raise TaskFileError(
                f"{name} must be non-empty text, got {_short(repr(value))}. Every task needs it."
            )
    row["id"] = str(row["id"]) if isinstance(row.get("id"), int) else row.get("id", default_id)
    row.setdefault("domain", "default")
    row.setdefault("verifier", "exact")
    for name in ("id", "domain", "verifier", *(["split"] if "split" in row else [])):
        if not isinstance(row[name], str) or not row[name].strip():
            raise TaskFileError(f"{name} must be non-empty text, got {_short(repr(row[name]))}.")
    if row.get("split", REFLECT) not in (REFLECT, HELD_OUT):
        raise TaskFileError(
            f"split must be {REFLECT!r} or {HELD_OUT!r}, got {_short(row['split'])!r}. "
            "Leave it out of every row to have it drawn."
        )
    if row["verifier"] not in VERIFIERS:
        raise TaskFileError(
            f"there is no verifier {_short(row['verifier'])!r}. Use one of {sorted(VERIFIERS)}."
        )
    row["answer"] = row["answer"].strip()
    if "candidates" in row:
        row["candidates"] = _candidates(row["candidates"], row["answer"])
    features = row.get("features", {})
    if not isinstance(features, dict) or not all(map(_is_finite, features.values())):
        raise TaskFileError(
            f"features must be an object of finite numbers, got {_short(repr(features))}."
        )
    if not isinstance(row.get("metadata", {}), dict):
        raise TaskFileError(f"metadata must be an object, got {_short(repr(row['metadata']))}.")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError) as error:
        raise TaskFileError(f"text that is not valid Unicode: {_short(str(error))}.") from error
    return row


def _candidates(value: object, answer: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise TaskFileError(
            f"candidates must be a list of at least 2 answers, got {_short(repr(value))}. "
            "Leave it out to have distractors made."
        )
    numbers_too = [str(c) if isinstance(c, int | float) and c is not True else c for c in value]
    if not all(isinstance(c, str) and c.strip() for c in numbers_too):
        raise TaskFileError(f"candidates must be non-empty texts, got {_short(repr(value))}.")
    texts = tuple(str(c).strip() for c in numbers_too)
    if len({canonical(text) for text in texts}) != len(texts):
        raise TaskFileError(
            f"two of the candidates mean the same: {_short(repr(value))}. Keep one of them."
        )
    if answer not in texts:
        raise TaskFileError(
            f"the answer {_short(answer)!r} is not among the candidates {_short(repr(value))}. "
            "Write it as it stands there, or add it."
        )
    return texts


def _task(row: dict[str, Any], answers: Iterable[str]) -> Task:
    row = dict(row)
    if "candidates" not in row:
        wrong = distract(row["answer"], row["id"], alternatives=dict.fromkeys(answers))
        row["candidates"] = candidate_set(row["answer"], wrong, row["id"])
    row.setdefault("features", question_features(row["question"]))
    row["features"] = {name: float(value) for name, value in row["features"].items()}
    return Task(**row)


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _not_utf8(error: UnicodeDecodeError) -> TaskFileError:
    return TaskFileError(
        f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}. "
        "Save the file as UTF-8."
    )


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
