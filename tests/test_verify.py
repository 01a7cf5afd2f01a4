"""Reading an answer out of free text, and judging it."""

import inspect
import re
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesmeta.tasks import Task
from bayesmeta.verify import (
    UNSAFE_SCORERS,
    VERIFIERS,
    extract_answer,
    same_answer,
    verify,
)


def task(answer="4", others=("5", "6"), **more):
    return Task("t", "q?", answer, (answer, *others), **more)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("4", "4"),
        ("Answer: 4", "4"),
        ("Answer: 3\nWait.\nAnswer: 4.", "4"),
        ("**Answer:** 4", "4"),
        ("The final answer is **4**.", "4"),
        ("the answer is: 4", "4"),
        (r"so \boxed{3} or \boxed{4} it is", "4"),
        ("2 + 2 = 4\n#### 4", "4"),
        ("first line\n\n  4  \n\n", "4"),
        ("Answer:\n4", "4"),
        ('Answer: "4"', "4"),
        ("", ""),
        ("  \n ", ""),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "first, second",
    [
        ("4", "4.0"), ("4", "04"), ("4", " 4 "), ("1/2", "2/4"), ("1/2", "0.5"), ("1,200", "1200"),
        ("Friday", "friday."), ("4:05", "04:05"), ("[1, 2]", "1,2.0"), ("-0", "0"), ("$5", "5"),
        ("\u22124", "-4"), ("**yes**", "Yes"),
    ],
)  # fmt: skip
def test_same_answer(first, second):
    assert same_answer(first, second)


@pytest.mark.parametrize(
    "first, second",
    [("4", "-4"), ("4", "40"), ("1/2", "1/3"), ("1, 2", "2, 1"), ("04:05", "04:50"), ("a b", "ab")],
)
def test_different_answers(first, second):
    assert not same_answer(first, second)


def test_number():
    t = task(verifier="number")
    assert verify(t, "Answer: there are 4 apples")
    assert verify(t, "Answer: 4.00")
    assert not verify(t, "Answer: 14")
    assert not verify(t, "Answer: none")
    with pytest.raises(ValueError, match="gold answer that is a number, got 'red'"):
        verify(task("red", ("blue",), verifier="number"), "4")


def test_choice():
    t = task("only Ann", ("only Bo", "both", "neither"), verifier="choice")
    assert verify(t, "Answer: Only Ann.")
    assert verify(t, "Answer: It is only Ann, I think")
    assert not verify(t, "Answer: both only Ann and only Bo")
    assert not verify(t, "Answer: Ann")
    nested = task("Ann", ("Ann Lee",), verifier="choice")
    assert verify(nested, "Answer: it was Ann") and not verify(nested, "Answer: it was Ann Lee")


def test_reasoning_gym_wants_full_marks():
    entry = {"question": "q", "answer": "talps", "metadata": {"word": "splat"}}
    t = task(
        "talps", ("tapls",), verifier="reasoning_gym",
        metadata={"dataset": "spell_backward", "entry": entry},
    )  # fmt: skip
    assert verify(t, "Answer: talps")
    assert not verify(t, "Answer: tapls")  # upstream gives 0.6 for it
    with pytest.raises(ValueError, match="needs metadata with 'dataset'"):
        verify(task(verifier="reasoning_gym"), "4")


def test_scorers_that_run_the_text_are_never_called():
    for name in UNSAFE_SCORERS:
        t = task(
            verifier="reasoning_gym", metadata={"dataset": name, "entry": {"answer": "4"}}
        )  # fmt: skip
        with pytest.raises(ValueError, match=f"scorer of '{name}' is not safe"):
            verify(t, "__import__('os').getcwd()")


def test_every_scorer_that_evaluates_text_is_listed():
    """Reads the source of each scorer: a new release may bring new ones."""
    from reasoning_gym.factory import DATASETS

    for name, (dataset, _) in DATASETS.items():
        source = inspect.getsource(sys.modules[dataset.__module__])
        scorer = source[source.find("def score_answer") :].split("register_dataset")[0]
        calls = re.search(
            r"(?<![\w.])(eval|exec)\(|(sp|sympy)\.parse_expr|(?<!def )parse_expr\(", scorer
        )
        if calls and name != "propositional_logic":  # its parse_expr is its own parser
            assert name in UNSAFE_SCORERS, (name, calls)


def test_unknown_verifier():
    with pytest.raises(ValueError, match="no verifier 'exakt'.*'exact'"):
        verify(task(verifier="exakt"), "4")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=300))
def test_any_text_is_judged(text):
    for name in set(VERIFIERS) - {"reasoning_gym"}:
        assert verify(task(verifier=name), text) in (True, False)


def test_long_texts_are_judged_quickly():
    start = time.monotonic()
    for text in ("9" * 200_000, "answer " * 50_000, "1," * 100_000, "\\boxed{" * 50_000):
        verify(task(verifier="number"), text)
        verify(task(verifier="choice"), text)
    assert time.monotonic() - start < 5
