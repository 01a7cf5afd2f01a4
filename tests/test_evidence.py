"""The schema of evidence, and how evidence is made, joined and summarised."""

import json
import time

import numpy as np
import pytest

from bayesmeta import evidence as ev
from bayesmeta.tasks import HELD_OUT, REFLECT, Task

SHAPE = (3, 2, 2, 3)


def make(shape=SHAPE, seed=0, **changes):
    rng = np.random.default_rng(seed)
    settings = {
        "log_likelihood": -rng.exponential(size=shape),
        "gold": rng.integers(shape[-1], size=shape[0]),
        "task": [f"t{seed}-{n}" for n in range(shape[0])],
        "skill": ["direct", "steps", "tool"][: shape[1]],
        "features": rng.normal(size=(shape[0], 2)),
        "feature": ["length", "digits"],
        "verdict": rng.integers(2, size=shape[:3]),
        "domain": ["sums", "words", "sums"][: shape[0]] if shape[0] <= 3 else "sums",
        "split": [REFLECT, HELD_OUT, REFLECT][: shape[0]] if shape[0] <= 3 else REFLECT,
    }
    return ev.build(**{**settings, **changes})


def test_build_fills_defaults_and_is_valid():
    evidence = ev.build(log_likelihood=np.full((2, 3, 4), -1.0), gold=[0, 3])
    assert ev.validate(evidence) is evidence
    assert dict(evidence.sizes) == {
        "task": 2,
        "skill": 3,
        "trace": 1,
        "candidate": 4,
        "feature": 0,
        "token_kind": 2,
    }
    assert evidence["log_likelihood"].dtype == np.float32
    assert evidence["observed"].values.all()
    assert set(evidence["split"].values) == {REFLECT}
    assert json.loads(evidence.attrs["skills"]) == [{"name": f"skill-{k}"} for k in range(3)]


def test_minus_infinity_is_missing_only_where_told():
    scores = np.full((1, 2, 1, 3), -1.0)
    scores[0, 0, 0, 2] = scores[0, 1, 0, 2] = -np.inf
    with pytest.raises(ev.EvidenceError, match="allow_neg_inf"):
        ev.build(log_likelihood=scores, gold=[0])
    inferred = ev.build(log_likelihood=scores, gold=[0], infer_observed=True)
    assert inferred["observed"].values[0].sum(-1).tolist() == [[2], [2]]
    declared = ev.build(log_likelihood=scores, gold=[0], attrs={"allow_neg_inf": True})
    assert declared["observed"].values.all()


def test_what_stands_in_an_unobserved_cell_is_ignored():
    scores = np.full(SHAPE, -1.0)
    observed = np.ones(SHAPE, bool)
    scores[0, 1] = np.nan
    observed[0, 1] = False
    evidence = make(log_likelihood=scores, observed=observed)
    assert np.isneginf(evidence["log_likelihood"].values[0, 1]).all()
    assert not evidence["verdict_observed"].values[0, 1].any()


def put(name, where, value):
    def change(evidence):
        evidence = evidence.copy(deep=True)
        evidence[name].values[where] = value
        return evidence

    return change


def attribute(name, value):
    return lambda evidence: evidence.assign_attrs({name: value})


def hide(*where):
    def change(evidence):
        evidence = put("observed", where, False)(evidence)
        evidence["log_likelihood"].values[where] = -np.inf
        return evidence

    return change


