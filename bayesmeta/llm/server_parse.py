"""Reading what servers answer. Replies are data: every field is checked before it is used."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from bayesmeta.llm.base import Trace
from bayesmeta.llm.server_http import ServerCapabilityError, ServerReplyError

# JSON has no infinity: vLLM writes -9999 for a probability of zero, llama.cpp the lowest float32.
_ZERO_PROBABILITY = -9999.0
# A softmax in float32 may round up to a little above zero.
_ROUNDING = 1e-5

NO_PROMPT_LOGPROBS = (
    "Scoring needs them: start vLLM with `vllm serve MODEL` and use dialect='vllm', or "
    "llama.cpp with `llama-server -m FILE.gguf` and use dialect='llama.cpp'."
)


@dataclasses.dataclass(frozen=True, slots=True)
class PromptTokens:
    """The tokens of a prompt as a server reports them.

    Attributes:
      texts: of each token; None where not reported.
      logprobs: nats; None where not defined (the first token).
      offsets: where each token begins in the prompt, in characters; None if not trustworthy.
    """

    texts: list[str | None]
    logprobs: list[Any]
    offsets: list[int] | None = None


def field(reply: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """``reply[name]``, which must be there and of that kind."""
    value = reply.get(name) if isinstance(reply, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise ServerReplyError(
            f"the reply's {name!r} is {_short(value)}. Wanted "
            f"{' or '.join(k.__name__ for k in kinds)}; check the dialect and the server's version."
        )
    return value


def one_choice(reply: Any) -> dict[str, Any]:
    """The only choice of a completions reply."""
    choices = field(reply, "choices", list)
    if len(choices) != 1 or not isinstance(choices[0], dict):
        raise ServerReplyError(
            f"the reply has {len(choices)} choices: {_short(choices)}. Wanted exactly 1 for one "
            "prompt; check for a proxy that changes n or best_of."
        )
    return choices[0]


def logprob(value: Any, where: str) -> float:
    """A log-probability in nats; -inf for the sentinels that stand for probability zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ServerReplyError(
            f"the log-probability of {where} is {_short(value)}. Wanted a number <= 0; such a "
            "model or server is broken (often float16 overflow): start it with another dtype."
        )
    if value > _ROUNDING:
        raise ServerReplyError(
            f"the log-probability of {where} is {value}, which is positive. Wanted nats <= 0; "
            "the server may report logits or probabilities: set vLLM's --logprobs-mode "
            "raw_logprobs."
        )
    return -math.inf if value <= _ZERO_PROBABILITY else min(float(value), 0.0)


def echoed_tokens(reply: Any, prompt: str | None) -> PromptTokens:
    """The prompt's tokens from ``echo=true``, ``logprobs=1``, ``max_tokens=1``."""
    choice = one_choice(reply)
    if choice.get("logprobs") is None:
        raise ServerCapabilityError(
            f"the reply has no log-probabilities (logprobs is null). {NO_PROMPT_LOGPROBS}"
        )
    logprobs = field(choice, "logprobs", dict)
    texts = field(logprobs, "tokens", list)
    values = field(logprobs, "token_logprobs", list)
    if len(texts) != len(values):
        raise ServerReplyError(
            f"the reply has {len(texts)} tokens but {len(values)} log-probabilities. Wanted one "
            "for each; check the server's version."
        )
    usage = reply.get("usage") or {}
    generated = usage.get("completion_tokens", 1) if isinstance(usage, dict) else 1
    num_prompt = len(texts) - (generated if generated in (0, 1) else 1)
    if num_prompt <= 0:
        raise ServerCapabilityError(
            f"the reply has log-probabilities of {len(texts)} generated tokens and none of the "
            f"prompt: the server ignores echo. {NO_PROMPT_LOGPROBS}"
        )
    expected = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if isinstance(expected, int) and expected != num_prompt:
        raise ServerReplyError(
            f"the reply has {num_prompt} prompt tokens and says there are {expected}. Wanted all; "
            "see whether the server truncates prompts."
        )
    offsets = logprobs.get("text_offset")
    # vLLM adds up the lengths of decoded tokens, so a start token shifts all offsets. That the
    # generated token begins where the prompt ends shows that they were not shifted.
    trusted = (
        prompt is not None
        and isinstance(offsets, list)
        and len(offsets) == len(texts) > num_prompt
        and all(isinstance(offset, int) for offset in offsets)
        and offsets[num_prompt] == len(prompt)
        and all(a <= b for a, b in itertools.pairwise(offsets))
    )
    return PromptTokens(
        [text if isinstance(text, str) else None for text in texts[:num_prompt]],
        values[:num_prompt],
        offsets[:num_prompt] if trusted and offsets is not None else None,
    )


