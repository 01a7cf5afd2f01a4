"""The same traces and answers, scored again with part of the context taken away.

Figure 2 has arrows that are present in a language model's context or are not. An answer scored
under its skill's instruction depends on the strategy directly (F -> O) and not only through the
reasoning; one scored with worked examples in sight depends on external memory (E -> O). Scoring
the recorded traces once more without the one, the other, or both turns these arrows into
switches of `bayesmeta.models.graph.Graph`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from bayesmeta.cells import Cache, Cell, Observer, make_cell
from bayesmeta.evidence_check import validate
from bayesmeta.evidence_schema import CELL, CONTEXTS
from bayesmeta.llm.base import AbstractLLM, Sampling
from bayesmeta.observation import Progress, opened
from bayesmeta.prompting import worked
from bayesmeta.recall import ExternalMemory, reflect_memory
from bayesmeta.skills import Skill, fill_template
from bayesmeta.tasks import Task


def score_contexts(
    llm: AbstractLLM,
    evidence: xr.Dataset,
    tasks: Sequence[Task],
    skills: Sequence[Skill],
    *,
    contexts: Sequence[str] = tuple(CONTEXTS),
    cache: Cache | str | Path | None = None,
    memory: ExternalMemory | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Evidence with log-likelihoods of the same answers in poorer contexts beside its own.

    Args:
      llm: the model that was observed.
      evidence: from `bayesmeta.observe` with the same tasks, skills and memory.
      tasks, skills, memory, cache, batch_size, progress: as for `bayesmeta.observe`.
      contexts: any of ``without_memory`` (no worked examples), ``without_instruction`` (the
        skill's instruction left out, its trace kept) and ``plain`` (neither).

    Returns:
      A copy with a variable ``log_likelihood_<context>`` for each, (task, skill, trace,
      candidate), nats; where a context takes nothing away it equals ``log_likelihood``.

    Raises:
      ValueError: the evidence has no trace texts, or is not about these tasks and skills.
      ObserveError: the model failed on a cell, which the message names.
    """
    if unknown := sorted(set(contexts) - set(CONTEXTS)):
        raise ValueError(f"unknown context {unknown[0]!r}; choose among {list(CONTEXTS)}.")
    tasks = _matching(evidence, tasks, skills)
    if llm.name != evidence.attrs.get("llm"):
        raise ValueError(
            f"the evidence comes from {evidence.attrs.get('llm')!r}, not from {llm.name!r}. "
            "Contexts compare only within one model: load that one."
        )
    if memory is None:
        memory = reflect_memory(tasks if any(skill.recall for skill in skills) else ())
    scored = evidence.copy()
    own = evidence["log_likelihood"].transpose(*CELL).values
    observed = evidence["observed"].transpose(*CELL).values
    text = evidence["trace_text"].transpose(*CELL[:3]).values
    with opened(cache) as store:
        observer = Observer(llm, store, 0, Sampling(), "raise")
        for context in contexts:
            values = own.copy()
            with_memory, with_instruction = CONTEXTS[context]
            for start in range(0, len(tasks), batch_size):
                cells: dict[tuple[int, int], Cell] = {}
                for n in range(start, min(start + batch_size, len(tasks))):
                    for k, skill in enumerate(skills):
                        traces = np.flatnonzero(observed[n, k].any(-1))
                        if not len(traces):
                            continue
                        cell = make_cell(tasks[n], skill, memory, len(traces))
                        user = _poorer(cell, memory, with_memory, with_instruction)
                        if user == cell.user:
                            continue  # nothing was taken away
                        cell.user = user
                        cell.traces = {
                            i: {"text": text[n, k, s], "log_prob": 0.0, "num_tokens": 0}
                            for i, s in enumerate(traces)
                        }
                        cells[n, k] = cell
                observer.score(list(cells.values()))
                for (n, k), cell in cells.items():
                    for i, s in enumerate(np.flatnonzero(observed[n, k].any(-1))):
                        row = cell.scores[i]["log_likelihood"]
                        values[n, k, s, : len(row)] = row
                if progress is not None:
                    done = min(start + batch_size, len(tasks)) * len(skills)
                    progress(done, len(tasks) * len(skills), f"scoring {context}")
            scored[f"log_likelihood_{context}"] = (CELL, values)
    scored.attrs = {k: v for k, v in evidence.attrs.items() if k != "content_hash"}
    return validate(scored)


def _poorer(cell: Cell, memory: ExternalMemory, with_memory: bool, with_instruction: bool) -> str:
    """The user turn of a cell with something left out."""
    skill = cell.skill
    recalled = memory.recall(cell.task, skill.recall) if skill.recall and with_memory else []
    values = {
        "question": cell.task.question.strip(),
        "examples": worked([found.task for found in reversed(recalled)]),
        "instruction": skill.instruction.strip() if with_instruction else "",
    }
    return fill_template(skill.template, values)


def _matching(
    evidence: xr.Dataset, tasks: Sequence[Task], skills: Sequence[Skill]
) -> tuple[Task, ...]:
    """The tasks in the order of the evidence, or ValueError."""
    if "trace_text" not in evidence:
        raise ValueError(
            "the evidence has no trace_text, so its traces cannot be scored again. Observe the "
            "tasks with bayesmeta.observe."
        )
    names = [skill.name for skill in skills]
    if names != list(map(str, evidence["skill"].values)):
        raise ValueError(
            f"the evidence is about the skills {list(evidence['skill'].values)}, not {names}. "
            "Pass the same skills in the same order."
        )
    by_id = {task.id: task for task in tasks}
    missing = [i for i in map(str, evidence["task"].values) if i not in by_id]
    if missing:
        raise ValueError(
            f"task {missing[0]!r} of the evidence is not among the tasks given "
            f"({len(missing)} missing). Pass the tasks that were observed."
        )
    ordered = tuple(by_id[str(i)] for i in evidence["task"].values)
    for task, question in zip(ordered, evidence["question"].values, strict=True):
        if task.question != str(question):
            raise ValueError(
                f"task {task.id!r} asks {task.question[:60]!r}, but the evidence was observed on "
                f"{str(question)[:60]!r}. Pass the tasks that were observed."
            )
    return ordered
