"""The Figure 2 posterior on many subsets of the reflect tasks at once, for learning curves."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import softmax

from bayesmeta.arrays import Encoding, figure2_data
from bayesmeta.evidence_join import split
from bayesmeta.learning_curve import learning_curve
from bayesmeta.skill_scores import skill_scores


def refitted_learning_curve(
    evidence: xr.Dataset,
    beta: float,
    *,
    sizes: Sequence[int] = (2, 4, 8, 16, 32),
    num_subsets: int = 20,
    seed: int = 0,
    prior: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Learning curve of the posterior and every baseline on some evidence.

    Args:
      evidence: with reflect and held-out tasks.
      beta: inverse temperature of the scores, the same for all methods.
      sizes, num_subsets, seed, progress: see `bayesmeta.learning_curve.learning_curve`.
      prior: see `bayesmeta.fitting.fit`.

    Returns:
      See `bayesmeta.learning_curve.learning_curve`. The table's ``attrs["num_unconverged"]`` counts
      the fits of the posterior that were short of `nuts_batch`'s standard; they are not left out.
    """
    reflect, heldout = split(evidence)
    refitter = Refitter(reflect, heldout, beta, prior)
    curve = learning_curve(
        skill_scores(reflect, beta),
        skill_scores(heldout, beta),
        refitter,
        sizes,
        num_subsets,
        seed,
        progress=progress,
    )
    curve.attrs["num_unconverged"] = refitter.num_unconverged
    return curve


class Refitter:
    """Posterior mean strategies for the held-out tasks, learned from subsets of the reflect tasks.

    Every subset is the whole set with weight zero on the tasks left out, so all of them have one
    shape: those of one call run as one vectorised program on each core, which is compiled once for
    all calls with equally many. Features are standardised on the whole reflect set, which reads no
    answer.
    """

    def __init__(
        self, reflect: xr.Dataset, heldout: xr.Dataset, beta: float, prior: Any = None
    ) -> None:
        import dataclasses

        from bayesmeta.inference.nuts_batch import NutsBatch, free_cores
        from bayesmeta.models.figure2 import HIERARCHICAL, figure2

        self._encoding = Encoding.of(reflect)
        self._data = figure2_data(reflect, self._encoding, beta=beta)
        prior = HIERARCHICAL if prior is None else prior

        def program(scale, data):
            figure2(dataclasses.replace(data, scale=scale), prior)

        self._sample = NutsBatch.of(program, decenter=("v",), num_warmup=200, threads=free_cores())
        self._x = self._encoding.standardise(heldout)
        self._domain = self._encoding.domain_index(heldout["domain"].values)
        if (self._domain < 0).any():
            raise ValueError(
                "a held-out domain has no reflect tasks, so there is no learning curve for it. "
                "Leave its tasks out, or give it reflect tasks."
            )
        #: Fits whose chains had not mixed by the looser standard of `nuts_batch`.
        self.num_unconverged = 0

    def __call__(self, subsets: Sequence[np.ndarray]) -> list[np.ndarray]:
        """[N_held_out, K] for each subset, given as indices of reflect tasks."""
        import jax.numpy as jnp

        scale = np.zeros((len(subsets), len(self._data.gold)))
        for row, tasks in zip(scale, subsets, strict=True):
            row[tasks] = 1.0
        results = self._sample(jnp.asarray(scale, self._data.x.dtype), self._data)
        self.num_unconverged += sum(not r.status.converged for r in results)
        return [self._strategy(r.samples) for r in results]

    def _strategy(self, samples: dict[str, np.ndarray]) -> np.ndarray:
        from bayesmeta.inference.structure import merge_chains

        samples.setdefault("W", np.zeros((*samples["mu"].shape, self._x.shape[1])))
        mu, W, delta = (
            merge_chains(samples[name]).astype(np.float64) for name in ("mu", "W", "delta")
        )
        logits = mu[:, None, :] + np.einsum("np,skp->snk", self._x, W) + delta[:, self._domain, :]
        return softmax(logits, axis=-1).mean(0)
