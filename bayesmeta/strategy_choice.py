"""Which strategy for which task, learned from a table of right and wrong."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import expit

from bayesmeta.verdict_counts import VerdictCounts, expected_tokens
from bayesmeta.verdicts import from_verdicts

#: Of the quadrature over difficulty in predictions, where the integrand is a logistic curve.
_NUM_NODES = 21
#: Rows are padded to a multiple of this, or by up to an eighth, so that fits of similar size are
#: of one shape and share a compilation.
_ROWS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class StrategyChoice:
    """What was learned, what to do, and how that fared.

    Attributes:
      table: one row for each domain and skill: ``probability`` that the skill is right on a new
        task of the domain with average features (posterior mean), ``lower`` and ``upper`` of its
        central credible interval, ``tokens`` an attempt generates on average, ``utility`` =
        probability - cost_per_token * tokens, and ``chosen``: whether it is the largest.
      heldout: one row for each held-out task, or None where there is none: ``domain``, the chosen
        ``skill``, and the columns of `judge`.
      tree: the posterior, for ArviZ; its attribute ``status`` says whether to believe it.
    """

    table: pd.DataFrame
    heldout: pd.DataFrame | None
    tree: xr.DataTree

    def skill_for(self, domain: str) -> str:
        """The skill chosen for average tasks of a domain. Raises KeyError for an unknown one."""
        chosen = self.table[self.table["chosen"]]
        skills = dict(zip(chosen["domain"], chosen["skill"], strict=True))
        if domain not in skills:
            raise KeyError(
                f"no domain {domain!r} in the table of choices, which has {list(skills)}. Add "
                "tasks of it to the evidence, be they only held out."
            )
        return str(skills[domain])


def choose_strategies(
    evidence: xr.Dataset | pd.DataFrame | str | os.PathLike[str],
    *,
    cost_per_token: float = 0.0,
    interval: float = 0.9,
    use_features: bool = True,
    prior: Any = None,
    rng_seed: int = 0,
    num_chains: int = 2,
    num_warmup: int = 500,
    num_samples: int = 500,
) -> StrategyChoice:
    """Fit `bayesmeta.models.solvability.solvability` to the reflect tasks and choose by it.

    The choice maximises expected utility, E[right] - cost_per_token * tokens. A domain that has
    only held-out tasks is predicted from what the others have in common.

    Args:
      evidence: with verdicts, or a table as `bayesmeta.verdicts.from_verdicts` takes it.
      cost_per_token: what a generated token costs, in right answers: 1e-4 if a thousand tokens
        are worth a tenth of one.
      interval: probability of the credible intervals.
      use_features: False ignores the features of the tasks.
      prior: `bayesmeta.models.prior.Prior`, by default ``SOLVABILITY``.
      rng_seed, num_chains, num_warmup, num_samples: see `bayesmeta.inference.nuts_batch`.

    Raises:
      ValueError: no reflect tasks, fewer than two skills, no verdicts, or an argument out of
        range.
    """
    if not (np.isfinite(cost_per_token) and cost_per_token >= 0):
        raise ValueError(
            f"cost_per_token is {cost_per_token}, wanted a finite number >= 0, in right answers "
            "per token. 0 looks at success alone."
        )
    if not 0 < interval < 1:
        raise ValueError(f"interval is {interval}, wanted a probability such as 0.9.")
    if not isinstance(evidence, xr.Dataset):
        evidence = from_verdicts(evidence)
    counts = VerdictCounts.of(evidence)
    counts = counts if use_features else counts.without_features()
    model = SuccessModel(counts, prior)
    reflect = np.flatnonzero(~counts.held_out)
    (fit,) = model.fit(
        [reflect],
        rng_seed=rng_seed,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_samples=num_samples,
    )
    learned = counts.take(reflect)
    domains = np.array(model.domains)
    draws = model.draws(fit, domains, np.tile(model.centre, (len(domains), 1)))
    mean = draws.mean(0)
    tail = (1 - interval) / 2
    lower, upper = np.quantile(draws, [tail, 1 - tail], axis=0)
    tokens = expected_tokens(learned, domains)
    utility = mean - cost_per_token * tokens
    K = len(counts.skill)
    table = pd.DataFrame(
        {
            "domain": np.repeat(domains, K),
            "skill": np.tile(counts.skill, len(domains)),
            "probability": mean.ravel(),
            "lower": lower.ravel(),
            "upper": upper.ravel(),
            "tokens": tokens.ravel(),
            "utility": utility.ravel(),
            "chosen": (np.arange(K) == utility.argmax(1)[:, None]).ravel(),
        }
    )
    heldout = None
    if counts.held_out.any():
        new = counts.take(counts.held_out)
        p = model.draws(fit, new.domain, new.x).mean(0)
        choice = choose(p, expected_tokens(learned, new.domain), new.tried > 0, cost_per_token)
        heldout = judge(p, choice, new, cost_per_token)
        heldout.insert(0, "domain", new.domain)
        heldout.insert(1, "skill", np.array(counts.skill)[choice])
        heldout.index = pd.Index(new.task, name="task")
    return StrategyChoice(table, heldout, model.tree(fit, reflect))


def choose(
    p: np.ndarray, tokens: np.ndarray, offered: np.ndarray, cost_per_token: float
) -> np.ndarray:
    """[N] index of the offered skill with the largest p - cost_per_token * tokens, all [N, K].

    Of equally good ones it is the first.
    """
    return np.where(offered, p - cost_per_token * tokens, -np.inf).argmax(1)


def judge(
    p: np.ndarray, choice: np.ndarray, heldout: VerdictCounts, cost_per_token: float
) -> pd.DataFrame:
    """How predictions and choices fared on held-out tasks, one row for each.

    Args:
      p: [N, K] probabilities of success.
      choice: [N] indices of the chosen skills, each tried on its task.
      heldout: the tasks.
      cost_per_token: in right answers.

    Returns:
      ``log_score``: nats, the mean over the skills tried on the task of the expected log
      probability of an attempt's verdict, r log p + (1 - r) log(1 - p) with r the share of right
      attempts, a proper score; ``chosen_log_score``: the same of the chosen skill alone;
      ``success``: r of the chosen skill; ``tokens`` that it generated; ``regret``: utility of the
      best skill in hindsight, for this very task, minus that of the chosen.
    """
    rate, known = np.nan_to_num(heldout.rate), heldout.tried > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        right = np.where(rate > 0, rate * np.log(p), 0)
        wrong = np.where(rate < 1, (1 - rate) * np.log1p(-p), 0)
    score = np.where(known, right + wrong, 0)
    utility = np.where(known, rate - cost_per_token * heldout.tokens, -np.inf)
    rows = np.arange(heldout.num_tasks)
    return pd.DataFrame(
        {
            "log_score": score.sum(1) / known.sum(1),
            "chosen_log_score": score[rows, choice],
            "success": rate[rows, choice],
            "tokens": heldout.tokens[rows, choice],
            "regret": utility.max(1) - utility[rows, choice],
        }
    )


class SuccessModel:
    """The solvability model on subsets of some tasks, many subsets side by side.

    Features are standardised on all tasks given, which reads no verdict, and every domain that
    occurs has its effect, with or without tasks in a subset.
    """

    def __init__(self, counts: VerdictCounts, prior: Any = None) -> None:
        from bayesmeta.models.solvability import SOLVABILITY

        if len(counts.skill) < 2:
            raise ValueError(
                f"there is nothing to choose from: the only skill is {list(counts.skill)}. "
                "Add verdicts of a second skill."
            )
        self.counts = counts
        self.prior = SOLVABILITY if prior is None else prior
        self.domains = tuple(np.unique(counts.domain).tolist())
        self.centre = counts.x.mean(0)
        spread = counts.x.std(0)
        self.spread = np.where(spread > 1e-12, spread, 1.0)

    def fit(
        self,
        subsets: Sequence[np.ndarray],
        *,
        rng_seed: int = 0,
        num_chains: int = 1,
        num_warmup: int = 300,
        num_samples: int = 300,
        max_tree_depth: int = 8,
    ) -> list[Any]:
        """A `FitResult` for each subset of the tasks, given as indices.

        Equal tasks (same domain, verdicts and features) are one row with a weight.
        """
        if any(len(tasks) == 0 for tasks in subsets):
            raise ValueError(
                "there are no reflect tasks to learn from. Mark some rows of the table as split "
                "'reflect', or leave the column out."
            )
        sampler = _sampler(
            self.prior,
            len(self.domains) > 1,
            len(self.centre) > 0,
            num_chains,
            num_warmup,
            num_samples,
            max_tree_depth,
        )
        return sampler(self._stack(subsets), rng_seed=rng_seed)

    def draws(self, fit: Any, domain: np.ndarray, x: np.ndarray) -> np.ndarray:
        """[draws, N, K] success probability on new tasks, difficulty averaged out.

        Args:
          fit: from `fit`.
          domain: [N] names.
          x: [N, P] features as they come.
        """
        position = {name: index for index, name in enumerate(self.domains)}
        index = np.array([position[str(name)] for name in domain])
        eta, sigma = _merged(fit, "eta"), _merged(fit, "sigma_b")
        if "W" not in fit.samples:  # tasks of a domain are all alike
            return _average(eta, sigma)[:, index]
        standard = (x - self.centre) / self.spread
        effect = np.einsum("np,skp->snk", standard, _merged(fit, "W"))
        return _average(eta[:, index] + effect, sigma)

    def tree(self, fit: Any, tasks: np.ndarray) -> xr.DataTree:
        """A fit to these tasks for ArviZ, with each task's log-likelihood of all its verdicts."""
        from bayesmeta.models.solvability import solvability
        from bayesmeta.posterior_tree import datatree

        c = self.counts.take(tasks)
        return datatree(
            fit,
            solvability,
            (self._data(self._rows()[tasks], np.ones(len(tasks))), self.prior),
            observed={"y": c.correct},
            constant={"tried": c.tried, "x": c.x},
            coords={
                "task": c.task.tolist(),
                "skill": list(c.skill),
                "domain": list(self.domains),
                "feature": list(c.feature),
            },
            dims={
                "theta": ["skill"],
                "delta": ["domain"],
                "gamma": ["domain", "skill"],
                "eta": ["domain", "skill"],
                "W": ["skill", "feature"],
                "y": ["task", "skill"],
                "tried": ["task", "skill"],
                "x": ["task", "feature"],
            },
            attributes={"model": "solvability", "prior": self.prior.to_json()},
        )

    def _stack(self, subsets: Sequence[np.ndarray]) -> Any:
        """Subsets as rows with weights, padded to equal numbers by rows of weight zero."""
        rows = self._rows()
        found = [np.unique(rows[tasks], axis=0, return_counts=True) for tasks in subsets]
        size = max(len(weight) for _, weight in found)
        step = max(_ROWS, 2 ** (size.bit_length() - 4))
        size += -size % step
        padded = np.zeros((len(found), size, rows.shape[1]))
        weights = np.zeros((len(found), size))
        for b, (row, weight) in enumerate(found):
            padded[b, : len(row)], weights[b, : len(row)] = row, weight
        return self._data(padded, weights)

    def _rows(self) -> np.ndarray:
        """[N, 1 + 2 K + P] of each task: domain, right, tried, standardised features."""
        c = self.counts
        domain = np.searchsorted(self.domains, c.domain)
        x = (c.x - self.centre) / self.spread
        return np.hstack([domain[:, None], c.correct, c.tried, x]).astype(np.float64)

    def _data(self, rows: np.ndarray, weights: np.ndarray) -> Any:
        """What the program conditions on, from `_rows` and their weights, with any leading axes."""
        import jax.numpy as jnp

        from bayesmeta.models.solvability import SolvabilityData

        K, real = len(self.counts.skill), jnp.result_type(float)
        return SolvabilityData(
            correct=jnp.asarray(rows[..., 1 : 1 + K], jnp.int32),
            tried=jnp.asarray(rows[..., 1 + K : 1 + 2 * K], jnp.int32),
            domain=jnp.asarray(rows[..., 0], jnp.int32),
            x=jnp.asarray(rows[..., 1 + 2 * K :], real),
            weight=jnp.asarray(weights, real),
            num_domains=len(self.domains),
            max_attempts=int(self.counts.tried.max()),
        )