FAULTS = {
    "nan": (
        put("log_likelihood", (1, 0, 1, 2), np.nan),
        r"task 't0-1', skill 'direct', trace 1, candidate 2 is nan",
    ),
    "plus infinity": (
        put("log_likelihood", (0, 1, 0, 0), np.inf),
        r"skill 'steps', trace 0, candidate 0 is inf",
    ),
    "positive": (put("log_likelihood", (0, 0, 0, 0), 0.5), r"is 0\.5, wanted nats <= 0"),
    "undeclared zero": (
        put("log_likelihood", (2, 0, 0, 1), -np.inf),
        r"task 't0-2'.* is -inf.*allow_neg_inf",
    ),
    "finite but unobserved": (
        put("observed", (0, 0, 1), False),
        r"trace 1, candidate 0 is -\d.* observed is False",
    ),
    "unequal candidates": (hide(0, 0, 1, 2), r"trace 1, candidate 2 is False.*same candidates"),
    "empty task": (hide(1), r"observed of task 't0-1' is False.*subset"),
    "weight": (
        put("log_weight", (2, 1, 0), np.nan),
        r"log_weight of task 't0-2', skill 'steps', trace 0 is nan",
    ),
    "gold too large": (put("gold", 1, 3), r"gold of task 't0-1' is 3, wanted.* 0 to 2"),
    "gold negative": (put("gold", 1, -1), r"gold of task 't0-1' is -1"),
    "verdict": (
        put("verdict", (0, 1, 1), 2),
        r"verdict of task 't0-0', skill 'steps', trace 1 is 2",
    ),
    "split": (put("split", 2, "train"), r"split of task 't0-2' is 'train'.*reflect.*held_out"),
    "domain": (put("domain", 2, ""), r"domain of task 't0-2' is ''"),
    "feature": (
        put("features", (0, 1), np.inf),
        r"features of task 't0-0', feature 'digits' is inf",
    ),
    "tokens": (put("num_tokens", (0, 1, 1), -1), r"skill 'steps', token_kind 'generated' is -1"),
    "not text": (put("question", 1, 3), r"question of task 't0-1' is 3 \(int\)"),
    "NUL": (put("question", 1, "a\0b"), r"cannot be stored"),
    "surrogate": (put("question", 1, "a\ud800"), r"cannot be stored"),
    "duplicate task": (
        lambda e: e.assign_coords(task=["a", "b", "a"]),
        r"task 'a' appears 2 times",
    ),
    "duplicate skill": (lambda e: e.assign_coords(skill=["a", "a"]), r"skill 'a' appears 2 times"),
    "unnamed task": (lambda e: e.assign_coords(task=["a", "", "c"]), r"empty name"),
    "trace numbers": (lambda e: e.assign_coords(trace=[1, 2]), r"trace.*\[1, 2\]"),
    "token kinds": (lambda e: e.assign_coords(token_kind=["in", "out"]), r"\['in', 'out'\]"),
    "undescribed skill": (
        lambda e: e.assign_coords(skill=["direct", "new"]),
        r"'new' is not described",
    ),
    "float64": (
        lambda e: e.assign(log_likelihood=e.log_likelihood.astype(float)),
        r"float64, wanted float32",
    ),
    "integer mask": (
        lambda e: e.assign(observed=e.observed.astype(int)),
        r"observed has type int64",
    ),
    "float gold": (lambda e: e.assign(gold=e.gold.astype(float)), r"gold has type float64"),
    "no variable": (lambda e: e.drop_vars("log_weight"), r"'log_weight'.* is missing"),
    "no coordinate": (lambda e: e.drop_vars("skill"), r"coordinate 'skill' is missing"),
    "half verdict": (lambda e: e.drop_vars("verdict_observed"), r"'verdict' alone"),
    "order": (lambda e: e.transpose("skill", ...), r"dimensions \('skill', .*evidence.transpose"),
    "no tasks": (lambda e: e.isel(task=[]), r"'task' is empty"),
    "old version": (attribute("schema_version", 0), r"schema_version is 0, .* reads 1\. Observe"),
    "new version": (attribute("schema_version", 7), r"schema_version is 7, .* Install the newer"),
    "quality": (attribute("quality", "good"), r"quality is 'good', wanted one of"),
    "attribute type": (attribute("seed", [1]), r"'seed' is a list"),
    "attribute JSON": (attribute("sampling", "{"), r"'sampling' is not JSON"),
    "attribute shape": (attribute("sampling", "[]"), r"'sampling'.*JSON dict"),
    "stale hash": (attribute("content_hash", "0"), r"content_hash is 0, but the content has"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_with_its_cell_value_and_remedy(fault):
    sound = make()
    ev.validate(sound)
    broken, message = FAULTS[fault][0](sound), FAULTS[fault][1]
    with pytest.raises(ev.EvidenceError, match=message) as caught:
        ev.validate(broken, check_hash=fault == "stale hash")
    assert str(caught.value).endswith(".")


def test_gold_must_be_observed():
    observed = np.ones(SHAPE, bool)
    observed[..., 2] = False
    with pytest.raises(ev.EvidenceError, match="gold of task 't0-1' is 2, which .* not observed"):
        make(observed=observed, gold=[0, 2, 1])


def test_rounding_above_zero_is_let_through():
    ev.validate(put("log_likelihood", (0, 0, 0, 0), 5e-7)(make()))


def test_no_candidate_possible_is_refused():
    scores = np.full(SHAPE, -1.0)
    scores[1, 1, 0] = -np.inf
    with pytest.raises(ev.EvidenceError, match="task 't0-1', skill 'steps', trace 0 is -inf for"):
        make(log_likelihood=scores, attrs={"allow_neg_inf": 1})


def test_validation_is_fast():
    scores = np.full((20_000, 6, 4, 4), -1.0, np.float32)
    evidence = ev.build(log_likelihood=scores, gold=np.zeros(20_000, int))
    start = time.process_time()
    ev.validate(evidence)
    # A loop over the 1.9 million cells takes longer than this; the vectorised check a tenth.
    assert time.process_time() - start < 1.0


def test_from_log_probabilities_of_the_gold_answer_keeps_them():
    table = np.log([[0.2, 0.9], [0.5, 1e-6]])
    evidence = ev.from_log_probabilities(table)
    scores = evidence["log_likelihood"].values[:, :, 0].astype(float)
    np.testing.assert_allclose(np.exp(scores).sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(scores[..., 0], table, rtol=1e-6)


def test_from_log_probabilities_allows_certainty_only_when_declared():
    assert ev.from_log_probabilities([[0.0, -1.0]]).attrs["allow_neg_inf"] == 1
    with pytest.raises(ev.EvidenceError, match="nats <= 0"):
        ev.from_log_probabilities([[0.1, -1.0]])


def test_from_log_probabilities_of_candidates():
    table = np.log(np.full((2, 3, 4), 0.25))
    evidence = ev.from_log_probabilities(table, [1, 2])
    assert evidence["gold"].values.tolist() == [1, 2]
    with pytest.raises(ev.EvidenceError, match="gold is missing"):
        ev.from_log_probabilities(table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_likelihood": np.zeros((3, 2))}, r"shape \(3, 2\)"),
        ({"log_weight": np.zeros((3, 2))}, r"log_weight has shape \(3, 2\), wanted \(3, 2, 2\)"),
        ({"task": ["a", "b"]}, "task has 2 names.* 3 tasks"),
        ({"skill": ["a", "b", "c"]}, "skill has 3 names.* 2 skills"),
        ({"gold": [0, 1]}, r"gold has shape \(2,\), wanted \(3,\)"),
        ({"feature": ["length"]}, r"features has shape \(3, 2\), wanted \(3, 1\)"),
    ],
)
def test_shapes_must_agree(changes, message):
    with pytest.raises(ev.EvidenceError, match=message):
        make(**changes)


def test_append_pads_traces_and_candidates_and_changes_no_number():
    small, large = make((2, 2, 1, 2), seed=1), make((3, 2, 3, 4), seed=2)
    both = ev.append(small, large)
    assert dict(both.sizes) | {"feature": 2} == {
        "task": 5,
        "skill": 2,
        "trace": 3,
        "candidate": 4,
        "feature": 2,
        "token_kind": 2,
    }
    first = both["log_likelihood"].values[:2]
    np.testing.assert_array_equal(first[:, :, :1, :2], small["log_likelihood"].values)
    assert np.isneginf(first[:, :, 1:]).all() and np.isneginf(first[..., 2:]).all()
    np.testing.assert_array_equal(both["log_likelihood"].values[2:], large["log_likelihood"].values)
    assert not both["observed"].values[:2, :, 1:].any()


def test_append_undoes_a_split():
    whole = make((6, 2, 2, 3))
    pieces = ev.append(ev.subset(whole, slice(0, 2)), ev.subset(whole, slice(2, None)))
    assert pieces.identical(whole)
    assert ev.content_hash(pieces) == ev.content_hash(whole)


def test_append_fills_what_one_side_left_out():
    bare = make((2, 2, 1, 2), seed=1, verdict=None, texts=False)
    both = ev.append(make(), bare)
    assert both["verdict_observed"].values[3:].sum() == 0
    assert set(both["question"].values[3:]) == {""}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: make(), "task 't0-0' is in both"),
        (lambda: make((3, 3, 2, 3), seed=1), "skills are"),
        (lambda: make(seed=1, feature=["a", "b"]), "features are"),
        (
            lambda: make(seed=1, attrs={"model": "other"}),
            "attribute model is 'unknown' and 'other'",
        ),
        (
            lambda: make(
                seed=1,
                attrs={"skills": [{"name": "direct", "version": "2"}, {"name": "steps"}]},
            ),
            "attribute skills",
        ),
        (lambda: make(seed=1).assign_attrs(schema_version=2), "schema_version is 2"),
    ],
)
def test_append_refuses_what_cannot_be_compared(other, message):
    with pytest.raises(ev.EvidenceError, match=message):
        ev.append(make(), other())


