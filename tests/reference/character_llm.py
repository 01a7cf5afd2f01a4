"""A language model small enough to check by hand: characters, two of context, exact throughout."""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from bayesmeta.llm.base import AbstractLLM, Sampling, Score, ScoreRequest, Trace

END = "\x7f"
ALPHABET = [chr(code) for code in range(32, 127)] + ["\n", END]


@functools.cache
def next_log_probs(context: str) -> np.ndarray:
    """log p(next character | the last two), nats, [characters]: made up, but fixed for good."""
    digest = hashlib.sha256(context.encode()).digest()
    logits = np.random.default_rng(list(digest)).normal(size=len(ALPHABET))
    logits[ALPHABET.index(END)] -= 3.0
    return logits - np.logaddexp.reduce(logits)


class CharacterLLM(AbstractLLM):
    """Samples and scores by `next_log_probs`; ``script`` forces what follows some endings.

    ``script`` maps the ending of a prompt to the text that is certain to follow it (sampling
    only). ``calls`` records every request, so that tests can count what was asked again.
    """

    name = "characters"  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    quality = "exact"  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    end_of_answer = END  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    attributes = {  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
        "model": "characters",
        "quantisation": "none",
        "dtype": "float64",
    }

    def __init__(self, script: Mapping[str, str] | None = None) -> None:
        self.script = dict(script or {})
        self.sampled: list[tuple[str, int]] = []
        self.scored: list[ScoreRequest] = []
        self.calls: list[str] = []

    def render(self, user: str, assistant: str) -> str:
        return f"{user}\n>{assistant}"

    def log_likelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        self.calls.append("score")
        self.scored += requests
        return [
            Score(log_prob(r.context, r.continuation), len(r.continuation), len(r.context))
            for r in requests
        ]

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = Sampling(),  # noqa: B008
    ) -> list[Trace]:
        self.calls.append("sample")
        self.sampled += list(zip(prompts, seeds, strict=True))
        return [
            self._one(prompt, seed, max_new_tokens, stop)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _one(self, prompt: str, seed: int, limit: int, stop: Sequence[str]) -> Trace:
        forced = next((t for end, t in self.script.items() if prompt.endswith(end)), None)
        rng, text, total = np.random.default_rng(seed), "", 0.0
        for count in range(1, limit + 1):
            if forced is not None:
                character = forced[count - 1] if count <= len(forced) else END
            else:
                log_probs = next_log_probs((prompt + text)[-2:])
                index = int(rng.choice(len(ALPHABET), p=np.exp(log_probs)))
                character, total = ALPHABET[index], total + float(log_probs[index])
            if character == END:
                return Trace(text, total, count, True)
            text += character
            for string in stop:
                if string in text:
                    return Trace(text[: text.index(string)], total, count, True)
        return Trace(text, total, limit, False)


def log_prob(context: str, continuation: str) -> float:
    """log p(continuation | context) in nats, character by character."""
    total, text = 0.0, context
    for character in continuation:
        where = ALPHABET.index(character) if character in ALPHABET else -1
        total += float(next_log_probs(text[-2:])[where]) if where >= 0 else -math.inf
        text += character
    return total
