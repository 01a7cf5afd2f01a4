"""External memory: what is recalled, and above all what never is."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesmeta.recall import ExternalMemory, reflect_memory
from bayesmeta.tasks import HELD_OUT, Task


def _task(name, question, split="reflect"):
    return Task(name, question, f"answer of {name}", (f"answer of {name}", "no"), split=split)


def _bm25(query, documents, k1=1.5, b=0.75):
    """The formula, term by term: idf = log(1 + (N - n + 0.5) / (n + 0.5))."""
    words = [re.findall(r"\w+|[^\w\s]", document.lower()) for document in documents]
    mean_length = sum(map(len, words)) / len(words)
    scores = []
    for document in words:
        counts, score = Counter(document), 0.0
        for word in re.findall(r"\w+|[^\w\s]", query.lower()):
            n = sum(word in other for other in words)
            idf = math.log(1 + (len(words) - n + 0.5) / (n + 0.5))
            length = k1 * (1 - b + b * len(document) / mean_length)
            score += idf * counts[word] / (counts[word] + length) if n else 0.0
        scores.append(score)
    return np.array(scores)


_QUESTIONS = ["What is 3 + 4?", "What is 30 * 4?", "How many legs has a cat?", "Sort 3, 1, 2."]


def test_similarity_is_bm25():
    memory = ExternalMemory(_task(f"t{i}", q) for i, q in enumerate(_QUESTIONS))
    found = memory.recall(_task("new", "what is 3 + 3 legs?"), 4)
    expected = _bm25("what is 3 + 3 legs?", _QUESTIONS)
    assert [r.task.id for r in found] == [f"t{i}" for i in np.argsort(-expected, kind="stable")]
    np.testing.assert_allclose([r.similarity for r in found], np.sort(expected)[::-1], rtol=1e-5)


def test_the_most_like_question_comes_first():
    memory = ExternalMemory(_task(f"t{i}", q) for i, q in enumerate(_QUESTIONS))
    assert memory.recall(_task("new", "How many legs has a dog?"), 1)[0].task.id == "t2"


@given(
    st.lists(st.text("ab c", min_size=1).filter(str.strip), min_size=1, max_size=12),
    st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_never_the_task_itself_nor_its_question(questions, num_examples):
    tasks = [_task(f"t{i}", q) for i, q in enumerate(questions)]
    memory = ExternalMemory(tasks)
    for task in tasks:
        found = memory.recall(task, num_examples)
        asked = {" ".join(r.task.question.split()) for r in found}
        assert task.id not in {r.task.id for r in found}
        assert " ".join(task.question.split()) not in asked
        assert len(asked) == len(found) <= num_examples
        similarity = [r.similarity for r in found]
        assert similarity == sorted(similarity, reverse=True)


def test_the_same_question_in_another_dress_is_not_recalled():
    memory = ExternalMemory([_task("a", "What is  3 + 4?"), _task("b", "What is 9 + 4?")])
    asked = _task("held", "what is 3 + 4?\n", split=HELD_OUT)
    assert [r.task.id for r in memory.recall(asked, 2)] == ["b"]


def test_held_out_tasks_cannot_enter():
    tasks = [_task("a", "one?"), _task("b", "two?", split=HELD_OUT)]
    with pytest.raises(ValueError, match="task 'b' of split 'held_out'"):
        ExternalMemory(tasks)
    assert [task.id for task in reflect_memory(tasks).tasks] == ["a"]


def test_an_empty_memory_and_unknown_words():
    assert ExternalMemory([]).recall(_task("a", "one?"), 3) == []
    memory = ExternalMemory([_task("a", "one"), _task("b", "two")])
    found = memory.recall(_task("c", "zzz"), 3)
    assert [(r.task.id, r.similarity) for r in found] == [("a", 0.0), ("b", 0.0)]


def test_recall_is_the_same_every_time():
    tasks = [_task(f"t{i}", f"What is {i % 5} + {i}?") for i in range(30)]
    first, second = ExternalMemory(tasks), ExternalMemory(tasks)
    for task in tasks:
        assert first.recall(task, 4) == second.recall(task, 4)
