"""A real HTTP server for the tests of `ServerLLM`, with a model whose probabilities are known.

Run as a program it serves one dialect on 127.0.0.1 and prints its port; imported, it gives the
same model, so that every log-probability a client reports can be checked exactly.

The model: tokens are found by greedy longest match, and the next token depends on the last one
only. The requested model name chooses a way to fail; ``exact`` does not fail.
"""

import argparse
import json
import math
import os
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

START, END = "<s>", "<|im_end|>"
# ":7" and "r 4" straddle borders; "<|im_end|>" ends a text; the rest are single characters.
VOCABULARY = [START, END, " 42", "42", " 4", ":7", "r 4", " the", "ab", "é", "\n"] + [
    chr(code) for code in range(32, 127)
]
IDS = {text: token for token, text in enumerate(VOCABULARY)}
_LONGEST = max(map(len, VOCABULARY))


def tokenize(text: str, special: bool = True) -> list[int]:
    ids = [IDS[START]] if special else []
    while text:
        piece = next(text[:n] for n in range(_LONGEST, 0, -1) if text[:n] in IDS)
        ids.append(IDS[piece])
        text = text[len(piece) :]
    return ids


def next_logprobs(last: int) -> list[float]:
    logits = [((last * 7919 + token * 104729 + 13) % 997) / 150 for token in range(len(VOCABULARY))]
    top = max(logits)
    total = top + math.log(math.fsum(math.exp(x - top) for x in logits))
    return [x - total for x in logits]


def score(context: list[int], continuation: list[int]) -> float:
    """Log p(continuation | context) in nats, the obvious way."""
    ids = context + continuation
    return math.fsum(next_logprobs(ids[i - 1])[ids[i]] for i in range(len(context), len(ids)))


def generate(ids: list[int], body: dict[str, Any], limit: int) -> tuple[list[int], str, str]:
    """Tokens, text without the stop string, and why it ended: stop string, end token, limit."""
    draw, out, text = random.Random(body.get("seed")), [], ""
    bias = {int(token): value for token, value in body.get("logit_bias") or []}
    heat = body.get("temperature", 1.0)
    while len(out) < limit:
        logits = next_logprobs((ids + out)[-1])
        logits = [x + bias.get(token, 0.0) for token, x in enumerate(logits)]
        if body.get("top_k") == 1:
            token = max(range(len(logits)), key=logits.__getitem__)
        else:
            weights = [math.exp(x / heat) for x in logits]
            token = draw.choices(range(len(logits)), weights)[0]
        out.append(token)
        if token == IDS[END]:
            return out, text, "eos"
        text += VOCABULARY[token]
        for word in body.get("stop") or []:
            if word in text:
                return out, text[: text.index(word)], "word"
    return out, text, "limit"


