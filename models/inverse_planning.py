"""Which skill was this reasoning following? Bayesian inverse planning over latent skills.

    mu: skill prior          w = softmax(mu), the strategy F
    beta_a: rationality      pi_k(a | s) = softmax_a(beta_a Q_k(s, a)) over explicit candidates
    g_n ~ Categorical(rho_n) the goal, where it is not known
    z_n ~ Categorical(w)     static: one skill a trace
    z_nt: sticky chain       switching: with probability ``switch`` a step draws its skill afresh

for steps a_nt of trace n, pi_k under the goal g_n (Baker, Saxe & Tenenbaum 2009, with skills beside
goals). Q is the language model's log-probability of a candidate step under a skill's prompt.
Candidates are explicit and pi is renormalised over them, so what all skills share in a state
cancels, and with Q given, beta_a is identified: 1 is a reasoner that writes as the model would
under that skill. The outcome plays no part unless it is given: where F -> O is off, it says nothing
of the skill beyond the steps.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Bool, Float, Int
from numpyro.distributions import Distribution, constraints

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.draw import draw
from bayesmeta.models.hmm import log_evidence, most_probable, smoothed, sticky
from bayesmeta.models.log_sum_exp import log_sum_exp
from bayesmeta.models.prior import Prior, SitePrior

#: Logit of a candidate that is not there: its probability is exactly 0 in float32.
ABSENT = -1e9

#: Skills about equally likely beforehand; a reasoner of about the model's own rationality.
STATIC = Prior(
    "static",
    {
        "u": SitePrior("Normal", {"loc": 0.0, "scale": 1.0}),
        "beta_a": SitePrior("LogNormal", {"loc": 0.0, "scale": 0.5}),
    },
)
#: Skills last for some steps: they change at about one step in ten.
SWITCHING = STATIC.replace(
    "switching", switch=SitePrior("Beta", {"concentration1": 1.0, "concentration0": 9.0})
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class TraceData:
    """What the model conditions on: N traces of up to T steps, B candidates a step, K skills.

    Attributes:
      log_q: [N, G, T, B, K] Q under each of G possible goals, nats; `ABSENT` where there is no
        such candidate. G is 1 where goals are known.
      chosen: [N, T] the candidate that was written.
      seen: [N, T] whether the step is there and was seen. A hidden one is summed over; steps
        beyond a trace's end are not seen either, which comes to the same.
      log_goal: [N, G] log rho, nats; `ABSENT` where a trace has fewer possible goals.
      log_outcome: [N, G, K] log p(o_n | steps, goal, skill of the last step seen), nats; zeros
        leave outcomes out.
    """

    log_q: Float[Array, "trace goal step choice skill"]
    chosen: Int[Array, "trace step"]
    seen: Bool[Array, "trace step"]
    log_goal: Float[Array, "trace goal"]
    log_outcome: Float[Array, "trace goal skill"]


def inverse_planning(data: TraceData, prior: Prior = STATIC) -> None:
    """The NumPyro program. Sites: u, beta_a, and ``switch`` where the prior names it; ``steps``.

    mu [K] and F [K] are deterministic sites. Goals and skills are summed out, one factor per trace.
    """
    num_skills = data.log_q.shape[-1]
    switching = "switch" in prior.sites
    prior.require("u", "beta_a", *(("switch",) if switching else ()))
    prior.require_support(beta_a="positive", **({"switch": "unit"} if switching else {}))
    mu = jnp.asarray(contrast(num_skills), data.log_q.dtype) @ draw("u", prior, (num_skills - 1,))
    numpyro.deterministic("mu", mu)
    numpyro.deterministic("F", jax.nn.softmax(mu))
    beta_a = draw("beta_a", prior)
    switch = draw("switch", prior) if switching else None
    steps = PlannedSteps(jax.nn.log_softmax(mu), beta_a, data, switch)
    with numpyro.plate("trace", data.chosen.shape[0]):
        numpyro.sample("steps", steps, obs=data.chosen)


def step_log_likelihood(
    data: TraceData, beta_a: Array, chosen: Array | None = None
) -> Float[Array, "trace goal step skill"]:
    """log pi_k(a_nt | s_nt, g), nats; 0 where a step was not seen. Outcomes join the last seen."""
    chosen = data.chosen if chosen is None else chosen
    return jnp.moveaxis(_steps_by_trace(data, beta_a, chosen), -1, 0)


def _steps_by_trace(
    data: TraceData, beta_a: Array, chosen: Array
) -> Float[Array, "goal step skill trace"]:
    """As `step_log_likelihood`, with traces last, where loops over them are fast."""
    log_q = jnp.moveaxis(data.log_q, 0, -1)
    # Picked before it is multiplied: the derivative of picking is scattering, which is slow.
    taken = jnp.take_along_axis(log_q, chosen.T[None, :, None, None], axis=2)[:, :, 0]
    log_pi = beta_a * taken - log_sum_exp(beta_a * log_q, 2)
    seen = data.seen.T  # [T, N]
    later = jnp.cumsum(seen[::-1], 0)[::-1]  # steps seen from here on
    last = (seen & (later == 1))[:, None, :]
    log_outcome = jnp.moveaxis(data.log_outcome, 0, -1)[:, None]
    return jnp.where(seen[:, None, :], log_pi, 0.0) + jnp.where(last, log_outcome, 0.0)


class PlannedSteps(Distribution):
    """Candidates chosen along each trace, goals and skills, or chains of skills, summed out.

    Args:
      log_weight: [skill] log w.
      beta_a: rationality.
      data: all but ``chosen``, which is the value.
      switch: probability that a step draws its skill afresh; None for one skill a trace.
    """

    arg_constraints = {}
    support: Any = constraints.independent(constraints.nonnegative_integer, 1)
    pytree_data_fields = ("log_weight", "beta_a", "data", "switch")

    def __init__(self, log_weight, beta_a, data: TraceData, switch=None, *, validate_args=None):
        self.log_weight, self.beta_a, self.data, self.switch = log_weight, beta_a, data, switch
        shape = data.seen.shape
        super().__init__(shape[:1], shape[1:], validate_args=validate_args)

    def log_prob(self, value: Int[Array, "trace step"]) -> Float[Array, " trace"]:
        return jax.nn.logsumexp(self.data.log_goal + self.log_goal_evidence(value), axis=-1)

    def log_goal_evidence(self, value: Int[Array, "trace step"]) -> Float[Array, "trace goal"]:
        """log p(steps | goal), skills summed out."""
        steps = _steps_by_trace(self.data, self.beta_a, value)
        if self.switch is None:
            return log_sum_exp(self.log_weight[:, None] + steps.sum(1), 1).T
        transition = sticky(self.log_weight, self.switch)
        return log_evidence(self.log_weight, transition, jnp.moveaxis(steps, 0, 2)).T

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """What would be chosen in the states that were met: states are given, not simulated."""
        key_goal, key_first, key_switch, key_fresh, key_step = jax.random.split(key, 5)
        data, shape = self.data, (*sample_shape, *self.data.seen.shape)
        goal = jax.random.categorical(key_goal, data.log_goal, shape=shape[:-1])
        first = jax.random.categorical(key_first, self.log_weight, shape=(*shape[:-1], 1))
        skill = jnp.broadcast_to(first, shape)
        if self.switch is not None:
            fresh = jax.random.categorical(key_fresh, self.log_weight, shape=shape)
            fresh = jnp.concatenate([first, fresh[..., 1:]], -1)
            switched = jax.random.bernoulli(key_switch, self.switch, shape).at[..., 0].set(True)

            def latest(before, now):
                (value_before, set_before), (value_now, set_now) = before, now
                return jnp.where(set_now, value_now, value_before), set_before | set_now

            skill, _ = jax.lax.associative_scan(latest, (fresh, switched), axis=-1)
        log_pi = jax.nn.log_softmax(self.beta_a * data.log_q, axis=-2)
        log_pi = jnp.broadcast_to(log_pi, (*sample_shape, *log_pi.shape))
        under_goal = jnp.take_along_axis(log_pi, goal[..., None, None, None, None], axis=-4)
        under_skill = jnp.take_along_axis(
            under_goal[..., 0, :, :, :], skill[..., None, None], axis=-1
        )
        return jax.random.categorical(key_step, under_skill[..., 0], axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """What was behind each trace, given the parameters.

    Attributes:
      log_goal: [N, G] log p(goal | steps).
      log_skill: [N, T, K] log p(skill of the step | all steps), goals summed out.
      log_evidence: [N] log p(steps).
      path: [N, T] the most probable skills under the most probable goal.
    """

    log_goal: Float[Array, "trace goal"]
    log_skill: Float[Array, "trace step skill"]
    log_evidence: Float[Array, " trace"]
    path: Int[Array, "trace step"]


def explain(data: TraceData, log_weight: Array, beta_a: Array, switch: Any = None) -> Explanation:
    """p(goals, skills | steps, parameters) by Bayes' rule; one skill a trace if switch is None."""
    planned = PlannedSteps(log_weight, beta_a, data, switch)
    joint = data.log_goal + planned.log_goal_evidence(data.chosen)
    log_goal = jax.nn.log_softmax(joint, -1)
    steps = step_log_likelihood(data, beta_a)
    if switch is None:
        total = jax.nn.log_softmax(log_weight + steps.sum(2), -1)
        skill = jnp.broadcast_to(total[:, :, None, :], steps.shape)
        path = skill.argmax(-1)
    else:
        chain = (log_weight, sticky(log_weight, switch))
        skill = jax.vmap(jax.vmap(lambda one: smoothed(*chain, one)))(steps)
        path = jax.vmap(jax.vmap(lambda one: most_probable(*chain, one)))(steps)
    best = log_goal.argmax(-1)
    return Explanation(
        log_goal,
        jax.nn.logsumexp(log_goal[:, :, None, None] + skill, axis=1),
        jax.nn.logsumexp(joint, -1),
        jnp.take_along_axis(path, best[:, None, None], 1)[:, 0],
    )
