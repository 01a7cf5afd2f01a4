"""Particles carried over episodes: iterated batch importance sampling (Chopin 2002).

Before each episode the particles stand for the posterior of all earlier ones. They are weighted by
the likelihood of the new episode, resampled, and moved by Hamiltonian Monte Carlo that leaves the
posterior of everything so far invariant. Nothing is assumed of the posterior's shape, so two modes
stay two modes, at the price of moves that look at all episodes so far. Resampling, effective
sample sizes and the kernel are BlackJAX's; its own step for partial posteriors moves particles
before it weights them, and is not used.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.reparametrise import reparametrise
from bayesmeta.inference.status import Outcome, Status
from bayesmeta.inference.stream_program import StreamProgram

#: Share of particles that must be left, in effective number, after weighting by an episode.
_FEWEST = 0.02
#: Mean acceptance of moves below which particles hardly moved.
_LEAST_ACCEPTANCE = 0.3


@dataclasses.dataclass(frozen=True, slots=True)
class SmcResult:
    """Particles after every episode.

    Attributes:
      fit: the particles after the last episode, [1, num_particles, *shape].
      history: site -> [episode, num_particles, *shape].
      log_evidence: [episode] estimates of log p(episode | earlier episodes) in nats. Their
        exponentials, and the product of these, are unbiased; the logarithms are a little low.
      ess: [episode] effective number of particles after weighting, before resampling.
      acceptance: [episode] mean acceptance probability of the moves.
    """

    fit: FitResult
    history: dict[str, np.ndarray]
    log_evidence: np.ndarray
    ess: np.ndarray
    acceptance: np.ndarray


def smc_episodes(
    model: Callable[..., Any],
    *model_args: Any,
    weights: np.ndarray,
    with_weights: Callable[[tuple[Any, ...], Any], tuple[Any, ...]],
    rng_seed: int = 0,
    num_particles: int = 1000,
    num_moves: int = 5,
    num_leapfrog: int = 10,
    step_size: float = 0.2,
    decenter: tuple[str, ...] = (),
    gaussianise: tuple[str, ...] = (),
) -> SmcResult:
    """Draws target the posterior after every episode, exactly as particles and moves increase.

    Args:
      model, model_args: a NumPyro program without discrete latent sites, and all its tasks.
      weights: [episode, task] task weights of each episode's evidence alone: 1 for its own tasks.
      with_weights: (model arguments, [task]) -> the same with these weights on the tasks.
      num_particles: 500 to 2000 are usual.
      num_moves: HMC transitions of each particle after each episode.
      num_leapfrog, step_size: of a transition, in coordinates in which the particles have unit
        variance.
      decenter, gaussianise: sites to move in other coordinates, see `reparametrise`.
    """
    import blackjax
    from blackjax.smc import resampling
    from blackjax.smc.ess import ess as effective

    start = time.perf_counter()
    program = StreamProgram.of(reparametrise(model, decenter, gaussianise), *model_args)
    kernel = blackjax.hmc.build_kernel()
    leaves, structure = jax.tree.flatten(model_args)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]

    def log_terms(z, arrays, task_weights):
        rest = iter(arrays)
        args = structure.unflatten(
            [next(rest) if given else x for x, given in zip(leaves, is_array, strict=True)]
        )
        return program.log_terms(z, *with_weights(args, task_weights))

    @jax.jit
    def episode(key, z, arrays, new, so_far):
        key_resample, key_move = jax.random.split(key)
        log_weight = jax.vmap(lambda one: log_terms(one, arrays, new)[1])(z)
        total = jax.nn.logsumexp(log_weight)
        share = jnp.exp(log_weight - total)
        chosen = z[resampling.systematic(key_resample, share, num_particles)]
        # Moves are scaled by the cloud that they start from.
        variance = jnp.maximum(chosen.var(0), 1e-8)

        def log_posterior(one):
            log_prior, log_likelihood = log_terms(one, arrays, so_far)
            return log_prior.sum() + log_likelihood

        def move(state, rng_key):
            state, info = kernel(rng_key, state, log_posterior, step_size, variance, num_leapfrog)
            return state, info.acceptance_rate

        def moved(one, rng_key):
            state = blackjax.hmc.init(one, log_posterior)
            state, rates = jax.lax.scan(move, state, jax.random.split(rng_key, num_moves))
            return state.position, rates.mean()

        z, rates = jax.vmap(moved)(chosen, jax.random.split(key_move, num_particles))
        return z, total - jnp.log(num_particles), effective(log_weight), rates.mean()

    key_prior, *keys = jax.random.split(jax.random.key(rng_seed), len(weights) + 1)
    z = _prior_draws(program, model_args, key_prior, num_particles)
    dtype = z.dtype
    arrays = [leaf for leaf, given in zip(leaves, is_array, strict=True) if given]
    constrain = jax.jit(jax.vmap(lambda one: program.constrained(one, *model_args)))
    history, facts = [], []
    for key, new, so_far in zip(keys, weights, np.cumsum(weights, 0), strict=True):
        z, *found = episode(key, z, arrays, jnp.asarray(new, dtype), jnp.asarray(so_far, dtype))
        facts.append([float(part) for part in found])
        history.append(jax.device_get(constrain(z)))
    log_evidence, ess, acceptance = np.array(facts).T
    sites = {name: np.stack([one[name] for one in history]) for name in history[0]}
    result = FitResult(
        samples={name: value[-1][None] for name, value in sites.items()},
        sample_stats={},
        status=_judge(log_evidence, ess, acceptance, num_particles),
        seconds=time.perf_counter() - start,
        settings={
            "engine": "smc_episodes",
            "rng_seed": rng_seed,
            "num_particles": num_particles,
            "num_moves": num_moves,
            "num_leapfrog": num_leapfrog,
            "step_size": step_size,
            "decenter": ",".join(decenter),
            "gaussianise": ",".join(gaussianise),
        },
    )
    return SmcResult(result, sites, log_evidence, ess, acceptance)


def _prior_draws(program: StreamProgram, model_args: tuple, key: Any, count: int) -> jax.Array:
    from numpyro import handlers
    from numpyro.distributions.transforms import biject_to

    def once(key):
        sites = handlers.trace(handlers.seed(program.model, key)).get_trace(*model_args)
        parts = [
            biject_to(sites[name]["fn"].support).inv(sites[name]["value"]).reshape(-1)
            for name, _ in program.sites
        ]
        return jnp.concatenate(parts)

    return jax.jit(jax.vmap(once))(jax.random.split(key, count))


def _judge(log_evidence, ess, acceptance, num_particles: int) -> Status:
    diagnostics = {
        "log_evidence": float(log_evidence.sum()),
        "ess": float(ess.min()),
        "acceptance": float(acceptance.min()),
    }
    if not np.isfinite(log_evidence).all():
        return Status(Outcome.NOT_FINITE, "the evidence is not finite.", diagnostics)
    if ess.min() < _FEWEST * num_particles:
        return Status(
            Outcome.ESS,
            f"only {ess.min():.0f} of {num_particles} particles were left by episode "
            f"{int(ess.argmin()) + 1}: raise num_particles, or cut it into smaller episodes.",
            diagnostics,
        )
    if acceptance.min() < _LEAST_ACCEPTANCE:
        return Status(
            Outcome.BFMI,
            f"moves were accepted with probability {acceptance.min():.2f}: lower step_size.",
            diagnostics,
        )
    return Status(
        Outcome.CONVERGED,
        f"at least {ess.min():.0f} of {num_particles} particles left by every episode.",
        diagnostics,
    )