def test_append_keeps_both_provenances():
    first = make(attrs={"packages": {"torch": "2", "numpy": "2"}, "created_by": "a"})
    second = make(seed=1, attrs={"packages": {"torch": "3"}, "created_by": "b", "seed": 4})
    merged = ev.append(first, second).attrs
    assert json.loads(merged["packages"]) == {"torch": "2, 3", "numpy": "2"}
    assert (merged["created_by"], merged["seed"]) == ("a; b", "0, 4")


def test_split_and_subset():
    evidence = make().assign_attrs(content_hash="stale")
    reflect, held_out = ev.split(evidence)
    assert reflect["task"].values.tolist() == ["t0-0", "t0-2"]
    assert held_out["task"].values.tolist() == ["t0-1"]
    assert "content_hash" not in reflect.attrs and "content_hash" in evidence.attrs
    assert ev.subset(evidence, ["t0-2", "t0-0"])["task"].values.tolist() == ["t0-2", "t0-0"]
    assert ev.subset(evidence, [1])["task"].values.tolist() == ["t0-1"]
    assert ev.subset(evidence, []).sizes["task"] == 0
    with pytest.raises(ev.EvidenceError, match="'nobody' is not in the evidence"):
        ev.subset(evidence, ["nobody"])


def tasks():
    return [
        Task("a", "1+1?", "2", ("2", "3"), features={"length": 4.0}),
        Task("b", "1+2?", "3", ("2", "4", "3"), split=HELD_OUT, features={"length": 5.0}),
    ]


