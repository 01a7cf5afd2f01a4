"""What every engine returns."""

import dataclasses

import numpy as np

from bayesmeta.inference.status import Status


@dataclasses.dataclass(frozen=True, slots=True)
class FitResult:
    """Draws and how they were made, as plain arrays.

    Attributes:
      samples: site name -> [num_chains, num_samples, *shape], latent and deterministic sites.
        Deterministic sites are recomputed for variational fits, never left out.
      sample_stats: name -> [num_chains, num_samples].
      status: whether to believe them.
      seconds: wall time, compilation included.
      settings: engine name and every setting, numbers and strings only.
    """

    samples: dict[str, np.ndarray]
    sample_stats: dict[str, np.ndarray]
    status: Status
    seconds: float
    settings: dict[str, float | int | str]
