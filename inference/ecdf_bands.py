"""Bands that the distribution function of uniform ranks leaves with known probability.

Sailynoja, Burkner & Vehtari 2022 (arXiv 2103.10522): the band is made of pointwise binomial
intervals, all of one level, which is chosen so that the whole curve stays inside with the wanted
probability. Here that level is found by simulation of ranks, which are discrete.
"""

import dataclasses

import numpy as np
from scipy import stats

#: Simulated curves: p-values have steps of 1 / _SIMULATIONS.
_SIMULATIONS = 4000


@dataclasses.dataclass(frozen=True, slots=True)
class EcdfBands:
    """For ``num_replications`` ranks, each uniform on 0..``num_draws``.

    Attributes:
      levels: [simulation] sorted: the smallest pointwise p-value along each simulated curve.
    """

    num_replications: int
    num_draws: int
    levels: np.ndarray

    @classmethod
    def of(cls, num_replications: int, num_draws: int, seed: int = 0) -> "EcdfBands":
        """Simulate."""
        rng = np.random.default_rng(seed)
        blank = cls(num_replications, num_draws, np.empty(0))
        ranks = rng.integers(0, num_draws + 1, (_SIMULATIONS, num_replications))
        return dataclasses.replace(blank, levels=np.sort([blank.level(row) for row in ranks]))

    @property
    def places(self) -> np.ndarray:
        """[num_draws] probabilities at which the curve is looked at."""
        return np.arange(1, self.num_draws + 1) / (self.num_draws + 1)

    def counts(self, ranks: np.ndarray) -> np.ndarray:
        """[num_draws] how many ranks lie below each place."""
        return np.cumsum(np.bincount(ranks, minlength=self.num_draws + 1))[:-1]

    def level(self, ranks: np.ndarray) -> float:
        """The smallest two-sided binomial p-value along the curve of these ranks."""
        below, above = self._tails()
        counts, row = self.counts(ranks), np.arange(self.num_draws)
        return float(min(1.0, 2 * np.minimum(below[row, counts], above[row, counts]).min()))

    def p_value(self, ranks: np.ndarray) -> float:
        """Probability that uniform ranks have a curve at least as odd somewhere."""
        at_least = np.searchsorted(self.levels, self.level(ranks) * (1 + 1e-9), side="right")
        return (at_least + 1) / (len(self.levels) + 1)

    def band(self, probability: float = 0.99) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper counts [num_draws] between which the whole curve lies."""
        level = float(np.quantile(self.levels, 1 - probability))
        size = self.num_replications
        return (
            stats.binom.ppf(level / 2, size, self.places),
            stats.binom.isf(level / 2, size, self.places),
        )

    def _tails(self) -> tuple[np.ndarray, np.ndarray]:
        """[place, count] P(at most count) and P(at least count)."""
        key = (self.num_replications, self.num_draws)
        if key not in _TAILS:
            count = np.arange(self.num_replications + 1)
            places = self.places[:, None]
            _TAILS[key] = (
                stats.binom.cdf(count, self.num_replications, places),
                stats.binom.sf(count - 1, self.num_replications, places),
            )
        return _TAILS[key]


_TAILS: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
