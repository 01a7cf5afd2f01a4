"""Meta-reflection in two levels: first the strategy F, then Theta_I and Theta_E.

Yan et al. (ICML 2025) describe meta-reflection as bilevel: optimise F, then the meta-parameters.
As inference that is variational EM for q(Theta) prod_n q_n(F):

    inner   q_n(k) propto exp{ E_q(Theta)[log w_nk] + L_nk + R_nk / tau }
    outer   q(Theta) = argmax E_q[ sum_nk q_n(k) log w_nk(Theta) + log prior(Theta) ] + entropy

Both raise one objective, a bound on log evidence, so it cannot fall. Summing F out of the target
first, as `streaming` does, needs no alternation and gives a tighter bound; the price of the two
levels is that q_n and q(Theta) are taken to be independent, which makes q(Theta) too narrow.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.status import Outcome, Status
from bayesmeta.inference.stream_fits import climb, fixed_noise, guide_covariance
from bayesmeta.inference.streaming import Stream, StreamState
from bayesmeta.inference.svi_natural import Gaussian

#: Nats of the bound per alternation below which the alternation has settled.
_SETTLED = 1e-4


@dataclasses.dataclass(frozen=True, slots=True)
class BilevelResult:
    """What two-level reflection came to.

    Attributes:
      state: the belief over Theta, as `streaming` carries it.
      responsibilities: [N, K] q_n(k).
      bound: [alternation] the objective after each outer step, in nats.
      fit: draws from the belief, and whether the alternation settled.
    """

    state: StreamState
    responsibilities: np.ndarray
    bound: np.ndarray
    fit: FitResult


def bilevel(
    stream: Stream,
    state: StreamState | None,
    *model_args: Any,
    log_strategy: Callable[[Mapping[str, Any], tuple[Any, ...]], Any],
    log_likelihood: np.ndarray,
    reward: np.ndarray | None = None,
    tau: float = 1.0,
    weight: np.ndarray | None = None,
    num_alternations: int = 100,
    num_samples: int = 2000,
    rng_seed: int = 0,
) -> BilevelResult:
    """Take in one episode by alternating between F and Theta.

    Args:
      stream: the program, made by `Stream.of`; its own likelihood is not looked at.
      state: the belief so far, forgotten as the stream says; None before the first episode.
      model_args: the episode.
      log_strategy: (sites, model arguments) -> log w [N, K] in nats, normalised over skills.
      log_likelihood: [N, K] L, log p(outcome | task, skill) in nats.
      reward: [N, K] R_n(F), or None for none.
      tau: temperature of the reward, > 0.
      weight: [N] task weights; None for ones.
      num_alternations: the most there may be.
    """
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}. Leave reward out to ignore rewards.")
    start = time.perf_counter()
    scores = np.asarray(log_likelihood, np.float64)
    scores = scores if reward is None else scores + np.asarray(reward) / tau
    weights = np.ones(len(scores)) if weight is None else np.asarray(weight, np.float64)
    loc, precision, power = stream.prior(state)
    dtype = jnp.result_type(float)
    loc_, precision_, power_, weights_ = (
        jnp.asarray(part, dtype) for part in (loc, precision, power, weights)
    )

    def strategy(z):
        return log_strategy(stream.program.constrained(z, *model_args), model_args)

    def outer(z, r):
        log_prior, _ = stream.program.log_terms(z, *model_args)
        moved = z - loc_
        expected = (weights_[:, None] * r * strategy(z)).sum()
        return expected + power_ @ log_prior - 0.5 * moved @ precision_ @ moved

    slopes = jax.jit(jax.vmap(jax.value_and_grad(outer), (0, None)))
    strategies = jax.jit(lambda z: jax.lax.map(strategy, z, batch_size=64).mean(0))
    # The noise of the outer level, or the two would not raise one and the same bound.
    noise = fixed_noise(stream.program.size)
    root = np.linalg.cholesky(precision) if precision.any() else np.eye(len(loc))
    guide, bounds, gain = Gaussian(loc, root), [], np.inf
    for _ in range(num_alternations):
        # Inner level: the best q_n given the belief over Theta, in closed form.
        expected = np.asarray(strategies(jnp.asarray(guide.place(noise), dtype)), np.float64)
        log_r = log_softmax(expected + scores, axis=1)
        r = np.exp(log_r)

        def evaluate(z: np.ndarray, r=r) -> tuple[np.ndarray, np.ndarray]:
            values, gradients = slopes(jnp.asarray(z, dtype), jnp.asarray(r, dtype))
            return np.asarray(values, np.float64), np.asarray(gradients, np.float64)

        # Outer level, from where the last one ended.
        guide, elbo, gain = climb(evaluate, guide, 50)
        entropy = (weights[:, None] * np.where(r > 0, r * (scores - log_r), 0.0)).sum()
        bounds.append(elbo + entropy)
        if len(bounds) > 1 and bounds[-1] - bounds[-2] < _SETTLED:
            break
    covariance = guide_covariance(guide)
    before = 0 if state is None else state.episode
    new = StreamState(guide.loc, covariance, before + 1)
    last_gain = bounds[-1] - bounds[-2] if len(bounds) > 1 else np.inf
    fit = FitResult(
        samples=stream.sites(new, *model_args, num_samples=num_samples, rng_seed=rng_seed),
        sample_stats={},
        status=_judge(np.array(bounds), float(last_gain), gain),
        seconds=time.perf_counter() - start,
        settings={"engine": "bilevel", "rng_seed": rng_seed, "num_samples": num_samples},
    )
    return BilevelResult(new, r, np.array(bounds), fit)


def _judge(bounds: np.ndarray, last_gain: float, gain: float) -> Status:
    diagnostics = {"elbo": float(bounds[-1]), "gain_left": max(last_gain, gain)}
    if not np.isfinite(bounds).all():
        return Status(Outcome.NOT_FINITE, "the bound is not finite.", diagnostics)
    if last_gain >= _SETTLED:
        return Status(
            Outcome.NOT_SETTLED,
            f"the last of {len(bounds)} alternations still gained {last_gain:.2g} nats.",
            diagnostics,
        )
    return Status(Outcome.CONVERGED, f"settled after {len(bounds)} alternations.", diagnostics)
