"""Distractors mean something else, look alike, and are the same in every run."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesmeta.distractors import candidate_set, distract
from bayesmeta.features import FEATURES, question_features
from bayesmeta.verify import canonical, parse_number


def check(answer, wrong, num=3):
    forms = [canonical(text) for text in (answer, *wrong)]
    assert len(set(forms)) == len(forms), (answer, wrong)
    assert 1 <= len(wrong) <= num


@pytest.mark.parametrize(
    "answer", ["4", "0", "1", "-7", "+3", "007", "3920", "4.0", "0.05", "-1.250", "99999"]
)
def test_numbers_keep_their_form(answer):
    for seed in range(50):
        wrong = distract(answer, seed)
        check(answer, wrong)
        assert len(wrong) == 3
        decimals = {len(text.partition(".")[2]) for text in (answer, *wrong)}
        assert len(decimals) == 1
        if not answer.startswith("-"):
            assert all(float(text) >= 0 for text in wrong)
        if answer.startswith("0") and "." not in answer and answer != "0":
            assert all(len(text) == 3 for text in wrong)


def test_rank_of_the_gold_number_is_uniform():
    ranks = collections.Counter(
        sum(float(text) < 50 for text in distract("50", seed)) for seed in range(2000)
    )
    # 2000/4 = 500 expected, standard deviation 19.4; 4.5 of them allowed.
    assert all(abs(ranks[rank] - 500) < 87 for rank in range(4)), ranks


def test_naive_neighbours_would_fail_the_rank_check():
    """What the check above is for: answer +-1 and +-2 never make the gold answer an extreme."""
    naive = collections.Counter(
        sum(x < 50 for x in (49, 51, 48 + 4 * (s % 2))) for s in range(2000)
    )
    assert naive[0] == naive[3] == 0


def test_position_of_the_gold_answer_is_uniform():
    places = collections.Counter(
        candidate_set("4", ("1", "2", "3"), seed).index("4") for seed in range(2000)
    )
    assert all(abs(places[place] - 500) < 87 for place in range(4)), places


@pytest.mark.parametrize(
    "answer, others",
    [
        ("Monday", {"Sunday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"}),
        ("tuesday", {"sunday", "monday", "wednesday", "thursday", "friday", "saturday"}),
        ("Yes", {"No"}),
        ("no", {"yes"}),
        ("True", {"False"}),
        ("heads", {"tails"}),
    ],
)
def test_closed_sets_keep_the_case(answer, others):
    assert set(distract(answer, 0)) <= others


def test_times_fractions_lists_units_and_words():
    for seed in range(30):
        times = distract("00:05", seed)
        check("00:05", times)
        assert all(len(t) == 5 and int(t[3:]) < 60 for t in times)
        fractions = distract("1/2", seed)
        check("1/2", fractions)  # "2/4" means the same and must not be there
        assert all("/" in f for f in fractions)
        orders = distract("3, 12, 40", seed)
        check("3, 12, 40", orders)
        assert all(sorted(o.split(", ")) == ["12", "3", "40"] for o in orders)
        points = distract("(3, 12, 40)", seed)
        check("(3, 12, 40)", points)
        assert all(p[0] + p[-1] == "()" and p.count("(") == 1 for p in points)
        assert all(t.startswith("$") for t in distract("$12", seed))
        assert all(t.endswith(" days") for t in distract("12 days", seed))
        assert all(sorted(w) == sorted("stac") for w in distract("stac", seed))


def test_errors_are_preferred_and_alternatives_fill_up():
    wrong = [distract("12", seed, errors=("20", "4", "12.0", "seven")) for seed in range(40)]
    assert sum("20" in w or "4" in w for w in wrong) == 40
    assert not any("seven" in w or "12.0" in w for w in wrong)
    names = distract("Ann Lee", 1, alternatives=("Bo Ray", "ann lee", "Cy Fox", "Di Wu"))
    assert set(names) == {"Bo Ray", "Cy Fox", "Di Wu"}


@pytest.mark.parametrize("answer", ["?", "aa aa", ""])
def test_nothing_can_be_made(answer):
    with pytest.raises(ValueError, match="no distractor can be made"):
        distract(answer, 0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=40), st.integers(0, 5))
def test_any_text_gives_distractors_or_a_value_error(answer, seed):
    try:
        wrong = distract(answer, seed, alternatives=("red", "2", "a, b"))
    except ValueError:
        return
    check(answer, wrong)
    assert wrong == distract(answer, seed, alternatives=("red", "2", "a, b"))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.decimals(-(10**6), 10**6, allow_nan=False, places=3))
def test_any_number_gets_three_numbers(value):
    wrong = distract(str(value), 0)
    check(str(value), wrong)
    assert len(wrong) == 3 and all(parse_number(text) is not None for text in wrong)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_features_are_finite_for_any_text(text):
    features = question_features(text)
    assert set(features) == set(FEATURES)
    assert all(0 <= value < 1e6 for value in features.values())


def test_features_by_hand():
    features = question_features("What is 1,200 + 7?")
    assert features["log_length"] == pytest.approx(2.8903717578961645)  # log 18
    assert features["log_numbers"] == pytest.approx(1.0986122886681098)  # log 3
    assert features["log_largest"] == pytest.approx(7.090909821770027, abs=1e-3)  # log 1201
    assert features["digit_share"] == pytest.approx(5 / 14)
