"""Logs of other packages: genuine Inspect archives, and sample lines as the harness writes them.

``tests/data/inspect_*.eval`` were written by Inspect 0.3 with its mock model. The harness lines
below have the fields and nesting that lm-evaluation-harness 0.4 writes with ``--log_samples``.
"""

import json
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesmeta import eval_log_files
from bayesmeta.eval_log_files import EvalLogError, inspect_samples
from bayesmeta.eval_logs import (
    Verdict,
    tasks_from_inspect,
    tasks_from_lm_eval,
    verdicts_from_inspect,
    verdicts_from_lm_eval,
)

DATA = Path(__file__).parent / "data"
CHOICE, FREE = DATA / "inspect_multiple_choice.eval", DATA / "inspect_free_two_epochs.eval"
HASHES = {"doc_hash": "6c1f" * 16, "prompt_hash": "0a2b" * 16, "target_hash": "9f3d" * 16}


def multiple_choice(doc_id=0, target="1", choices=(" Rome", " Paris"), lls=(-4.5, -1.25), acc=1.0):
    context = "Question: What is the capital of France?\nAnswer:"
    return {
        "doc_id": doc_id,
        "doc": {"question": "What is the capital of France?", "gold": target},
        "target": target,
        "arguments": {
            f"gen_args_{i}": {"arg_0": context, "arg_1": c} for i, c in enumerate(choices)
        },
        "resps": [[[str(ll), "False"]] for ll in lls],
        "filtered_resps": [[str(ll), "False"] for ll in lls],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        **HASHES,
        "acc": acc,
        "acc_norm": 1.0 - acc,
    }


def generation(doc_id=0, used="strict-match", match=1.0, target="2+1=3\n#### 3"):
    prompt = "Question: Ann has 2 pens and buys one. How many has she?\nAnswer:"
    return {
        "doc_id": doc_id,
        "doc": {"question": "Ann has 2 pens and buys one. How many has she?", "answer": target},
        "target": target,
        "arguments": {
            "gen_args_0": {
                "arg_0": prompt,
                "arg_1": {"until": ["Question:"], "do_sample": False, "temperature": 0.0},
            }
        },
        "resps": [[" 2+1=3\n#### 3"]],
        "filtered_resps": ["3"],
        "filter": used,
        "metrics": ["exact_match"],
        **HASHES,
        "exact_match": match,
    }


def lm_eval_file(tmp_path, *samples, task="capitals_eu"):
    path = tmp_path / f"samples_{task}_2025-01-31T10-20-30.123456.jsonl"
    path.write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
    return path


def inspect_json(tmp_path, source=CHOICE, change=lambda log: None):
    """The same log as Inspect writes it with ``--log-format json``: header plus samples."""
    header, samples = inspect_samples(source)
    log = {**header, "samples": [sample for _, sample in samples]}
    change(log)
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    return path


def test_lm_eval_multiple_choice(tmp_path):
    many = [f" {word}" for word in "a b c d e f g h i j k l".split()]
    path = lm_eval_file(
        tmp_path,
        multiple_choice(0),
        multiple_choice(7, target="Rome", acc=0.0),
        multiple_choice(8, target="10", choices=many, lls=range(-12, 0)),
    )
    first, second, third = tasks_from_lm_eval(path)
    assert (first.id, first.domain, first.verifier) == ("capitals_eu-0", "capitals_eu", "choice")
    assert first.question.endswith("capital of France?\nAnswer:")
    assert (first.candidates, first.answer) == (("Rome", "Paris"), "Paris")
    assert second.answer == "Rome"
    assert third.answer == "k"  # gen_args_10 comes after gen_args_9
    assert verdicts_from_lm_eval(path, skill="direct") == [
        Verdict("capitals_eu-0", "direct", True, "capitals_eu", None),
        Verdict("capitals_eu-7", "direct", False, "capitals_eu", None),
        Verdict("capitals_eu-8", "direct", True, "capitals_eu", None),
    ]
    by_norm = verdicts_from_lm_eval(path, metric="acc_norm")
    assert [v.correct for v in by_norm] == [False, True, False]


