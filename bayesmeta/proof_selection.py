"""Cells of the table of proofs for choices: instructions of a pool, modules of an adapter."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Float
from numpyro import distributions as dist
from numpyro.distributions import constraints

from bayesmeta.models.module_selection import (
    LEARNED_SHARE,
    ModuleData,
    included_modules,
    log_evidence,
)
from bayesmeta.models.prompt_pool import PROMPT_POOL, PoolData, prompt_pool
from bayesmeta.proof_cells import Case, ProofCell, batched, only_full
from bayesmeta.proof_data import SHARPNESS, Sizes


def cells() -> list[ProofCell]:
    """In the order of the table."""
    pool = ProofCell(
        "prompt_pool",
        "nuts",
        _pool,
        batched(num_samples=1500),
        sizes=Sizes(num_tasks=36, num_skills=4, num_domains=12),
        tiny=Sizes(num_tasks=6, num_skills=3, num_domains=3),
        replications=only_full(200),
        ranked=("pi[0]",),
        source=__name__,
    )
    modules = ProofCell(
        "module_selection",
        "nuts and gibbs",
        _modules(),
        batched(indicators=True, num_samples=800),
        sizes=Sizes(num_tasks=25, num_domains=8),
        tiny=Sizes(num_tasks=5, num_domains=3),
        replications=only_full(200),
        ranked=("num_included",),
        double=True,
        source=__name__,
        minutes=4.0,
        note="a model whose answers are linear in the weights",
    )
    return [
        pool,
        modules,
        dataclasses.replace(
            modules,
            model="module_selection, answers counted twice",
            case=_modules(twice=True),
            must_fail=True,
            note="the likelihood squared",
        ),
    ]


def _pool(sizes: Sizes) -> Case:
    from bayesmeta.proof_enumeration_reasoning import prompt_pool_log_joint

    rng = np.random.default_rng(0)
    shape = (sizes.num_tasks, sizes.num_skills, sizes.num_candidates)
    real = jnp.result_type(float)
    data = PoolData(
        log_p=jax.nn.log_softmax(jnp.asarray(SHARPNESS * rng.normal(size=shape), real), -1),
        gold=jnp.zeros(sizes.num_tasks, jnp.int32),
        domain=jnp.asarray(np.arange(sizes.num_tasks) % sizes.num_domains),
        num_domains=sizes.num_domains,
    )
    return Case(
        prompt_pool,
        data,
        lambda data, found: dataclasses.replace(data, gold=found["O"]),
        lambda sites, data: prompt_pool_log_joint(sites, data, PROMPT_POOL),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class LinearAnswers:
    """Answers that are linear in the weights of modules, whose expansion is exact.

    Attributes:
      K: [module, row, row] covariance that each module gives the answers.
      y: [row].
      times: how often the answers are counted: more than once is wrong.
    """

    K: Float[Array, "module row row"]
    y: Float[Array, " row"]
    times: int = dataclasses.field(default=1, metadata={"static": True})


def linear_answers(inputs: LinearAnswers) -> None:
    """The program of `module_selection`, with answers that can be drawn.

    y = sum_m s_m X_m w_m + noise of variance 1, so that H is the identity and b is y.
    """
    s, tau = included_modules(len(inputs.K), LEARNED_SHARE)
    numpyro.deterministic("num_included", s.sum())
    numpyro.sample("y", _GivenModules(s, tau, inputs.K, inputs.times), obs=inputs.y)


class _GivenModules(dist.Distribution):
    """p(y | s, tau), weights integrated out, by the evidence that the model computes."""

    arg_constraints = {}
    support: Any = constraints.real_vector
    pytree_data_fields = ("s", "tau", "K")
    pytree_aux_fields = ("times",)

    def __init__(self, s, tau, K, times, *, validate_args=None):
        self.s, self.tau, self.K, self.times = s, tau, K, times
        super().__init__((), K.shape[1:2], validate_args=validate_args)

    def log_prob(self, value: Any) -> Array:
        seen = ModuleData(G=self.K, v=self.K @ value, q=value @ (self.K @ value).T)
        nothing: Any = dist.Normal(0.0, 1.0).log_prob(value)
        return self.times * (nothing.sum() + log_evidence(seen, self.s, self.tau))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        covariance = jnp.tensordot(self.s * self.tau**2, self.K, 1) + jnp.eye(self.K.shape[1])
        return dist.MultivariateNormal(0.0, covariance).sample(key, sample_shape)


def _modules(twice: bool = False) -> Callable[[Sizes], Case]:
    def observed(inputs: LinearAnswers, found: Mapping[str, Any]) -> LinearAnswers:
        return dataclasses.replace(inputs, y=found["y"], times=2 if twice else 1)

    def case(sizes: Sizes) -> Case:
        from bayesmeta.proof_enumeration_reasoning import linear_answers_log_joint

        def enumeration(sites: Mapping[str, Any], inputs: LinearAnswers) -> float:
            return linear_answers_log_joint(
                sites, np.asarray(inputs.K), np.asarray(inputs.y), LEARNED_SHARE
            )

        rng = np.random.default_rng(0)
        X = 0.7 * rng.normal(size=(sizes.num_domains, sizes.num_tasks, sizes.num_choices))
        K = jnp.asarray(X @ X.swapaxes(1, 2), jnp.result_type(float))
        inputs = LinearAnswers(K, jnp.zeros(sizes.num_tasks, K.dtype))
        return Case(linear_answers, inputs, observed, None if twice else enumeration)

    return case
