"""Properties of evidence under arbitrary content (hypothesis)."""

import contextlib
import io
import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bayesmeta import evidence as ev
from bayesmeta.tasks import HELD_OUT, REFLECT

SETTINGS = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8
)


@st.composite
def evidences(draw, prefix=""):
    tasks, skills, traces, candidates = (draw(st.integers(low, 3)) for low in (1, 1, 1, 2))
    shape = (tasks, skills, traces, candidates)
    size = math.prod(shape)
    number = st.floats(-1e4, 0, width=32)
    scores = np.array(draw(st.lists(number, min_size=size, max_size=size))).reshape(shape)
    width = np.array([draw(st.integers(2, candidates)) for _ in range(tasks)])
    present = np.array(
        draw(st.lists(st.booleans(), min_size=size // candidates, max_size=size // candidates))
    ).reshape(shape[:3])
    present[:, 0, 0] = True
    observed = present[..., None] & (np.arange(candidates) < width[:, None, None, None])
    names = draw(st.lists(NAMES, min_size=tasks, max_size=tasks, unique=True))
    return ev.build(
        log_likelihood=scores,
        observed=observed,
        gold=[draw(st.integers(0, w - 1)) for w in width],
        task=[prefix + name for name in names],
        domain=[draw(NAMES) for _ in range(tasks)],
        split=[draw(st.sampled_from([REFLECT, HELD_OUT])) for _ in range(tasks)],
        question=[draw(st.text(max_size=5)) for _ in range(tasks)],
        verdict=np.zeros(shape[:3]) if draw(st.booleans()) else None,
    )


@SETTINGS
@given(evidences())
def test_save_and_load_change_nothing(evidence):
    with tempfile.TemporaryDirectory() as folder:
        loaded = ev.load(ev.save(evidence, Path(folder) / "e.nc"))
    assert loaded.attrs.pop("content_hash") == ev.content_hash(evidence)
    assert loaded.identical(evidence)


@SETTINGS
@given(evidences("a"), evidences("b"), evidences("c"))
def test_append_is_associative_and_split_by_subset(a, b, c):
    assume(a.sizes["skill"] == b.sizes["skill"] == c.sizes["skill"])
    left, right = ev.append(ev.append(a, b), c), ev.append(a, ev.append(b, c))
    assert left.identical(right)
    for part in (a, b, c):
        back = ev.subset(left, part["task"].values)
        sizes = part.sizes
        cut = back.isel(trace=slice(sizes["trace"]), candidate=slice(sizes["candidate"]))
        for name in ("log_likelihood", "observed", "gold", "question"):
            np.testing.assert_array_equal(cut[name].values, part[name].values)


@SETTINGS
@given(evidences(), st.data())
def test_a_bad_number_anywhere_is_found_and_named(evidence, data):
    where = tuple(data.draw(st.integers(0, size - 1)) for size in evidence["log_likelihood"].shape)
    value = data.draw(st.sampled_from([np.nan, np.inf, 1e-3, 1e30]))
    evidence["log_likelihood"].values[where] = value
    try:
        ev.validate(evidence)
    except ev.EvidenceError as error:
        task = evidence["task"].values.tolist()[where[0]]
        cell = f"task {task!r}, skill 'skill-{where[1]}', trace {where[2]}, candidate {where[3]} "
        assert cell in str(error)
    else:
        raise AssertionError(f"{value} was let through")


@SETTINGS
@given(evidences(), st.data())
def test_hash_changes_with_any_number(evidence, data):
    before = ev.content_hash(evidence)
    where = tuple(data.draw(st.integers(0, size - 1)) for size in evidence["log_weight"].shape)
    evidence["log_weight"].values[where] += 1
    assert ev.content_hash(evidence) != before


@SETTINGS
@given(st.text(max_size=60), st.sampled_from(["raise", "skip"]))
def test_any_text_as_verdict_table_is_evidence_or_an_error(text, on_error):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.csv"
        path.write_bytes(f"task,skill,correct\n{text}".encode("utf-8", "surrogatepass"))
        with contextlib.suppress(ev.EvidenceError):
            ev.validate(ev.from_verdicts(path, on_error=on_error))


@SETTINGS
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.booleans()), min_size=1)
)
def test_every_verdict_arrives_once_and_in_order(rows):
    frame = pd.DataFrame(rows, columns=["task", "skill", "correct"])
    evidence = ev.from_verdicts(io_roundtrip(frame))
    assert int(evidence["verdict_observed"].values.sum()) == len(rows)
    for task in evidence["task"].values.tolist():
        for skill in evidence["skill"].values.tolist():
            cell = evidence.sel(task=task, skill=skill)
            found = cell["verdict"].values[cell["verdict_observed"].values]
            assert found.tolist() == [int(y) for t, s, y in rows if (t, s) == (task, skill)]


def io_roundtrip(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(frame.to_csv(index=False)))


@SETTINGS
@given(st.text(max_size=10))
def test_storable_text_can_be_stored_and_storing_twice_is_once(text):
    clean = ev.storable(text)
    assert ev.storable(clean) == clean and "\0" not in clean
    clean.encode()
    if "\0" not in text and not any(0xD800 <= ord(c) < 0xE000 for c in text):
        assert clean == text
