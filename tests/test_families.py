"""Gold labels recomputed from the question alone; candidate sets; splits; errors."""

import collections
import hashlib
import json
import subprocess
import sys

import pytest
from reference import family_solvers

from bayesmeta.distractors import seeded
from bayesmeta.families import FamilyError, default_families, families, make_tasks
from bayesmeta.tasks import HELD_OUT, REFLECT
from bayesmeta.verify import canonical, verify

NUM = 200
MALE = "James John Robert Michael William David Richard Joseph Thomas Charles Peter".split()


@pytest.fixture(scope="module")
def drawn():
    return {name: make_tasks([name], NUM, seed=1) for name in families()}


def test_default_set_is_ten_families():
    assert len(default_families()) == 10
    assert set(default_families()) <= set(families())
    assert all("\n" not in line for line in families().values())


@pytest.mark.parametrize("name", families())
def test_gold_labels_agree_with_an_independent_solver(drawn, name):
    solve = getattr(family_solvers, name)
    for task in drawn[name]:
        expected = solve(task.question)
        if "|" in expected:  # a relation without the gender, which only names tell
            assert task.answer in expected.split("|"), task
        else:
            assert canonical(expected) == canonical(task.answer), task
        assert verify(task, f"Let me think.\nAnswer: {task.answer}")
        for wrong in set(task.candidates) - {task.answer}:
            assert not verify(task, f"Answer: {wrong}"), (task, wrong)


def test_solvers_notice_a_wrong_label(drawn):
    """The check above can fail: each solver rejects every distractor."""
    for name in set(families()) - {"family_relationships"}:
        solve = getattr(family_solvers, name)
        for task in drawn[name][:20]:
            wrong = set(task.candidates) - {task.answer}
            assert canonical(solve(task.question)) not in {canonical(w) for w in wrong}


def test_genders_of_relations_follow_the_names(drawn):
    male = {"father", "son", "husband", "brother", "grandfather", "uncle"}
    for task in drawn["family_relationships"]:
        person = task.question.split(" What is ")[1].split()[0]
        if person in MALE:
            assert task.answer in male, task


@pytest.mark.parametrize("name", families())
def test_candidates(drawn, name):
    tasks = drawn[name]
    for task in tasks:
        assert 2 <= len(task.candidates) <= 4
        assert len({canonical(c) for c in task.candidates}) == len(task.candidates)
        assert len(task.question) <= 480 and len(task.answer) <= 20
    positions = collections.Counter(task.gold for task in tasks)
    # Uniform over 4 places: 200/4 = 50 expected, standard deviation 6.1; 4.5 of them allowed.
    assert all(abs(positions[i] - NUM / 4) < 4.5 * (NUM * 3 / 16) ** 0.5 for i in range(4))


@pytest.mark.parametrize("name", ["chain_sum", "products", "leg_counting", "decimal_chain_sum"])
def test_distractors_cannot_be_told_by_form(drawn, name):
    ranks = collections.Counter()
    for task in drawn[name]:
        shape = {(len(c.partition(".")[2]), "," in c) for c in task.candidates}
        assert len(shape) == 1, task
        ranks[sorted(task.candidates, key=float).index(task.answer)] += 1
    # A gold answer that is always in the middle would never be smallest or largest.
    assert all(ranks[rank] > NUM / 10 for rank in range(4)), ranks


def test_same_seed_same_tasks_in_another_process_and_for_another_number():
    names = list(families())
    code = (
        "import json,hashlib;from bayesmeta.families import make_tasks, families;"
        "t=make_tasks(families(),3,seed=7);"
        "print(hashlib.sha256(json.dumps([(x.id,x.question,x.candidates,x.split) for x in t])"
        ".encode()).hexdigest())"
    )
    here = make_tasks(names, 3, seed=7)
    blob = json.dumps([(x.id, x.question, x.candidates, x.split) for x in here]).encode()
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert hashlib.sha256(blob).hexdigest() == there
    more = {task.id: task for task in make_tasks(names, 12, seed=7)}
    for task in here:
        assert more[task.id].question == task.question
        assert more[task.id].candidates == task.candidates
    other = make_tasks(names, 3, seed=8)
    assert not {t.question for t in other} & {t.question for t in here}


@pytest.mark.parametrize("fraction, held", [(0.4, 4), (0.25, 2), (0, 0), (1, 10)])
def test_split_counts_are_exact_per_family(fraction, held):
    tasks = make_tasks(["chain_sum", "gcd"], 10, seed=2, held_out_fraction=fraction)
    for name in ("chain_sum", "gcd"):
        splits = collections.Counter(t.split for t in tasks if t.domain == name)
        assert (splits[HELD_OUT], splits[REFLECT]) == (held, 10 - held)


def test_no_question_is_in_both_splits(drawn):
    for name, tasks in drawn.items():
        assert len({canonical(t.question) for t in tasks}) == NUM, name
        assert [t.id for t in tasks] == [f"{name}-1-{i}" for i in range(NUM)]


def test_unknown_family_names_close_ones():
    with pytest.raises(FamilyError, match="chain_sums.*Did you mean 'chain_sum'"):
        make_tasks(["chain_sums"], 2)


@pytest.mark.parametrize("name", ["puzzle24", "syllogism"])
def test_families_with_wrong_labels_are_refused(name):
    with pytest.raises(FamilyError, match=f"{name}.*wrong"):
        make_tasks([name], 2)


def test_too_many_tasks_says_how_many_there_are():
    with pytest.raises(FamilyError, match=r"'gcd' gave \d+ usable tasks, 5000 were asked for"):
        make_tasks(["gcd"], 5000)


@pytest.mark.parametrize(
    "name",
    ["coin_flip", "base_conversion", "word_sorting", "caesar_cipher", "dice", "isomorphic_strings"],
)
def test_other_datasets_work_by_name(name):
    tasks = make_tasks(name, 6, seed=1)
    assert len(tasks) == 6
    for task in tasks:
        assert 2 <= len(task.candidates) <= 4
        assert len({canonical(c) for c in task.candidates}) == len(task.candidates)
        assert verify(task, f"Answer: {task.answer}")
        wrong = next(c for c in task.candidates if c != task.answer)
        assert not verify(task, f"Answer: {wrong}")


def test_a_dataset_without_short_answers_says_so():
    with pytest.raises(FamilyError, match="propositional_logic.*no gold answer"):
        make_tasks(["propositional_logic"], 2)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="num_per_family must be at least 1, got 0"):
        make_tasks(["gcd"], 0)
    with pytest.raises(ValueError, match="held_out_fraction must be between 0 and 1, got 1.5"):
        make_tasks(["gcd"], 2, held_out_fraction=1.5)


def test_seeded_streams_are_fixed():
    assert seeded("a", 1).randrange(1000) == seeded("a", 1).randrange(1000)
    assert seeded("a", 1).randrange(10**9) != seeded("a", 2).randrange(10**9)
