"""What simulation-based calibration found, and whether it can be accepted."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from bayesmeta.inference.ecdf_bands import EcdfBands
from bayesmeta.inference.status import Status

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

#: Probability that a right engine is rejected for its ranks, and again for its intervals.
FALSE_ALARM = 0.01
#: Nominal probability of the central interval whose hits are counted.
INTERVAL = 0.9


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """Ranks of true values among posterior draws, and moments of the posteriors.

    Attributes:
      quantities: names, one per column of the arrays [replication, quantity].
      truth: the values drawn from the prior.
      ranks: how many of ``num_draws`` posterior draws lie below the truth, 0..num_draws.
      mean, sd: of each posterior, all its draws used.
      ess: bulk effective sample size of all its draws.
      outcomes: how each fit ended, by the names of `bayesmeta.inference.status.Outcome`.
      num_draws: among which the truth is ranked.
      seconds: wall time of everything.
      rng_seed: of everything.
    """

    quantities: tuple[str, ...]
    truth: np.ndarray
    ranks: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    ess: np.ndarray
    outcomes: tuple[str, ...]
    num_draws: int
    seconds: float
    rng_seed: int

    @classmethod
    def of(
        cls,
        quantities: Sequence[str],
        truth: np.ndarray,
        values: np.ndarray,
        *,
        statuses: Sequence[Status],
        num_draws: int,
        seconds: float = 0.0,
        rng_seed: int = 0,
    ) -> "Calibration":
        """Rank truths [replication, quantity] among values [replication, chain, draw, quantity].

        Draws are thinned evenly, chains after one another. Ties are broken at random.
        """
        import arviz as az

        size, num_chains, length, _ = values.shape
        if num_chains * length < num_draws:
            raise ValueError(
                f"fits have {num_chains * length} draws, fewer than the {num_draws} to rank "
                "among. Raise num_samples, or lower num_draws."
            )
        flat = values.reshape(size, num_chains * length, -1)
        kept = flat[:, np.linspace(0, flat.shape[1] - 1, num_draws).round().astype(int)]
        below, ties = (kept < truth[:, None]).sum(1), (kept == truth[:, None]).sum(1)
        ranks = below + np.random.default_rng(rng_seed).integers(0, ties + 1)
        tree = az.from_dict({"posterior": {"q": np.moveaxis(values, 0, 2)}})
        ess: Any = az.ess(tree, method="bulk")
        ess = ess["posterior"].dataset if "posterior" in ess else ess
        return cls(
            quantities=tuple(quantities),
            truth=truth,
            ranks=ranks,
            mean=flat.mean(1),
            sd=flat.std(1),
            ess=np.asarray(ess["q"]),
            outcomes=tuple(status.outcome.name for status in statuses),
            num_draws=num_draws,
            seconds=seconds,
            rng_seed=rng_seed,
        )

    @property
    def num_replications(self) -> int:
        return len(self.ranks)

    @property
    def num_bins(self) -> int:
        """20, as long as each is expected to hold at least 5 ranks; else 10."""
        return 20 if self.num_replications >= 100 else 10

    def p_values(self) -> np.ndarray:
        """[quantity] of chi-square tests that ranks are uniform."""
        bins, ranks = self.num_bins, self.num_draws + 1
        if ranks % bins:
            raise ValueError(
                f"{ranks} possible ranks do not divide into {bins} equal bins. "
                "Use num_draws=99, or another multiple of 20 less one."
            )
        counts = [np.bincount(r * bins // ranks, minlength=bins) for r in self.ranks.T]
        return np.array([stats.chisquare(c).pvalue for c in counts])

    def hits(self) -> np.ndarray:
        """[quantity] how many central intervals of probability `INTERVAL` hold the truth."""
        ranks = self.num_draws + 1
        tail = ranks * (1 - INTERVAL) / 2
        return ((self.ranks >= tail - 1e-9) & (self.ranks < ranks - tail - 1e-9)).sum(0)

    def band(self, *, of_all: bool = True) -> tuple[int, int]:
        """Fewest and most hits that a right engine is to have, with probability 1 - FALSE_ALARM.

        With ``of_all`` the probability is that of no quantity falling outside (Bonferroni); else
        that of a single quantity: 168..190 of 200, and 47..59 of 60.
        """
        level = FALSE_ALARM / (len(self.quantities) if of_all else 1)
        low, high = stats.binom.interval(1 - level, self.num_replications, INTERVAL)
        return int(low), int(high)

    def p_limit(self) -> float:
        """What the smallest p-value has to exceed."""
        return FALSE_ALARM / len(self.quantities)

    def recovered(self) -> np.ndarray:
        """[quantity] share of replications with |posterior mean - truth| <= 3 posterior sd."""
        return (np.abs(self.mean - self.truth) <= 3 * self.sd).mean(0)

    def contraction(self) -> np.ndarray:
        """[quantity] 1 - (mean posterior variance) / (variance of the truths)."""
        return 1 - np.square(self.sd).mean(0) / self.truth.var(0)

    def unconverged(self) -> dict[str, int]:
        """How many fits did not converge, by reason."""
        return dict(Counter(name for name in self.outcomes if name != "CONVERGED"))

    def calibrated(self) -> bool:
        """Whether ranks are uniform and intervals hold the truth as often as they say."""
        low, high = self.band()
        hits = self.hits()
        return bool((self.p_values() > self.p_limit()).all() and low <= hits.min()) and bool(
            hits.max() <= high
        )

    def table(self) -> "pd.DataFrame":
        """One row per quantity."""
        import pandas as pd

        bands = EcdfBands.of(self.num_replications, self.num_draws)
        return pd.DataFrame(
            {
                "quantity": self.quantities,
                "p_value": self.p_values(),
                "p_value_ecdf": [bands.p_value(ranks) for ranks in self.ranks.T],
                "hits": self.hits(),
                "recovered": self.recovered(),
                "contraction": self.contraction(),
                "fewest_effective_draws": self.ess.min(0),
            }
        )

    def where(self, chosen: np.ndarray) -> "Calibration":
        """Some of the replications. Choose by what the data say, never by what the truth was."""
        rows = np.flatnonzero(chosen)
        arrays = {k: getattr(self, k)[rows] for k in ("truth", "ranks", "mean", "sd", "ess")}
        return dataclasses.replace(self, outcomes=tuple(self.outcomes[r] for r in rows), **arrays)

    def to_datatree(self) -> "xr.DataTree":
        """Group ``prior_sbc``, as ArviZ plots it: probability integral transforms in (0, 1).

        A rank stands for an interval of probabilities; a place within it is drawn at random.
        """
        import arviz as az

        within = np.random.default_rng(self.rng_seed).uniform(size=self.ranks.shape)
        pit = (self.ranks + within) / (self.num_draws + 1)
        columns = {name: pit[None, :, i] for i, name in enumerate(self.quantities)}
        return az.from_dict({"prior_sbc": columns})

    def to_json(self) -> str:
        """All of it, as JSON."""
        content = dataclasses.asdict(self)
        return json.dumps(
            {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in content.items()}
        )

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Inverse of `to_json`."""
        content = json.loads(text)
        arrays = {k: np.asarray(content.pop(k)) for k in ("truth", "ranks", "mean", "sd", "ess")}
        names = {k: tuple(content.pop(k)) for k in ("quantities", "outcomes")}
        return cls(**arrays, **names, **content)
