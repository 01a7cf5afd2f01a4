"""Meta-reflection: an episode of evidence moves what memory believes.

    memory = Memory("memory")
    for evidence in episodes:
        reflect(memory, evidence)

The step is Bayes' rule with forgetting (see `bayesmeta.inference.streaming`): the internal view
forgets slowly, the external view fast. What memory holds is replaced only by a fit that converged.
"""

import dataclasses
import functools
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from bayesmeta.arrays import Encoding, figure2_data
from bayesmeta.belief import EXTERNAL, INTERNAL, SLOTS, Belief, free_slots
from bayesmeta.fitting import reflect_part
from bayesmeta.memory import Memory

if TYPE_CHECKING:
    import pandas as pd

    from bayesmeta.inference.status import Status
    from bayesmeta.models.prior import Prior

#: Episodes are padded to a multiple of so many tasks, so that those of similar size share a
#: compilation.
_TASKS = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Forgetting:
    """How much of each view one episode leaves: it is remembered for about 1 / (1 - lambda).

    Attributes:
      internal: lambda of Theta_I, in (0, 1].
      external: lambda of Theta_E, in (0, 1].
    """

    internal: float = 0.99
    external: float = 0.7

    def by_site(self) -> dict[str, float]:
        """lambda of every site."""
        rates: dict[str, float] = {name: self.internal for name in INTERNAL}
        return rates | {name: self.external for name in EXTERNAL}


#: Nothing is forgotten: a stream then stands for all its evidence as one batch.
NO_FORGETTING = Forgetting(1.0, 1.0)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Reflection:
    """What one episode did.

    Attributes:
      status: how the fit ended.
      accepted: whether memory took it in; it does only where the status is converged.
      belief: what is believed after the episode, taken in or not.
      moved: one row for each parameter, with ``view``, ``shift`` (change of the mean in standard
        deviations of before) and ``narrowed`` (1 - variance after / before); empty for the first.
      new_domains: domains that had not been met.
      num_tasks: reflect tasks in the episode.
      seconds: wall time.
    """

    status: "Status"
    accepted: bool
    belief: Belief
    moved: "pd.DataFrame"
    new_domains: tuple[str, ...]
    num_tasks: int
    seconds: float


def reflect(
    memory: Memory,
    evidence: xr.Dataset,
    *,
    prior: "Prior | None" = None,
    beta: float | None = None,
    forgetting: Forgetting = Forgetting(),
    method: str = "auto",
    rng_seed: int = 0,
    note: str = "",
) -> Reflection:
    """Take the reflect tasks of some evidence into memory, as one episode.

    Args:
      memory: what was learned so far.
      evidence: validated; its held-out tasks are never looked at. Its skills and features must be
        those of the first episode, its domains may be new.
      prior: of the first episode, by default `HIERARCHICAL`; later ones go on with it.
      beta: inverse temperature of the scores, likewise; by default 1.
      forgetting: of this episode.
      method: see `bayesmeta.inference.streaming.Stream.update`.
      rng_seed: of noise and draws.
      note: for the history.

    Returns:
      A `Reflection`. Where its status is not converged memory is as it was.

    Raises:
      ValueError: no reflect tasks, unknown skills or features, another prior or beta than before,
        or tasks that memory has taken in already, which would count twice.
      bayesmeta.memory_store.MemoryConflictError: another process was faster; nothing is lost.
    """
    from bayesmeta.inference.streaming import StreamState

    entry = memory.entry
    evidence = reflect_part(evidence)
    if evidence.sizes["task"] == 0:
        raise ValueError(
            "no task of the evidence has split 'reflect', so there is nothing to reflect on."
        )
    before = _begin(evidence, prior, beta) if entry is None else memory.at(entry.episode)
    if entry is not None:
        _check_same(before, prior, beta)
    check_skills_known(before, evidence)
    tasks = task_hashes(evidence)
    repeated = [name for name, digest in tasks.items() if digest in before.seen]
    if repeated:
        raise ValueError(
            f"memory has taken in {len(repeated)} of these {len(tasks)} tasks already, such as "
            f"{repeated[0]!r}. Evidence counts once: leave them out, or roll back to before."
        )
    names = sorted(set(map(str, evidence["domain"].values)))
    met = before.with_domains(names)
    data = _padded(evidence, met)
    stream = _stream(len(data.gold), _shape(met), met.attributes["prior"], forgetting)
    state = None if entry is None else StreamState(met.loc, met.covariance, met.episode)
    state, fit = stream.update(state, data, _prior(met), method=method, rng_seed=rng_seed)
    after = dataclasses.replace(
        met,
        layout=stream.layout,
        loc=np.asarray(state.loc, np.float64),
        covariance=np.asarray(state.covariance, np.float64),
        episode=met.episode + 1,
        seen=met.seen | set(tasks.values()),
    )
    if fit.status.converged:
        memory.store.append(after.to_dataset(), after=entry, note=note)
    return Reflection(
        status=fit.status,
        accepted=fit.status.converged,
        belief=after,
        moved=moved(met, after),
        new_domains=tuple(name for name in names if name not in before.domains),
        num_tasks=len(tasks),
        seconds=fit.seconds,
    )


