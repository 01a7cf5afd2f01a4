"""Laws that every `AbstractLLM` must obey, to be called from your own tests.

Log-likelihoods are used as those of a probability distribution, so an implementation that breaks
one of these laws makes every posterior wrong, silently. Each check returns nothing if the law
holds and raises `LawViolation` with the numbers if not:

    from bayesmeta import testing

    def test_my_llm():
        testing.check_chain_rule(MyLLM(), "Question: 2 + 2?\\nAnswer:", [" 4", "\\n"])
"""

import math
from collections.abc import Callable, Sequence

from bayesmeta.llm.base import AbstractLLM, Sampling, Score, ScoreRequest


class LawViolation(AssertionError):
    """A language model is not the probability distribution that it claims to be."""


def check_chain_rule(
    llm: AbstractLLM, context: str, parts: Sequence[str], *, tolerance: float = 1e-3
) -> None:
    """``log p(c1 c2 ... | x) = log p(c1 | x) + log p(c2 | x c1) + ...``.

    Args:
      llm: the model to check.
      context: the prompt x.
      parts: pieces c1, c2, ... of a continuation. Cut where the tokeniser also cuts, such as
        before a space: a piece that merges with its neighbour is another event.
      tolerance: largest allowed difference, in nats.

    Raises:
      LawViolation: the two sides differ, or some log-likelihood is positive or NaN.
    """
    requests = [ScoreRequest(context, "".join(parts))]
    for i, part in enumerate(parts):
        requests.append(ScoreRequest(context + "".join(parts[:i]), part))
    whole, *pieces = _log_likelihoods(llm, requests)
    if not _close(whole, math.fsum(pieces), tolerance):
        raise LawViolation(
            f"{llm.name} breaks the chain rule on {''.join(parts)!r}: {whole:.6f} nats as a whole, "
            f"but {' + '.join(f'{piece:.6f}' for piece in pieces)} = {math.fsum(pieces):.6f} "
            f"piece by piece. {_AT_MOST.format(tolerance)}"
        )


def check_batch_matches_single(
    llm: AbstractLLM, requests: Sequence[ScoreRequest], *, tolerance: float = 1e-3
) -> None:
    """A request scores the same alone, and with others in either order.

    Raises:
      LawViolation: some score depends on its company.
    """
    together = _log_likelihoods(llm, requests)
    backwards = _log_likelihoods(llm, requests[::-1])[::-1]
    alone = [_log_likelihoods(llm, [request])[0] for request in requests]
    for other, how in ((alone, "alone"), (backwards, "in a batch of the opposite order")):
        _compare(llm, requests, together, other, "in a batch", how, tolerance)


def check_normalised(
    llm: AbstractLLM,
    context: str,
    continuations: Sequence[str],
    *,
    complete: bool = False,
    tolerance: float = 1e-3,
) -> None:
    """Probabilities of texts that exclude each other sum to at most one; to one if complete.

    Args:
      llm: the model to check.
      context: the prompt.
      continuations: texts none of which begins another, such as answers closed by
        ``llm.end_of_answer``.
      complete: whether they are all that may follow.
      tolerance: by how much the sum may be off.

    Raises:
      LawViolation: the sum is too large, or too small for a complete set.
      ValueError: the continuations do not exclude each other.
    """
    ordered = sorted(continuations)
    for left, right in zip(ordered, ordered[1:], strict=False):
        if right.startswith(left):
            raise ValueError(
                f"{left!r} begins {right!r}, so the two are not exclusive. "
                "Close every continuation with llm.end_of_answer."
            )
    scores = _log_likelihoods(llm, [ScoreRequest(context, text) for text in continuations])
    total = math.fsum(map(math.exp, scores))
    if total > 1 + tolerance or (complete and total < 1 - tolerance):
        raise LawViolation(
            f"{llm.name} is not normalised after {context[-40:]!r}: the probabilities of "
            f"{len(scores)} exclusive continuations sum to {total:.6f}, wanted "
            f"{'' if complete else 'at most '}1 within {tolerance:g}."
        )


