"""Who is preferred to whom: Bradley-Terry with ties, several judges, and what biases them.

    R = C u                          reward of each item
    d_c = a_j (R_1 - R_2 + x_c zeta_c) + g_j f_c
    P(1 wins), P(2 wins), P(tie)  proportional to  exp(d_c / 2), exp(-d_c / 2), nu_j

for comparison c by judge j (Bradley & Terry 1952; ties as in Davidson 1970). f_c is +1 where item 1
was shown first and -1 where item 2 was, so g_j is the judge's liking for what comes first; x_c are
covariates of the comparison itself, such as the difference of log lengths, so zeta_c is what they
bias. a_j is how sharply a judge tells items apart. Its geometric mean over judges is one, or it
could not be told from the scale of R; the location of R is fixed by its sum, zero.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.draw import draw
from bayesmeta.models.prior import Prior, SitePrior

#: Logit of what does not happen; its exponential is exactly 0 in float32.
NEVER = -1e4
#: Winner codes.
TIE, FIRST, SECOND = 0, 1, 2

#: Rewards of order one: the better of two items wins about three times in four.
BRADLEY_TERRY = Prior(
    "bradley_terry",
    {
        "u": SitePrior("Normal", {"loc": 0.0, "scale": 1.0}),
        "zeta": SitePrior("Normal", {"loc": 0.0, "scale": 0.5}),
        "g": SitePrior("Normal", {"loc": 0.0, "scale": 0.5}),
        "log_a": SitePrior("Normal", {"loc": 0.0, "scale": 0.5}),
        "log_nu": SitePrior("Normal", {"loc": 0.0, "scale": 1.5}),
    },
)
_ZERO = SitePrior("Fixed", {"value": 0.0})
#: Judges take no notice of what is shown first.
NO_POSITION = BRADLEY_TERRY.replace("no_position", g=_ZERO)
#: All judges tell items apart equally well.
EQUAL_JUDGES = BRADLEY_TERRY.replace("equal_judges", log_a=_ZERO)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class PreferenceData:
    """What the model conditions on: C comparisons of K items by J judges.

    Attributes:
      item_1, item_2: [C] indices below K.
      winner: [C] 1 or 2 for the item preferred, 0 for a tie.
      judge: [C] indices below J.
      order: [C] +1 where item 1 was shown first, -1 where item 2 was, 0 where nobody knows.
      x: [C, P] covariates of item 1 minus those of item 2 in this comparison.
      num_items, num_judges: K, J.
      has_ties, has_order: whether any judge ties, and whether any order is known; what is never
        seen is not in the model.
    """

    item_1: Int[Array, " comparison"]
    item_2: Int[Array, " comparison"]
    winner: Int[Array, " comparison"]
    judge: Int[Array, " comparison"]
    order: Float[Array, " comparison"]
    x: Float[Array, "comparison covariate"]
    num_items: int = dataclasses.field(metadata={"static": True})
    num_judges: int = dataclasses.field(metadata={"static": True})
    has_ties: bool = dataclasses.field(default=True, metadata={"static": True})
    has_order: bool = dataclasses.field(default=True, metadata={"static": True})


def bradley_terry(data: PreferenceData, prior: Prior = BRADLEY_TERRY) -> None:
    """The NumPyro program.

    Sites: u, and where the data call for them zeta [P], g [J], log_a [J - 1], log_nu [J]; the
    observed ``winner``. R [K] and a [J] are deterministic sites.

    Raises:
      ValueError: fewer than two items, or a prior that lacks a site or adds one.
    """
    if data.num_items < 2:
        raise ValueError(f"{data.num_items} items cannot be compared: at least two are needed.")
    prior.require("u", "zeta", "g", "log_a", "log_nu")
    J, P = data.num_judges, data.x.shape[1]
    C = jnp.asarray(contrast(data.num_items), data.x.dtype)
    R = C @ draw("u", prior, (data.num_items - 1,))
    numpyro.deterministic("R", R)
    gap = R[data.item_1] - R[data.item_2]
    if P:
        gap = gap + data.x @ draw("zeta", prior, (P,))
    if J > 1:
        a = jnp.exp(jnp.asarray(contrast(J), data.x.dtype) @ draw("log_a", prior, (J - 1,)))
        numpyro.deterministic("a", a)
        gap = gap * a[data.judge]
    if data.has_order:
        gap = gap + draw("g", prior, (J,))[data.judge] * data.order
    if data.has_ties:
        tie = draw("log_nu", prior, (J,))[data.judge]
    else:
        tie = jnp.full_like(gap, NEVER)
    preference: Any = dist.Categorical(logits=jnp.stack([tie, gap / 2, -gap / 2], -1))
    with numpyro.plate("comparison", data.winner.shape[0]):
        numpyro.sample("winner", preference, obs=data.winner)
