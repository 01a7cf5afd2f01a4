"""Whether a fit may be believed, as a value: numerical failure is data, not an exception."""

import dataclasses
import enum


class Outcome(enum.Enum):
    """Each member's value is the advice that goes with it."""

    CONVERGED = "The posterior may be used."
    NOT_FINITE = (
        "The log density or its gradient was not finite. Check the evidence with "
        "`bayesmeta evidence check`, or run in 64-bit (JAX_ENABLE_X64=1)."
    )
    RHAT = "Chains disagree. Double num_warmup and num_samples, or use a tighter prior."
    ESS = "Too few effective draws. Double num_samples."
    DIVERGENCES = (
        "The sampler met curvature it cannot follow. Raise target_accept to 0.95, or switch the "
        "parametrisation of the domains (centered=True/False)."
    )
    BFMI = "Energy moves too slowly. Reparametrise, or double num_warmup."
    PARETO_K = (
        "The variational family does not cover the posterior. Use NUTS, raise num_steps, or "
        "a full-rank guide."
    )
    NOT_SETTLED = (
        "The objective was still improving. Double num_steps (num_epochs for minibatches)."
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """How a fit ended.

    Attributes:
      outcome: `Outcome.CONVERGED`, or the first test that failed.
      detail: the number that decided, and its limit.
      diagnostics: every diagnostic computed, by name.
    """

    outcome: Outcome
    detail: str
    diagnostics: dict[str, float]

    @property
    def converged(self) -> bool:
        return self.outcome is Outcome.CONVERGED

    def __str__(self) -> str:
        name = self.outcome.name.lower().replace("_", " ")
        return f"{name}: {self.detail} {self.outcome.value}"
