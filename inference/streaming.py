"""The posterior carried from episode to episode as a Gaussian: meta-reflection over a stream.

What was believed before episode t and what is believed before any episode are mixed geometrically,

    prior_t(theta) propto q_{t-1}(theta)^lambda p_0(theta)^(1 - lambda),

with a lambda of its own for every site: near 1 for what changes slowly (the internal view), lower
for what may change (the external view). That is the power prior of Ibrahim & Chen (2000) and the
stabilised forgetting of Kulhavy & Zarrop (1993); a batch of evidence is remembered for about
1 / (1 - lambda) episodes. The belief q_t is the Gaussian closest to prior_t(theta) p(D_t | theta),
by one of three rules:

* ``"vcl"``: KL(q || target) is smallest (variational continual learning, Nguyen et al. 2018,
  arXiv 1710.10628);
* ``"laplace"``: mode and curvature (online Laplace, Ritter et al. 2018, arXiv 1805.07810);
* ``"moments"``: mean and covariance of draws by NUTS (assumed density filtering, Opper 1998).

For Gaussian targets all three are the exact weighted posterior, the last up to Monte Carlo error.
``"auto"`` tries the first and takes the last where Pareto k-hat rejects it, as it often does for
the first episode of a mixture, whose posterior still has the tails of its prior.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmeta.inference.array_args import ArrayArgs
from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.reparametrise import reparametrise
from bayesmeta.inference.status import Outcome, Status
from bayesmeta.inference.stream_fits import FITS
from bayesmeta.inference.stream_program import StreamProgram
from bayesmeta.inference.svi_target import array_leaves

Method = Literal["auto", "vcl", "laplace", "moments"]


class StreamState(NamedTuple):
    """What the next episode needs.

    Attributes:
      loc: [P] mean over unconstrained coordinates, in the order of `Stream.layout`.
      covariance: [P, P].
      episode: how many episodes were taken in.
    """

    loc: np.ndarray
    covariance: np.ndarray
    episode: int


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """A program to be updated episode by episode, compiled once for episodes of equal shapes.

    Attributes:
      program: the program in the coordinates of the belief.
      compiled: name -> function of (z, arrays, prior), where prior = (loc, precision, weight):
        the log density of the target, its gradient, its Hessian, and the constrained sites.
      args: what an episode is, but for the numbers in it.
      forgetting: site -> lambda.
    """

    program: StreamProgram
    compiled: Mapping[str, Callable[..., Any]]
    args: ArrayArgs
    forgetting: Mapping[str, float]

    @classmethod
    def of(
        cls,
        model: Callable[..., Any],
        *model_args: Any,
        forgetting: Mapping[str, float] | None = None,
        decenter: tuple[str, ...] = (),
        gaussianise: tuple[str, ...] = (),
    ) -> "Stream":
        """
        Args:
          model: a NumPyro program without discrete latent sites.
          model_args: an episode, or anything of its shapes.
          forgetting: site -> lambda in (0, 1]; sites that are not named forget nothing.
          decenter, gaussianise: sites to describe in other coordinates, see `reparametrise`. A
            scale and its effects belong here: only in such coordinates is a Gaussian a fair
            description of them.

        Raises:
          ValueError: a lambda out of range or for no site, or a program that no Gaussian fits.
        """
        program = StreamProgram.of(reparametrise(model, decenter, gaussianise), *model_args)
        args, _ = ArrayArgs.of(model_args)

        def log_target(z, arrays, prior):
            loc, precision, weight = prior
            log_prior, log_likelihood = program.log_terms(z, *args.filled(arrays))
            moved = z - loc
            return log_likelihood + weight @ log_prior - 0.5 * moved @ precision @ moved

        compiled = {
            "log_target": jax.jit(log_target),
            "many": jax.jit(jax.vmap(jax.value_and_grad(log_target), (0, None, None))),
            "slopes": jax.jit(
                lambda *args: (
                    *jax.value_and_grad(log_target)(*args),
                    jax.hessian(log_target)(*args),
                )
            ),
            "sites": jax.jit(
                lambda z, arrays: jax.lax.map(
                    lambda one: program.constrained(one, *args.filled(arrays)), z, batch_size=64
                )
            ),
        }
        return cls(program, compiled, args, _checked(program, forgetting or {}))

    @property
    def layout(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(coordinate site, shape), in the order of the belief's vector."""
        return self.program.sites

    def prior(self, state: StreamState | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What an episode meets: loc [P] and precision [P, P] of what is remembered, and the
        power [sites] that the program's own prior is raised to.

        A joint Gaussian is raised to different powers by scaling its precision from both sides by
        their roots, which keeps its mean, and is the ordinary power where they are equal.
        """
        size, names = self.program.size, [name for name, _ in self.layout]
        if state is None:
            return np.zeros(size), np.zeros((size, size)), np.ones(len(names))
        if state.loc.shape != (size,) or state.covariance.shape != (size, size):
            raise ValueError(
                f"the belief has {state.loc.shape} coordinates and the program {size}: "
                f"{self.layout}. Continue a stream with the program that began it."
            )
        powers = {name: self.forgetting[name] for name in names}
        root = np.sqrt(self.program.per_coordinate(powers))
        precision = np.linalg.inv(np.asarray(state.covariance, np.float64))
        precision = root[:, None] * (precision + precision.T) / 2 * root[None, :]
        return (
            np.asarray(state.loc, np.float64),
            precision,
            np.array([1.0 - powers[name] for name in names]),
        )

    def update(
        self,
        state: StreamState | None,
        *model_args: Any,
        method: Method = "auto",
        rng_seed: int = 0,
        num_samples: int = 4000,
    ) -> tuple[StreamState, FitResult]:
        """Take in one episode.

        Args:
          state: the belief so far; None before the first episode.
          model_args: the episode, of the shapes that the stream was made with. Pad short episodes
            with tasks of weight zero. The same evidence must come only once: the stream cannot
            know that it has seen it, and would count it twice.
          method: how the next belief is found, see the module.
          rng_seed: of noise and draws.
          num_samples: draws in the result; under ``"moments"`` those of all chains together.

        Returns:
          The new belief, and draws: of the belief itself, or under ``"moments"`` of the target.
          Do not go on with the belief of a fit whose status is not converged.
        """
        if method != "auto" and method not in FITS:
            raise ValueError(f"method must be 'auto' or one of {sorted(FITS)}, got {method!r}.")
        start = time.perf_counter()
        arrays = array_leaves(model_args)
        loc, precision, weight = self.prior(state)
        dtype = jnp.result_type(float)
        prior = tuple(jnp.asarray(part, dtype) for part in (loc, precision, weight))
        used = "vcl" if method == "auto" else method

        def find(name: str) -> Any:
            # Begin at the last belief, or at zero, the middle of most priors.
            return FITS[name](self, arrays, prior, loc, rng_seed=rng_seed, num_samples=num_samples)

        found = find(used)
        if method == "auto" and found.status.outcome is Outcome.PARETO_K:
            used, found = "moments", find("moments")
        before = 0 if state is None else state.episode
        status = found.status
        finite = np.isfinite(found.loc).all() and np.isfinite(found.covariance).all()
        if status.converged and not finite:
            status = Status(Outcome.NOT_FINITE, "the belief is not finite.", status.diagnostics)
        result = FitResult(
            samples=self._sites(found.draws, arrays),
            sample_stats=found.stats,
            status=status,
            seconds=time.perf_counter() - start,
            settings={
                "engine": "streaming",
                "method": used,
                "rng_seed": rng_seed,
                "num_samples": num_samples,
                "episode": before + 1,
            },
        )
        return StreamState(found.loc, found.covariance, before + 1), result

    def sites(
        self, state: StreamState, *model_args: Any, num_samples: int = 2000, rng_seed: int = 0
    ) -> dict[str, np.ndarray]:
        """Draws from a belief: site -> [1, num_samples, *shape], deterministic sites included."""
        noise = np.random.default_rng(rng_seed).normal(size=(num_samples, self.program.size))
        draws = state.loc + noise @ np.linalg.cholesky(state.covariance).T
        return self._sites(draws[None], array_leaves(model_args))

    def _sites(self, draws: np.ndarray, arrays: list[Any]) -> dict[str, np.ndarray]:
        leading = draws.shape[:2]
        flat = jnp.asarray(draws.reshape(-1, draws.shape[-1]), jnp.result_type(float))
        sites = jax.device_get(self.compiled["sites"](flat, arrays))
        return {name: v.reshape(*leading, *v.shape[1:]) for name, v in sites.items()}


def _checked(program: StreamProgram, forgetting: Mapping[str, float]) -> dict[str, float]:
    """lambda of every coordinate site, also where it was given under the site's plain name."""
    names = [name for name, _ in program.sites]
    plain = {name: name.removesuffix("_decentered") for name in names}
    unknown = sorted(set(forgetting) - set(names) - set(plain.values()))
    if unknown:
        raise ValueError(
            f"forgetting names {unknown}, which are no latent sites; known: "
            f"{sorted(set(plain.values()))}."
        )
    found = {name: float(forgetting.get(name, forgetting.get(plain[name], 1.0))) for name in names}
    for name, value in found.items():
        if not 0 < value <= 1:
            raise ValueError(
                f"forgetting of {plain[name]!r} is {value}, wanted a number in (0, 1]: 1 forgets "
                "nothing, 0.9 remembers about ten episodes."
            )
    return found
