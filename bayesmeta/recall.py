"""External memory: worked examples recalled by the likeness of their questions."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from bayesmeta.tasks import REFLECT, Task

# Numbers and symbols tell many tasks apart, so single characters are words here.
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True, slots=True)
class Recalled:
    """A solved task, and its BM25 similarity to the question asked (0: they share no word)."""

    task: Task
    similarity: float


class ExternalMemory:
    """Solved tasks, ranked by BM25 over the words of their questions.

    It holds tasks of the reflect split only, so that no held-out answer can reach a prompt, and
    it never returns the task that is being asked nor any task with the same question: for a
    task inside the memory this is leave-one-out.

    Reference: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and
    Beyond", with the default k1 = 1.5, b = 0.75 of the library bm25s (Lù 2024).
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks: tuple[Task, ...] = tuple(tasks)
        for task in self._tasks:
            if task.split != REFLECT:
                raise ValueError(
                    f"external memory was given task {task.id!r} of split {task.split!r}; its "
                    f"answer must not be shown. Pass only tasks whose split is {REFLECT!r}."
                )
        self._questions = [_normalise(task.question) for task in self._tasks]
        self._index = _index([_words(question) for question in self._questions])

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the memory holds, in the order it was given."""
        return self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def recall(self, task: Task, num_examples: int) -> list[Recalled]:
        """The solved tasks most like ``task``, best first; fewer if the memory holds fewer.

        Equally similar tasks come in the order in which the memory was given them. Two examples
        never share a question.
        """
        if not self._tasks:
            return []
        asked = _normalise(task.question)
        words = [word for word in _words(asked) if word in self._index.vocab_dict]
        similarity = np.zeros(len(self._tasks))
        if words:
            similarity = np.asarray(self._index.get_scores(words), dtype=float)
        found: list[Recalled] = []
        seen = {asked}
        for row in np.argsort(-similarity, kind="stable"):
            if len(found) == num_examples:
                break
            if self._tasks[row].id == task.id or self._questions[row] in seen:
                continue
            seen.add(self._questions[row])
            found.append(Recalled(self._tasks[row], float(similarity[row])))
        return found


def reflect_memory(tasks: Sequence[Task]) -> ExternalMemory:
    """The external memory that holds exactly the reflect tasks among ``tasks``."""
    return ExternalMemory(task for task in tasks if task.split == REFLECT)


def _normalise(question: str) -> str:
    return " ".join(question.lower().split())


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _index(corpus: list[list[str]]):
    import bm25s  # here, so that importing bayesmeta stays free

    index = bm25s.BM25(k1=1.5, b=0.75)
    if corpus:
        index.index(corpus, show_progress=False)
    return index
