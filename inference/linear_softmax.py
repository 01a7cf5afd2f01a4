"""Most probable coefficients of a softmax regression under a normal prior.

What a network says is linear in its weights near where it stands. There the posterior mode of the
weights is that of logits_nc = offset_nc + x_nc . a with a ~ N(0, sd^2), which is found in no time.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize


def softmax_map(
    offset: Float[np.ndarray, "row choice"],
    x: Float[np.ndarray, "row choice coefficient"],
    chosen: Int[np.ndarray, " row"],
    sd: Float[np.ndarray, " coefficient"],
) -> Float[np.ndarray, " coefficient"]:
    """argmax of sum_n log softmax(offset_n + x_n a)[chosen_n] - sum (a / sd)^2 / 2, by L-BFGS."""
    offset, x, sd = (np.asarray(part, np.float64) for part in (offset, x, sd))
    each = np.arange(len(chosen))
    scaled = x * sd

    def objective(z):
        logits = offset + scaled @ z
        log_p = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
        wanted = -np.exp(log_p)
        wanted[each, chosen] += 1.0
        value = 0.5 * z @ z - log_p[each, chosen].sum()
        return value, z - np.einsum("nc,ncj->j", wanted, scaled)

    found = minimize(
        objective, np.zeros(len(sd)), jac=True, method="L-BFGS-B", options={"maxiter": 500}
    )
    return sd * found.x