@pytest.mark.parametrize("acc, gold", [(1.0, "2"), (0.0, "1")])
def test_lm_eval_target_that_is_a_position_and_an_option(tmp_path, acc, gold):
    """Target 1 among the options 0..3 shifted: the logged accuracy tells which reading holds."""
    sample = multiple_choice(target="1", choices=(" 1", " 2", " 3"), lls=(-3, -1, -2), acc=acc)
    (task,) = tasks_from_lm_eval(lm_eval_file(tmp_path, sample))
    assert task.answer == gold


def test_lm_eval_generation_has_one_line_per_filter(tmp_path):
    path = lm_eval_file(
        tmp_path,
        generation(0), generation(1, match=0.0), generation(0, "flexible-extract", 1.0),
        generation(1, "flexible-extract", 0.5), task="gsm8k",
    )  # fmt: skip
    tasks = tasks_from_lm_eval(path)
    assert [(t.id, t.answer, len(t.candidates)) for t in tasks] == [
        ("gsm8k-0", "3", 4),
        ("gsm8k-1", "3", 4),
    ]
    verdicts = verdicts_from_lm_eval(path, skill="cot")
    assert [(v.skill, v.correct) for v in verdicts] == [
        ("cot/strict-match", True),
        ("cot/strict-match", False),
        ("cot/flexible-extract", True),
        ("cot/flexible-extract", False),  # half a mark is no success
    ]


def _without(name):
    return {key: value for key, value in multiple_choice(1).items() if key != name}


@pytest.mark.parametrize(
    "bad, message",
    [
        (_without("doc_id"), "lacks 'doc_id'"),
        (_without("target"), "lacks 'target'"),
        (_without("arguments"), "lacks 'arguments'"),
        (multiple_choice(1, target="Oslo"), "'Oslo' does not name one of the options"),
        (multiple_choice(1, target="5"), "'5' does not name one of the options"),
        (multiple_choice(1, choices=(" a", " a")), "candidates repeat"),
        (generation(1, target="?"), "no distractor can be made"),
        ([1], "not a JSON object"),
    ],
)
def test_bad_lm_eval_samples(tmp_path, bad, message):
    path = lm_eval_file(tmp_path, multiple_choice(0), bad)
    with pytest.raises(EvalLogError, match=f"jsonl:2: this sample cannot be used: .*{message}"):
        tasks_from_lm_eval(path)
    with pytest.warns(UserWarning, match=f"(?s)1 samples skipped.*{message}"):
        assert len(tasks_from_lm_eval(path, on_error="skip")) == 1


def test_lm_eval_metric_that_is_not_there(tmp_path):
    path = lm_eval_file(tmp_path, multiple_choice())
    with pytest.raises(EvalLogError, match=r"metric f1; it has \['acc', 'acc_norm'\]"):
        verdicts_from_lm_eval(path, metric="f1")


def test_inspect_choices_from_a_genuine_archive():
    first, second = tasks_from_inspect(CHOICE)
    assert (first.id, first.question, first.answer) == ("mc-m1", "What is 1+1?", "2")
    assert first.candidates == ("2", "3", "1") and first.domain == "sums"
    assert second.answer == "4"
    assert verdicts_from_inspect(CHOICE) == [
        Verdict("mc-m1", "multiple_choice", True, "sums", 23),
        Verdict("mc-m2", "multiple_choice", False, "sums", 23),
    ]


def test_inspect_epochs_are_attempts_at_one_task():
    tasks = tasks_from_inspect(FREE)
    assert [(t.id, t.answer) for t in tasks] == [("free-2", "4"), ("free-3", "9"), ("free-4", "16")]
    verdicts = verdicts_from_inspect(FREE, skill="direct")
    assert [(v.task, v.correct) for v in verdicts] == [
        ("free-2", True), ("free-2", True), ("free-3", True), ("free-3", True),
        ("free-4", False), ("free-4", True),
    ]  # fmt: skip


@pytest.mark.parametrize("source", [CHOICE, FREE])
def test_inspect_json_says_the_same(tmp_path, source):
    path = inspect_json(tmp_path, source)
    assert tasks_from_inspect(path) == tasks_from_inspect(source)
    assert verdicts_from_inspect(path) == verdicts_from_inspect(source)


