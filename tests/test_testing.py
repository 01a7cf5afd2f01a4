"""Each law must catch a model that breaks it, and pass one that does not."""

import dataclasses
import math

import pytest

from bayesmeta import testing
from bayesmeta.llm.base import AbstractLLM, Score, ScoreRequest
from bayesmeta.llm.tabular import TabularLLM

CONTEXT = "Which?\n\nAnswer:"
ANSWERS = [f" {letter}<end>" for letter in "ABCD"]
REQUESTS = [ScoreRequest(CONTEXT, answer) for answer in ANSWERS]
PROMPTS = [f"Question {i}\n\n" for i in range(12)]


class Wrapper(AbstractLLM):
    """An honest model; the subclasses below each tell one lie."""

    def __init__(self) -> None:
        self.inner = TabularLLM(seed=1)

    name = property(lambda self: f"{type(self).__name__} around {self.inner.name}")
    quality = property(lambda self: self.inner.quality)
    attributes = property(lambda self: self.inner.attributes)
    end_of_answer = property(lambda self: self.inner.end_of_answer)

    def render(self, user, assistant):
        return self.inner.render(user, assistant)

    def log_likelihood(self, requests):
        return self.inner.log_likelihood(requests)

    def sample(self, prompts, *, seeds, max_new_tokens, **settings):
        return self.inner.sample(prompts, seeds=seeds, max_new_tokens=max_new_tokens, **settings)


def shifted(score: Score, by: float) -> Score:
    return dataclasses.replace(score, log_likelihood=score.log_likelihood + by)


class PaysPerCall(Wrapper):
    """A constant on every score, as when a start token is scored too."""

    def log_likelihood(self, requests):
        return [shifted(score, -0.1) for score in super().log_likelihood(requests)]


class LeaksAcrossTheBatch(Wrapper):
    """Padding that is attended to."""

    def log_likelihood(self, requests):
        return [shifted(s, -0.01 * (len(requests) - 1)) for s in super().log_likelihood(requests)]


class LeaksFromTheLeft(Wrapper):
    """A branch that sees its siblings."""

    def log_likelihood(self, requests):
        return [shifted(s, -0.01 * i) for i, s in enumerate(super().log_likelihood(requests))]


class LosesTheOrder(Wrapper):
    def log_likelihood(self, requests):
        return sorted(super().log_likelihood(requests), key=lambda score: score.log_likelihood)


class PerToken(Wrapper):
    """Length-normalised scores are not log-probabilities."""

    def log_likelihood(self, requests):
        return [
            dataclasses.replace(s, log_likelihood=s.log_likelihood / s.num_tokens)
            for s in super().log_likelihood(requests)
        ]


class NotANumber(Wrapper):
    def log_likelihood(self, requests):
        return [shifted(score, math.nan) for score in super().log_likelihood(requests)]


class DropsOne(Wrapper):
    def log_likelihood(self, requests):
        return super().log_likelihood(requests)[1:]


class SamplesHotter(Wrapper):
    """Draws from one distribution, reports another."""

    def sample(self, prompts, **settings):
        traces = super().sample(prompts, **settings)
        return [dataclasses.replace(t, log_prob=0.5 * t.log_prob) for t in traces]


class SeedsByPosition(Wrapper):
    def sample(self, prompts, *, seeds, **settings):
        return super().sample(prompts, seeds=range(len(prompts)), **settings)


class Miscounts(Wrapper):
    def sample(self, prompts, **settings):
        traces = super().sample(prompts, **settings)
        return [dataclasses.replace(t, num_tokens=t.num_tokens + 1) for t in traces]


def chain_rule(llm):
    testing.check_chain_rule(llm, "Hm.\n\n", ["αβ", "γ", "<end>"])


def batch(llm):
    testing.check_batch_matches_single(llm, REQUESTS)


def normalised(llm):
    testing.check_normalised(llm, CONTEXT, ANSWERS)


def complete(llm):
    testing.check_normalised(llm, CONTEXT, ANSWERS, complete=True)


def trie(llm):
    plain = TabularLLM(seed=1)
    testing.check_trie_matches_plain(llm, REQUESTS, lambda r: plain.log_likelihood([r])[0])


def sampling(llm):
    testing.check_sampling_matches_scores(llm, PROMPTS)


LAWS = [chain_rule, batch, normalised, complete, trie, sampling]


@pytest.mark.parametrize("law", LAWS)
def test_an_honest_model_passes(law):
    law(Wrapper())


@pytest.mark.parametrize(
    ("law", "liar", "words"),
    [
        (chain_rule, PaysPerCall, "breaks the chain rule"),
        (chain_rule, PerToken, "breaks the chain rule"),
        (batch, LeaksAcrossTheBatch, "in a batch, but .* alone"),
        (batch, LosesTheOrder, "in a batch"),
        (batch, LeaksFromTheLeft, "in a batch"),
        (batch, NotANumber, "log-likelihood of nan"),
        (batch, DropsOne, "gave 3 scores for 4 requests"),
        (normalised, PerToken, "not normalised"),
        (complete, PaysPerCall, "sum to 0.9"),
        (trie, LeaksFromTheLeft, "by the plain scorer"),
        (sampling, SamplesHotter, "reported log-probability"),
        (sampling, SeedsByPosition, "must depend on its seed only"),
        (sampling, Miscounts, "none of 12 sampled traces"),
    ],
)
def test_a_liar_is_caught(law, liar, words):
    with pytest.raises(testing.LawViolation, match=words):
        law(liar())


def test_a_positive_log_likelihood_is_named():
    class Positive(Wrapper):
        def log_likelihood(self, requests):
            return [Score(0.5, 1, 1) for _ in requests]

    with pytest.raises(testing.LawViolation, match="log-likelihood of 0.5; wanted at most 0"):
        normalised(Positive())


def test_continuations_that_begin_one_another_are_refused():
    with pytest.raises(ValueError, match="end_of_answer"):
        testing.check_normalised(Wrapper(), CONTEXT, [" 4", " 42"])
