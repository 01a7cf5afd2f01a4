"""What a language model must offer to be a source of evidence."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Literal

#: How trustworthy the log-likelihoods of a source are: full logits; an API's top-k (bounded);
#: frequencies of samples; or a number that the model wrote down.
Quality = Literal["exact", "top_k", "sampled", "verbalised"]


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Ask for log p(continuation | context). Both are text, already rendered for the model."""

    context: str
    continuation: str


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """``log_likelihood`` of the continuation in nats, and how many tokens that sum ran over."""

    log_likelihood: float
    num_tokens: int
    num_context_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """One sampled continuation.

    Attributes:
      text: the text, without the stop string that ended it.
      log_prob: nats, under the distribution that it was sampled from (after temperature and
        truncation), of the tokens generated, stop included. NaN where the source cannot say.
      num_tokens: tokens generated.
      stopped: True if a stop string or the end token was reached, False if cut by the limit.
    """

    text: str
    log_prob: float
    num_tokens: int
    stopped: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling distribution, recorded with every trace.

    The defaults sample from the model itself, so the importance ratio of a trace is one. Any
    other setting makes the truncated or tempered sampler *the model* of that skill, and is
    recorded as such.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}. Use 1 for no truncation.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0, got {self.top_k}. Use 0 for no truncation.")

    @property
    def proper(self) -> bool:
        """Whether traces are draws from the model's own distribution."""
        return self.temperature == 1.0 and self.top_p == 1.0 and self.top_k == 0


class AbstractLLM(abc.ABC):
    """A language model as a conditional distribution over text.

    Implementations are final: to change one, wrap it. `bayesmeta.testing` holds the laws that
    every implementation, including a user's own, must satisfy.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Identity of the weights: part of every cache key and of the evidence's attributes."""

    @property
    @abc.abstractmethod
    def quality(self) -> Quality:
        """What the log-likelihoods of this source can support."""

    @property
    @abc.abstractmethod
    def attributes(self) -> dict[str, str]:
        """Provenance for the evidence: at least ``model``, ``quantisation`` and ``dtype``."""

    @property
    @abc.abstractmethod
    def end_of_answer(self) -> str:
        """Text that closes an answer, so that "4" and "42" are disjoint events."""

    @abc.abstractmethod
    def render(self, user: str, assistant: str) -> str:
        """The prompt in which the assistant has begun its reply to ``user`` with ``assistant``.

        Must be a prefix-stable function: a longer ``user`` text or a longer ``assistant`` text
        extends the rendered prefix, so that scoring can share it.
        """

    @abc.abstractmethod
    def log_likelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Log-likelihoods in nats, in the order of the requests."""

    @abc.abstractmethod
    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = Sampling(),
    ) -> list[Trace]:
        """One trace per prompt. ``seeds[i]`` alone fixes the randomness of ``prompts[i]``, so
        that neither the batch nor an interruption changes what is drawn. Repeat a prompt with
        another seed for another trace."""

    def token_entropy(self, texts: Sequence[str]) -> list[float]:
        """Mean entropy in nats of the next-token distributions along each text."""
        raise TypeError(
            f"{self.name} gives no next-token distributions, so it has no token entropy. "
            "Use a LocalLLM or a TabularLLM."
        )