@functools.lru_cache(maxsize=8)
def _sampler(
    prior: Any,
    several_domains: bool,
    has_features: bool,
    num_chains: int,
    num_warmup: int,
    num_samples: int,
    max_tree_depth: int,
) -> Any:
    """Kept, so that subsets of equal shapes share one compilation."""
    from bayesmeta.inference.nuts_batch import NutsBatch, free_cores
    from bayesmeta.models.solvability import SCALE_OF, solvability

    def program(data):
        solvability(data, prior)

    # A fixed scale needs no decentring, and effects of scale zero are not there.
    present = ["u", *(["a", "v"] if several_domains else []), *(["W"] if has_features else [])]
    return NutsBatch.of(
        program,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_samples=num_samples,
        decenter=tuple(name for name in present if prior[SCALE_OF[name]].fixed is None),
        max_tree_depth=max_tree_depth,
        threads=free_cores(),
    )


def _merged(fit: Any, site: str) -> np.ndarray:
    from bayesmeta.inference.structure import merge_chains

    return merge_chains(np.asarray(fit.samples[site], np.float64))


def _average(logits: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """E_b logistic(logits - b), b ~ N(0, sigma^2): logits [draws, N, K], sigma [draws]."""
    z, weight = np.polynomial.hermite_e.hermegauss(_NUM_NODES)
    total = np.zeros_like(logits)
    for node, share in zip(z, weight / weight.sum(), strict=True):
        total += share * expit(logits - (sigma * node)[:, None, None])
    return total
