"""Three ways in which a strategy over skills acts on reasoning A.

With pi_k(a_t) the probability of a step under skill k and F a point of the simplex:

    trace mixture        p(a) = sum_k F_k prod_t pi_k(a_t)
    step composition     p(a) = prod_t sum_k F_k pi_k(a_t)
    product of experts   p(a) = prod_t exp(sum_k F_k log pi_k(a_t)) / (sum over candidates)

The answer is treated as one step more. At the vertices of the simplex all three are pi_k.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bayesmeta.models.full_data import Steps
from bayesmeta.models.log_sum_exp import log_sum_exp

#: Stands for the logarithm of zero where it is multiplied by a weight, or differentiated.
_LOG_ZERO = -1e9


def log_answer(
    log_F: Float[Array, "skill task"],
    steps: Steps,
    composition: str,
    *,
    f_to_o: bool,
    g_to_a: bool,
    answer: Int[Array, " task"] | None = None,
) -> Float[Array, "candidate task"] | Float[Array, " task"]:
    """log p(c | n) in nats: traces weighted by their probability under the strategy, summed out.

    Args:
      log_F: logarithm of the strategy of each task.
      steps: the traces, see `Steps`.
      composition: as in `bayesmeta.models.graph.Graph`.
      f_to_o: score answers with the skill's instruction in context.
      g_to_a: score steps given the question.
      answer: wanted candidate of each task, [N] being returned; None for all, [C, N].
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
    # Entries are picked from data, never from what depends on parameters: the derivative of
    # picking is scattering, which is slow.
    every = answers
    if answer is not None:
        index = answer.reshape((1,) * (answers.ndim - 1) + answer.shape)
        answers = jnp.take_along_axis(answers, index, 0)
    used = steps.used[:, :, None, :]
    if composition == "trace_mixture":
        per_skill = log_F + jnp.where(used > 0, taken, 0.0).sum(0)  # [S, K, N]
        if f_to_o:
            joint = log_sum_exp(per_skill + answers, 2)
        else:
            joint = log_sum_exp(per_skill, 1) + answers
    elif composition == "step_composition":
        log_steps = log_sum_exp(log_F + taken, 2)  # [T, S, N]
        log_trace = jnp.where(steps.used > 0, log_steps, 0.0).sum(0)
        joint = log_trace + (log_sum_exp(log_F + answers, 2) if f_to_o else answers)
    else:
        F = jnp.exp(log_F)
        votes = _mean_over_skills(F, jnp.maximum(log_pi, _LOG_ZERO))  # [B, T, S, N]
        log_steps = _mean_over_skills(F, taken) - log_sum_exp(votes, 0)
        log_trace = jnp.where(steps.used > 0, log_steps, 0.0).sum(0)
        if f_to_o:
            total = log_sum_exp(_mean_over_skills(F, every), 0)
            answers = _mean_over_skills(F, answers) - total
        joint = log_trace + answers
    log_p = log_sum_exp(steps.log_weight + joint, 1)
    return log_p if answer is None else log_p[0]


def _mean_over_skills(F: Float[Array, "skill task"], x: Array) -> Array:
    """sum_k F_k x_k for x [..., K, N]; as a product of matrices, which compilers do not fuse into
    whatever reads the sum and compute again there."""
    return jnp.einsum("kn,...kn->...n", F, x, precision=jax.lax.Precision.HIGHEST)
