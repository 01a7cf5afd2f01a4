"""A pool of skill instructions as a discrete latent: they compete by the evidence for each.

Evidence is that of `bayesmeta.observe` with one skill for each instruction, see `prompt_skills`.
What comes out are weights over instructions for every task, to be judged beside picking the single
best one and stacking by `bayesmeta.heldout_table`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from bayesmeta.fitting import reflect_part
from bayesmeta.models.prior import Prior
from bayesmeta.posterior import group
from bayesmeta.skill_scores import SkillScores, skill_scores
from bayesmeta.skills import Skill
from bayesmeta.tasks import REFLECT


def prompt_skills(instructions: Mapping[str, str] | Sequence[str]) -> tuple[Skill, ...]:
    """One skill that answers at once for each instruction of a pool.

    Args:
      instructions: name -> instruction; a plain list is named by position.

    Raises:
      ValueError: fewer than two instructions, or one that is there twice.
    """
    if not isinstance(instructions, Mapping):
        instructions = {f"prompt_{i}": text for i, text in enumerate(instructions)}
    texts = [text.strip() for text in instructions.values()]
    if len(texts) < 2:
        raise ValueError(f"a pool needs at least two instructions, got {texts}.")
    if len(set(texts)) != len(texts):
        twice = sorted({text for text in texts if texts.count(text) > 1})
        raise ValueError(f"the pool has {twice[0]!r} twice. Each instruction may be there once.")
    return tuple(Skill(name, text) for name, text in instructions.items())


def pool_posterior(
    log_likelihood: Float[np.ndarray, "task prompt"],
    log_prior: Float[np.ndarray, " prompt"] | None = None,
    omega: float = 1.0,
) -> Float[np.ndarray, " prompt"]:
    """p(rho | D) for one instruction that holds for all tasks, exactly: math.md 5.3.

    Args:
      log_likelihood: of each task's observed answer under each instruction, nats.
      log_prior: nats, up to a constant; None for equal probabilities.
      omega: weight of each task's log-likelihood.
    """
    total = omega * np.asarray(log_likelihood, np.float64).sum(0)
    if log_prior is not None:
        total = total + log_prior
    raised = np.exp(total - total.max())
    return raised / raised.sum()


def fit_pool(
    evidence: xr.Dataset, prior: Prior | None = None, *, rng_seed: int = 0, **settings: Any
) -> xr.DataTree:
    """The hierarchical posterior over one instruction per domain, by NUTS.

    Args:
      evidence: of `bayesmeta.observe`; its reflect tasks are learned from.
      prior: see `bayesmeta.models.prompt_pool`; default `PROMPT_POOL` there.
      rng_seed, settings: see `bayesmeta.inference.nuts.nuts`.

    Returns:
      A DataTree; ``pi`` [prompt] is the pool's general worth, ``rho`` [domain, prompt] the
      probability of each instruction in each domain.

    Raises:
      ValueError: no reflect task.
    """
    import jax.numpy as jnp

    from bayesmeta.inference.nuts import nuts
    from bayesmeta.models.prompt_pool import PROMPT_POOL, PoolData, prompt_pool
    from bayesmeta.posterior_tree import datatree

    prior = PROMPT_POOL if prior is None else prior
    scores = skill_scores(reflect_part(evidence))
    if not len(scores.gold):
        raise ValueError(
            f"no task of the evidence has split {REFLECT!r}, so there is nothing to learn from."
        )
    names = sorted(set(map(str, scores.domain)))
    domain = np.array([names.index(str(one)) for one in scores.domain])
    data = PoolData(
        log_p=jnp.asarray(np.maximum(scores.log_p, -1e9), jnp.result_type(float)),
        gold=jnp.asarray(scores.gold),
        domain=jnp.asarray(domain),
        num_domains=len(names),
    )
    result = nuts(prompt_pool, data, prior, rng_seed=rng_seed, **settings)
    return datatree(
        result,
        prompt_pool,
        (data, prior),
        observed={"O": scores.gold},
        constant={"domain_of_task": domain},
        coords={
            "prompt": list(scores.skills),
            "domain": names,
            "task": list(map(str, reflect_part(evidence)["task"].values)),
        },
        dims={
            "pi": ["prompt"],
            "rho": ["domain", "prompt"],
            "u": ["contrast"],
            "O": ["task"],
            "domain_of_task": ["task"],
        },
        attributes={"model": "prompt_pool", "prior": prior.to_json()},
    )


def pool_strategies(
    tree: xr.DataTree, reflect: SkillScores, heldout: SkillScores
) -> dict[str, Float[np.ndarray, "task prompt"]]:
    """Weights over instructions for held-out tasks, for `bayesmeta.heldout_table`.

    ``posterior`` is that of `fit_pool`, domain by domain, and pi in domains that it has not seen;
    ``one prompt for all, posterior`` is `pool_posterior`. Picking the single best, by all tasks or
    by domain, and stacking are among the baselines of the table.
    """
    posterior = group(tree, "posterior")
    mean = {name: posterior[name].mean(("chain", "draw")) for name in ("pi", "rho")}
    known = list(map(str, mean["rho"]["domain"].values))
    by_domain = dict(zip(known, mean["rho"].values, strict=True))
    one = pool_posterior(reflect.log_likelihood)
    return {
        "posterior": np.stack([by_domain.get(str(d), mean["pi"].values) for d in heldout.domain]),
        "one prompt for all, posterior": np.tile(one, (len(heldout.domain), 1)),
    }
