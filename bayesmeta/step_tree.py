"""States of reasoning written step by step: what may come next, and how likely each skill makes it.

After the steps s_<t there is a set of candidates C_t (Yan et al., ICML 2025, Figure 4), scored
under every skill k. Candidates that are named in advance are renormalised,

    pi_k(a | s_<t) = p_k(a | s_<t) / (sum over C_t),       p_k = p_LLM(. | question, skill k).

Candidates that were drawn from the model must not be weighted by its probability once more: that
would square the language model, and prefer short steps. They are weighted by what sampling has
not done already,

    pi_k(a | s_<t) ~ m_a p_k(a | s_<t) / q(a | s_<t),      q = mean_k p_k,

where a came up m_a times when every skill drew equally often. With more draws this tends to p_k.

Candidates depend on the steps before them and on the seed, and on nothing else, so that a task has
one tree of states, in which the probabilities of all paths sum to one under every skill.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from bayesmeta.cells import Cache, ObserveError
from bayesmeta.llm.base import AbstractLLM, ScoreRequest
from bayesmeta.prompting import PROMPT_VERSION
from bayesmeta.tasks import Task
from bayesmeta.tracing import derive_seed

# A log-likelihood may be this far above 0 (nats) by rounding; beyond that the source is wrong.
_ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True, slots=True)
class StepSettings:
    """How reasoning is cut into steps.

    Attributes:
      max_steps: the most steps of a trace; after them the answer is asked for.
      step_end: text that ends a step, such as a line break or ``". "``; empty to cut by length
        alone.
      max_step_tokens: tokens after which a step ends anyway.
      num_draws: next steps drawn under each skill in every state. Equal ones are one candidate;
        a blank one ends the trace.
      vocabulary: the candidates themselves, the same in every state, beside the end of the trace;
        None to draw them.
      opening: text put into the assistant's mouth before the first step.
      seed: root of all randomness.
    """

    max_steps: int = 3
    step_end: str = "\n"
    max_step_tokens: int = 24
    num_draws: int = 1
    vocabulary: tuple[str, ...] | None = None
    opening: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_step_tokens", "num_draws"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be >= 1, got {getattr(self, name)}. Leave it out for the default."
                )
        words = self.vocabulary
        if words is not None and (not words or not all(words) or len(set(words)) < len(words)):
            raise ValueError(
                f"vocabulary must be distinct non-empty steps, got {list(words)}. "
                "Leave it out to draw steps from the language model."
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Prompts:
    """One task as the model is shown it.

    Attributes:
      users: the user turn of every skill.
      hidden: likewise, the question left out.
      plain: the question alone.
    """

    task: Task
    skills: tuple[str, ...]
    users: tuple[str, ...]
    hidden: tuple[str, ...]
    plain: str


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """What may be written next.

    Attributes:
      choices: candidate steps; one of them may be the text that ends the trace.
      log_pi: [choice, skill] nats, log pi_k, normalised over choices.
      log_pi_hidden: likewise with the question left out; None where that was not asked for.
    """

    choices: tuple[str, ...]
    log_pi: np.ndarray
    log_pi_hidden: np.ndarray | None


class StepReader:
    """A language model asked about steps; what it says is kept in a cache as soon as it is said."""

    def __init__(self, llm: AbstractLLM, cache: Cache, settings: StepSettings) -> None:
        if llm.end_of_answer in (settings.vocabulary or ()):
            raise ValueError(
                f"the vocabulary holds {llm.end_of_answer!r}, which ends a trace and always is a "
                "candidate. Leave it out."
            )
        self.llm, self._cache, self.settings = llm, cache, settings

    def expand(
        self, places: Sequence[tuple[Prompts, tuple[str, ...]]], *, hide_question: bool
    ) -> list[State]:
        """The states after some steps: one call to sample and one to score, for all together.

        Raises:
          ObserveError: the model failed, or calls all candidates impossible under a skill.
        """
        if self.settings.vocabulary is None:
            drawn = self._draw(places)
        else:
            named = dict.fromkeys((*self.settings.vocabulary, self.llm.end_of_answer), 1)
            drawn = [named] * len(places)
        kinds = ("users", "hidden") if hide_question else ("users",)
        requests = [
            ScoreRequest(self.llm.render(user, self.text(steps)), choice)
            for (prompts, steps), offered in zip(places, drawn, strict=True)
            for kind in kinds
            for choice in offered
            for user in getattr(prompts, kind)
        ]
        scores = iter(self.score(requests, [prompts.task for prompts, _ in places]))
        states = []
        for (prompts, steps), offered in zip(places, drawn, strict=True):
            shape = (len(offered), len(prompts.users))
            tables = [
                np.array([next(scores) for _ in range(math.prod(shape))]).reshape(shape)
                for _ in kinds
            ]
            # What no skill could write is no candidate: a step beyond the longest trace, say.
            kept = ~np.isneginf(tables[0]).all(1)
            correction = np.zeros((int(kept.sum()), 1))
            if self.settings.vocabulary is None:
                counts = np.array(list(offered.values()))[kept, None]
                correction = np.log(counts) - logsumexp(tables[0][kept], axis=1, keepdims=True)
            tables = [_renormalised(table[kept] + correction, prompts, steps) for table in tables]
            texts = tuple(text for text, keep in zip(offered, kept, strict=True) if keep)
            states.append(State(texts, tables[0], tables[1] if hide_question else None))
        return states

    def text(self, steps: Sequence[str]) -> str:
        """The assistant's turn after these steps."""
        return self.settings.opening + "".join(steps)

    def score(self, requests: Sequence[ScoreRequest], tasks: Sequence[Task]) -> list[float]:
        """Log-likelihoods in nats, each distinct request asked once and kept."""
        found: dict[ScoreRequest, float] = {}
        missing: list[ScoreRequest] = []
        for request in dict.fromkeys(requests):
            entry = self._cache.get(self._key("score", **dataclasses.asdict(request)))
            if entry is None:
                missing.append(request)
            else:
                found[request] = entry["log_likelihood"]
        if missing:
            with _blamed("scoring steps", tasks):
                answers = self.llm.log_likelihood(missing)
                if len(answers) != len(missing):
                    raise ValueError(f"{len(answers)} scores came for {len(missing)} requests.")
                for request, answer in zip(missing, answers, strict=True):
                    value = answer.log_likelihood
                    if math.isnan(value) or value > _ROUNDING:
                        raise ValueError(
                            f"{request.continuation!r} has a log-likelihood of {value}, wanted a "
                            "number <= 0 in nats. Check the model with bayesmeta.testing."
                        )
                    found[request] = min(value, 0.0)
            for request in missing:
                key = self._key("score", **dataclasses.asdict(request))
                self._cache.put(key, {"log_likelihood": found[request]})
        return [found[request] for request in requests]

    def _draw(self, places: Sequence[tuple[Prompts, tuple[str, ...]]]) -> list[dict[str, int]]:
        """How often each next step of each state came up, drawn under every skill."""
        wanted: list[tuple[int, str, int, str]] = []
        found: dict[int, str] = {}
        for place, (prompts, steps) in enumerate(places):
            for user in prompts.users:
                prompt = self.llm.render(user, self.text(steps))
                for draw in range(self.settings.num_draws):
                    seed = derive_seed(self.settings.seed, prompt, draw)
                    key = self._key(
                        "step",
                        prompt=prompt,
                        seed=seed,
                        end=self.settings.step_end,
                        max_tokens=self.settings.max_step_tokens,
                    )
                    wanted.append((place, prompt, seed, key))
        missing = []
        for number, (_, _, _, key) in enumerate(wanted):
            if (entry := self._cache.get(key)) is not None:
                found[number] = entry["text"]
            else:
                missing.append(number)
        if missing:
            with _blamed("sampling steps", [prompts.task for prompts, _ in places]):
                traces = self.llm.sample(
                    [wanted[i][1] for i in missing],
                    seeds=[wanted[i][2] for i in missing],
                    max_new_tokens=self.settings.max_step_tokens,
                    stop=(self.settings.step_end,) if self.settings.step_end else (),
                )
            for i, trace in zip(missing, traces, strict=True):
                # A sampler does not say whether it met the end of the step or of the trace; a
                # trace whose last step ran into its end can still end in the next state.
                found[i] = trace.text + (self.settings.step_end if trace.stopped else "")
                self._cache.put(wanted[i][3], {"text": found[i]})
        counts: list[dict[str, int]] = [{} for _ in places]
        for number, (place, *_) in enumerate(wanted):
            step = found[number] if found[number].strip() else self.llm.end_of_answer
            counts[place][step] = counts[place].get(step, 0) + 1
        return counts

    def _key(self, kind: str, **parts: Any) -> str:
        parts |= {"kind": f"steps/{kind}", "model": self.llm.name, "version": PROMPT_VERSION}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _renormalised(scores: np.ndarray, prompts: Prompts, steps: Sequence[str]) -> np.ndarray:
    for skill, column in zip(prompts.skills, scores.T, strict=True):
        if np.isneginf(column).all():
            raise ObserveError(
                f"task {prompts.task.id!r}, skill {skill!r}: after the steps {list(steps)} the "
                "model calls every candidate step impossible (log-likelihood -inf). Check the "
                "vocabulary."
            )
    return log_softmax(scores, axis=0)


@contextmanager
def _blamed(action: str, tasks: Sequence[Task]) -> Iterator[None]:
    """Turn what a model raises into one error that names the tasks and the remedy."""
    try:
        yield
    except Exception as error:
        names = list(dict.fromkeys(task.id for task in tasks))
        more = f" (and {len(names) - 1} more of its batch)" if len(names) > 1 else ""
        raise ObserveError(
            f"task {names[0]!r}{more}: {action} failed. {type(error).__name__}: {error} What was "
            "finished is kept in the cache: mend the cause and run the same command again."
        ) from error
