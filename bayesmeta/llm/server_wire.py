"""The two protocols that `ServerLLM` speaks: what is sent for one score and for one trace."""

import abc
import math
import threading
from collections.abc import Sequence
from typing import Any

from bayesmeta.llm import server_parse as parse
from bayesmeta.llm.base import Sampling, Score, ScoreRequest, Trace
from bayesmeta.llm.server_http import (
    JsonClient,
    ServerCapabilityError,
    ServerReplyError,
    ServerStatusError,
)

# Added to a logit to make llama.cpp generate that token; large against any logit of a model.
_FORCE = 1e4
# More than any vocabulary: llama.cpp then lists all tokens.
_ALL_TOKENS = 1_000_000
# Two evaluations of one prompt may differ in the last digits (batching, quantised cache).
_SAME = 0.05


class AbstractWire(abc.ABC):
    """One protocol. Methods are called from several threads and raise `ServerError`."""

    @abc.abstractmethod
    def prepare(self, request: ScoreRequest) -> None:
        """Called before a batch is scored, from one thread."""

    @abc.abstractmethod
    def score(self, request: ScoreRequest, stop: threading.Event) -> Score:
        """Log-likelihood of one continuation, in nats."""

    @abc.abstractmethod
    def draw(
        self,
        prompt: str,
        seed: int,
        max_new_tokens: int,
        stops: Sequence[str],
        sampling: Sampling,
        stop: threading.Event,
    ) -> Trace:
        """One trace."""


class CompletionsWire(AbstractWire):
    """``/v1/completions`` as OpenAI describes it, with vLLM's additional fields if ``vllm``."""

    def __init__(self, client: JsonClient, model: str, *, vllm: bool) -> None:
        self._client, self._model, self._vllm = client, model, vllm
        self._native, self._tried = vllm, False

    def prepare(self, request: ScoreRequest) -> None:
        if self._native and not self._tried:
            try:
                parse.native_tokens(self._ask_native(request.context + request.continuation, None))
            except ServerCapabilityError:
                self._native = False  # vLLM before prompt_logprobs: it knows echo
            self._tried = True

    def score(self, request: ScoreRequest, stop: threading.Event) -> Score:
        tokens = self._prompt_tokens(request.context + request.continuation, stop)
        first = parse.border(tokens, request.context, request.continuation)
        if first is None:
            context, continuation, apart = split_ids(self._tokenize, request, stop)
            if apart:
                tokens = self._prompt_tokens([*context, *continuation], stop)
            if len(tokens.logprobs) != len(context) + len(continuation):
                raise ServerReplyError(
                    f"the server scored {len(tokens.logprobs)} tokens but its /tokenize gives "
                    f"{len(context)} + {len(continuation)}. Wanted the same; see whether it "
                    "truncates prompts or serves several models."
                )
            first = len(context)
        value = parse.continuation_sum(tokens, first)
        return Score(value, len(tokens.logprobs) - first, first)

    def draw(
        self,
        prompt: str,
        seed: int,
        max_new_tokens: int,
        stops: Sequence[str],
        sampling: Sampling,
        stop: threading.Event,
    ) -> Trace:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % 2**63,
            "logprobs": 1,
        }
        if stops:
            body["stop"] = list(stops)
        if self._vllm:
            # Left out, these come from the model's generation_config and truncate silently.
            body |= {"top_k": sampling.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
        reply = self._client.post("/v1/completions", body, stop)
        return parse.completion_trace(reply, stops, proper=sampling.proper)

    def _prompt_tokens(self, prompt: str | list[int], stop: threading.Event) -> parse.PromptTokens:
        if self._native:
            return parse.native_tokens(self._ask_native(prompt, stop))
        body = {"model": self._model, "prompt": prompt, "echo": True, "logprobs": 1}
        reply = self._client.post("/v1/completions", body | {"max_tokens": 1}, stop)
        return parse.echoed_tokens(reply, prompt if isinstance(prompt, str) else None)

    def _ask_native(self, prompt: str | list[int], stop: threading.Event | None) -> Any:
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1, "prompt_logprobs": 0}
        return self._client.post("/v1/completions", body, stop)

    def _tokenize(self, text: str, special: bool, stop: threading.Event) -> list[int]:
        body = {"model": self._model, "prompt": text, "add_special_tokens": special}
        try:
            return parse.token_ids(self._client.post("/tokenize", body, stop))
        except ServerStatusError as error:
            if error.status not in (404, 405):
                raise
            raise ServerReplyError(
                "the reply's tokens do not show where the continuation begins, and the server "
                "has no /tokenize. Wanted a token border there; begin the continuation with a "
                "space, or use a vLLM server.",
                url=error.url,
                status=error.status,
            ) from None


