"""Group effects with one scale in a NumPyro program: finding them, and what they must be like."""

from typing import Any

from numpyro.distributions import Distribution, ExpandedDistribution, Independent, constraints

#: Supports, besides that of the scale, in whose coordinates without bounds a mode can be sought.
_SERVED = (constraints.real, constraints.unit_interval)


def obstacle(sites: dict[str, Distribution], group: str, scale: str) -> str:
    """Why this program cannot be whitened, or "" where it can."""
    if sites[scale].support is not constraints.positive or sites[scale].shape():
        return f"{scale!r} is not one positive number"
    if not {"loc", "scale"} <= set(base_of(sites[group]).arg_constraints):
        return f"{group!r} is not of a location-scale family"
    for name, fn in sites.items():
        if name != scale and base_of(fn).support not in _SERVED:
            return f"{name!r} is a further site that is neither real nor between 0 and 1"
    return ""


def base_of(fn: Any) -> Distribution:
    """The family under a distribution's batch and event shapes."""
    while isinstance(fn, (Independent, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def shape_params(fn: Distribution) -> list[str]:
    """What a distribution has besides a location and a scale, such as degrees of freedom."""
    return [name for name in base_of(fn).arg_constraints if name not in ("loc", "scale")]
