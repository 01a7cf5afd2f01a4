"""Theta_E inside the language model: the posterior of an adapter's weights, and what it is worth.

`fit_adapter` runs the Pyro program `bayesmeta.models.adapter_pyro.adapted_llm`, in which the
language model itself answers, and fits the weights' posterior by stochastic variational inference.
`heldout_gain` says on other tasks what it gained, or lost.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from bayesmeta.inference.data_directions import DataDirections
from bayesmeta.inference.status import Status
from bayesmeta.llm.adapter import Adapter
from bayesmeta.llm.base import ScoreRequest
from bayesmeta.models.adapter_pyro import ADAPTER, AdapterData
from bayesmeta.models.prior import Prior
from bayesmeta.prompting import score_requests, user_text
from bayesmeta.skills import Skill
from bayesmeta.tasks import Task

#: Logit of a candidate that a task does not have.
_ABSENT = -1e9
DIRECT = Skill("direct", "Reply with the answer only.")


@dataclasses.dataclass(frozen=True)
class Answers:
    """How likely an adapted model finds each candidate answer of some tasks."""

    adapter: Adapter
    requests: tuple[tuple[ScoreRequest, ...], ...]
    gold: torch.Tensor

    @classmethod
    def of(cls, adapter: Adapter, tasks: Sequence[Task], skill: Skill = DIRECT) -> "Answers":
        """
        Raises:
          ValueError: no task, or a skill of several stages or with memory, whose traces would
            depend on the adapter.
        """
        if not tasks:
            raise ValueError("no task is given; an adapter needs at least one.")
        if skill.stages or skill.recall or skill.tool:
            raise ValueError(
                f"skill {skill.name!r} writes a trace or recalls examples before it answers; an "
                "adapter is fitted to answers that follow the question at once. Use a skill with "
                "an instruction only."
            )
        llm = adapter.llm
        requests = (
            score_requests(llm, user_text(task, skill), skill, "", task.candidates)
            for task in tasks
        )
        gold = torch.tensor([task.gold for task in tasks], device=_device(adapter))
        return cls(adapter, tuple(map(tuple, requests)), gold)

    def __call__(
        self, weights: Float[torch.Tensor, " weight"] | None, index: Sequence[int] | torch.Tensor
    ) -> Float[torch.Tensor, "task candidate"]:
        """Log-likelihoods in nats of the candidates of the tasks at ``index``, not normalised."""
        chosen = [self.requests[int(n)] for n in index]
        flat = [request for task in chosen for request in task]
        with self.adapter.using(weights) as llm:
            total = llm.log_likelihood_tensor(flat)
        size = max(map(len, self.requests))
        place = [(n, c) for n, task in enumerate(chosen) for c in range(len(task))]
        rows, columns = (
            torch.tensor(side, device=total.device) for side in zip(*place, strict=True)
        )
        table = torch.full((len(chosen), size), _ABSENT, device=total.device)
        return table.index_put((rows, columns), total.float())

    def log_p(self, weights: torch.Tensor | None, batch_size: int = 16) -> np.ndarray:
        """[task, candidate] normalised, without gradients."""
        parts = torch.arange(len(self.requests)).split(batch_size)
        with torch.no_grad():
            logits = torch.cat([self(weights, part) for part in parts])
        return torch.log_softmax(logits.double(), 1).cpu().numpy()

    def log_score(self, weights: torch.Tensor | None) -> Float[np.ndarray, " task"]:
        """Log-probability of each gold answer among the candidates, nats."""
        gold = self.gold.cpu().numpy()
        return self.log_p(weights)[np.arange(len(gold)), gold]


@dataclasses.dataclass(frozen=True)
class Jacobian:
    """How each candidate's logit changes with each weight, at the model as it is.

    Attributes:
      logits: [task, candidate] log-likelihoods, nats.
      slopes: [task, candidate, weight] their gradients.
    """

    logits: Float[np.ndarray, "task candidate"]
    slopes: Float[np.ndarray, "task candidate weight"]

    @classmethod
    def of(cls, answers: Answers, progress: Callable[[int, int], None] | None = None) -> "Jacobian":
        """One forward pass for each task and one backward pass for each of its candidates."""
        size = max(map(len, answers.requests))
        num_tasks = len(answers.requests)
        logits = np.full((num_tasks, size), _ABSENT, np.float32)
        slopes = np.zeros((num_tasks, size, answers.adapter.size), np.float32)
        for n, requests in enumerate(answers.requests):
            weights = torch.zeros(answers.adapter.size, requires_grad=True)
            row = answers(weights, [n])[0]
            logits[n] = row.detach().cpu().numpy()
            for c in range(len(requests)):
                (slope,) = torch.autograd.grad(row[c], weights, retain_graph=c + 1 < len(requests))
                slopes[n, c] = slope.cpu().numpy()
            if progress:
                progress(n + 1, num_tasks)
        return cls(logits, slopes)

    def rows(self, scale: Float[np.ndarray, " weight"]) -> Float[np.ndarray, "row weight"]:
        """Root of the Gauss-Newton matrix of the answers' negative log-likelihood, for weights in
        units of ``scale``."""
        p = np.exp(self.logits - np.logaddexp.reduce(self.logits, 1, keepdims=True))
        mean = np.einsum("nc,ncp->np", p, self.slopes)
        spread = np.sqrt(p)[:, :, None] * (self.slopes - mean[:, None])
        spread *= scale.astype(np.float32)
        return spread.reshape(-1, spread.shape[-1])[p.reshape(-1) > 0]

    def logit_sd(self, scale: Float[np.ndarray, " weight"]) -> float:
        """Prior standard deviation, to first order, of how far the log odds of two candidates
        move: root mean square over tasks and pairs, nats."""
        there = self.logits > _ABSENT / 2
        total, count = 0.0, 0
        for n in range(len(self.logits)):
            slopes = self.slopes[n, there[n]] * scale
            square = (slopes**2).sum(1)
            gaps = square[:, None] + square[None] - 2 * slopes @ slopes.T
            size = len(slopes)
            total, count = total + float(gaps.sum()), count + size * (size - 1)
        return float(np.sqrt(total / count))


@dataclasses.dataclass(frozen=True)
class AdapterFit:
    """A posterior of adapter weights: q(B) = prior across, and normal along data directions.

    Attributes:
      adapter: whose weights these are.
      prior: of the program.
      tau: [module] prior scales, or their posterior medians where they are learned.
      directions: see `bayesmeta.inference.data_directions`.
      loc, sd: [direction] of z_data.
      elbo: [step] nats, each from one batch and one draw.
      jacobian: of the reflect tasks' answers at the model as it was.
      answers: of the reflect tasks.
      status: whether the objective had settled.
      seconds: of wall time.
      settings: everything else that decides the result.
    """

    adapter: Adapter
    prior: Prior
    tau: np.ndarray
    directions: DataDirections
    loc: torch.Tensor
    sd: torch.Tensor
    elbo: np.ndarray
    jacobian: Jacobian
    answers: Answers
    status: Status
    seconds: float
    settings: dict[str, Any]

    @property
    def scale(self) -> torch.Tensor:
        """[weight] prior standard deviation of every weight."""
        return self.adapter.per_module(torch.as_tensor(self.tau, dtype=torch.float32))

    def mean(self) -> torch.Tensor:
        """[weight] posterior mean."""
        return self.scale * self.directions.combine(torch.zeros(self.adapter.size), self.loc)

    def draws(self, num_draws: int, rng_seed: int = 0) -> torch.Tensor:
        """[draw, weight] from the posterior."""
        generator = torch.Generator().manual_seed(rng_seed)
        rest = torch.randn(num_draws, self.adapter.size, generator=generator)
        noise = torch.randn(num_draws, len(self.loc), generator=generator)
        return self.scale * self.directions.combine(rest, self.loc + self.sd * noise)


def fit_adapter(
    adapter: Adapter,
    tasks: Sequence[Task],
    prior: Prior = ADAPTER,
    *,
    skill: Skill = DIRECT,
    num_steps: int = 100,
    batch_size: int = 8,
    learning_rate: float = 0.1,
    rng_seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> AdapterFit:
    """The posterior of an adapter's weights given the gold answers of some tasks.

    First one backward pass for each candidate answer, which shows along which directions these
    tasks can move the weights at all; then stochastic gradients through the language model on the
    ELBO of the Pyro program, in coordinates along them (see `bayesmeta.inference.data_directions`).

    Args:
      adapter: of a `LocalLLM`.
      tasks: to learn from; their number times candidates times weights is kept, 4 bytes each.
      prior: of tau and B, see `bayesmeta.models.adapter_pyro`.
      skill: what is asked for; an instruction only.
      num_steps: of Adam.
      batch_size: tasks of each step.
      learning_rate: in units of the posterior standard deviation to first order.
      rng_seed: of batches and noise.
      progress: called as ``progress(stage, done, total)``.

    Raises:
      ValueError: no tasks, a skill that writes a trace, or a prior that does not fit.
    """
    from bayesmeta.inference.adapter_svi import adapter_svi

    start = time.perf_counter()
    answers = Answers.of(adapter, tasks, skill)
    say = progress or (lambda stage, done, total: None)
    jacobian = Jacobian.of(answers, lambda done, total: say("backward passes", done, total))
    found = adapter_svi(
        AdapterData(
            answers,
            answers.gold,
            torch.tensor([m.shape[0] * m.shape[1] for m in adapter.modules]),
            min(batch_size, len(tasks)),
        ),
        prior,
        jacobian,
        num_steps=num_steps,
        learning_rate=learning_rate,
        rng_seed=rng_seed,
        progress=lambda done, total: say("steps", done, total),
    )
    return AdapterFit(
        adapter=adapter,
        prior=prior,
        tau=found.tau,
        directions=found.directions,
        loc=found.loc,
        sd=found.sd,
        elbo=found.elbo,
        jacobian=jacobian,
        answers=answers,
        status=found.status,
        seconds=time.perf_counter() - start,
        settings={
            "engine": "adapter_svi",
            "skill": skill.name,
            "num_tasks": len(tasks),
            "num_steps": num_steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "rng_seed": rng_seed,
            **adapter.settings,
        },
    )


def heldout_gain(
    fit: AdapterFit, tasks: Sequence[Task], *, num_draws: int = 16, rng_seed: int = 1
) -> pd.DataFrame:
    """Log scores of other tasks, before and after.

    Returns:
      One row per task, indexed by its id: ``domain``, log scores in nats ``before`` (the model as
      it was), ``tempered`` (the same to the power that suits the reflect tasks best: what mere
      calibration gains), ``mean`` (at the posterior mean) and ``posterior`` (mean probability over
      draws), and ``draw_sd``, the standard deviation of log scores over draws.
    """
    answers = Answers.of(fit.adapter, tasks)
    gold = answers.gold.cpu().numpy()
    before = answers.log_p(None)
    drawn = np.stack([answers.log_score(one) for one in fit.draws(num_draws, rng_seed)])
    power = best_power(fit.jacobian.logits, fit.answers.gold.cpu().numpy())
    each = np.arange(len(tasks))
    return pd.DataFrame(
        {
            "domain": [task.domain for task in tasks],
            "before": before[each, gold],
            "tempered": _tempered(before, power)[each, gold],
            "mean": answers.log_score(fit.mean()),
            "posterior": np.logaddexp.reduce(drawn, 0) - np.log(num_draws),
            "draw_sd": drawn.std(0, ddof=1),
        },
        index=pd.Index([task.id for task in tasks], name="task"),
    )


def best_power(logits: np.ndarray, gold: np.ndarray) -> float:
    """The beta that maximises the log score of softmax(beta * logits)."""
    from scipy.optimize import minimize_scalar

    each = np.arange(len(gold))
    found = minimize_scalar(
        lambda log_beta: -_tempered(logits, np.exp(log_beta))[each, gold].mean(),
        bounds=(-5.0, 3.0),
        method="bounded",
    )
    return float(np.exp(found.x))


def _tempered(log_p: np.ndarray, power: float) -> np.ndarray:
    raised = power * log_p
    return raised - np.logaddexp.reduce(raised, 1, keepdims=True)


def _device(adapter: Adapter) -> Any:
    return next(adapter.llm.module.parameters()).device
