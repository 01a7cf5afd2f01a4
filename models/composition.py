"""Three ways in which a strategy over skills acts on reasoning A.

With pi_k(a_t) the probability of a step under skill k and F a point of the simplex:

    trace mixture        p(a) = sum_k F_k prod_t pi_k(a_t)
    step composition     p(a) = prod_t sum_k F_k pi_k(a_t)
    product of experts   p(a) = prod_t exp(sum_k F_k log pi_k(a_t)) / (sum over candidates)

The answer is treated as one step more. At the vertices of the simplex all three are pi_k.
"""

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float

from bayesmeta.models.full_data import Steps

#: Stands for the logarithm of zero where it is multiplied by a weight, or differentiated.
_LOG_ZERO = -1e9


def log_answer(
    log_F: Float[Array, "skill task"], steps: Steps, composition: str, *, f_to_o: bool, g_to_a: bool
) -> Float[Array, "candidate task"]:
    """log p(c | n) in nats: traces weighted by their probability under the strategy, summed out.

    Args:
      log_F: logarithm of the strategy of each task.
      steps: the traces, see `Steps`.
      composition: as in `bayesmeta.models.graph.Graph`.
      f_to_o: score answers with the skill's instruction in context.
      g_to_a: score steps given the question.
    """
    log_pi = steps.log_pi if g_to_a else steps.log_pi_without_question
    if log_pi is None:
        raise ValueError(
            "the graph has no arrow G -> A, but the data hold no step scores without the question. "
            "Give Steps.log_pi_without_question, or use g_to_a=True."
        )
    answers = steps.log_p if f_to_o else steps.log_p_without_skill
    if answers is None:
        field, value = ("log_p", False) if f_to_o else ("log_p_without_skill", True)
        raise ValueError(
            f"the graph has f_to_o={f_to_o}, but the data hold no Steps.{field}. Score the answers "
            f"that way, or use f_to_o={value}."
        )
    taken = jnp.take_along_axis(log_pi, steps.chosen[None, :, :, None, :], 0)[0]  # [T, S, K, N]
    # Finite, because the derivative of a logsumexp over nothing but -inf is NaN.
    taken, answers = jnp.maximum(taken, _LOG_ZERO), jnp.maximum(answers, _LOG_ZERO)
    used = steps.used[:, :, None, :]
    if composition == "trace_mixture":
        per_skill = log_F + jnp.where(used > 0, taken, 0.0).sum(0)  # [S, K, N]
        if f_to_o:
            joint = logsumexp(per_skill + answers, axis=2)
        else:
            joint = logsumexp(per_skill, axis=1) + answers
    elif composition == "step_composition":
        log_steps = logsumexp(log_F + taken, axis=2)  # [T, S, N]
        log_trace = jnp.where(steps.used > 0, log_steps, 0.0).sum(0)
        joint = log_trace + (logsumexp(log_F + answers, axis=2) if f_to_o else answers)
    else:
        F = jnp.exp(log_F)
        votes = (F * jnp.maximum(log_pi, _LOG_ZERO)).sum(3)  # [B, T, S, N]
        log_steps = jax.nn.log_softmax(votes, 0)
        chosen = jnp.take_along_axis(log_steps, steps.chosen[None], 0)[0]
        log_trace = jnp.where(steps.used > 0, chosen, 0.0).sum(0)
        if f_to_o:
            answers = jax.nn.log_softmax((F * answers).sum(2), 0)
        joint = log_trace + answers
    return logsumexp(steps.log_weight + joint, axis=1)
