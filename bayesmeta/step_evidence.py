"""Reasoning observed step by step: the evidence for strategies that change between steps.

`observe_steps` lets a language model write reasoning one step at a time among explicit candidates
(see `bayesmeta.step_tree`), scores every candidate under every skill, and every answer after every
trace. `steps_data` makes it what Figure 2 in full conditions on.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.special import log_softmax, logsumexp

from bayesmeta.cells import Cache, ObserveError, make_cell
from bayesmeta.llm.base import AbstractLLM
from bayesmeta.observation import Progress, opened
from bayesmeta.prompting import PROMPT_VERSION, score_requests, worked
from bayesmeta.recall import ExternalMemory, reflect_memory
from bayesmeta.skills import Skill, check_skills, fill_template
from bayesmeta.step_data import check_steps as check_steps
from bayesmeta.step_data import steps_data as steps_data
from bayesmeta.step_tree import Prompts, State, StepReader, StepSettings
from bayesmeta.tasks import Task
from bayesmeta.tracing import derive_seed

#: Enumeration stops here: beyond so many traces per task, draw some instead.
MAX_TRACES = 4096

#: The skill under which answers are scored when no instruction is in context: the question alone.
_NO_SKILL = Skill("none", "")


@dataclasses.dataclass(slots=True)
class _Path:
    """One trace in the making: the states it went through and what it chose in each."""

    task: int
    skill: int  # that it was drawn under; -1 where every trace there is was taken
    number: int
    states: list[State] = dataclasses.field(default_factory=list)
    chosen: list[int] = dataclasses.field(default_factory=list)
    steps: tuple[str, ...] = ()
    finished: bool = False

    def go(self, state: State, choice: int, end: str, max_steps: int) -> "_Path":
        """The same trace one step longer."""
        text = state.choices[choice]
        return dataclasses.replace(
            self,
            states=[*self.states, state],
            chosen=[*self.chosen, choice],
            steps=self.steps if text == end else (*self.steps, text),
            finished=text == end or len(self.states) + 1 == max_steps,
        )


def observe_steps(
    llm: AbstractLLM,
    tasks: Sequence[Task],
    skills: Sequence[Skill],
    *,
    num_traces: int | None = 4,
    settings: StepSettings | None = None,
    without_question: bool = True,
    without_skill: bool = True,
    cache: Cache | str | Path | None = None,
    memory: ExternalMemory | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Traces written step by step, with every step scored under every skill.

    A skill acts through its instruction and the worked examples that it recalls; its stages are
    not used, because steps are what they are replaced by.

    In every state the candidates are the distinct next steps that the model writes under the
    skills' prompts, or those that the settings name. Each of ``num_traces`` traces per skill
    chooses among them by that skill's probabilities pi_k (see `bayesmeta.step_tree`), so that all
    K S traces together are a sample from q(a) = mean_k prod_t pi_k(a_t), of the tree of all traces
    that the candidates allow. They carry ``log_weight`` -log q(a) - log(K S), and estimates made
    with it are unbiased for sums over that tree.

    Args:
      llm: the model to observe.
      tasks: with unique ids.
      skills: at least two, without tools.
      num_traces: S; None takes every trace of the tree, with weight one: then nothing is
        estimated. A tree has up to (candidates ** max_steps) traces.
      settings: how reasoning is cut into steps, and the seed.
      without_question: score steps with the question hidden too, for graphs without G -> A. What
        was recalled for the question stays in sight.
      without_skill: score answers after the question and the trace alone too, for graphs without
        F -> O.
      cache: a folder, or anything with ``get`` and ``put``; None keeps nothing after the call.
      memory: where worked examples come from; by default the reflect tasks among ``tasks``.
      batch_size: tasks per batch.
      progress: called as ``progress(done, total, message)`` with counts of tasks.

    Returns:
      A dataset over task, trace, step, choice, skill and candidate, log-probabilities in nats,
      float64: ``log_pi`` and ``log_pi_without_question`` (task, trace, step, choice, skill),
      normalised over choices; ``chosen`` and ``used`` (task, trace, step); ``log_proposal`` and
      ``log_weight`` (task, trace); ``log_p`` (task, trace, skill, candidate) and
      ``log_p_without_skill`` (task, trace, candidate), normalised over candidates; texts and what
      is known of the tasks. -inf pads.

    Raises:
      ObserveError: the model failed on a task, which the message names.
      ValueError: the tasks, the skills or a setting are wrong, or there are too many traces.
    """
    settings = settings or StepSettings()
    tasks, skills = tuple(tasks), check_skills(skills)
    _check_settings(tasks, skills, num_traces, batch_size)
    if memory is None:
        memory = reflect_memory(tasks if any(skill.recall for skill in skills) else ())
    rows: list[dict] = []
    with opened(cache) as store:
        reader = StepReader(llm, store, settings)
        for start in range(0, len(tasks), batch_size):
            batch = tasks[start : start + batch_size]
            prompts = [_prompts(task, skills, memory) for task in batch]
            paths = _write(reader, prompts, skills, num_traces, without_question)
            rows += _score_answers(reader, prompts, skills, paths, num_traces, without_skill)
            if progress is not None:
                progress(len(rows), len(tasks), "observing steps")
    attrs = {
        "llm": llm.name,
        "model": llm.attributes["model"],
        "quality": llm.quality,
        "prompt_version": PROMPT_VERSION,
        "skills": json.dumps([skill.to_dict() for skill in skills], sort_keys=True),
        "steps": json.dumps(dataclasses.asdict(settings), sort_keys=True),
        "num_traces": "all" if num_traces is None else num_traces,
        "created_by": "bayesmeta.observe_steps",
    }
    return _dataset(tasks, skills, rows, attrs)