def moved(before: Belief, after: Belief) -> "pd.DataFrame":
    """How far every parameter moved, see `Reflection.moved`."""
    import pandas as pd

    columns = ["view", "shift", "narrowed"]
    if not before.loc.size or before.loc.shape != after.loc.shape:
        return pd.DataFrame(columns=columns)
    one, two = np.diag(before.covariance), np.diag(after.covariance)
    names = after.to_dataset()
    return pd.DataFrame(
        {
            "view": names["view"].values,
            "shift": (after.loc - before.loc) / np.sqrt(one),
            "narrowed": 1 - two / one,
        },
        index=pd.Index(names["parameter"].values, name="parameter"),
    )


def site_draws(belief: Belief, num_draws: int, rng_seed: int = 0) -> dict[str, np.ndarray]:
    """Draws of mu, W, delta, tau_E and F from a belief, [draw, *shape] in float64."""
    from bayesmeta.inference.streaming import StreamState

    data = _template(1, *_shape(belief))
    stream = _stream(1, _shape(belief), belief.attributes["prior"], NO_FORGETTING)
    state = StreamState(belief.loc, belief.covariance, belief.episode)
    draws = stream.sites(state, data, _prior(belief), num_samples=num_draws, rng_seed=rng_seed)
    return {name: np.asarray(value[0], np.float64) for name, value in draws.items()}


def check_skills_known(belief: Belief, evidence: xr.Dataset) -> None:
    """Raise ValueError unless the evidence has exactly the skills that the belief is about."""
    known, given = set(belief.encoding.skill), set(map(str, evidence["skill"].values))
    if known != given:
        raise ValueError(
            f"the evidence has skills {sorted(given - known)} that memory does not know and lacks "
            f"{sorted(known - given)}; memory knows {sorted(known)}. A memory is about one set of "
            "skills: select them with evidence.sel(skill=[...]), or begin another memory."
        )


def task_hashes(evidence: xr.Dataset) -> dict[str, str]:
    """Task -> hash of its name, scores and gold answer, by which memory knows it again."""
    names = sorted(map(str, evidence["skill"].values))
    ordered = evidence.sel(skill=names).transpose("task", "skill", "trace", "candidate", ...)
    scores = ordered["log_likelihood"].values.astype("<f4")
    seen = ordered["observed"].values
    gold = ordered["gold"].values
    found = {}
    for n, name in enumerate(map(str, ordered["task"].values)):
        # Padding depends on what else is in the file, so only what was observed counts.
        digest = hashlib.sha256(f"{name}|{int(gold[n])}|".encode())
        digest.update(scores[n][seen[n]].tobytes())
        found[name] = digest.hexdigest()[:32]
    return found


