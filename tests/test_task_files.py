"""Task files: what is read, what is refused and how it is said, and nothing lost on the way."""

import collections
import dataclasses
import json
import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesmeta import task_files
from bayesmeta.families import make_tasks
from bayesmeta.task_files import SkippedRow, TaskFileError, read_tasks, write_tasks
from bayesmeta.tasks import HELD_OUT, REFLECT, Task
from bayesmeta.verify import canonical

GOOD = '{"question": "What is 2 + 2?", "answer": "4"}'


def put(tmp_path, content, name="tasks.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_defaults_are_filled_in(tmp_path):
    lines = [json.dumps({"question": f"What is {i} + 1?", "answer": i + 1}) for i in range(10)]
    tasks, skipped = read_tasks(put(tmp_path, "\n".join(lines) + "\n\n"))
    assert skipped == []
    assert [t.id for t in tasks] == [f"tasks-{i}" for i in range(1, 11)]
    assert all(len(t.candidates) == 4 and t.features for t in tasks)
    assert collections.Counter(t.split for t in tasks) == {REFLECT: 6, HELD_OUT: 4}
    again, _ = read_tasks(tmp_path / "tasks.jsonl")
    assert again == tasks


def test_csv(tmp_path):
    path = put(
        tmp_path,
        "id,question,answer,candidates,domain,split,feature:size\n"
        'a,"one, or two?",1,1;2,d,held_out,3\n'
        '"b","a\nb?",Oslo,"[""Oslo"", ""Rome""]",d,reflect,-1.5\n'
        "c,Which day?,Friday,,e,reflect,\n",
        "tasks.CSV",
    )
    (a, b, c), skipped = read_tasks(path)
    assert skipped == []
    assert (a.question, a.candidates, a.split, dict(a.features)) == (
        "one, or two?", ("1", "2"), HELD_OUT, {"size": 3.0},
    )  # fmt: skip
    assert (b.question, b.candidates, dict(b.features)) == (
        "a\nb?",
        ("Oslo", "Rome"),
        {"size": -1.5},
    )
    assert len(c.candidates) == 4 and "log_length" in c.features


def test_other_answers_of_the_domain_become_distractors(tmp_path):
    rows = [{"question": f"Capital {i}?", "answer": a, "domain": "d"} for i, a in enumerate(
        ["Buenos Aires", "New Delhi", "Addis Ababa", "Kuala Lumpur"])]  # fmt: skip
    tasks, _ = read_tasks(put(tmp_path, "\n".join(map(json.dumps, rows))))
    assert all(set(t.candidates) == {r["answer"] for r in rows} for t in tasks)


BAD = [
    (b'{"question": "a', "not a JSON object.*one complete object per line"),
    (b"[1, 2]", "a JSON object was wanted, got a list"),
    (b'{"question": "q"}', "answer must be non-empty text, got None"),
    (b'{"question": " ", "answer": "4"}', "question must be non-empty text, got ' '"),
    (b'{"question": "q", "answer": true}', "answer must be non-empty text, got True"),
    (b'{"question": "q", "answer": "4", "canddates": []}', "Did you mean 'candidates'"),
    (b'{"question": "q", "answer": "4", "candidates": ["5", "6"]}', "'4' is not among"),
    (b'{"question": "q", "answer": "4", "candidates": ["4", "4.0"]}', "mean the same"),
    (b'{"question": "q", "answer": "4", "candidates": "4;5"}', "list of at least 2"),
    (b'{"question": "q", "answer": "4", "split": "test"}', "must be 'reflect' or 'held_out'"),
    (b'{"question": "q", "answer": "4", "features": {"a": NaN}}', "NaN is not allowed"),
    (b'{"question": "q", "answer": "4", "features": {"a": "x"}}', "object of finite numbers"),
    (b'{"question": "q", "answer": "4", "verifier": "x"}', "no verifier 'x'"),
    (b'{"question": "q", "answer": "4", "metadata": [1]}', "metadata must be an object"),
    (b'{"question": "q\\ud800", "answer": "4"}', "not valid Unicode"),
    (
        b'{"question": "q", "answer": "?", "domain": "d"}',
        "no distractor can be made for the answer '\\?'",
    ),
    (b'{"question": "caf\xe9", "answer": "4"}', "not UTF-8: byte 0xe9 at offset 17"),
    (b'{"id": "first", "question": "q", "answer": "4"}', "'first' is already used in line 1"),
    (b"[" * 100_000, "JSON object"),
]


@pytest.mark.parametrize("line, message", BAD)
def test_bad_lines_raise_or_are_listed(tmp_path, line, message):
    first = b'{"id": "first", "question": "p", "answer": "1"}'
    path = put(tmp_path, b"\n".join([first, line, GOOD.encode()]))
    with pytest.raises(TaskFileError, match=f"(?s)tasks.jsonl:2: .*{message}"):
        read_tasks(path)
    tasks, skipped = read_tasks(path, on_error="skip")
    assert [t.id for t in tasks] == ["first", "tasks-3"]
    assert len(skipped) == 1 and isinstance(skipped[0], SkippedRow) and skipped[0].line == 2


@pytest.mark.parametrize(
    "content, message",
    [
        ("question\nq\n", r":1: the header question lacks \['answer'\]"),
        ("question,answer,answer\nq,4,4\n", "repeats a column"),
        ("question,answer\nq\n", ":2: 2 cells were wanted as in the header, got 1"),
        ('question,answer\n"q,4\n', "never closed"),
        ("question,answer,candidates\nq,4,[4\n", ":2: a cell cannot be read"),
        ("question,answer,feature:n\nq,4,many\n", ":2: a cell cannot be read.*many"),
        ("question,answer,feature:n\nq,4,nan\n", "finite numbers"),
        (b"question,answer\nq,4\ncaf\xe9,4\n", ":3: not UTF-8"),
        ("question,answer,mood\nq,4,good\n", ":2: unknown field 'mood'"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    with pytest.raises(TaskFileError, match=message):
        read_tasks(put(tmp_path, content, "t.csv"))


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path, name, content):
    with pytest.raises(TaskFileError, match="empty|no usable task|header"):
        read_tasks(put(tmp_path, content, name))


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(TaskFileError, match="cannot be read"):
            read_tasks(path)
    with pytest.raises(ValueError, match="on_error must be"):
        read_tasks(tmp_path, on_error="ignore")  # pyright: ignore[reportArgumentType]


def test_nothing_usable_names_the_first_reason(tmp_path):
    with pytest.raises(TaskFileError, match="2 rows skipped, the first in line 1: not a JSON"):
        read_tasks(put(tmp_path, "x\ny\n"), on_error="skip")


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    tasks, _ = read_tasks(put(tmp_path, b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n"))
    assert tasks[0].answer == "4"


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_made_tasks_survive_a_round_trip(tmp_path, name):
    tasks = make_tasks(None, 3, seed=1) + make_tasks(["word_sorting"], 2, seed=1)
    write_tasks(tasks, tmp_path / name)
    assert read_tasks(tmp_path / name) == (tasks, [])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = put(tmp_path, GOOD)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match="disk or the quota is full. The file that was there is unchanged"
    ):
        write_tasks(make_tasks(["gcd"], 2), path)
    assert path.read_text() == GOOD and os.listdir(tmp_path) == ["tasks.jsonl"]


_WORD = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).map(str.strip)
_NAME = st.text(string.ascii_letters, min_size=1, max_size=6)


@st.composite
def task_sets(draw):
    tasks = []
    for index in range(draw(st.integers(1, 4))):
        texts = draw(st.lists(_WORD.filter(canonical), min_size=2, max_size=4, unique_by=canonical))
        tasks.append(
            Task(
                id=f"{index}{draw(_WORD)}",
                question=draw(_WORD.filter(bool)),
                answer=texts[draw(st.integers(0, len(texts) - 1))],
                candidates=tuple(texts),
                domain=draw(_WORD.filter(bool)),
                split=draw(st.sampled_from([REFLECT, HELD_OUT])),
                features=draw(
                    st.dictionaries(_NAME, st.floats(allow_nan=False, allow_infinity=False))
                ),
                metadata=draw(st.dictionaries(_NAME, st.none() | st.integers() | _WORD)),
            )
        )
    return tasks


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(tasks=task_sets())
def test_any_tasks_survive_a_round_trip(tmp_path_factory, suffix, tasks):
    path = tmp_path_factory.getbasetemp() / f"round{suffix}"
    write_tasks(tasks, path)
    assert read_tasks(path) == (tasks, [])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAME, inner, max_size=3),
    max_leaves=6,
)
_ROWS = st.dictionaries(st.sampled_from([*task_files.FIELDS, "feature:a", "x"]), _JSON).map(
    lambda row: json.dumps(row).encode()
)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    content=st.binary(max_size=80)
    | st.lists(_ROWS, max_size=4).map(b"\n".join)
    | st.text(max_size=60).map(lambda t: b"question,answer,candidates,features\n" + t.encode()),
    on_error=st.sampled_from(["raise", "skip"]),
)
def test_any_file_is_read_or_refused_with_one_error(tmp_path_factory, suffix, content, on_error):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    try:
        tasks, skipped = read_tasks(path, on_error)
    except TaskFileError:
        return
    assert tasks and all(dataclasses.is_dataclass(task) for task in tasks)
    assert on_error == "skip" or not skipped