def _check_settings(
    tasks: Sequence[Task], skills: Sequence[Skill], num_traces: int | None, batch_size: int
) -> None:
    ids = [task.id for task in tasks]
    if not ids or len(set(ids)) < len(ids):
        repeated = sorted({i for i in ids if ids.count(i) > 1})
        raise ValueError(
            f"tasks must be at least one, with ids of their own; got {len(ids)}, of which "
            f"{repeated} repeat."
        )
    if len(skills) < 2:
        raise ValueError(
            f"one skill ({skills[0].name!r}) leaves nothing to compose. Give at least two."
        )
    for skill in skills:
        if skill.tool is not None:
            raise ValueError(
                f"skill {skill.name!r} uses the tool {skill.tool!r}, whose results belong to one "
                "skill's trace and cannot be scored as steps under the others. Leave it out, or "
                "use bayesmeta.observe."
            )
    for name, value in (("num_traces", num_traces), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}. Leave it out for the default.")


def _prompts(task: Task, skills: Sequence[Skill], memory: ExternalMemory) -> Prompts:
    users, hidden = [], []
    for skill in skills:
        users.append(make_cell(task, skill, memory, 1).user)
        recalled = memory.recall(task, skill.recall) if skill.recall else []
        values = {
            "question": "",
            "examples": worked([found.task for found in reversed(recalled)]),
            "instruction": skill.instruction.strip(),
        }
        hidden.append(fill_template(skill.template, values))
    names = tuple(skill.name for skill in skills)
    return Prompts(task, names, tuple(users), tuple(hidden), task.question.strip())


def _write(
    reader: StepReader,
    prompts: Sequence[Prompts],
    skills: Sequence[Skill],
    num_traces: int | None,
    hide_question: bool,
) -> list[_Path]:
    """All traces of a batch of tasks, one step of all of them at a time."""
    if num_traces is None:
        paths = [_Path(n, -1, 0) for n in range(len(prompts))]
    else:
        paths = [
            _Path(n, k, s)
            for n in range(len(prompts))
            for k in range(len(skills))
            for s in range(num_traces)
        ]
    end, max_steps = reader.llm.end_of_answer, reader.settings.max_steps
    for step in range(max_steps):
        places = list(dict.fromkeys((path.task, path.steps) for path in paths if not path.finished))
        if not places:
            break
        asked = [(prompts[task], steps) for task, steps in places]
        states = reader.expand(asked, hide_question=hide_question)
        known = dict(zip(places, states, strict=True))
        longer: list[_Path] = []
        for path in paths:
            if path.finished:
                longer.append(path)
                continue
            state = known[path.task, path.steps]
            if num_traces is None:
                choices = range(len(state.choices))
            else:
                task, skill = prompts[path.task].task, skills[path.skill]
                parts = (task.content_hash(), skill.content_hash(), path.number, step)
                rng = np.random.default_rng(derive_seed(reader.settings.seed, *parts))
                probs = np.exp(state.log_pi[:, path.skill])
                choices = [int(rng.choice(len(probs), p=probs / probs.sum()))]
            longer += [path.go(state, choice, end, max_steps) for choice in choices]
        paths = longer
        if num_traces is None and len(paths) > MAX_TRACES * len(prompts):
            raise ValueError(
                f"after {step + 1} steps there are {len(paths)} traces of {len(prompts)} tasks, "
                f"more than {MAX_TRACES} each. Lower max_steps, or draw some with num_traces."
            )
    return paths


def _score_answers(
    reader: StepReader,
    prompts: Sequence[Prompts],
    skills: Sequence[Skill],
    paths: Sequence[_Path],
    num_traces: int | None,
    without_skill: bool,
) -> Iterator[dict]:
    """Per task: its traces, their weights, and the answers after each."""
    contexts = list(zip(skills, range(len(skills)), strict=True))
    llm, requests = reader.llm, []
    for path in paths:
        shown, text = prompts[path.task], reader.text(path.steps)
        for skill, k in contexts:
            requests += score_requests(llm, shown.users[k], skill, text, shown.task.candidates)
        if without_skill:
            requests += score_requests(llm, shown.plain, _NO_SKILL, text, shown.task.candidates)
    scores = iter(reader.score(requests, [shown.task for shown in prompts]))
    num_contexts = len(skills) + without_skill
    tables: list[list[np.ndarray]] = [[] for _ in prompts]
    for path in paths:
        task = prompts[path.task].task
        table = [[next(scores) for _ in task.candidates] for _ in range(num_contexts)]
        if np.isneginf(table).all(1).any():
            raise ObserveError(
                f"task {task.id!r}: after the steps {list(path.steps)} the model calls all of "
                f"{list(task.candidates)} impossible (log-likelihood -inf). Check the candidates."
            )
        tables[path.task].append(log_softmax(table, axis=1))
    for n, shown in enumerate(prompts):
        mine = [path for path in paths if path.task == n]
        log_q = [
            logsumexp(sum(s.log_pi[c] for s, c in zip(path.states, path.chosen, strict=True)))
            - np.log(len(skills))
            for path in mine
        ]
        yield {
            "task": shown.task,
            "paths": mine,
            "answers": np.stack(tables[n])[:, : len(skills)],
            "plain": np.stack(tables[n])[:, -1] if without_skill else None,
            "log_proposal": np.array(log_q),
            "log_weight": np.zeros(len(mine))
            if num_traces is None
            else -np.array(log_q) - np.log(len(mine)),
        }