def test_inspect_deflated_archive(tmp_path):
    """Older Inspect compresses with deflate."""
    header, samples = inspect_samples(CHOICE)
    with zipfile.ZipFile(tmp_path / "old.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(header))
        for name, sample in samples:
            archive.writestr(name, json.dumps(sample))
    assert tasks_from_inspect(tmp_path / "old.eval") == tasks_from_inspect(CHOICE)


def test_inspect_chat_input_attachments_and_scores(tmp_path):
    def change(log):
        sample = log["samples"][0]
        sample["input"] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "attachment://0a1b"}]},
        ]
        sample["attachments"] = {"0a1b": "What is 1+1?"}
        sample["scores"] = {"judge": {"value": "P"}, "exact": {"value": 1.0}}
        sample["model_usage"] = {}
        log["samples"].pop()

    path = inspect_json(tmp_path, change=change)
    assert tasks_from_inspect(path)[0].question == "Be brief.\n\nWhat is 1+1?"
    assert [v.correct for v in verdicts_from_inspect(path)] == [False]  # partial is not right
    (verdict,) = verdicts_from_inspect(path, scorer="exact")
    assert verdict.correct and verdict.tokens is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"error": {"message": "boom"}}, "ended in an error"),
        ({"scores": {}}, "no score None"),
        ({"scores": {"choice": {"value": {"a": 1}}}}, "not one value"),
    ],
)
def test_bad_inspect_verdicts(tmp_path, change, message):
    path = inspect_json(tmp_path, change=lambda log: log["samples"][1].update(change))
    with pytest.raises(EvalLogError, match=f"sample 2: .*{message}"):
        verdicts_from_inspect(path)
    with pytest.warns(UserWarning, match=message):
        assert len(verdicts_from_inspect(path, on_error="skip")) == 1


@pytest.mark.parametrize("target", ["D", ["A", "B"], "2", ""])
def test_bad_inspect_targets(tmp_path, target):
    path = inspect_json(tmp_path, change=lambda log: log["samples"][0].update(target=target))
    with pytest.raises(EvalLogError, match="its target"):
        tasks_from_inspect(path)


def test_broken_archives(tmp_path):
    whole = CHOICE.read_bytes()
    broken = tmp_path / "broken.eval"
    flipped = bytearray(whole)
    flipped[whole.index(b"samples/m1") + 300] ^= 0xFF
    for content in (b"", b"no archive", whole[: len(whole) // 2], bytes(flipped)):
        broken.write_bytes(content)
        with pytest.raises(EvalLogError, match="broken.eval"):
            tasks_from_inspect(broken)


def test_zstandard_missing_is_said(monkeypatch):
    if sys.version_info >= (3, 14):
        pytest.skip("zipfile reads Zstandard itself")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(EvalLogError, match="Install the package zstandard"):
        tasks_from_inspect(CHOICE)


def test_huge_members_are_refused(monkeypatch):
    monkeypatch.setattr(eval_log_files, "_LARGEST_MEMBER", 10)
    with pytest.raises(EvalLogError, match="at most 10 are read"):
        tasks_from_inspect(CHOICE)


@pytest.mark.parametrize("read", [tasks_from_lm_eval, verdicts_from_lm_eval, tasks_from_inspect])
def test_missing_and_empty_files(tmp_path, read):
    for content in (None, b"", b"{}"):
        path = tmp_path / "samples_x.jsonl"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EvalLogError, match="samples_x"):
            read(path)


_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["value", "arg_0", "gen_args_0", "text"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    field=st.sampled_from(
        [*multiple_choice(), "samples", "input", "scores", "choices", "metadata"]
    ),
    value=_VALUE,
)
def test_any_damage_gives_one_error(tmp_path_factory, field, value):
    folder = tmp_path_factory.getbasetemp()
    harness = lm_eval_file(folder, {**multiple_choice(), field: value})

    def change(log):
        log["samples"][0][field] = value
        if field == "samples":
            log[field] = value

    inspect = inspect_json(folder, change=change)
    for read, path in (
        (tasks_from_lm_eval, harness), (verdicts_from_lm_eval, harness),
        (tasks_from_inspect, inspect), (verdicts_from_inspect, inspect),
    ):  # fmt: skip
        try:
            assert read(path)
        except EvalLogError:
            pass
