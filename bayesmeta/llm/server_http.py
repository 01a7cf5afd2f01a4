"""Asking a server over HTTP for JSON: time limits, retries, and one error class per fault."""

import email.utils
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx

# A reply that lists a vocabulary of 250,000 tokens has about 25 MB; more is not an answer.
_MAX_REPLY_BYTES = 128 * 2**20
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_ADVICE = {
    400: "Read the server's message; a prompt may exceed its context (vLLM: --max-model-len, "
    "llama-server: --ctx-size).",
    401: "Set the key in an environment variable and pass its name as api_key_env.",
    403: "Set the key in an environment variable and pass its name as api_key_env.",
    404: "Check base_url and model; `GET /v1/models` lists what is served.",
    429: "Lower max_concurrency, or raise retries.",
}


class ServerError(OSError):
    """A language model server did not give a usable answer.

    Attributes:
      url: what was asked.
      status: HTTP status of the last reply; None if there was none.
      attempts: how often it was asked.
      completed: index in the batch to result, for everything that was finished before the
        failure (`Score` from `ServerLLM.log_likelihood`, `Trace` from `ServerLLM.sample`).
    """

    def __init__(
        self, message: str, *, url: str = "", status: int | None = None, attempts: int = 1
    ) -> None:
        super().__init__(message)
        self.url = url
        self.status = status
        self.attempts = attempts
        self.completed: dict[int, Any] = {}


class ServerUnavailableError(ServerError):
    """No complete reply: connection refused, reset, or closed half-way."""


class ServerTimeoutError(ServerError):
    """No complete reply within the time limit."""


class ServerStatusError(ServerError):
    """The server refused or failed: an HTTP status other than 200."""


class ServerReplyError(ServerError):
    """A reply that is not what the protocol says: broken JSON, wrong fields, wrong numbers."""


class ServerCapabilityError(ServerError):
    """A sound reply without the log-probabilities that scoring needs."""


class JsonClient:
    """A connection pool to one server. Its methods may be called from several threads.

    ``timeout`` (seconds) bounds each attempt from the first byte sent to the last received, so
    that a server which drips bytes is bounded too. Connection faults, time-outs and the
    statuses 408, 425, 429, 500 and 502 to 504 are tried again up to ``retries`` times, after
    ``backoff * 2**n`` seconds or what Retry-After asks for, at most ``max_wait`` seconds each.
    """

    def __init__(
        self,
        root: str,
        *,
        timeout: float,
        retries: int,
        backoff: float,
        max_wait: float,
        headers: Mapping[str, str],
        connections: int,
    ) -> None:
        self.root = root
        self._timeout, self._retries = timeout, retries
        self._backoff, self._max_wait = backoff, max_wait
        self._client = httpx.Client(
            timeout=timeout,
            headers=dict(headers),
            limits=httpx.Limits(max_connections=connections),
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """The JSON of a GET. Raises `ServerError`."""
        return self._ask("GET", path, None, None)

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event | None = None) -> Any:
        """The JSON of a POST. No further attempt is made once ``stop`` is set."""
        return self._ask("POST", path, body, stop)

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, stop: threading.Event | None
    ) -> Any:
        url, stop = self.root + path, stop or threading.Event()
        attempt = 0
        while True:
            attempt += 1
            retry_after = None
            try:
                status, headers, content = self._once(method, url, body)
            except ServerError as fault:
                error, again = fault, isinstance(fault, ServerTimeoutError | ServerUnavailableError)
            else:
                if status == 200:
                    return _decode(content, url, headers)
                error, again = (
                    _status_error(status, headers, content, url),
                    (status in _RETRIED_STATUS),
                )
                retry_after = _seconds(headers.get("retry-after"))
            error.attempts = attempt
            if not again or attempt > self._retries or stop.is_set():
                if attempt > 1:
                    error.add_note(f"{attempt} attempts were made.")
                raise error from None
            wait = self._backoff * 2 ** (attempt - 1) if retry_after is None else retry_after
            stop.wait(min(wait, self._max_wait))

    def _once(
        self, method: str, url: str, body: Mapping[str, Any] | None
    ) -> tuple[int, httpx.Headers, bytes]:
        deadline = time.monotonic() + self._timeout
        content = bytearray()
        try:
            with self._client.stream(method, url, json=body) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout("reply still arriving")
                    if len(content) > _MAX_REPLY_BYTES:
                        raise ServerReplyError(
                            f"{url} sent more than {_MAX_REPLY_BYTES} bytes. Wanted one JSON "
                            "object; check base_url.",
                            url=url,
                            status=response.status_code,
                        )
        except httpx.TimeoutException as error:
            raise ServerTimeoutError(
                f"{url} gave no complete reply within {self._timeout:g} s ({error}). See whether "
                "the server is busy or stuck, lower max_concurrency, or raise timeout.",
                url=url,
            ) from None
        except httpx.RequestError as error:
            raise ServerUnavailableError(
                f"{url} gave no complete reply: {type(error).__name__}: {error}. See whether the "
                "server runs (start it with `vllm serve MODEL` or `llama-server -m FILE.gguf`) "
                "and its log says why it stopped.",
                url=url,
            ) from None
        return response.status_code, response.headers, bytes(content)


def _decode(content: bytes, url: str, headers: httpx.Headers) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ServerReplyError(
            f"{url} answered 200 with {len(content)} bytes that are not JSON "
            f"({type(error).__name__}: {error}; content type {headers.get('content-type')!r}): "
            f"{_excerpt(content)}. Wanted one JSON object; check that base_url is the model server "
            "itself, not a proxy.",
            url=url,
            status=200,
        ) from None


def _status_error(
    status: int, headers: httpx.Headers, content: bytes, url: str
) -> ServerStatusError:
    kind = "an HTML page" if "html" in headers.get("content-type", "") else "the message"
    advice = _ADVICE.get(status, "Read the server's own log.")
    return ServerStatusError(
        f"{url} answered HTTP {status} with {kind} {_excerpt(content)}. Wanted 200. {advice}",
        url=url,
        status=status,
    )


def _excerpt(content: bytes) -> str:
    text = " ".join(content.decode("utf-8", errors="replace").split())
    return repr(text if len(text) <= 200 else text[:200] + "…")


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds (RFC 9110, section 10.2.3: a number of seconds, or a date)."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        when = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())
