"""Whether a Gaussian fit may be believed, by Pareto k-hat and by what the optimiser left."""

import numpy as np

from bayesmeta.inference.pareto import max_pareto_k, pareto_smooth
from bayesmeta.inference.status import Outcome, Status

#: Gains still to be had that would not change a conclusion, in nats of the ELBO.
SETTLED_WITHIN = 0.1


def judge(log_ratios: np.ndarray, gain: float) -> Status:
    """Whether a Gaussian fit may be believed.

    Args:
      log_ratios: [draw] log p(z, data) - log q(z) in nats at fresh draws of the guide.
      gain: nats of ELBO that the optimiser left, by a quadratic model.
    """
    _, pareto_k = pareto_smooth(log_ratios)
    limit = max_pareto_k(len(log_ratios))
    diagnostics = {
        "elbo": float(log_ratios.mean()),
        "pareto_k": pareto_k,
        "log_ratio_sd": float(log_ratios.std()),
        "gain_left": gain,
    }
    if not (np.isfinite(log_ratios.mean()) and np.isfinite(gain)):
        return Status(Outcome.NOT_FINITE, "the ELBO is not finite.", diagnostics)
    if gain > SETTLED_WITHIN:
        return Status(
            Outcome.NOT_SETTLED, f"about {gain:.2g} nats of ELBO were left to gain.", diagnostics
        )
    if pareto_k >= limit:
        return Status(Outcome.PARETO_K, f"Pareto k-hat {pareto_k:.2f} >= {limit:.2f}.", diagnostics)
    return Status(Outcome.CONVERGED, f"Pareto k-hat {pareto_k:.2f} < {limit:.2f}.", diagnostics)