class Handler(BaseHTTPRequestHandler):
    """One request. ``server.dialect`` says which endpoints there are."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are written apart
    server: "Server"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        dialect = self.server.dialect
        if not self._allowed():
            return
        if self.path == "/v1/models":
            self._send({"data": [{"id": name} for name in self.server.models]})
        elif self.path == "/props" and dialect == "llama.cpp":
            self._send({"default_generation_settings": {}, "total_slots": 1})
        elif self.path == "/version" and dialect == "vllm":
            self._send({"version": "0.0.0"})
        elif self.path == "/log":
            self._send(self.server.log)
        else:
            self._send({"error": "not found"}, status=404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mode = body.get("model") or "exact"
        with self.server.lock:
            self.server.log.append({"path": self.path, "body": body})
            self.server.asked[mode] = asked = self.server.asked.get(mode, 0) + 1
        if not self._allowed():
            return
        if self.path == "/tokenize" and self.server.dialect != "openai":
            text = body["prompt"] if self.server.dialect == "vllm" else body["content"]
            special = body.get("add_special_tokens", body.get("add_special"))
            self._send({"tokens": tokenize(text, special)})
        elif self.path == "/v1/completions" and self.server.dialect != "llama.cpp":
            self._fail(mode, asked, completion(body, self.server.dialect, mode))
        elif self.path == "/completion" and self.server.dialect == "llama.cpp":
            self._fail(mode, asked, llama_completion(body, mode))
        else:
            self._send({"error": "not found"}, status=404)

    def _allowed(self) -> bool:
        key = self.server.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._send({"error": "no key"}, status=401)
        return False

    def _send(self, reply: Any, status: int = 200, **headers: str) -> None:
        content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", headers.pop("kind", "application/json"))
        self.send_header("Content-Length", headers.pop("length", str(len(content))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _fail(self, mode: str, asked: int, reply: dict[str, Any]) -> None:
        """Answer as the model's name says; ``reply`` is the right answer."""
        content = json.dumps(reply).encode()
        name, _, number = mode.partition("@")
        first = asked <= int(number or 0)  # "500@2": the first two requests only
        if name == "hang" and (first or not number):
            time.sleep(3)
        elif name == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(40):
                self.wfile.write(b" ")
                time.sleep(0.1)
        elif name in ("500", "503", "429", "400") and (first or not number):
            self._send({"error": f"planned {name}"}, status=int(name), Retry_After="0")
        elif name == "wait" and first:
            self._send({"error": "later"}, status=429, Retry_After="0.0" if asked > 1 else "1")
        elif name == "html":
            self._send(b"<html><h1>Bad gateway</h1></html>", status=502, kind="text/html")
        elif name == "html-200":
            self._send(b"<html><h1>Sign in</h1></html>", kind="text/html")
        elif name == "truncated" and (first or not number):
            self._send(content[: len(content) // 2], length=str(len(content)))
            self.close_connection = True
        elif name == "half-json":
            self._send(content[: len(content) // 2])
        elif name == "nested":
            self._send(b"[" * 200_000)
        elif name == "die" and asked > int(number):
            os._exit(1)
        else:
            self._send(spoil(reply, name))


def spoil(reply: dict[str, Any], name: str) -> Any:
    """The reply with one thing wrong."""
    if name == "list":
        return [reply]
    choice = (reply.get("choices") or [{}])[0]
    lists = choice.get("logprobs") or {}
    entries = choice.get("prompt_logprobs") or reply.get("completion_probabilities") or []
    number = {"nan": math.nan, "positive": 0.5, "string": "-1", "zero": -9999.0}.get(name)
    if number is not None:
        if lists:
            lists["token_logprobs"][1:] = [number] * (len(lists["tokens"]) - 1)
        for entry in entries:
            for token in [entry, *(entry.get("top_logprobs") or entry.values())] if entry else []:
                if isinstance(token, dict):
                    token["logprob"] = number
    elif name == "no-logprobs":
        choice["logprobs"] = choice["prompt_logprobs"] = None
        reply.pop("completion_probabilities", None)
    elif name == "two-choices":
        reply["choices"] = [choice, choice]
    elif name == "no-choices":
        reply["choices"] = []
    elif name == "short" and lists:
        lists["token_logprobs"].pop()
    elif name == "cut-prompt" and lists:
        lists["tokens"], lists["token_logprobs"] = lists["tokens"][3:], lists["token_logprobs"][3:]
    elif name == "no-text" and lists:
        lists["tokens"] = ["?"] * len(lists["tokens"])
    elif name == "no-offsets" and lists:
        lists["tokens"], lists["text_offset"] = ["?"] * len(lists["tokens"]), None
    return reply


def completion(body: dict[str, Any], dialect: str, mode: str) -> dict[str, Any]:
    prompt = body["prompt"]
    # OpenAI's models have no start token in front; vLLM's do if the tokenizer says so.
    ids = tokenize(prompt, dialect == "vllm") if isinstance(prompt, str) else list(prompt)
    out, text, why = generate(ids, body, body["max_tokens"])
    echo = bool(body.get("echo")) and mode != "no-echo"
    shown = ids + out if echo else out
    before = ids + out
    start = 0 if echo else len(ids)
    values = [
        None if i == 0 else next_logprobs(before[i - 1])[before[i]]
        for i in range(start, len(before))
    ]
    texts = [VOCABULARY[token] for token in shown]
    offsets = [sum(map(len, texts[:i])) for i in range(len(texts))]
    choice: dict[str, Any] = {
        "index": 0,
        "text": (prompt if echo and isinstance(prompt, str) else "") + text,
        "finish_reason": "length" if why == "limit" else "stop",
        "logprobs": None,
    }
    if body.get("logprobs") is not None:
        choice["logprobs"] = {
            "tokens": texts,
            "token_logprobs": values,
            "text_offset": offsets,
            "top_logprobs": None,
        }
    if body.get("prompt_logprobs") is not None and dialect == "vllm" and mode != "old":
        choice["prompt_logprobs"] = [None] + [
            {
                str(token): {
                    "logprob": next_logprobs(ids[i])[token],
                    "rank": 1,
                    "decoded_token": VOCABULARY[token],
                }
            }
            for i, token in enumerate(ids[1:])
        ]
    usage = {"prompt_tokens": len(ids), "completion_tokens": len(out)}
    return {"model": mode, "choices": [choice], "usage": usage}


def llama_completion(body: dict[str, Any], mode: str) -> dict[str, Any]:
    prompt = body["prompt"]
    ids = tokenize(prompt) if isinstance(prompt, str) else list(prompt)
    limit = body["n_predict"]
    if mode == "partial" and [IDS["é"], 1e4] in (body.get("logit_bias") or []):
        # A token that is part of a character: one more is generated, and only that reported.
        limit = 2
    out, text, why = generate(ids, body, limit)
    steps = []
    for i, token in enumerate(out):
        # From the raw logits, unless this server is one that lets the bias in.
        values = next_logprobs((ids + out[:i])[-1])
        if mode == "biased" and body["logit_bias"]:
            values = [0.0 if t == token else x for t, x in enumerate(values)]
        order = sorted(range(len(values)), key=lambda t: -values[t])[: body["n_probs"]]
        if mode == "few":
            order = order[:3]
        top = [{"id": t, "token": VOCABULARY[t], "logprob": values[t]} for t in order]
        # Where only some tokens are looked up, the others keep a placeholder of probability 1.
        mine = values[token] if mode != "few" or token in order else 0.0
        steps.append({"id": token, "logprob": mine, "top_logprobs": top})
    if mode == "partial" and len(out) == 2:
        steps = steps[1:]
    if why == "word":
        steps = steps[:-1]
    return {
        "content": text,
        "tokens_predicted": len(out),
        "stop_type": why,
        "completion_probabilities": steps,
    }


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, dialect: str, key: str | None, models: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.dialect, self.key, self.models = dialect, key, models
        self.lock = threading.Lock()
        self.asked: dict[str, int] = {}
        self.log: list[dict[str, Any]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients of these tests hang up on purpose


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--dialect", default="vllm")
    parser.add_argument("--key")
    parser.add_argument("--models", nargs="*", default=["exact"])
    arguments = parser.parse_args()
    server = Server(arguments.dialect, arguments.key, arguments.models)
    print(server.server_address[1], flush=True)
    server.serve_forever()
