"""A language model behind an HTTP server: vLLM, llama.cpp, or another OpenAI-compatible one."""

import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from bayesmeta.llm import server_parse as parse
from bayesmeta.llm.base import AbstractLLM, Quality, Sampling, Score, ScoreRequest, Trace
from bayesmeta.llm.server_http import (
    JsonClient,
    ServerError,
    ServerReplyError,
    ServerStatusError,
)
from bayesmeta.llm.server_wire import AbstractWire, CompletionsWire, LlamaWire

Dialect = Literal["auto", "vllm", "openai", "llama.cpp"]
_DIALECTS = ("auto", "vllm", "openai", "llama.cpp")
_END_OF_ANSWER = {"chatml": "<|im_end|>", "plain": "\n"}


class ServerLLM(AbstractLLM):
    """A model behind ``base_url`` (with or without ``/v1``).

    How the log-likelihood of a continuation is obtained, by dialect:

    * ``"vllm"``: ``/v1/completions`` with ``prompt_logprobs=0`` (the prompt's own tokens only)
      and ``max_tokens=1``; where a server does not know that field, as with ``"openai"``. Read
      in the sources of vLLM's server (`CompletionRequest`, `CompletionResponseChoice`).
    * ``"openai"``: ``/v1/completions`` with ``echo=true``, ``logprobs=1``, ``max_tokens=1``, as
      in OpenAI's reference; vLLM's server answers it too.
    * ``"llama.cpp"``: llama-server gives no log-probabilities of prompt tokens (its
      ``/v1/completions`` refuses or ignores ``echo``; issue ggml-org/llama.cpp#27174, open in
      August 2026). So one request to its own ``/completion`` per continuation token: the tokens
      so far as the prompt, the next one forced by ``logit_bias``, and the log-probability that
      ``n_probs=1`` reports for it, which its sources take from the raw logits, before any
      sampler. Whether this server does so is tried once; if not, the whole vocabulary is asked
      for (``n_probs``), which is slow and as exact.
    * ``"auto"``: llama.cpp if ``/props`` answers, vLLM if ``/version`` does, else OpenAI.

    The continuation's tokens are those that spell it at the end of the prompt, or that follow
    the context by ``text_offset``. **A token that straddles the border is never split or
    scored:** context and continuation are then tokenised apart (``/tokenize``) and sent as
    token ids, so that all continuations are conditioned on the same context tokens.

    One HTTP request per prompt; up to ``max_concurrency`` at once. If one fails for good, the
    others in flight are finished, and the `ServerError` raised carries all finished results in
    ``completed``: index in the batch to `Score` or `Trace`.

    Arguments:
      model: the name the server knows; None if it serves exactly one.
      template: ``"chatml"``, ``"plain"``, or a function of (user, assistant), because scoring
        needs raw text and a chat endpoint gives none. With a function give ``end_of_answer``.
      timeout: seconds for one attempt, from the first byte sent to the last one received.
      retries: further attempts after connection faults, time-outs, and status 408, 425, 429,
        500, 502 to 504; ``backoff * 2**n`` seconds apart or as Retry-After says, at most 60.
      api_key_env: name of the environment variable that holds the key.
      quantisation, dtype: of the served weights, for provenance; servers do not tell.

    Raises:
      ValueError: at construction, for an argument out of range or an unset variable.
      ServerError: from the methods, one subclass per kind of fault.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        dialect: Dialect = "auto",
        template: Literal["chatml", "plain"] | Callable[[str, str], str] = "chatml",
        end_of_answer: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        max_concurrency: int = 8,
        api_key_env: str | None = None,
        quantisation: str = "unknown",
        dtype: str = "unknown",
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url is {base_url!r}. Wanted http:// or https://, for example "
                "http://127.0.0.1:8000."
            )
        if dialect not in _DIALECTS:
            raise ValueError(f"dialect is {dialect!r}. Wanted one of {', '.join(_DIALECTS)}.")
        if not timeout > 0 or retries < 0 or backoff < 0 or max_concurrency < 1:
            raise ValueError(
                f"timeout={timeout}, retries={retries}, backoff={backoff}, "
                f"max_concurrency={max_concurrency}. Wanted > 0, >= 0, >= 0 and >= 1."
            )
        if end_of_answer is None:
            end_of_answer = _END_OF_ANSWER.get(template) if isinstance(template, str) else None
        if not end_of_answer:
            raise ValueError(
                f"template {template!r} has no known end of answer. Use 'chatml' or 'plain', or "
                "pass end_of_answer, the text with which this model ends its turn."
            )
        headers = {}
        if api_key_env is not None:
            key = os.environ.get(api_key_env)
            if not key:
                raise ValueError(
                    f"environment variable {api_key_env} is not set. Set it to the server's key, "
                    "or drop api_key_env."
                )
            headers["Authorization"] = f"Bearer {key}"
        self._client = JsonClient(
            base_url.rstrip("/").removesuffix("/v1"),
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            max_wait=60.0,
            headers=headers,
            connections=max_concurrency,
        )
        self._model, self._asked_dialect = model, dialect
        self._template, self._end_of_answer = template, end_of_answer
        self._max_concurrency = max_concurrency
        self._quantisation, self._dtype = quantisation, dtype

    @property
    def name(self) -> str:
        return self._served_model

    @property
    def quality(self) -> Quality:
        """``"exact"``: a server that does not report the token asked for is refused."""
        return "exact"

    @property
    def attributes(self) -> dict[str, str]:
        return {
            "model": self.name,
            "quantisation": self._quantisation,
            "dtype": self._dtype,
            "source": "server",
            "dialect": self.dialect,
            "template": self._template if isinstance(self._template, str) else "custom",
        }

    @property
    def end_of_answer(self) -> str:
        return self._end_of_answer

    @functools.cached_property
    def dialect(self) -> str:
        """The protocol spoken, after detection."""
        if self._asked_dialect != "auto":
            return self._asked_dialect
        for path, field, dialect in (
            ("/props", "default_generation_settings", "llama.cpp"),
            ("/version", "version", "vllm"),
        ):
            try:
                reply = self._client.get(path)
            except (ServerStatusError, ServerReplyError) as error:
                if error.status in (401, 403):
                    raise
                continue
            if isinstance(reply, dict) and field in reply:
                return dialect
        return "openai"

    def close(self) -> None:
        """Close the connections. The object is not usable afterwards."""
        self._client.close()

    def render(self, user: str, assistant: str) -> str:
        if self._template == "chatml":
            return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{assistant}"
        if isinstance(self._template, str):
            return f"{user}\n\n{assistant}"
        return self._template(user, assistant)

    def log_likelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        for index, request in enumerate(requests):
            if not request.continuation:
                raise ValueError(
                    f"request {index} has an empty continuation. Wanted text to score; end "
                    "answers with end_of_answer."
                )
        if not requests:
            return []
        self._wire.prepare(requests[0])
        return self._gather(self._wire.score, requests)

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = Sampling(),  # noqa: B008 frozen
    ) -> list[Trace]:
        if len(prompts) != len(seeds):
            raise ValueError(
                f"{len(prompts)} prompts but {len(seeds)} seeds. Wanted one seed for each prompt."
            )
        if max_new_tokens < 1 or not all(stop):
            raise ValueError(
                f"max_new_tokens={max_new_tokens}, stop={list(stop)}. Wanted at least 1 token "
                "and no empty stop string."
            )
        if self.dialect == "openai" and sampling.top_k:
            raise ValueError(
                f"top_k={sampling.top_k} is not in OpenAI's protocol. Use top_k=0, or a vLLM or "
                "llama.cpp server."
            )
        wire = self._wire

        def draw(job: tuple[str, int], halt: threading.Event) -> Trace:
            return wire.draw(*job, max_new_tokens, stop, sampling, halt)

        return self._gather(draw, list(zip(prompts, seeds, strict=True)))

    @functools.cached_property
    def _wire(self) -> AbstractWire:
        if self.dialect == "llama.cpp":
            return LlamaWire(self._client, self._model)
        return CompletionsWire(self._client, self.name, vllm=self.dialect == "vllm")

    @functools.cached_property
    def _served_model(self) -> str:
        if self._model is not None:
            return self._model
        models = parse.field(self._client.get("/v1/models"), "data", list)
        names = [parse.field(model, "id", str) for model in models]
        if len(names) != 1:
            raise ServerReplyError(
                f"the server lists {len(names)} models: {names}. Wanted one; pass model=."
            )
        return names[0]

    def _gather[T, R](self, work: Callable[[T, threading.Event], R], items: Sequence[T]) -> list[R]:
        """``work`` on all items at once; on a failure, keep what was finished."""
        stop, results, failure = threading.Event(), {}, None
        pool = concurrent.futures.ThreadPoolExecutor(min(self._max_concurrency, len(items) or 1))
        try:
            futures = {pool.submit(work, item, stop): i for i, item in enumerate(items)}
            for future in concurrent.futures.as_completed(futures):
                try:
                    results[futures[future]] = future.result()
                except concurrent.futures.CancelledError:
                    continue
                except ServerError as error:
                    if failure is None:
                        failure = error
                        failure.add_note(f"It was item {futures[future]} of {len(items)}.")
                        stop.set()
                        for other in futures:
                            other.cancel()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        if failure is not None:
            failure.url = failure.url or self._client.root
            failure.completed = dict(sorted(results.items()))
            failure.add_note(
                f"{len(results)} of {len(items)} were finished before and are in `.completed`."
            )
            raise failure
        return [results[i] for i in range(len(items))]
