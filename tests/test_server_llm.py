"""`ServerLLM` against real HTTP server processes whose model is known exactly."""

import contextlib
import math
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
import server_process as exact

from bayesmeta.llm.base import Sampling, ScoreRequest
from bayesmeta.llm.server import ServerLLM
from bayesmeta.llm.server_http import (
    ServerCapabilityError,
    ServerError,
    ServerReplyError,
    ServerStatusError,
    ServerTimeoutError,
    ServerUnavailableError,
)

# JSON carries float64 exactly; only the order of summation may differ.
TOLERANCE = 1e-9
REQUESTS = [
    ScoreRequest("Sum? Answer:", " 42<|im_end|>"),
    ScoreRequest("Sum? Answer:", " 4<|im_end|>"),
    ScoreRequest("Sum? Answer:", " the end"),
    ScoreRequest("x", "y"),
]
DIALECTS = ("vllm", "openai", "llama.cpp")


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[str]:
    """The address of a fresh server process."""
    script = pathlib.Path(__file__).with_name("server_process.py")
    with subprocess.Popen(
        [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    with contextlib.ExitStack() as stack:
        yield {d: stack.enter_context(running("--dialect", d)) for d in DIALECTS}


@pytest.fixture
def connect(addresses: dict[str, str]) -> Iterator:
    """A ServerLLM for a dialect and a way to fail, closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_client(server: str, mode: str = "exact", **settings) -> ServerLLM:
            settings = {"retries": 0, "backoff": 0.01, "timeout": 5.0, **settings}
            llm = ServerLLM(addresses[server], mode, **settings)
            stack.callback(llm.close)
            return llm

        yield open_client


def truth(request: ScoreRequest, dialect: str) -> float:
    """The exact score; tokenised apart where a token straddles the border."""
    special = dialect != "openai"
    context = exact.tokenize(request.context, special)
    whole = exact.tokenize(request.context + request.continuation, special)
    if whole[: len(context)] == context:
        return exact.score(context, whole[len(context) :])
    return exact.score(context, exact.tokenize(request.continuation, False))


def log_of(address: str) -> list[dict]:
    return httpx.get(f"{address}/log", timeout=5).json()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_scores_are_the_models(connect, dialect):
    llm = connect(dialect)
    scores = llm.log_likelihood(REQUESTS)
    assert llm.dialect == dialect  # detected
    for request, score in zip(REQUESTS, scores, strict=True):
        assert score.log_likelihood == pytest.approx(truth(request, dialect), abs=TOLERANCE)
        assert score.num_tokens == len(exact.tokenize(request.continuation, False))
        assert score.num_context_tokens == len(exact.tokenize(request.context, dialect != "openai"))
    assert llm.quality == "exact" and llm.attributes["dialect"] == dialect


@pytest.mark.parametrize("dialect", DIALECTS)
def test_laws_batch_equals_single_and_chain_rule(connect, dialect):
    llm = connect(dialect, max_concurrency=3)
    batch = llm.log_likelihood(REQUESTS * 5)
    single = [llm.log_likelihood([request])[0] for request in REQUESTS]
    assert batch == single * 5
    whole, head, tail = llm.log_likelihood(
        [ScoreRequest("Q:", " 42 the"), ScoreRequest("Q:", " 42"), ScoreRequest("Q: 42", " the")]
    )
    assert whole.log_likelihood == pytest.approx(
        head.log_likelihood + tail.log_likelihood, abs=TOLERANCE
    )


def test_next_token_probabilities_sum_to_one(connect):
    pieces = [text for text in exact.VOCABULARY if text != exact.START]
    context = "Answer: "  # ends so that no token straddles, and the pieces stay whole
    requests = [ScoreRequest(context, piece) for piece in pieces]
    scores = connect("vllm").log_likelihood(requests)
    assert {score.num_tokens for score in scores} == {1}
    total = sum(math.exp(score.log_likelihood) for score in scores)
    start = math.exp(exact.next_logprobs(exact.IDS[" "])[exact.IDS[exact.START]])
    assert total + start == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dialect", ["vllm", "llama.cpp"])
def test_a_token_across_the_border_is_tokenised_apart(connect, dialect):
    request = ScoreRequest("Answer:", "7")
    assert exact.IDS[":7"] in exact.tokenize("Answer:7")
    (score,) = connect(dialect).log_likelihood([request])
    assert score.log_likelihood == pytest.approx(truth(request, dialect), abs=TOLERANCE)
    whole = exact.tokenize("Answer:7")
    assert score.log_likelihood != pytest.approx(exact.score(whole[:-1], whole[-1:]), abs=1e-3)
    assert (score.num_tokens, score.num_context_tokens) == (1, len(exact.tokenize("Answer:")))


def test_a_token_across_the_border_without_tokenize_is_an_error(connect):
    with pytest.raises(ServerReplyError, match="no /tokenize.*begin the continuation with a space"):
        connect("openai").log_likelihood([ScoreRequest("Answer:", "7")])


def test_offsets_are_used_when_texts_do_not_spell_the_prompt(connect):
    scores = connect("openai", "no-text").log_likelihood(REQUESTS)
    assert [s.log_likelihood for s in scores] == pytest.approx(
        [truth(r, "openai") for r in REQUESTS], abs=TOLERANCE
    )


@pytest.mark.parametrize("mode", ["exact", "no-text", "no-offsets"])
def test_vllm_through_echo(connect, mode):
    # vLLM's offsets are shifted by its start token; /tokenize then finds the border.
    llm = connect("vllm", mode, dialect="openai")
    straddling = [*REQUESTS, ScoreRequest("Answer:", "7")]
    assert [s.log_likelihood for s in llm.log_likelihood(straddling)] == pytest.approx(
        [truth(r, "vllm") for r in straddling], abs=TOLERANCE
    )


def test_vllm_without_prompt_logprobs_falls_back_to_echo(connect):
    scores = connect("vllm", "old").log_likelihood(REQUESTS)
    assert [s.log_likelihood for s in scores] == pytest.approx(
        [truth(r, "vllm") for r in REQUESTS], abs=TOLERANCE
    )


@pytest.mark.parametrize("mode", ["exact", "biased", "partial"])
def test_llama_cpp_scores_whatever_forcing_does(connect, addresses, mode):
    request = ScoreRequest("Sum? Answer:", "é 42")
    (score,) = connect("llama.cpp", mode).log_likelihood([request])
    assert score.log_likelihood == pytest.approx(truth(request, "llama.cpp"), abs=TOLERANCE)
    sizes = [
        entry["body"].get("n_probs", 0)
        for entry in log_of(addresses["llama.cpp"])
        if entry["body"].get("model") == mode
    ]
    full_lists = {"exact": 0, "biased": 2, "partial": 1}[mode]
    assert sum(size > 1000 for size in sizes) == full_lists


def test_llama_cpp_that_looks_up_few_tokens_is_refused(connect):
    with pytest.raises(ServerCapabilityError, match="whole vocabulary; start it without"):
        connect("llama.cpp", "few").log_likelihood(REQUESTS)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_sampling(connect, dialect):
    llm = connect(dialect)
    prompts, seeds = ["Go on:"] * 6, [1, 2, 3, 4, 5, 2**62 + 1]
    traces = llm.sample(prompts, seeds=seeds, max_new_tokens=12, stop=["e"])
    again = [
        llm.sample([p], seeds=[s], max_new_tokens=12, stop=["e"])[0]
        for p, s in zip(prompts, seeds, strict=True)
    ]
    assert repr(traces) == repr(again)  # repr, because nan != nan
    assert len({trace.text for trace in traces}) > 1
    context = exact.tokenize("Go on:", dialect != "openai")
    for trace, seed in zip(traces, seeds, strict=True):
        modulus = 2**32 - 1 if dialect == "llama.cpp" else 2**63
        out, text, why = exact.generate(context, {"seed": seed % modulus, "stop": ["e"]}, 12)
        assert (trace.text, trace.num_tokens) == (text, len(out))
        assert trace.stopped == (why != "limit")
        if dialect == "llama.cpp" and why == "word":
            assert math.isnan(trace.log_prob)
        else:
            assert trace.log_prob == pytest.approx(exact.score(context, out), abs=TOLERANCE)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tempered_samples_have_no_log_prob(connect, dialect):
    tempered = Sampling(temperature=0.5)
    (trace,) = connect(dialect).sample(["Go"], seeds=[0], max_new_tokens=3, sampling=tempered)
    assert math.isnan(trace.log_prob) and trace.num_tokens > 0


def test_a_server_without_logprobs_still_samples(connect):
    (trace,) = connect("vllm", "no-logprobs").sample(["Go"], seeds=[0], max_new_tokens=3)
    assert math.isnan(trace.log_prob) and trace.num_tokens > 0


def test_servers_are_told_not_to_truncate(connect, addresses):
    for dialect in DIALECTS:
        connect(dialect).sample(["Truncate?"], seeds=[0], max_new_tokens=1)
    vllm, openai, llama = (
        next(
            entry["body"]
            for entry in reversed(log_of(addresses[dialect]))
            if entry["body"].get("prompt") == "Truncate?"
        )
        for dialect in DIALECTS
    )
    assert (vllm["top_k"], vllm["min_p"], vllm["repetition_penalty"]) == (-1, 0.0, 1.0)
    assert "min_p" not in openai and openai["temperature"] == 1.0
    assert llama["samplers"] == ["top_k", "top_p", "temperature"] and llama["top_k"] == 0


FAULTS = [
    ("500", ServerStatusError, "HTTP 500.*planned 500.*Wanted 200"),
    ("429", ServerStatusError, "HTTP 429.*Lower max_concurrency"),
    ("400", ServerStatusError, "HTTP 400.*may exceed its context"),
    ("html", ServerStatusError, "HTTP 502 with an HTML page.*Bad gateway"),
    ("html-200", ServerReplyError, "not JSON.*text/html.*Sign in"),
    ("half-json", ServerReplyError, "not JSON.*base_url"),
    ("nested", ServerReplyError, "not JSON"),
    ("truncated", ServerUnavailableError, "no complete reply.*See whether the server runs"),
    ("list", ServerReplyError, "Wanted list; check the dialect"),
    ("two-choices", ServerReplyError, "2 choices.*exactly 1"),
    ("no-choices", ServerReplyError, "0 choices.*exactly 1"),
    ("no-logprobs", ServerCapabilityError, "start vLLM with"),
    ("no-echo", ServerCapabilityError, "ignores echo.*llama-server"),
    ("nan", ServerReplyError, "is nan.*Wanted a number <= 0"),
    ("positive", ServerReplyError, "positive.*logprobs-mode"),
    ("string", ServerReplyError, "is '-1'"),
    ("short", ServerReplyError, "tokens but .* log-probabilities"),
    ("cut-prompt", ServerReplyError, "truncates prompts"),
]


@pytest.mark.parametrize(("mode", "error", "message"), FAULTS, ids=[f[0] for f in FAULTS])
def test_each_fault_is_one_clear_error(connect, mode, error, message):
    started = time.monotonic()
    with pytest.raises(error, match=message) as caught:
        connect("openai", mode).log_likelihood(REQUESTS[:2])
    assert isinstance(caught.value, ServerError) and caught.value.completed == {}
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("dialect", ["vllm", "llama.cpp"])
@pytest.mark.parametrize("mode", ["nan", "positive", "string", "half-json", "no-logprobs", "list"])
def test_faults_in_the_servers_own_protocols(connect, dialect, mode):
    with pytest.raises(ServerError, match="Wanted|Scoring needs them"):
        connect(dialect, mode).log_likelihood(REQUESTS)


@pytest.mark.parametrize("mode", ["hang", "drip"])
def test_a_server_that_hangs_or_drips_is_left(connect, mode):
    started = time.monotonic()
    with pytest.raises(ServerTimeoutError, match="within 0.3 s.*raise timeout"):
        connect("openai", mode, timeout=0.3).log_likelihood(REQUESTS[:1])
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("mode", ["500@2", "503@2", "429@2", "truncated@2", "hang@1"])
def test_passing_faults_are_tried_again(connect, mode):
    (score,) = connect("openai", mode, retries=2, timeout=0.5).log_likelihood(REQUESTS[:1])
    assert score.log_likelihood == pytest.approx(truth(REQUESTS[0], "openai"), abs=TOLERANCE)


def test_retry_after_is_honoured(connect):
    started = time.monotonic()
    connect("openai", "wait@1", retries=1).log_likelihood(REQUESTS[:1])
    assert 1.0 <= time.monotonic() - started < 2.5


def test_errors_are_os_errors():
    assert issubclass(ServerError, OSError)


def test_retries_end(connect):
    with pytest.raises(ServerStatusError) as caught:
        connect("openai", "500@9", retries=2).log_likelihood(REQUESTS[:1])
    assert (caught.value.attempts, caught.value.status) == (3, 500)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_server_that_dies_leaves_what_was_finished(dialect):
    # llama.cpp is asked once per token, and twice at first; vLLM once more at first.
    with running("--dialect", dialect) as address:
        mode = f"die@{30 if dialect == 'llama.cpp' else 7}"
        llm = ServerLLM(
            address, mode, dialect=dialect, retries=1, backoff=0.01, timeout=2, max_concurrency=2
        )
        requests = [ScoreRequest(f"{i} x", " 42 the") for i in range(20)]
        with pytest.raises(ServerUnavailableError, match="See whether the server runs") as caught:
            llm.log_likelihood(requests)
        llm.close()
    completed = caught.value.completed
    assert 3 <= len(completed) < 20
    for index, score in completed.items():
        assert score.log_likelihood == pytest.approx(truth(requests[index], dialect), abs=TOLERANCE)
    assert any("in `.completed`" in note for note in caught.value.__notes__)


def test_no_server_at_all():
    with contextlib.closing(ServerLLM("http://127.0.0.1:9", "m", retries=1, backoff=0)) as llm:
        with pytest.raises(ServerUnavailableError, match="vllm serve MODEL") as caught:
            llm.log_likelihood(REQUESTS)
    assert caught.value.attempts == 2


def test_zero_probability_is_minus_infinity(connect):
    (score,) = connect("openai", "zero").log_likelihood(REQUESTS[:1])
    assert score.log_likelihood == -math.inf


def test_key_and_model_name(monkeypatch):
    with running("--dialect", "openai", "--key", "secret-1", "--models", "one") as address:
        with contextlib.closing(ServerLLM(f"{address}/v1/", retries=0)) as llm:
            with pytest.raises(ServerStatusError, match="HTTP 401.*api_key_env"):
                llm.log_likelihood(REQUESTS)
        monkeypatch.setenv("TEST_KEY", "secret-1")
        with contextlib.closing(ServerLLM(f"{address}/v1/", api_key_env="TEST_KEY")) as llm:
            assert len(llm.log_likelihood(REQUESTS)) == len(REQUESTS)
            assert llm.name == "one"
            assert "secret-1" not in repr(llm.attributes)
    with running("--models", "one", "two") as address:
        with contextlib.closing(ServerLLM(address)) as llm:
            with pytest.raises(ServerReplyError, match=r"2 models: \['one', 'two'\].*pass model="):
                llm.log_likelihood(REQUESTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "Wanted http"),
        ({"dialect": "ollama"}, "Wanted one of"),
        ({"timeout": 0}, "timeout=0"),
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"template": "alpaca"}, "no known end of answer"),
        ({"template": lambda user, assistant: user}, "pass end_of_answer"),
        ({"api_key_env": "BAYESMETA_NO_SUCH_VARIABLE"}, "is not set"),
    ],
)
def test_arguments_are_checked_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        ServerLLM(**{"base_url": "http://127.0.0.1:9", **settings})


def test_requests_are_checked(connect):
    llm = connect("openai")
    with pytest.raises(ValueError, match="request 1 has an empty continuation"):
        llm.log_likelihood([REQUESTS[0], ScoreRequest("a", "")])
    with pytest.raises(ValueError, match="1 prompts but 2 seeds"):
        llm.sample(["a"], seeds=[1, 2], max_new_tokens=1)
    with pytest.raises(ValueError, match="no empty stop string"):
        llm.sample(["a"], seeds=[1], max_new_tokens=1, stop=[""])
    with pytest.raises(ValueError, match="top_k=3"):
        llm.sample(["a"], seeds=[1], max_new_tokens=1, sampling=Sampling(top_k=3))
    with pytest.raises(ServerReplyError, match="context has no token"):
        llm.log_likelihood([ScoreRequest("", "abc")])
    assert llm.log_likelihood([]) == [] and llm.sample([], seeds=[], max_new_tokens=1) == []


@pytest.mark.parametrize("template", ["chatml", "plain", lambda user, reply: f"U {user} A {reply}"])
def test_rendered_prompts_grow(connect, template):
    llm = connect("openai", template=template, end_of_answer="!")
    short = llm.render("Q", "")
    assert llm.render("Q", "so").startswith(short) and llm.end_of_answer == "!"
