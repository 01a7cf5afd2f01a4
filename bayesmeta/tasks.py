"""A task: a question together with its goal (node G of Figure 2, plate n)."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: The two halves of every experiment: tasks that memory may learn from, and tasks it is judged on.
REFLECT = "reflect"
HELD_OUT = "held_out"


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One question with the set of answers that are scored for it.

    Attributes:
      id: unique within a task set.
      question: the whole text the reasoner is given.
      answer: the gold answer; must be one of ``candidates``.
      candidates: the explicit candidate answers, gold included, no two of which mean the same.
        At least two, because likelihoods are renormalised over them.
      domain: the family whose tasks share Theta_E.
      split: ``"reflect"`` or ``"held_out"``.
      features: named real features x_n of the question (never of the answer).
      verifier: name of the function in `bayesmeta.verify` that judges a free answer.
      metadata: whatever the verifier needs; must be JSON.
    """

    id: str
    question: str
    answer: str
    candidates: tuple[str, ...]
    domain: str = "default"
    split: str = REFLECT
    features: Mapping[str, float] = dataclasses.field(default_factory=dict)
    verifier: str = "exact"
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"task {self.id!r}"
        if not self.id or not self.question.strip():
            raise ValueError(f"{where}: id and question must be non-empty text.")
        if len(self.candidates) < 2:
            raise ValueError(
                f"{where}: needs at least 2 candidates, got {list(self.candidates)}. "
                "Add distractors with bayesmeta.distractors.distract."
            )
        if len({c.strip() for c in self.candidates}) != len(self.candidates):
            raise ValueError(f"{where}: candidates repeat: {list(self.candidates)}.")
        if self.answer not in self.candidates:
            raise ValueError(
                f"{where}: the gold answer {self.answer!r} is not among the candidates "
                f"{list(self.candidates)}. Add it, or correct the answer."
            )
        if self.split not in (REFLECT, HELD_OUT):
            raise ValueError(
                f"{where}: split must be {REFLECT!r} or {HELD_OUT!r}, got {self.split!r}."
            )

    @property
    def gold(self) -> int:
        """Index of the gold answer among the candidates."""
        return self.candidates.index(self.answer)

    def content_hash(self) -> str:
        """SHA-256 of everything that a language model can be shown of this task, as hex."""
        content = {"question": self.question, "candidates": list(self.candidates)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
