"""Scoring as anyone would write it first: one request, one forward pass, the whole softmax."""

from typing import Any

import torch

from bayesmeta.llm.base import Score, ScoreRequest


@torch.inference_mode()
def plain_score(model: Any, tokenizer: Any, request: ScoreRequest) -> Score:
    """Sum of log p(token | all tokens before it), in nats, over the continuation's tokens."""
    context = tokenizer.encode(request.context, add_special_tokens=False)
    whole = tokenizer.encode(request.context + request.continuation, add_special_tokens=False)
    assert whole[: len(context)] == context, "this twin needs a context that tokenises alone"
    log_probs = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), dim=-1)
    total = 0.0
    for position in range(len(context), len(whole)):
        total += float(log_probs[position - 1, whole[position]])
    return Score(total, len(whole) - len(context), len(context))