def _dataset(
    tasks: Sequence[Task], skills: Sequence[Skill], rows: Sequence[dict], attrs: dict
) -> xr.Dataset:
    paths = [path for row in rows for path in row["paths"]]
    states = [state for path in paths for state in path.states]
    N, K = len(tasks), len(skills)
    S = max(len(row["paths"]) for row in rows)
    T = max(len(path.states) for path in paths)
    B = max(len(state.choices) for state in states)
    C = max(len(task.candidates) for task in tasks)
    hidden = states[0].log_pi_hidden is not None
    log_pi = np.full((N, S, T, B, K), -np.inf)
    log_pi_hidden = np.full((N, S, T, B, K), -np.inf)
    chosen, used = np.zeros((N, S, T), np.int64), np.zeros((N, S, T), bool)
    log_p, log_p_plain = np.full((N, S, K, C), -np.inf), np.full((N, S, C), -np.inf)
    log_proposal, log_weight = np.full((N, S), -np.inf), np.full((N, S), -np.inf)
    trace_text, drawn_under = (np.full((N, S), "", dtype=object) for _ in range(2))
    choice_text = np.full((N, S, T, B), "", dtype=object)
    candidate_text = np.full((N, C), "", dtype=object)
    for n, row in enumerate(rows):
        many, width = len(row["paths"]), len(row["task"].candidates)
        candidate_text[n, :width] = row["task"].candidates
        log_proposal[n, :many], log_weight[n, :many] = row["log_proposal"], row["log_weight"]
        log_p[n, :many, :, :width] = row["answers"]
        if row["plain"] is not None:
            log_p_plain[n, :many, :width] = row["plain"]
        for s, path in enumerate(row["paths"]):
            trace_text[n, s] = "".join(path.steps)
            drawn_under[n, s] = skills[path.skill].name if path.skill >= 0 else ""
            for t, (state, choice) in enumerate(zip(path.states, path.chosen, strict=True)):
                log_pi[n, s, t, : len(state.choices)] = state.log_pi
                if state.log_pi_hidden is not None:
                    log_pi_hidden[n, s, t, : len(state.choices)] = state.log_pi_hidden
                choice_text[n, s, t, : len(state.choices)] = state.choices
                chosen[n, s, t], used[n, s, t] = choice, True
    feature = list(tasks[0].features)
    for task in tasks:
        if set(task.features) != set(feature):
            raise ValueError(
                f"task {task.id!r} has the features {sorted(task.features)}, and task "
                f"{tasks[0].id!r} {sorted(feature)}. Give every task the same features."
            )
    features = [[float(task.features[name]) for name in feature] for task in tasks]
    steps = ("task", "trace", "step", "choice", "skill")
    variables = {
        "log_pi": (steps, log_pi),
        "chosen": (steps[:3], chosen),
        "used": (steps[:3], used),
        "log_proposal": (steps[:2], log_proposal),
        "log_weight": (steps[:2], log_weight),
        "log_p": (("task", "trace", "skill", "candidate"), log_p),
        "gold": ("task", np.array([task.gold for task in tasks])),
        "domain": ("task", np.array([task.domain for task in tasks], dtype=object)),
        "split": ("task", np.array([task.split for task in tasks], dtype=object)),
        "question": ("task", np.array([task.question for task in tasks], dtype=object)),
        "features": (("task", "feature"), np.array(features).reshape(N, len(feature))),
        "candidate_text": (("task", "candidate"), candidate_text),
        "trace_text": (steps[:2], trace_text),
        "drawn_under": (steps[:2], drawn_under),
        "choice_text": (steps[:4], choice_text),
    }
    if hidden:
        variables["log_pi_without_question"] = (steps, log_pi_hidden)
    if rows[0]["plain"] is not None:
        variables["log_p_without_skill"] = (("task", "trace", "candidate"), log_p_plain)
    coords = {
        "task": np.array([task.id for task in tasks], dtype=object),
        "skill": np.array([skill.name for skill in skills], dtype=object),
        "feature": np.array(feature, dtype=object),
    }
    return xr.Dataset(variables, coords=coords, attrs=attrs)