def test_assemble_pads_and_leaves_missing_cells_out():
    cells = {
        ("a", "direct"): {"log_likelihood": [[-1.0, -2.0]], "num_tokens": [9, 0]},
        ("b", "direct"): None,
        ("b", "steps"): {
            "log_likelihood": [[-1.0, -2.0, -3.0], [-1.5, -2.5, -3.5]],
            "log_weight": [0.0, -0.1],
            "trace_text": ["one", "two\0\ud800"],
        },
    }
    evidence = ev.assemble(tasks(), ["direct", "steps"], cells, attrs={"model": "toy"})
    assert evidence["observed"].values.any((2, 3)).tolist() == [[True, False], [False, True]]
    assert evidence["gold"].values.tolist() == [0, 2]
    assert evidence["log_weight"].values[1, 1].tolist() == pytest.approx([0.0, -0.1])
    assert evidence["trace_text"].values[1, 1].tolist() == ["one", "two\u2400\ufffd"]
    assert evidence["num_tokens"].values[0, 0].tolist() == [9, 0]
    assert evidence["candidate_text"].values.tolist() == [["2", "3", ""], ["2", "4", "3"]]


def test_assemble_refuses_a_cell_that_lacks_a_candidate():
    cells = {("b", "direct"): {"log_likelihood": [[-1.0, -2.0]]}}
    with pytest.raises(
        ev.EvidenceError, match=r"task 'b', skill 'direct'.*\[2\] numbers, wanted 3"
    ):
        ev.assemble(tasks(), ["direct"], cells, attrs={})


def test_summarise_tells_what_is_there():
    observed = np.ones(SHAPE, bool)
    observed[0, 1] = False
    text = ev.summarise(make(observed=observed, attrs={"model": "toy"}))
    assert "3 tasks x 2 skills, 3 candidates" in text
    assert "Model: toy" in text
    assert "Missing: 1 of 6 cells" in text
    assert "sums | 2 | 0" in text and "words | 0 | 1" in text
    assert "steps | 2 | 2 |" in text
