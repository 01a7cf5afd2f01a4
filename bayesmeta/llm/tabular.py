"""A finite oracle: a language model whose every probability can be enumerated."""

import hashlib
import itertools
import math
import typing
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bayesmeta.llm.base import AbstractLLM, Quality, Sampling, Score, ScoreRequest, Trace

_END = "<end>"
_PROPER = Sampling()


@typing.final
class TabularLLM(AbstractLLM):
    """Next-token distributions drawn once and for all from a hash of the text before them.

    It is the truth against which estimators are tested. Given any prompt, a trace is a string of
    at most ``max_length`` symbols closed by ``<end>``, so there are few enough to sum over. Given
    a text that ends in ``cue``, one of ``answers`` follows after a space, and then ``<end>``.
    Every distribution is the softmax of ``scale`` times standard normal logits, which are a
    function of the seed and of the whole text before; so prompts, skills and traces all matter.

    What lies outside this language, such as another answer, has log-likelihood -inf.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        alphabet: str = "αβγδ",
        max_length: int = 3,
        answers: Sequence[str] = ("A", "B", "C", "D"),
        cue: str = "Answer:",
        scale: float = 1.0,
    ) -> None:
        """
        Args:
          seed: selects the language model.
          alphabet: the symbols of traces, one character each; texts that are not traces should
            not end in them, because how long a trace already is gets read off the text.
          max_length: the most symbols of a trace.
          answers: what may follow the cue.
          cue: the text that asks for an answer.
          scale: standard deviation of the logits; 0 makes every distribution uniform.
        """
        if not alphabet or len(set(alphabet)) < len(alphabet):
            raise ValueError(f"alphabet must be distinct characters, got {alphabet!r}.")
        if max_length < 0 or not scale >= 0:
            raise ValueError(f"max_length and scale must be >= 0, got {max_length} and {scale}.")
        if not answers or len(set(answers)) < len(answers) or not all(answers):
            raise ValueError(f"answers must be distinct non-empty texts, got {list(answers)}.")
        if not cue or cue[-1] in alphabet:
            raise ValueError(f"cue must be text that does not end in a symbol, got {cue!r}.")
        self._seed, self._alphabet, self._max_length = seed, alphabet, max_length
        self._answers, self._cue, self._scale = tuple(answers), cue, scale
        self._name = "tabular@" + f"{self._hash('identity'):032x}"[:12]

    @property
    def name(self) -> str:
        return self._name

    @property
    def quality(self) -> Quality:
        return "exact"

    @property
    def attributes(self) -> dict[str, str]:
        return {
            "model": "tabular",
            "quantisation": "none",
            "dtype": "float64",
            "seed": str(self._seed),
            "alphabet": self._alphabet,
            "max_length": str(self._max_length),
            "answers": " ".join(self._answers),
        }

    @property
    def end_of_answer(self) -> str:
        return _END

    def render(self, user: str, assistant: str) -> str:
        return f"{user}\n\n{assistant}"

    def next_tokens(self, text: str) -> Mapping[str, float]:
        """The distribution of the token after ``text``; empty where the text has ended."""
        if text.endswith(_END):
            return {}
        if text.endswith(self._cue):
            return self._softmax(text, tuple(f" {answer}" for answer in self._answers))
        if any(text.endswith(f"{self._cue} {answer}") for answer in self._answers):
            return {_END: 1.0}
        length = len(text) - len(text.rstrip(self._alphabet))
        if length >= self._max_length:
            return {_END: 1.0}
        return self._softmax(text, (*self._alphabet, _END))

    def log_likelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        return [self._score(request.context, request.continuation) for request in requests]

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = _PROPER,
    ) -> list[Trace]:
        if len(seeds) != len(prompts):
            raise ValueError(
                f"sample needs one seed per prompt, got {len(seeds)} for {len(prompts)} prompts."
            )
        return [
            self._sample(prompt, seed, max_new_tokens, stop, sampling)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def token_entropy(self, texts: Sequence[str]) -> list[float]:
        """Mean entropy in nats of the distributions after each character of a text."""
        means = []
        for text in texts:
            probs = [self.next_tokens(text[:end]).values() for end in range(1, len(text) + 1)]
            entropies = [-sum(p * math.log(p) for p in row) for row in probs] or [0.0]
            means.append(sum(entropies) / len(entropies))
        return means

    def traces(self, context: str) -> dict[str, float]:
        """Every trace that may follow ``context``, with its log-probability in nats.

        The traces are the texts without ``<end>``; its probability is included, so their
        probabilities sum to one.
        """
        found = {}
        for length in range(self._max_length + 1):
            for symbols in itertools.product(self._alphabet, repeat=length):
                trace = "".join(symbols)
                score = self._score(context, trace + _END).log_likelihood
                if score > -math.inf:
                    found[trace] = score
        return found

    def exact_log_marginal(
        self, context: str, answer: str, *, answer_context: Callable[[str], str] | None = None
    ) -> float:
        """``log sum_a p(a | context) p(answer | context, a)``, in nats, over every trace ``a``.

        Args:
          context: the rendered prompt up to where the trace begins.
          answer: one of the answers.
          answer_context: the rendered prompt in which a given trace is followed by the cue.
            Default: ``context``, the trace, and the cue on a line of its own.
        """
        terms = []
        for trace, log_prob in self.traces(context).items():
            if answer_context is None:
                asked = f"{context}{trace}\n{self._cue}"
            else:
                asked = answer_context(trace)
            score = self._score(asked, f" {answer}{_END}")
            terms.append(log_prob + score.log_likelihood)
        return float(np.logaddexp.reduce(terms)) if terms else -math.inf

    def _score(self, context: str, continuation: str) -> Score:
        total, tokens, text, rest = 0.0, 0, context, continuation
        while rest:
            probs = self.next_tokens(text)
            # Where one answer begins another ("4", "42"), only the longest match can go on.
            fitting = [token for token in probs if rest.startswith(token)]
            if not fitting:
                return Score(-math.inf, tokens + len(rest), len(context))
            token = max(fitting, key=len)
            total += math.log(probs[token])
            tokens, text, rest = tokens + 1, text + token, rest[len(token) :]
        return Score(total, tokens, len(context))

    def _sample(
        self, prompt: str, seed: int, max_new_tokens: int, stop: Sequence[str], sampling: Sampling
    ) -> Trace:
        uniforms = np.random.Generator(np.random.Philox(seed)).random(max_new_tokens)
        text, log_prob = "", 0.0
        for step, uniform in enumerate(uniforms):
            probs = truncate(self.next_tokens(prompt + text), sampling)
            if not probs:
                raise ValueError(f"Nothing can follow a prompt that ends in {_END!r}.")
            cumulative = np.cumsum(list(probs.values()))
            index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
            token = list(probs)[min(index, len(probs) - 1)]
            log_prob += math.log(probs[token])
            if token == _END:
                return Trace(text, log_prob, step + 1, True)
            text += token
            found = [at for string in stop if string and (at := text.find(string)) >= 0]
            if found:
                return Trace(text[: min(found)], log_prob, step + 1, True)
        return Trace(text, log_prob, max_new_tokens, False)

    def _hash(self, text: str) -> int:
        identity = (self._seed, self._alphabet, self._max_length, self._answers, self._cue)
        digest = hashlib.sha256(f"{identity}|{self._scale}|{text}".encode()).digest()
        return int.from_bytes(digest[:16], "big")

    def _softmax(self, text: str, tokens: tuple[str, ...]) -> dict[str, float]:
        normal = np.random.default_rng(self._hash(text)).standard_normal(len(tokens))
        weights = np.exp(self._scale * normal)
        return dict(zip(tokens, (weights / weights.sum()).tolist(), strict=True))


def truncate(probs: Mapping[str, float], sampling: Sampling) -> dict[str, float]:
    """A distribution after temperature, then top-k, then top-p. Drops what is cut."""
    ordered = sorted(probs.items(), key=lambda item: -item[1])
    if sampling.top_k:
        ordered = ordered[: sampling.top_k]
    weights = [p ** (1 / sampling.temperature) for _, p in ordered]
    kept, before = {}, 0.0
    for (token, _), weight in zip(ordered, weights, strict=True):
        if before >= sampling.top_p:
            break
        kept[token] = weight
        before += weight / sum(weights)
    total = sum(kept.values())
    return {token: kept[token] / total for token in probs if token in kept}