def check_trie_matches_plain(
    llm: AbstractLLM,
    requests: Sequence[ScoreRequest],
    plain: Callable[[ScoreRequest], float | Score],
    *,
    tolerance: float = 1e-3,
) -> None:
    """Scoring that shares work among requests equals scoring each by itself.

    Args:
      llm: the model to check.
      requests: requests that share prefixes, or there is nothing to check.
      plain: an obvious scorer of one request, in nats.
      tolerance: largest allowed difference, in nats.

    Raises:
      LawViolation: some score differs.
    """
    shared = _log_likelihoods(llm, requests)
    single = [
        value.log_likelihood if isinstance(value, Score) else float(value)
        for value in map(plain, requests)
    ]
    _compare(
        llm, requests, shared, single, "with shared prefixes", "by the plain scorer", tolerance
    )


def check_sampling_matches_scores(
    llm: AbstractLLM,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> None:
    """A sampled trace reports the log-probability that scoring its text gives.

    Also: a seed fixes its trace, whatever else is in the batch. Traces whose text is tokenised in
    another way than it was generated are another event, so they are passed over.

    Raises:
      LawViolation: the numbers differ, the trace of a seed depends on the batch, or not one
        trace of the whole set could be compared.
    """
    seeds = list(range(seed, seed + len(prompts)))
    proper = Sampling()
    traces = llm.sample(prompts, seeds=seeds, max_new_tokens=max_new_tokens, sampling=proper)
    requests = [
        ScoreRequest(prompt, trace.text + (llm.end_of_answer if trace.stopped else ""))
        for prompt, trace in zip(prompts, traces, strict=True)
    ]
    compared = 0
    for request, trace, score in zip(requests, traces, llm.log_likelihood(requests), strict=True):
        # A replacement character stands for bytes that are no text, so the tokens are lost.
        if score.num_tokens != trace.num_tokens or "\ufffd" in trace.text:
            continue
        compared += 1
        if not _close(trace.log_prob, score.log_likelihood, tolerance):
            raise LawViolation(
                f"{llm.name} sampled {trace.text!r} with a reported log-probability of "
                f"{trace.log_prob:.6f} nats, but scores it {score.log_likelihood:.6f} after "
                f"{request.context[-40:]!r}. {_AT_MOST.format(tolerance)}"
            )
    if not compared:
        raise LawViolation(
            f"{llm.name}: none of {len(traces)} sampled traces scores to as many tokens as it "
            "says it generated, so none could be compared. Sample fewer new tokens, or check "
            "num_tokens and end_of_answer."
        )
    middle = len(prompts) // 2
    (again,) = llm.sample(
        prompts[middle : middle + 1],
        seeds=seeds[middle : middle + 1],
        max_new_tokens=max_new_tokens,
        sampling=proper,
    )
    if again.text != traces[middle].text:
        raise LawViolation(
            f"{llm.name}: seed {seeds[middle]} gives {traces[middle].text!r} in a batch of "
            f"{len(prompts)}, but {again.text!r} alone. A trace must depend on its seed only."
        )


_AT_MOST = "They may differ by at most {:g}."


def _log_likelihoods(llm: AbstractLLM, requests: Sequence[ScoreRequest]) -> list[float]:
    scores = llm.log_likelihood(requests)
    if len(scores) != len(requests):
        raise LawViolation(f"{llm.name} gave {len(scores)} scores for {len(requests)} requests.")
    for request, score in zip(requests, scores, strict=True):
        # The comparison is written so that NaN fails it too.
        if not score.log_likelihood <= 0:
            raise LawViolation(
                f"{llm.name} gives {request.continuation!r} a log-likelihood of "
                f"{score.log_likelihood}; wanted at most 0."
            )
    return [score.log_likelihood for score in scores]


def _compare(
    llm: AbstractLLM,
    requests: Sequence[ScoreRequest],
    left: Sequence[float],
    right: Sequence[float],
    left_name: str,
    right_name: str,
    tolerance: float,
) -> None:
    for request, a, b in zip(requests, left, right, strict=True):
        if not _close(a, b, tolerance):
            raise LawViolation(
                f"{llm.name} scores {request.continuation!r} after {request.context[-40:]!r} as "
                f"{a:.6f} nats {left_name}, but {b:.6f} {right_name}. {_AT_MOST.format(tolerance)}"
            )


def _close(a: float, b: float, tolerance: float) -> bool:
    # Equal infinities are equal; their difference is not a number.
    return a == b or abs(a - b) <= tolerance
