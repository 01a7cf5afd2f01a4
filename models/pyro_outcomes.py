"""What is observed of a task, with the skill or the reasoning behind it summed out: in Pyro.

The same distributions as in `bayesmeta.models.mixture` and
`bayesmeta.models.outcome_distributions`, written for reading.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


def log_mixture(logits: Tensor, log_likelihood: Tensor) -> Tensor:
    """log sum_k softmax(logits)_k exp(log_likelihood_k) in nats, from [skill, task] to [task]."""
    return torch.logsumexp(logits + log_likelihood, 0) - torch.logsumexp(logits, 0)


class LLMCategorical(dist.TorchDistribution):
    """Which candidate answer is given, when the skill is drawn from a strategy (node O).

    Args:
      logits: [skill, task], log strategy weights up to a constant per task.
      log_p: [candidate, skill, task], the language model's log-probabilities in nats.
      log_likelihood: [skill, task], ``log_p`` at the observed candidate, where that is known.
      scale: factor on each task's log-probability, outside the sum over skills.
    """

    arg_constraints: Any = {}

    def __init__(
        self,
        logits: Tensor,
        log_p: Tensor,
        log_likelihood: Tensor | None = None,
        scale: Tensor | float = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.log_p, self.log_likelihood, self.scale = (
            logits,
            log_p,
            log_likelihood,
            scale,
        )
        super().__init__(logits.shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.integer_interval(0, self.log_p.shape[0] - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self.log_likelihood is not None:
            return self.scale * log_mixture(self.logits, self.log_likelihood)
        return self.scale * at(self.candidate_log_probs(), value)

    def candidate_log_probs(self) -> Tensor:
        """log p(c | n) of every candidate, the skill summed out, [candidate, task]."""
        log_weights = torch.log_softmax(self.logits, 0)
        return torch.logsumexp(log_weights + self.log_p, 1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return draw_index(self.candidate_log_probs(), sample_shape)


class TraceCategorical(dist.TorchDistribution):
    """Which answer is given, with the traces of reasoning summed out.

    Args:
      log_p: [candidate, task], log p(c | n) in nats.
      scale: [task] factor on each log-probability.
    """

    arg_constraints: Any = {}

    def __init__(
        self, log_p: Tensor, scale: Tensor | float = 1.0, *, validate_args: bool | None = None
    ) -> None:
        self.log_p, self.scale = log_p, scale
        super().__init__(log_p.shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.integer_interval(0, self.log_p.shape[0] - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.scale * at(self.log_p, value)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return draw_index(self.log_p, sample_shape)


class SkillMixture(dist.TorchDistribution):
    """An outcome whose distribution depends on a skill that is drawn from a strategy.

    Args:
      logits: [skill, task].
      components: a univariate distribution with batch shape [skill, task].
      scale: [task] factor on each log-probability, outside the sum over skills.
    """

    arg_constraints: Any = {}
    support: Any = constraints.nonnegative_integer

    def __init__(
        self,
        logits: Tensor,
        components: dist.TorchDistribution,
        scale: Tensor | float = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.components, self.scale = logits, components, scale
        super().__init__(logits.shape[-1:], validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        # Whole numbers would have their factorials computed in single precision.
        count = value.to(self.logits)
        return self.scale * log_mixture(self.logits, self.components.log_prob(count))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        skill = draw_index(self.logits, sample_shape)
        outcomes = self.components.sample(torch.Size(sample_shape))
        return torch.take_along_dim(outcomes, skill[..., None, :], -2)[..., 0, :]


class VerifierCount(dist.TorchDistribution):
    """How many of R verdicts on one answer say that it is correct.

    The answer is correct with probability p; a verdict says so with probability
    1 - false_negative if it is, and false_positive if it is not. Verdicts on one answer share its
    correctness, which is summed out.
    """

    arg_constraints: Any = {}
    support: Any = constraints.nonnegative_integer

    def __init__(
        self,
        log_odds: Tensor,
        false_negative: Tensor,
        false_positive: Tensor,
        total_count: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.log_odds = log_odds
        self.if_correct = dist.Binomial(total_count, 1 - false_negative)
        self.if_wrong = dist.Binomial(total_count, false_positive)
        super().__init__(log_odds.shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.logaddexp(
            torch.nn.functional.logsigmoid(self.log_odds) + self.if_correct.log_prob(value),
            torch.nn.functional.logsigmoid(-self.log_odds) + self.if_wrong.log_prob(value),
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape)
        correct = torch.rand(
            shape, dtype=self.log_odds.dtype, device=self.log_odds.device
        ) < torch.sigmoid(self.log_odds)
        if_correct, if_wrong = (
            d.expand(self.batch_shape).sample(torch.Size(sample_shape))
            for d in (self.if_correct, self.if_wrong)
        )
        return torch.where(correct, if_correct, if_wrong)


def at(table: Tensor, value: Tensor) -> Tensor:
    """Entries of ``table`` [candidate, task] at ``value`` [*sample, task]."""
    return torch.take_along_dim(table, torch.atleast_2d(value), 0).reshape(value.shape)


def draw_index(log_p: Tensor, sample_shape: Any = ()) -> Tensor:
    """Indices [*sample, task] in proportion to exp(log_p) [index, task]: the Gumbel-max trick."""
    uniform = torch.rand((*sample_shape, *log_p.shape), dtype=log_p.dtype, device=log_p.device)
    return (log_p - torch.log(-torch.log(uniform))).argmax(-2)
