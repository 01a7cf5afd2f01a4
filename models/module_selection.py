"""Which modules of a language model are worth updating? A spike and a slab for each.

    pi: share of modules that matter       tau: how far such a module moves, in units of its scale
    s_m ~ Bernoulli(pi)
    B_m = 0 where s_m = 0, and Normal(0, (tau scale_m)^2) where s_m = 1
    answers ~ the language model with B, linearised, all B integrated out

(math.md 6.6). To second order around a point, log p(answers | f) is b . f - f' H f / 2 plus a
constant, in the change f = sum_m J_m B_m of all logits. Then with H = L L' and K_m = J_m scale_m^2
J_m', K = tau^2 sum_m s_m K_m, so that f ~ N(0, K),

    log p(answers | s, tau) = b'K b / 2 - v'(1 + L'K L)^-1 v / 2 - log |1 + L'K L| / 2,  v = L'K b.

The first two terms grow with tau^2 and their difference does not, and 1 + L'K L is the worse
conditioned the larger tau is: to be evaluated in double precision. In single precision chains stop
where tau is large, and simulation-based calibration fails.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from bayesmeta.models.draw import draw, draw_from
from bayesmeta.models.prior import Prior, SitePrior

#: One module in five matters, and moves about as far as the adapter's prior says.
SPIKE_AND_SLAB = Prior(
    "spike_and_slab",
    {
        "pi": SitePrior("Fixed", {"value": 0.2}),
        "tau": SitePrior("LogNormal", {"loc": 0.0, "scale": 1.0}),
    },
)
#: How many modules matter is to be learned.
LEARNED_SHARE = SPIKE_AND_SLAB.replace(
    "learned_share",
    pi=SitePrior("Beta", {"concentration1": 1.0, "concentration0": 4.0}),
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class ModuleData:
    """What the answers say of M modules' weights, to second order; R is the rank of H.

    Attributes:
      G: [M, R, R] L' K_m L.
      v: [M, R] L' K_m b.
      q: [M] b' K_m b.
    """

    G: Float[Array, "module row row"]
    v: Float[Array, "module row"]
    q: Float[Array, " module"]


def module_selection(data: ModuleData, prior: Prior = SPIKE_AND_SLAB) -> None:
    """The NumPyro program. Sites: pi, tau, s [M], and the factor ``answers``."""
    s, tau = included_modules(len(data.q), prior)
    numpyro.factor("answers", log_evidence(data, s, tau))


def included_modules(num_modules: int, prior: Prior) -> tuple[Array, Array]:
    """The sites pi, tau and s, of which s [module] and tau are returned."""
    prior.require("pi", "tau")
    prior.require_support(pi="unit", tau="positive")
    pi, tau = draw("pi", prior), draw("tau", prior)
    with numpyro.plate("module", num_modules):
        return draw_from("s", dist.Bernoulli(probs=pi)), tau


def log_evidence(data: ModuleData, s: Float[Array, " module"], tau: Array) -> Float[Array, ""]:
    """log p(answers | s, tau) in nats, less that of the model as it is."""
    weight = s * tau**2
    identity = jnp.eye(data.v.shape[1], dtype=data.v.dtype)
    root = jnp.linalg.cholesky(identity + jnp.tensordot(weight, data.G, 1))
    v = weight @ data.v
    solved = cho_solve((root, True), v)
    return 0.5 * (weight @ data.q - v @ solved) - jnp.log(jnp.diagonal(root)).sum()
