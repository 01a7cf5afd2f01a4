import itertools
import math

import numpy as np
import pytest

from bayesmeta import testing
from bayesmeta.llm.base import Sampling, ScoreRequest
from bayesmeta.llm.tabular import TabularLLM, truncate

PROMPT = "How many?\n\nThink:\n"


@pytest.fixture
def llm():
    return TabularLLM(seed=3, alphabet="αβγ", max_length=3)


def test_traces_are_all_there_is(llm):
    traces = llm.traces(PROMPT)
    assert len(traces) == 1 + 3 + 9 + 27
    assert math.fsum(map(math.exp, traces.values())) == pytest.approx(1, abs=1e-12)


def test_answers_are_normalised_after_every_trace(llm):
    for trace in ("", "α", "βγα"):
        continuations = [f" {answer}{llm.end_of_answer}" for answer in "ABCD"]
        context = f"{PROMPT}{trace}\nAnswer:"
        testing.check_normalised(llm, context, continuations, complete=True, tolerance=1e-12)


def test_chain_rule_runs_through_a_trace_and_through_an_answer(llm):
    testing.check_chain_rule(llm, PROMPT, ["α", "βα", "<end>"], tolerance=1e-12)
    testing.check_chain_rule(llm, "Answer:", [" C", "<end>"], tolerance=1e-12)


def test_marginal_by_three_nested_loops(llm):
    total = 0.0
    for length in range(4):
        for symbols in itertools.product("αβγ", repeat=length):
            prob, text = 1.0, PROMPT
            for symbol in symbols:
                prob *= llm.next_tokens(text)[symbol]
                text += symbol
            prob *= llm.next_tokens(text)["<end>"]
            total += prob * llm.next_tokens(f"{text}\nAnswer:")[" B"]
    assert llm.exact_log_marginal(PROMPT, "B") == pytest.approx(math.log(total), abs=1e-12)
    assert sum(math.exp(llm.exact_log_marginal(PROMPT, a)) for a in "ABCD") == pytest.approx(1)


def test_marginal_under_another_wording_differs(llm):
    worded = llm.exact_log_marginal(
        PROMPT, "B", answer_context=lambda trace: f"{PROMPT}{trace}. Answer:"
    )
    assert worded != llm.exact_log_marginal(PROMPT, "B")


def test_prompts_and_seeds_matter(llm):
    other_prompt = llm.traces("Who?\n\nThink:\n")
    other_seed = TabularLLM(seed=4, alphabet="αβγ", max_length=3)
    assert other_prompt != llm.traces(PROMPT)
    assert other_seed.traces(PROMPT) != llm.traces(PROMPT)
    assert other_seed.name != llm.name == TabularLLM(seed=3, alphabet="αβγ", max_length=3).name


def test_outside_the_language_is_impossible(llm):
    (score,) = llm.log_likelihood([ScoreRequest("Answer:", " E<end>")])
    assert score.log_likelihood == -math.inf
    assert (
        TabularLLM(answers=("4", "42"))
        .log_likelihood([ScoreRequest("Answer:", " 42<end>")])[0]
        .num_tokens
        == 2
    )


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5), Sampling(top_k=2)])
def test_samples_follow_the_enumerated_distribution(llm, sampling):
    draws = 4000
    prompts = [PROMPT] * draws
    traces = llm.sample(prompts, seeds=range(draws), max_new_tokens=1, sampling=sampling)
    expected = truncate(llm.next_tokens(PROMPT), sampling)
    counts = {token: 0 for token in llm.next_tokens(PROMPT)}
    for trace in traces:
        counts["<end>" if trace.stopped else trace.text] += 1
    for token, count in counts.items():
        p = expected.get(token, 0.0)
        # 4.5 standard errors: each of a dozen assertions fails by chance less than 1e-5 often.
        assert abs(count - draws * p) <= 4.5 * math.sqrt(draws * p * (1 - p)), token
    wrong = truncate(llm.next_tokens("another prompt"), sampling)
    assert any(
        abs(count - draws * wrong.get(token, 0.0)) > 4.5 * math.sqrt(draws / 4)
        for token, count in counts.items()
    )


def test_sampling_obeys_the_law_and_stop_strings(llm):
    testing.check_sampling_matches_scores(llm, [PROMPT] * 20, tolerance=1e-12)
    traces = llm.sample([PROMPT] * 50, seeds=range(50), max_new_tokens=9, stop=["α"])
    assert all("α" not in trace.text and trace.stopped for trace in traces)
    with pytest.raises(ValueError, match="one seed per prompt"):
        llm.sample([PROMPT], seeds=[], max_new_tokens=1)


def test_truncation():
    probs = {"a": 0.5, "b": 0.3, "c": 0.2}
    assert truncate(probs, Sampling(top_k=1)) == {"a": 1.0}
    assert truncate(probs, Sampling(top_p=0.6)) == pytest.approx({"a": 0.625, "b": 0.375})
    squared = {"a": 0.25 / 0.38, "b": 0.09 / 0.38, "c": 0.04 / 0.38}
    assert truncate(probs, Sampling(temperature=0.5)) == pytest.approx(squared)


def test_entropy_of_uniform_distributions_is_log_of_their_size():
    llm = TabularLLM(alphabet="αβγ", scale=0)
    assert llm.token_entropy(["xy"]) == pytest.approx([np.log(4)])


def test_bad_construction_says_what_to_do():
    with pytest.raises(ValueError, match="distinct characters"):
        TabularLLM(alphabet="αα")
    with pytest.raises(ValueError, match="answers must be distinct"):
        TabularLLM(answers=("A", "A"))