def _begin(evidence: xr.Dataset, prior: "Prior | None", beta: float | None) -> Belief:
    """Before the first episode, which fixes skills and features."""
    from bayesmeta.models.figure2 import HIERARCHICAL

    prior = HIERARCHICAL if prior is None else prior
    prior.require("u", "U", "tau_E", "v")
    if prior["tau_E"].fixed is not None:
        raise ValueError(
            f"prior {prior.name!r} fixes tau_E, and the scale of domain effects is what memory "
            "learns of domains that it has not met. Use one that gives it a distribution."
        )
    if not (np.isfinite(1.0 if beta is None else beta) and (beta is None or beta > 0)):
        raise ValueError(f"beta must be a positive finite number, got {beta}.")
    encoding = dataclasses.replace(Encoding.of(evidence), domain=tuple(free_slots(0, SLOTS)))
    attributes = {
        "prior": prior.to_json(),
        "beta": 1.0 if beta is None else float(beta),
        "llm": str(evidence.attrs.get("model", "")),
    }
    nothing = np.zeros(0), np.zeros((0, 0))
    return Belief(encoding, (), *nothing, 0, frozenset(), attributes)


def _check_same(belief: Belief, prior: "Prior | None", beta: float | None) -> None:
    if prior is not None and prior.to_json() != belief.attributes["prior"]:
        raise ValueError(
            f"memory began with prior {_prior(belief).name!r} and cannot go on with "
            f"{prior.name!r}. Leave prior out, or begin another memory."
        )
    if beta is not None and float(beta) != float(belief.attributes["beta"]):
        raise ValueError(
            f"memory began with beta={belief.attributes['beta']} and cannot go on with {beta}. "
            "Leave beta out, or begin another memory."
        )


def _prior(belief: Belief) -> "Prior":
    from bayesmeta.models.prior import Prior

    return Prior.from_json(belief.attributes["prior"])


def _padded(evidence: xr.Dataset, belief: Belief) -> Any:
    """The episode's arrays, with tasks of weight zero up to a round number."""
    import jax.numpy as jnp

    data = figure2_data(evidence, belief.encoding, beta=float(belief.attributes["beta"]))
    more = -len(data.gold) % _TASKS
    available = data.log_available
    if available is None:  # always there, so that all episodes are of one structure
        available = jnp.zeros_like(data.log_likelihood)

    def pad(array: Any, axis: int = -1) -> Any:
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, more)
        return jnp.pad(array, widths)

    return dataclasses.replace(
        data,
        # One candidate is enough: the likelihood of the answer is all that is learned from.
        log_p=pad(data.log_likelihood)[None],
        log_likelihood=pad(data.log_likelihood),
        gold=jnp.zeros(len(data.gold) + more, jnp.int32),
        domain=pad(data.domain),
        x=pad(data.x, 0),
        scale=pad(data.scale),
        log_available=pad(available),
    )


def _template(num_tasks: int, K: int, P: int, num_domains: int) -> Any:
    """Data of these shapes and of weight zero."""
    import jax.numpy as jnp

    from bayesmeta.models.figure2 import Figure2Data

    float_ = jnp.result_type(float)
    table = jnp.zeros((K, num_tasks), float_)
    return Figure2Data(
        log_p=table[None],
        log_likelihood=table,
        gold=jnp.zeros(num_tasks, jnp.int32),
        domain=jnp.zeros(num_tasks, jnp.int32),
        x=jnp.zeros((num_tasks, P), float_),
        scale=jnp.zeros(num_tasks, float_),
        num_domains=num_domains,
        log_available=table,
    )


@functools.lru_cache(maxsize=16)
def _stream(
    num_tasks: int, belief_shape: tuple[int, int, int], prior: str, forgetting: Forgetting
) -> Any:
    """One stream for all episodes of equal shapes, so that they share a compilation."""
    from bayesmeta.inference.streaming import Stream
    from bayesmeta.models.figure2 import figure2
    from bayesmeta.models.prior import Prior

    K, P, D = belief_shape
    rates = forgetting.by_site()
    if not P:
        del rates["U"]
    return Stream.of(
        figure2,
        _template(num_tasks, K, P, D),
        Prior.from_json(prior),
        forgetting=rates,
        decenter=("v",),
        gaussianise=("tau_E",),
    )


def _shape(belief: Belief) -> tuple[int, int, int]:
    """Skills, features, domain slots."""
    encoding = belief.encoding
    return len(encoding.skill), len(encoding.feature), len(encoding.domain)
