"""What the whole of Figure 2 conditions on, as arrays. Skills come early and tasks last.

N tasks, K skills, C candidate answers, D domains, P features, Q features of what was recalled;
for reasoning seen step by step also S traces of at most T steps, each chosen among B candidates.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """Answers scored by a language model, traces averaged: node O as text.

    Attributes:
      gold: [N] the observed answers.
      log_p: [C, K, N] log p(c | n, k) in nats, normalised over candidates, scored with the skill's
        instruction and with what was recalled from memory in context.
      log_p_without_e: likewise, without what was recalled.
      log_p_without_skill: likewise, without the instruction: traces and memory only.
      log_p_plain: likewise, without either.
    """

    gold: Int[Array, " task"]
    log_p: Float[Array, "candidate skill task"] | None = None
    log_p_without_e: Float[Array, "candidate skill task"] | None = None
    log_p_without_skill: Float[Array, "candidate skill task"] | None = None
    log_p_plain: Float[Array, "candidate skill task"] | None = None

    def tables(self, f_to_o: bool) -> tuple[Array | None, Array | None]:
        """The scores with and without what was recalled, for one setting of the arrow F -> O."""
        if f_to_o:
            return self.log_p, self.log_p_without_e
        return self.log_p_without_skill, self.log_p_plain

    @staticmethod
    def need(table: Array | None, graph: Any) -> Array:
        """The table, or ValueError where the evidence was not scored in the way the graph reads."""
        if table is None:
            raise ValueError(
                f"graph {graph.name!r} has f_to_o={graph.f_to_o} and e_to_o={graph.e_to_o!r}, but "
                "the evidence was not scored that way. Score it again in that context, or choose "
                "f_to_o=True and e_to_o='on', which read the scores as they are."
            )
        return table


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Steps:
    """Reasoning step by step: node A, with the answer as its last step.

    Attributes:
      gold: [N] the observed answers.
      log_pi: [B, T, S, K, N] log-probability in nats of every candidate step under every skill,
        given the question and the steps before, normalised over candidates; -inf pads.
      chosen: [T, S, N] which candidate each trace took.
      used: [T, S, N] 1 where the trace has that step, 0 beyond its end.
      log_weight: [S, N] -log q(trace) - log S for S traces drawn from q; 0 where the traces are
        all that exist, or where the one trace was observed.
      log_p: [C, S, K, N] log-probability of each answer after each trace, with the skill's
        instruction in context.
      log_p_without_skill: [C, S, N] likewise without it.
      log_pi_without_question: as ``log_pi``, the question hidden.
    """

    gold: Int[Array, " task"]
    log_pi: Float[Array, "choice step trace skill task"]
    chosen: Int[Array, "step trace task"]
    used: Float[Array, "step trace task"]
    log_weight: Float[Array, "trace task"]
    log_p: Float[Array, "candidate trace skill task"] | None = None
    log_p_without_skill: Float[Array, "candidate trace task"] | None = None
    log_pi_without_question: Float[Array, "choice step trace skill task"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Attempts:
    """Repeated attempts, or repeated verdicts of a noisy verifier: node O as a count.

    Attributes:
      successes: [N] how many of the attempts succeeded (verdicts that said yes).
      attempts: [N] how many there were.
      log_odds: [K, N] what is known beforehand of the log-odds that an attempt under each skill
        succeeds, such as the language model's own; zeros where nothing is.
      max_attempts: at least the largest entry of ``attempts``; None where it is not known. The
        density of few attempts needs no gamma functions, which are costly. Too small a value makes
        the density NaN.
    """

    successes: Int[Array, " task"]
    attempts: Int[Array, " task"]
    log_odds: Float[Array, "skill task"]
    max_attempts: int | None = dataclasses.field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class FullData:
    """Everything observed, for `bayesmeta.models.figure2_full.figure2_full`.

    Attributes:
      outcome: `Answers`, `Steps` or `Attempts`; what the graph's outcome and composition need.
      domain: [N] index of each task's domain.
      x: [N, P] standardised features of the question.
      scale: [N] task weights, as in `bayesmeta.models.figure2.Figure2Data`.
      num_domains: D.
      num_skills: K.
      e: [N, Q] standardised features of what was recalled for the task; None for none.
      log_available: None, or [K, N]: 0 where the skill was tried on the task, else -inf.
    """

    outcome: Answers | Steps | Attempts
    domain: Int[Array, " task"]
    x: Float[Array, "task feature"]
    scale: Float[Array, " task"]
    num_domains: int = dataclasses.field(metadata={"static": True})
    num_skills: int = dataclasses.field(metadata={"static": True})
    e: Float[Array, "task evidence_feature"] | None = None
    log_available: Float[Array, "skill task"] | None = None

    @property
    def num_tasks(self) -> int:
        """N."""
        return self.domain.shape[0]

    @property
    def num_evidence_features(self) -> int:
        """Q."""
        return 0 if self.e is None else self.e.shape[1]
