"""Verdict tables become evidence; bad rows are named or skipped."""

import json

import numpy as np
import pandas as pd
import pytest

from bayesmeta import evidence as ev

CSV = """task,skill,correct,domain,split,tokens,feature_length,note
a,direct,1,sums,reflect,3,4.5,"x, y"
a,steps,0,sums,reflect,20,4.5,
a,steps,true,sums,reflect,21.6,4.5,
b,direct,False,words,held_out,,2,
"""


def csv(tmp_path, text=CSV):
    path = tmp_path / "verdicts.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_becomes_evidence(tmp_path):
    evidence = ev.from_verdicts(csv(tmp_path))
    ev.validate(evidence)
    assert evidence["task"].values.tolist() == ["a", "b"]
    assert evidence["skill"].values.tolist() == ["direct", "steps"]
    assert evidence["candidate_text"].values.tolist() == [["correct", "incorrect"]] * 2
    assert evidence["gold"].values.tolist() == [0, 0]
    assert evidence["domain"].values.tolist() == ["sums", "words"]
    assert evidence["split"].values.tolist() == ["reflect", "held_out"]
    assert evidence["feature"].values.tolist() == ["length"]
    assert evidence["features"].values.tolist() == [[4.5], [2.0]]
    assert evidence["num_tokens"].values[..., 1].tolist() == [[3, 42], [0, 0]]
    assert evidence.attrs["quality"] == "sampled"


def test_repeated_rows_are_traces_and_absent_pairs_are_missing(tmp_path):
    evidence = ev.from_verdicts(csv(tmp_path))
    known = evidence["verdict_observed"].values
    assert known.tolist() == [[[True, False], [True, True]], [[True, False], [False, False]]]
    assert evidence["verdict"].values[0, 1].tolist() == [0, 1]
    assert (evidence["observed"].values == known[..., None]).all()


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_the_noisy_verifier(tmp_path, noise):
    evidence = ev.from_verdicts(csv(tmp_path), noise=noise)
    probability = np.exp(evidence["log_likelihood"].values.astype(float))
    known = evidence["verdict_observed"].values
    for where in np.argwhere(known):
        y = evidence["verdict"].values[tuple(where)]
        right = y * (1 - noise) + (1 - y) * noise
        np.testing.assert_allclose(probability[tuple(where)], [right, 1 - right], rtol=1e-5)
    assert evidence.attrs["verifier_noise"] == noise


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0, -0.1, float("nan")])
def test_noise_must_be_a_small_rate(tmp_path, noise):
    with pytest.raises(ev.EvidenceError, match="noise is .* strictly between 0 and 0.5"):
        ev.from_verdicts(csv(tmp_path), noise=noise)


@pytest.mark.parametrize("kind", [bool, int, float, str])
def test_a_data_frame_serves_as_well(kind):
    frame = pd.DataFrame({"task": [1, 1, 2], "skill": ["x", "y", "x"], "correct": [1, 0, 1]})
    frame["correct"] = [kind(value) for value in frame["correct"]]
    frame.index = pd.Index([7, 7, 7])
    before = frame.copy()
    evidence = ev.from_verdicts(frame)
    assert evidence["task"].values.tolist() == ["1", "2"]
    assert evidence["verdict"].values[..., 0].tolist() == [[1, 0], [1, 0]]
    pd.testing.assert_frame_equal(frame, before)


def test_feature_columns_can_be_named(tmp_path):
    text = "task,skill,correct,size,feature_x\na,s,1,3,9\n"
    evidence = ev.from_verdicts(csv(tmp_path, text), feature_columns=["size"])
    assert evidence["feature"].values.tolist() == ["size"]
    with pytest.raises(ev.EvidenceError, match=r"\['colour'\] are not in the verdict table"):
        ev.from_verdicts(csv(tmp_path, text), feature_columns=["colour"])


BAD = """task,skill,correct,domain,split,tokens,feature_f
a,direct,1,sums,reflect,1,1
a,direct,maybe,sums,reflect,1,1
,direct,1,sums,reflect,1,1
a,,1,sums,reflect,1,1
a,steps,1,words,reflect,1,1
a,steps,1,sums,train,1,1
a,steps,1,sums,reflect,-4,1
a,steps,1,sums,reflect,many,1
a,steps,1,sums,reflect,1,
a,steps,1,sums,reflect,1,inf
a,steps,1,sums,reflect,1,2
a,steps,0,sums,reflect,1,1
"""
PROBLEMS = {
    2: "correct is 'maybe'",
    3: "task is empty",
    4: "skill is empty",
    5: "domain of task 'a' is 'words', but 'sums'",
    6: "split is 'train'",
    7: "tokens is '-4'",
    8: "tokens is 'many'",
    9: "feature_f is ''",
    10: "feature_f is 'inf'",
    11: "feature_f of task 'a' is 2.0, but 1.0",
}


def test_bad_rows_are_all_listed_with_their_numbers(tmp_path):
    with pytest.raises(ev.EvidenceError, match="^10 bad rows") as caught:
        ev.from_verdicts(csv(tmp_path, BAD))
    for row, problem in PROBLEMS.items():
        assert f"row {row}: {problem}" in str(caught.value)
    assert 'on_error="skip"' in str(caught.value)


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path):
    evidence = ev.from_verdicts(csv(tmp_path, BAD), on_error="skip")
    assert evidence["verdict"].values[..., 0].tolist() == [[1, 0]]
    assert evidence.attrs["num_skipped_rows"] == 10
    skipped = json.loads(evidence.attrs["skipped_rows"])
    assert [entry["row"] for entry in skipped] == list(PROBLEMS)
    ev.save(evidence, tmp_path / "e.nc")
    assert ev.load(tmp_path / "e.nc").attrs["num_skipped_rows"] == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as CSV"),
        ("task,skill,correct\n", "no usable row"),
        ("task,skill\na,b\n", r"not \['correct'\]"),
        ("task;skill;correct\na;b;1\n", r"not \['task', 'skill', 'correct'\]"),
        ("task,skill,correct\na,b,1,2,3\n", "more fields than the header"),
        ("task,skill,correct\na,b,1\nc,d,1,2,3\n", "cannot be read as CSV"),
        ('task,skill,correct\na,"b,1\n', "cannot be read as CSV"),
    ],
)
def test_what_is_not_a_verdict_table_is_refused(tmp_path, text, message):
    with pytest.raises(ev.EvidenceError, match=message):
        ev.from_verdicts(csv(tmp_path, text))


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / "verdicts.csv"
    path.write_bytes(b"task,skill,correct\n\xff\xfe,b,1\n")
    with pytest.raises(ev.EvidenceError, match="UTF-8"):
        ev.from_verdicts(path)
    with pytest.raises(FileNotFoundError, match="no verdict table"):
        ev.from_verdicts(tmp_path / "none.csv")
