"""What is believed of Theta_I and Theta_E after some episodes: a Gaussian with names.

The Gaussian lives in coordinates in which the prior of Figure 2 is Gaussian too: u and U as they
are, domain effects as multiples of their scale, and the scale as the quantile of a normal number.
Domains have slots, at least `SLOTS` of them. A free slot keeps its prior, which is exactly what
is believed of a domain that was never seen.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from bayesmeta.arrays import Encoding

#: Slots come in blocks of this many; as many as make domain effects plain in `figure2`.
SLOTS = 8
#: Name of slot i while no domain has it.
_FREE = "(free slot {})"
#: Sites of the two views, in their coordinates here, in the order of the vector.
INTERNAL = ("u", "U")
EXTERNAL = ("tau_E_decentered", "v_decentered")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Belief:
    """A Gaussian over the coordinates of Theta.

    Attributes:
      encoding: skills, domain slots and features, and how features are standardised: fixed by the
        first episode.
      layout: (coordinate site, shape), in the order of the vector.
      loc, covariance: [P], [P, P]; empty before the first episode.
      episode: how many episodes were taken in.
      seen: hash of every task that was taken in.
      attributes: what identifies the model: ``prior`` (JSON), ``beta``, ``llm``.
    """

    encoding: Encoding
    layout: tuple[tuple[str, tuple[int, ...]], ...]
    loc: np.ndarray
    covariance: np.ndarray
    episode: int
    seen: frozenset[str]
    attributes: dict[str, Any]

    @property
    def slices(self) -> dict[str, slice]:
        """Where each site lies in the vector."""
        ends = np.cumsum([0, *(int(np.prod(shape)) for _, shape in self.layout)]).tolist()
        return {name: slice(*ends[i : i + 2]) for i, (name, _) in enumerate(self.layout)}

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains that have been met."""
        return tuple(name for name in self.encoding.domain if not is_free(name))

    def with_domains(self, names: Sequence[str]) -> "Belief":
        """The same belief with a slot for each of these domains, more slots where none is free.

        New slots are independent of everything and have their prior, a standard normal.
        """
        slots, new = list(self.encoding.domain), [n for n in names if n not in self.domains]
        for name in new:
            free = [i for i, slot in enumerate(slots) if is_free(slot)]
            if not free:
                slots += free_slots(len(slots), len(slots) + SLOTS)
                free = [i for i, slot in enumerate(slots) if is_free(slot)]
            slots[free[0]] = name
        added = len(slots) - len(self.encoding.domain)
        grown = dataclasses.replace(
            self, encoding=dataclasses.replace(self.encoding, domain=tuple(slots))
        )
        if not added or not self.loc.size:
            return grown
        # Domain effects are the last site, so new ones go to the end of the vector.
        (last, (_, width)), size = self.layout[-1], self.loc.size
        assert last == EXTERNAL[-1]
        more = added * width
        covariance = np.eye(size + more)
        covariance[:size, :size] = self.covariance
        return dataclasses.replace(
            grown,
            layout=(*self.layout[:-1], (last, (len(slots), width))),
            loc=np.concatenate([self.loc, np.zeros(more)]),
            covariance=covariance,
        )

    def to_dataset(self) -> xr.Dataset:
        """For a file; `from_dataset` reads it back."""
        names = [
            f"{site}[{','.join(map(str, index))}]" if shape else site
            for site, shape in self.layout
            for index in np.ndindex(*shape)
        ]
        attributes = {
            **self.attributes,
            "episode": self.episode,
            "layout": json.dumps(self.layout),
            "created_by": "bayesmeta.reflect",
        }
        return xr.Dataset(
            {
                "loc": ("parameter", self.loc),
                "covariance": (("parameter", "other"), self.covariance),
                "feature_mean": ("feature", self.encoding.feature_mean),
                "feature_scale": ("feature", self.encoding.feature_scale),
                "seen": ("seen_task", np.array(sorted(self.seen), dtype=object)),
                "view": (
                    "parameter",
                    np.array(
                        [
                            "internal" if n.partition("[")[0] in INTERNAL else "external"
                            for n in names
                        ],
                        dtype=object,
                    ),
                ),
            },
            coords={
                "parameter": np.array(names, dtype=object),
                "skill": np.array(self.encoding.skill, dtype=object),
                "domain": np.array(self.encoding.domain, dtype=object),
                "feature": np.array(self.encoding.feature, dtype=object),
            },
            attrs=attributes,
        )

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> "Belief":
        """Inverse of `to_dataset`. Raises ValueError where it is no belief."""
        try:
            layout = json.loads(dataset.attrs["layout"])
            encoding = Encoding(
                skill=tuple(map(str, dataset["skill"].values)),
                domain=tuple(map(str, dataset["domain"].values)),
                feature=tuple(map(str, dataset["feature"].values)),
                feature_mean=dataset["feature_mean"].values,
                feature_scale=dataset["feature_scale"].values,
            )
            own = ("episode", "layout", "created_by")
            return cls(
                encoding=encoding,
                layout=tuple((str(name), tuple(shape)) for name, shape in layout),
                loc=dataset["loc"].values,
                covariance=dataset["covariance"].values,
                episode=int(dataset.attrs["episode"]),
                seen=frozenset(map(str, dataset["seen"].values)),
                attributes={k: v for k, v in dataset.attrs.items() if k not in own},
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"this is no belief ({type(error).__name__}: {error}). Beliefs are made by "
                "`bayesmeta reflect`."
            ) from error


def free_slots(start: int, stop: int) -> list[str]:
    """Names of the slots from ``start`` up to ``stop`` while they are free."""
    return [_FREE.format(i) for i in range(start, stop)]


def is_free(slot: str) -> bool:
    """Whether a slot has no domain yet."""
    return slot.startswith(_FREE.partition("{")[0])