def native_tokens(reply: Any) -> PromptTokens:
    """The prompt's tokens from vLLM's ``prompt_logprobs``.

    A list with one entry per prompt token: null for the first, then an object of token id to
    ``{"logprob", "rank", "decoded_token"}``, the prompt's own token among or alone in it.
    """
    choice = one_choice(reply)
    entries = choice.get("prompt_logprobs")
    if not isinstance(entries, list) or not entries:
        raise ServerCapabilityError(
            f"the reply's prompt_logprobs is {_short(entries)}. {NO_PROMPT_LOGPROBS}"
        )
    ids = choice.get("prompt_token_ids")
    texts: list[str | None] = []
    values: list[Any] = []
    for position, entry in enumerate(entries):
        chosen = None
        if isinstance(entry, dict) and len(entry) == 1:
            chosen = next(iter(entry.values()))
        elif isinstance(entry, dict) and isinstance(ids, list) and len(ids) == len(entries):
            chosen = entry.get(str(ids[position]))
        if not isinstance(chosen, dict) and not (entry is None and position == 0):
            raise ServerReplyError(
                f"prompt_logprobs[{position}] is {_short(entry)}. Wanted the prompt's own token; "
                "check the server's version."
            )
        text = chosen.get("decoded_token") if chosen else None
        texts.append(text if isinstance(text, str) else None)
        values.append(chosen.get("logprob") if chosen else None)
    return PromptTokens(texts, values)


def border(tokens: PromptTokens, context: str, continuation: str) -> int | None:
    """Index of the continuation's first token; None if texts and offsets do not show it.

    The token texts, read backwards from the end of the prompt, must spell the continuation
    exactly, so that a start token in front does no harm.
    """
    spelled, index = "", len(tokens.texts)
    while index > 0 and len(spelled) < len(continuation):
        index -= 1
        text = tokens.texts[index]
        if text is None:
            break
        spelled = text + spelled
    if spelled == continuation:
        return index
    if tokens.offsets is not None and len(context) in tokens.offsets:
        return tokens.offsets.index(len(context))
    return None


def continuation_sum(tokens: PromptTokens, first: int) -> float:
    """Sum of the log-probabilities from token ``first`` on, in nats."""
    if first == 0:
        raise ServerReplyError(
            "the context has no token, so the first token of the continuation has no "
            "log-probability. Wanted at least one token before it; begin the context with text."
        )
    return math.fsum(
        logprob(value, f"prompt token {first + i} ({tokens.texts[first + i]!r})")
        for i, value in enumerate(tokens.logprobs[first:])
    )


def completion_trace(reply: Any, stop: Sequence[str], *, proper: bool) -> Trace:
    """A trace from a completions reply (OpenAI, vLLM)."""
    choice = one_choice(reply)
    text = field(choice, "text", str)
    logprobs = choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    usage = reply.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if not isinstance(counted, int):
        if not isinstance(values, list):
            raise ServerReplyError(
                "the reply has neither usage.completion_tokens nor logprobs. Wanted one of them "
                "to count the tokens; check the server's version."
            )
        counted = len(values)
    known = isinstance(values, list) and len(values) == counted
    return _trace(
        text,
        values if known else None,
        counted,
        choice.get("finish_reason") == "stop",
        stop,
        proper,
    )


def llama_trace(reply: Any, stop: Sequence[str], *, proper: bool) -> Trace:
    """A trace from llama.cpp's own ``/completion``.

    After a stop string llama.cpp leaves the log-probabilities of its tokens out; such a trace
    has ``log_prob`` NaN.
    """
    counted = field(reply, "tokens_predicted", int)
    steps = reply.get("completion_probabilities") or []
    values = [step.get("logprob") for step in steps if isinstance(step, dict)]
    stopped = reply.get("stop_type") in ("eos", "word")
    return _trace(
        field(reply, "content", str),
        values if len(values) == counted else None,
        counted,
        stopped,
        stop,
        proper,
    )


def _trace(
    text: str,
    values: list[Any] | None,
    num_tokens: int,
    stopped: bool,
    stop: Sequence[str],
    proper: bool,
) -> Trace:
    cut = min((at for word in stop if (at := text.find(word)) >= 0), default=None)
    # Servers report the untempered model; only then is it the distribution sampled from.
    known = values is not None and proper
    return Trace(
        text=text if cut is None else text[:cut],
        log_prob=math.fsum(logprob(v, "a generated token") for v in values or ())
        if known
        else math.nan,
        num_tokens=num_tokens,
        stopped=stopped or cut is not None,
    )


def llama_step(reply: Any) -> dict[int, float]:
    """Token id to log-probability (nats) for the first token of a ``/completion`` reply.

    The generated token comes first. One that llama.cpp reports as likelier than the likeliest
    is a placeholder (it did not look the token up) and is left out. Nothing is returned if more
    than one token was generated: llama.cpp goes on when a token is part of a character, and
    then leaves that token out of its list.
    """
    steps = field(reply, "completion_probabilities", list)
    if len(steps) != 1 or reply.get("tokens_predicted", 1) != 1:
        return {}
    step, found = steps[0], {}
    for entry in [step, *field(step, "top_logprobs", list)]:
        token = field(entry, "id", int)
        found.setdefault(token, logprob(entry.get("logprob"), f"token {token}"))
    top = next((entry["id"] for entry in step["top_logprobs"]), None)
    if top is not None and found[step["id"]] > found[top] + _ROUNDING:
        del found[step["id"]]
    return found


def token_ids(reply: Any) -> list[int]:
    """The ids of a ``/tokenize`` reply (vLLM and llama.cpp alike)."""
    ids = field(reply, "tokens", list)
    if not all(isinstance(token, int) for token in ids):
        raise ServerReplyError(f"/tokenize answered {_short(ids)}. Wanted a list of token ids.")
    return ids


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "…"
