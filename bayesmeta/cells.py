"""Cells of evidence: one task under one skill, sampled, scored and kept."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from bayesmeta.llm.base import AbstractLLM, Sampling, Score, ScoreRequest
from bayesmeta.prompting import PROMPT_VERSION, score_requests, user_text
from bayesmeta.recall import ExternalMemory
from bayesmeta.skills import Skill
from bayesmeta.tasks import Task
from bayesmeta.tracing import Job, run_stages

OnError = Literal["raise", "skip"]
# A log-likelihood may be this far above 0 (nats) by rounding; beyond that the source is wrong.
_ROUNDING = 1e-4


class ObserveError(RuntimeError):
    """A language model could not be observed; the message names the task and the skill.

    What was sampled and scored before is in the cache: the same call goes on from there.
    """


class Cache(Protocol):
    """Where finished traces and scores are kept; `bayesmeta.cache.EvidenceCache` is one on disk."""

    def get(self, key: str, /) -> Mapping[str, Any] | None: ...

    def put(self, key: str, value: dict[str, Any], /) -> None: ...


class DictCache:
    """A cache that ends with its object."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = {}

    def get(self, key: str, /) -> Mapping[str, Any] | None:
        return self.entries.get(key)

    def put(self, key: str, value: dict[str, Any], /) -> None:
        self.entries[key] = value


@dataclasses.dataclass(slots=True)
class Cell:
    """One task under one skill: what goes in, and what has come out so far.

    Attributes:
      user: the user turn, with the examples recalled.
      num_traces: how many traces are wanted; 1 for a skill without stages, whose trace is empty.
      traces: by trace index; ``text``, ``log_prob`` (nats) and ``num_tokens`` generated.
      scores: by trace index; ``log_likelihood`` (nats, one per candidate) and ``num_tokens``,
        those of the context once and of all candidates.
      failure: why the model refused this cell, or None.
    """

    task: Task
    skill: Skill
    user: str
    num_traces: int
    traces: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    scores: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    failure: str | None = None

    @property
    def where(self) -> str:
        return f"task {self.task.id!r}, skill {self.skill.name!r}"

    def finished(self) -> dict[str, Any] | None:
        """What `bayesmeta.evidence.assemble` takes: None if this cell is missing."""
        if self.failure is not None:
            return None
        order = range(self.num_traces)
        scored = sum(self.scores[trace]["num_tokens"] for trace in order) / self.num_traces
        generated = sum(self.traces[trace]["num_tokens"] for trace in order)
        return {
            "log_likelihood": [self.scores[trace]["log_likelihood"] for trace in order],
            "trace_text": [self.traces[trace]["text"] for trace in order],
            "num_tokens": (round(scored), generated),
        }


