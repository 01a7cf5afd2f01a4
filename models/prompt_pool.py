"""Which instruction of a pool is in force? A discrete latent, one per domain.

    pi = softmax(C u): how good the pool's instructions are in general
    rho_d ~ Categorical(pi)                   the instruction in force in domain d
    O_n | rho ~ p(o_n | n, rho_d(n))^omega    the language model's answer under it

so that p(rho_d | D, pi) is proportional to pi_rho prod_{n in d} p(O_n | n, rho)^omega (math.md
5.3). Unlike Figure 2's strategy F, which draws a skill anew for every task, one instruction holds
for a whole domain: with many tasks its posterior collapses on one, right or not. omega below 1
makes each task count for less.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float, Int
from numpyro.distributions import Distribution, constraints

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.draw import draw
from bayesmeta.models.prior import Prior, SitePrior

#: A few of the pool's instructions are good in most domains, which ones is not known.
PROMPT_POOL = Prior(
    "prompt_pool",
    {
        "u": SitePrior("LogisticDirichlet", {"concentration": 0.5}),
        "omega": SitePrior("Fixed", {"value": 1.0}),
    },
)
#: Every domain for itself, all instructions alike beforehand.
SEPARATE_DOMAINS = PROMPT_POOL.replace("separate_domains", u=SitePrior("Fixed", {"value": 0.0}))
PROMPT_POOL_PRIORS: dict[str, Prior] = {one.name: one for one in (PROMPT_POOL, SEPARATE_DOMAINS)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class PoolData:
    """What the model conditions on: N tasks of D domains, R instructions.

    Attributes:
      log_p: [N, R, C] log p(c | n, rho), normalised over candidates, nats.
      gold: [N] the answer observed.
      domain: [N] indices below D.
      num_domains: D. Domains without tasks keep pi as their posterior.
    """

    log_p: Float[Array, "task prompt candidate"]
    gold: Int[Array, " task"]
    domain: Int[Array, " task"]
    num_domains: int = dataclasses.field(metadata={"static": True})


def prompt_pool(data: PoolData, prior: Prior = PROMPT_POOL) -> None:
    """The NumPyro program. Sites: u, omega, and the answers ``O``; instructions are summed out.

    pi [R] and rho [D, R], the probability of each instruction given the answers, are deterministic.
    """
    prior.require("u", "omega")
    prior.require_support(omega="positive")
    num_prompts = data.log_p.shape[1]
    u = draw("u", prior, (num_prompts - 1,))
    log_pi = jax.nn.log_softmax(jnp.asarray(contrast(num_prompts), data.log_p.dtype) @ u)
    numpyro.deterministic("pi", jnp.exp(log_pi))
    answers = PooledAnswers(log_pi, draw("omega", prior), data)
    numpyro.deterministic("rho", jax.nn.softmax(answers.log_joint(data.gold), -1))
    numpyro.sample("O", answers, obs=data.gold)


class PooledAnswers(Distribution):
    """Answers of all tasks, one instruction per domain summed out.

    Args:
      log_pi: [prompt].
      omega: weight of each task's log-likelihood; a distribution of answers only at 1.
      data: all but ``gold``, which is the value.
    """

    arg_constraints = {}
    support: Any = constraints.independent(constraints.nonnegative_integer, 1)
    pytree_data_fields = ("log_pi", "omega", "data")

    def __init__(self, log_pi, omega, data: PoolData, *, validate_args=None):
        self.log_pi, self.omega, self.data = log_pi, omega, data
        super().__init__((), data.gold.shape, validate_args=validate_args)

    def log_joint(self, value: Int[Array, " task"]) -> Float[Array, "domain prompt"]:
        """log p(rho_d, answers of domain d)."""
        taken = jnp.take_along_axis(self.data.log_p, value[:, None, None], axis=2)[..., 0]
        total = jnp.zeros((self.data.num_domains, taken.shape[1]), taken.dtype)
        return self.log_pi + self.omega * total.at[self.data.domain].add(taken)

    def log_prob(self, value: Int[Array, " task"]) -> Float[Array, ""]:
        return jax.nn.logsumexp(self.log_joint(value), axis=-1).sum()

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        key_prompt, key_answer = jax.random.split(key)
        shape = (*sample_shape, self.data.num_domains)
        rho = jax.random.categorical(key_prompt, self.log_pi, shape=shape)[..., self.data.domain]
        log_p = jnp.broadcast_to(self.data.log_p, (*sample_shape, *self.data.log_p.shape))
        under = jnp.take_along_axis(log_p, rho[..., None, None], axis=-2)[..., 0, :]
        return jax.random.categorical(key_answer, under, axis=-1)
