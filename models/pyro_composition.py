"""Three ways in which a strategy over skills acts on reasoning A: in torch.

The formulas are those of `bayesmeta.models.composition`.
"""

from typing import Any

import torch
from torch import Tensor

from bayesmeta.models.composition import _LOG_ZERO


def log_answer(
    log_F: Tensor, steps: Any, composition: str, *, f_to_o: bool, g_to_a: bool
) -> Tensor:
    """log p(c | n) in nats, [candidate, task]; see `bayesmeta.models.composition.log_answer`.

    ``steps`` is a `bayesmeta.models.full_data.Steps` of tensors.
    """
    log_pi = _need("log_pi" if g_to_a else "log_pi_without_question", steps, f"g_to_a={g_to_a}")
    answers = _need("log_p" if f_to_o else "log_p_without_skill", steps, f"f_to_o={f_to_o}")
    chosen, used = steps.chosen, steps.used > 0
    taken = torch.take_along_dim(log_pi, chosen[None, :, :, None, :], 0)[0]  # [T, S, K, N]
    # Finite, because the derivative of a logsumexp over nothing but -inf is NaN.
    taken, answers = taken.clamp(min=_LOG_ZERO), answers.clamp(min=_LOG_ZERO)
    taken = torch.where(used[:, :, None, :], taken, 0.0)
    if composition == "trace_mixture":
        per_skill = log_F + taken.sum(0)  # [S, K, N]
        if f_to_o:
            joint = torch.logsumexp(per_skill + answers, 2)
        else:
            joint = torch.logsumexp(per_skill, 1) + answers
    elif composition == "step_composition":
        log_steps = torch.logsumexp(log_F + taken, 2)  # [T, S, N]
        log_trace = torch.where(used, log_steps, 0.0).sum(0)
        joint = log_trace + (torch.logsumexp(log_F + answers, 2) if f_to_o else answers)
    else:
        F = log_F.exp()
        votes = (F * log_pi.clamp(min=_LOG_ZERO)).sum(3)  # [B, T, S, N]
        log_steps = torch.log_softmax(votes, 0)
        log_steps = torch.take_along_dim(log_steps, chosen[None], 0)[0]
        log_trace = torch.where(used, log_steps, 0.0).sum(0)
        if f_to_o:
            answers = torch.log_softmax((F * answers).sum(2), 0)
        joint = log_trace + answers
    return torch.logsumexp(steps.log_weight + joint, 1)


def _need(field: str, steps: Any, because: str) -> Tensor:
    table = getattr(steps, field)
    if table is None:
        raise ValueError(
            f"the graph has {because}, but the data hold no Steps.{field}. Score the steps or "
            "answers that way, or choose a graph that reads the scores there are."
        )
    return table
