"""Passes over data that come in minibatches, and what each tells a Gaussian guide."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmeta.inference.svi_fit import matched_noise
from bayesmeta.inference.svi_natural import Direction, Gaussian
from bayesmeta.inference.svi_target import Target, array_leaves

#: Draws per parameter of a whole pass, over all batches.
_DRAWS = 32
#: Halvings of a batch's step before it is not taken at all.
_MAX_HALVINGS = 5


@dataclasses.dataclass(slots=True)
class Passes:
    """Passes over the data, with a count of batches that were skipped as not finite."""

    target: Target
    epoch: Callable[[np.random.Generator], Iterator[Any]]
    shared: tuple[Any, ...]
    rng: np.random.Generator
    num_particles: int
    arrays_first: list[Any]
    num_batches: int = 0
    steps: int = 0
    skipped: int = 0
    epochs: int = 0

    def stochastic(self, guide: Gaussian) -> Gaussian:
        """The guide after one pass with a step for each batch.

        The rate 2 / (t + 2) averages what batches say, later ones more, because they saw a better
        guide (Lacoste-Julien, Schmidt & Bach 2012, arXiv 1212.2002). A step that would lower the
        ELBO of the very batch that asks for it is halved (Vaswani et al. 2019, arXiv 1905.09997).
        """
        for t, arrays in enumerate(self._batches(), start=1):
            noise = self._noise(self.num_particles)
            elbo, way = self._look(arrays, guide, noise)
            self._count(elbo)
            for halvings in range(_MAX_HALVINGS if np.isfinite(elbo) else 0):
                moved = guide.moved(way, 2 / (t + 2) / 2**halvings)
                if self._look(arrays, moved, noise)[0] >= elbo:
                    guide = moved
                    break
        return guide

    def whole(self, guide: Gaussian) -> tuple[float, Direction]:
        """The ELBO in nats given all data, and the direction in which it rises."""
        draws = max(self.num_particles, -(-_DRAWS * self.target.size // max(self.num_batches, 1)))
        # Noise of each batch's own averages out what matching its moments does not.
        found = [self._look(arrays, guide, self._noise(draws)) for arrays in self._batches()]
        elbos, ways = zip(*found, strict=True)
        self._count(*elbos)
        force = np.mean([way.force for way in ways], 0)
        return float(np.mean(elbos)), Direction(force, np.mean([way.excess for way in ways], 0))

    def compare(self, guide: Gaussian, noise: np.ndarray) -> tuple[np.ndarray, float]:
        """Log ratios [draw] given all data, and the nats of ELBO left to gain."""
        z = jnp.asarray(guide.place(noise), self.target.centre.dtype)
        log_p, surplus = np.zeros(len(noise)), np.zeros(noise.shape)
        for arrays in self._batches():
            values, slopes = self.target.slopes(z, arrays)
            log_p, surplus = log_p + values, surplus + guide.surplus(slopes, noise)
        log_p, surplus = log_p / self.num_batches, surplus / self.num_batches
        halves = (Direction.of(surplus[i::2], noise[i::2]) for i in (0, 1))
        return log_p - guide.log_density(noise), next(halves).gain(next(halves))

    def _count(self, *elbos: float) -> None:
        self.steps += len(elbos)
        self.skipped += len(elbos) - int(np.isfinite(elbos).sum())

    def _noise(self, num_draws: int) -> np.ndarray:
        key = jax.random.key(int(self.rng.integers(2**32)))
        return np.asarray(matched_noise(key, num_draws, self.target.size), np.float64)

    def _look(self, arrays, guide: Gaussian, noise: np.ndarray) -> tuple[float, Direction]:
        """The ELBO of one batch and its direction; -inf and zero unless all is finite."""
        z = jnp.asarray(guide.place(noise), self.target.centre.dtype)
        values, slopes = self.target.slopes(z, arrays)
        surplus = guide.surplus(slopes, noise)
        if not (np.isfinite(surplus).all() and np.isfinite(values).all()):
            return -np.inf, Direction.of(np.zeros_like(noise), noise)
        elbo = float((values.astype(np.float64) - guide.log_density(noise)).mean())
        return elbo, Direction.of(surplus, noise)

    def _batches(self) -> Iterator[list[Any]]:
        shapes = [np.shape(leaf) for leaf in self.arrays_first]
        self.num_batches = 0
        for batch in self.epoch(self.rng):
            arrays = array_leaves((batch, *self.shared))
            if (found := [np.shape(leaf) for leaf in arrays]) != shapes:
                raise ValueError(
                    f"a batch has arrays of shapes {found}, the first one had {shapes}. Pad "
                    "short batches with tasks of weight zero: one compilation serves them all."
                )
            self.num_batches += 1
            yield arrays
        self.epochs += 1