class LlamaWire(AbstractWire):
    """llama-server's own ``/completion`` and ``/tokenize``."""

    def __init__(self, client: JsonClient, model: str | None) -> None:
        self._client = client
        self._names = {} if model is None else {"model": model}
        self._forcing: bool | None = None
        self._plain = 0  # a token that is a whole character
        self._known: dict[tuple[tuple[int, ...], int], float] = {}

    def prepare(self, request: ScoreRequest) -> None:
        """Forget the last batch; once, see whether a forced token keeps its log-probability.

        The token tried is the second likeliest: forcing must neither change the value that
        is reported for it without force, nor leave it unreported.
        """
        self._known.clear()
        if self._forcing is None:
            stop = threading.Event()
            self._plain = self._tokenize("a", False, stop)[-1]
            context, _, _ = split_ids(self._tokenize, request, stop)
            free = self._next(tuple(context), 2, None, stop)
            if len(free) < 2:
                return
            second = min(free, key=lambda token: free[token])
            forced = self._next(tuple(context), 1, second, stop)
            self._forcing = second in forced and abs(forced[second] - free[second]) < _SAME

    def score(self, request: ScoreRequest, stop: threading.Event) -> Score:
        context, continuation, _ = split_ids(self._tokenize, request, stop)
        if not context:
            raise ServerReplyError(
                "the context has no token. Wanted at least one before the continuation; begin "
                "the context with text."
            )
        values = []
        for i, token in enumerate(continuation):
            prefix = (*context, *continuation[:i])
            if (prefix, token) not in self._known:
                self._known[prefix, token] = self._logprob(prefix, token, stop)
            values.append(self._known[prefix, token])
        return Score(math.fsum(values), len(continuation), len(context))

    def draw(
        self,
        prompt: str,
        seed: int,
        max_new_tokens: int,
        stops: Sequence[str],
        sampling: Sampling,
        stop: threading.Event,
    ) -> Trace:
        body = {
            "prompt": prompt,
            "n_predict": max_new_tokens,
            "stop": list(stops),
            # llama.cpp takes 0xFFFFFFFF for "random".
            "seed": seed % (2**32 - 1),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            # Named, because llama-server's defaults truncate (min_p 0.05) and may penalise.
            "samplers": ["top_k", "top_p", "temperature"],
            "n_probs": 1,
            # A cache filled by other prompts changes logits in the last digits, and so draws.
            "cache_prompt": False,
        }
        reply = self._client.post("/completion", body | self._names, stop)
        return parse.llama_trace(reply, stops, proper=sampling.proper)

    def _logprob(self, prefix: tuple[int, ...], token: int, stop: threading.Event) -> float:
        found = self._next(prefix, 1, token, stop) if self._forcing else {}
        # A token that is part of a character is not reported when forced.
        if token not in found:
            force = self._plain if self._forcing else None
            found = self._next(prefix, _ALL_TOKENS, force, stop)
        if token not in found:
            raise ServerCapabilityError(
                f"llama-server reports {len(found)} tokens and not token {token}. Wanted the "
                "whole vocabulary; start it without --backend-sampling."
            )
        return found[token]

    def _next(
        self, prefix: tuple[int, ...], n_probs: int, force: int | None, stop: threading.Event
    ) -> dict[int, float]:
        body = {
            "prompt": list(prefix),
            "n_predict": 1,
            "n_probs": n_probs,
            "samplers": ["top_k"],
            "top_k": 1,
            "cache_prompt": True,
            "logit_bias": [] if force is None else [[force, _FORCE]],
        }
        return parse.llama_step(self._client.post("/completion", body | self._names, stop))

    def _tokenize(self, text: str, special: bool, stop: threading.Event) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": True}
        return parse.token_ids(self._client.post("/tokenize", body | self._names, stop))


def split_ids(
    tokenize: Any, request: ScoreRequest, stop: threading.Event
) -> tuple[list[int], list[int], bool]:
    """Token ids of context and continuation, and whether they had to be tokenised apart.

    Together, if the tokens of the whole text begin with those of the context; else apart,
    because a token straddles the border.
    """
    context = tokenize(request.context, True, stop)
    whole = tokenize(request.context + request.continuation, True, stop)
    if whole[: len(context)] == context and len(whole) > len(context):
        return context, whole[len(context) :], False
    return context, tokenize(request.continuation, False, stop), True