def make_cell(task: Task, skill: Skill, memory: ExternalMemory, num_traces: int) -> Cell:
    """The cell before anything is sampled, with its worked examples recalled.

    Raises:
      ValueError: the skill recalls, and the memory has nothing to recall for this task.
    """
    examples = memory.recall(task, skill.recall) if skill.recall else []
    if skill.recall and not examples:
        raise ValueError(
            f"task {task.id!r}, skill {skill.name!r}: wants {skill.recall} worked examples, and "
            "external memory holds none with another question. Add reflect tasks, pass memory=, "
            "or leave the skill out."
        )
    # The most similar example stands last, nearest to the answer.
    user = user_text(task, skill, [found.task for found in reversed(examples)])
    return Cell(task, skill, user, num_traces if skill.stages else 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Observer:
    """What stays the same over all cells of one call of `bayesmeta.observe`."""

    llm: AbstractLLM
    cache: Cache
    seed: int
    sampling: Sampling
    on_error: OnError

    def sample(self, cells: Sequence[Cell]) -> None:
        """Fill ``traces`` of the cells, all of one skill, from the cache or by sampling."""
        missing: list[tuple[Cell, int]] = []
        for cell in cells:
            for trace in range(cell.num_traces):
                if not cell.skill.stages:
                    cell.traces[trace] = {"text": "", "log_prob": 0.0, "num_tokens": 0}
                elif (found := self.cache.get(self._trace_key(cell, trace))) is not None:
                    cell.traces[trace] = dict(found)
                else:
                    missing.append((cell, trace))
        self._run_or_blame("sampling a trace", missing, self._sample)

    def score(self, cells: Sequence[Cell]) -> None:
        """Fill ``scores`` of the cells: one call of ``log_likelihood`` for all that is missing."""
        missing: list[tuple[Cell, int]] = []
        for cell in cells:
            if cell.failure is not None:
                continue
            for trace in range(cell.num_traces):
                if (found := self.cache.get(self._score_key(cell, trace))) is not None:
                    cell.scores[trace] = dict(found)
                else:
                    missing.append((cell, trace))
        self._run_or_blame("scoring the answers", missing, self._score)

    def _sample(self, items: Sequence[tuple[Cell, int]]) -> dict[str, dict[str, Any]]:
        # Nothing but content goes into a seed, so neither batch nor order changes a trace.
        jobs = [
            Job(
                cell.user,
                (self.seed, cell.task.content_hash(), cell.skill.content_hash(), trace),
            )
            for cell, trace in items
        ]
        runs = run_stages(self.llm, items[0][0].skill, jobs, sampling=self.sampling)
        for (cell, trace), run in zip(items, runs, strict=True):
            cell.traces[trace] = dataclasses.asdict(run)
        return {self._trace_key(cell, trace): cell.traces[trace] for cell, trace in items}

    def _score(self, items: Sequence[tuple[Cell, int]]) -> dict[str, dict[str, Any]]:
        requests: list[ScoreRequest] = []
        for cell, trace in items:
            text, candidates = cell.traces[trace]["text"], cell.task.candidates
            requests += score_requests(self.llm, cell.user, cell.skill, text, candidates)
        answers = self.llm.log_likelihood(requests)
        if len(answers) != len(requests):
            raise ObserveError(
                f"{self.llm.name} returned {len(answers)} scores for {len(requests)} requests, "
                "wanted one each, in order. Check the model with bayesmeta.testing."
            )
        scores = iter(answers)
        for cell, trace in items:
            mine = [next(scores) for _ in cell.task.candidates]
            _check_scores(cell, mine)
            cell.scores[trace] = {
                "log_likelihood": [min(score.log_likelihood, 0.0) for score in mine],
                "num_tokens": mine[0].num_context_tokens + sum(s.num_tokens for s in mine),
            }
        return {self._score_key(cell, trace): cell.scores[trace] for cell, trace in items}

    def _trace_key(self, cell: Cell, trace: int) -> str:
        """A hash of all that the entry depends on, so that an entry can never be stale."""
        return self._key(
            "trace",
            skill=[cell.skill.version, cell.skill.content_hash()],
            task=cell.task.content_hash(),
            user=cell.user,
            trace=trace,
            seed=self.seed,
            sampling=dataclasses.asdict(self.sampling),
        )

    def _score_key(self, cell: Cell, trace: int) -> str:
        return self._key(
            "score",
            skill=[cell.skill.version, cell.skill.content_hash()],
            task=cell.task.content_hash(),
            user=cell.user,
            text=cell.traces[trace]["text"],
        )

    def _key(self, kind: str, **parts: Any) -> str:
        parts |= {"kind": kind, "model": self.llm.name, "prompt_version": PROMPT_VERSION}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _run_or_blame(
        self,
        action: str,
        items: Sequence[tuple[Cell, int]],
        run: Callable[[Sequence[tuple[Cell, int]]], dict[str, dict[str, Any]]],
    ) -> None:
        """Run all items at once and keep what comes out, the cache entries by key.

        If the model refuses, run them one by one, to name the cell at fault.

        Only a ValueError says that an input was refused. Anything else (a dead server, no memory)
        would fail again for every item, so it is reported for the batch and never skipped.
        """
        items = [item for item in items if item[0].failure is None]
        if not items:
            return
        try:
            entries = run(items)
        except ObserveError:
            raise
        except ValueError as error:
            if len(items) == 1:
                self._refused(action, items[0][0], error)
            else:
                for item in items:
                    self._run_or_blame(action, [item], run)
        except Exception as error:
            names = list(dict.fromkeys(cell.where for cell, _ in items))
            more = f" (and {len(names) - 1} more cells of its batch)" if len(names) > 1 else ""
            raise ObserveError(
                f"{names[0]}{more}: {action} failed. {type(error).__name__}: {error} Finished "
                "cells are kept in the cache: mend the cause and run the same command again."
            ) from error
        else:
            for key, entry in entries.items():
                self.cache.put(key, entry)

    def _refused(self, action: str, cell: Cell, error: ValueError) -> None:
        if self.on_error == "skip":
            cell.failure = str(error)
            return
        raise ObserveError(
            f"{cell.where}: {action} failed. {error} Or leave such cells out with "
            'on_error="skip". Finished cells are kept in the cache.'
        ) from error


def _check_scores(cell: Cell, scores: Sequence[Score]) -> None:
    for candidate, score in zip(cell.task.candidates, scores, strict=True):
        value = score.log_likelihood
        if math.isnan(value) or value > _ROUNDING:
            raise ObserveError(
                f"{cell.where}: the model gave candidate {candidate!r} a log-likelihood of "
                f"{value}, wanted a number <= 0 in nats. Check it with bayesmeta.testing."
            )
    if all(score.log_likelihood == -math.inf for score in scores):
        raise ObserveError(
            f"{cell.where}: the model calls all of {list(cell.task.candidates)} impossible "
            "(log-likelihood -inf), so nothing can be learned from it. Check the candidates."
        )
