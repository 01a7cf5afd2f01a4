"""Streams whose belief has a closed form: counts, and linear-Gaussian regression.

They show exactly what forgetting does, and stand in for the approximate streams in tests. A belief
raised to lambda and mixed with the prior raised to 1 - lambda (see `streaming`) stays conjugate.
"""

from typing import NamedTuple

import numpy as np


class DirichletStream(NamedTuple):
    """A Dirichlet belief over categories, and the prior that it is forgotten towards.

    Attributes:
      concentration: [K], of the belief now.
      prior: [K], positive.
    """

    concentration: np.ndarray
    prior: np.ndarray

    @classmethod
    def start(cls, prior: np.ndarray) -> "DirichletStream":
        """Raises ValueError unless every concentration is positive."""
        prior = np.asarray(prior, np.float64)
        if prior.ndim != 1 or len(prior) < 2 or not (prior > 0).all():
            raise ValueError(
                f"prior concentrations are {prior.tolist()}, wanted at least two positive numbers, "
                "one for each category."
            )
        return cls(prior, prior)

    def update(self, counts: np.ndarray, forgetting: float = 1.0) -> "DirichletStream":
        """Take in counts [K]. Counts that are t episodes old weigh ``forgetting ** t``."""
        counts = np.asarray(counts, np.float64)
        if counts.shape != self.prior.shape or not (counts >= 0).all():
            raise ValueError(
                f"counts are {counts.tolist()}, wanted {len(self.prior)} numbers >= 0."
            )
        kept = forgetting * self.concentration + (1 - check_forgetting(forgetting)) * self.prior
        return self._replace(concentration=kept + counts)

    @property
    def mean(self) -> np.ndarray:
        """[K] expected probabilities, which are also the probabilities of the next category."""
        return self.concentration / self.concentration.sum()

    @property
    def effective_count(self) -> float:
        """How many observations the belief rests on."""
        return float((self.concentration - self.prior).sum())


class LinearStream(NamedTuple):
    """A Gaussian belief over regression weights, in natural parameters.

    Attributes:
      precision: [P, P].
      shift: [P], precision times mean.
      prior_precision, prior_shift: of the prior.
    """

    precision: np.ndarray
    shift: np.ndarray
    prior_precision: np.ndarray
    prior_shift: np.ndarray

    @classmethod
    def start(cls, loc: np.ndarray, covariance: np.ndarray) -> "LinearStream":
        """From the prior's mean [P] and covariance [P, P]."""
        precision = np.linalg.inv(np.asarray(covariance, np.float64))
        shift = precision @ np.asarray(loc, np.float64)
        return cls(precision, shift, precision, shift)

    def update(
        self, design: np.ndarray, outcome: np.ndarray, noise_sd: float, forgetting: float = 1.0
    ) -> "LinearStream":
        """Take in outcome [N] = design [N, P] @ weights + N(0, noise_sd^2)."""
        keep = check_forgetting(forgetting)
        lost = 1 - keep
        return self._replace(
            precision=keep * self.precision
            + lost * self.prior_precision
            + design.T @ design / noise_sd**2,
            shift=keep * self.shift + lost * self.prior_shift + design.T @ outcome / noise_sd**2,
        )

    @property
    def covariance(self) -> np.ndarray:
        """[P, P]."""
        return np.linalg.inv(self.precision)

    @property
    def loc(self) -> np.ndarray:
        """[P]."""
        return np.linalg.solve(self.precision, self.shift)


def check_forgetting(forgetting: float) -> float:
    """The same number. Raises ValueError unless it is in (0, 1]."""
    if not 0 < forgetting <= 1:
        raise ValueError(
            f"forgetting is {forgetting}, wanted a number in (0, 1]: 1 forgets nothing, 0.9 "
            "remembers about ten episodes."
        )
    return float(forgetting)
