"""Priors as data: named, frozen, serialisable, one entry per site of a model."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from bayesmeta.models.logistic_dirichlet import LogisticDirichlet

#: Families of one number a site may use, with the constructor's own parameter names.
FAMILIES: dict[str, type[dist.Distribution]] = {
    "Normal": dist.Normal,
    "StudentT": dist.StudentT,
    "Laplace": dist.Laplace,
    "HalfNormal": dist.HalfNormal,
    "HalfCauchy": dist.HalfCauchy,
    "Gamma": dist.Gamma,
    "InverseGamma": dist.InverseGamma,
    "LogNormal": dist.LogNormal,
    "Exponential": dist.Exponential,
    "Beta": dist.Beta,
    "Uniform": dist.Uniform,
}
#: Families of a whole vector or matrix: ``LogisticDirichlet`` over the coordinates of a strategy
#: (see its class), ``LKJCholesky`` over the Cholesky factor of a correlation matrix.
WHOLE_FAMILIES: dict[str, type[dist.Distribution]] = {
    "LogisticDirichlet": LogisticDirichlet,
    "LKJCholesky": dist.LKJCholesky,
}
#: A site that is known: it is not drawn, and has no posterior.
FIXED = "Fixed"

_Value = float | str | tuple[Any, ...]
_REAL = (constraints.real, constraints.real_vector)


@dataclasses.dataclass(frozen=True, slots=True)
class SitePrior:
    """The prior of one site: a family and its parameters.

    A parameter is a number, a nested tuple of numbers with the site's shape (or one that
    broadcasts to it), or the name of an earlier site: ``SitePrior("Normal", {"loc": 0, "scale":
    "tau_E"})`` shrinks towards zero by the amount that the site ``tau_E`` decides. The family
    ``Fixed``, with its one parameter ``value``, sets a site to a number.
    """

    family: str
    parameters: Mapping[str, _Value]

    def __post_init__(self) -> None:
        if self.family == FIXED:
            known = {"value"}
        elif self.family in FAMILIES:
            known = set(FAMILIES[self.family].arg_constraints)
        elif self.family in WHOLE_FAMILIES:
            known = {"concentration"}
        else:
            names = sorted({*FAMILIES, *WHOLE_FAMILIES, FIXED})
            raise ValueError(f"unknown prior family {self.family!r}; known: {', '.join(names)}.")
        if unknown := sorted(set(self.parameters) - known):
            raise ValueError(
                f"{self.family} has no parameter {unknown[0]!r}; it takes {sorted(known)}."
            )
        object.__setattr__(self, "parameters", {k: _frozen(v) for k, v in self.parameters.items()})
        for name, value in self.parameters.items():
            if isinstance(value, str):
                continue
            number = _numbers(name, value)
            if self.family == FIXED:
                allowed, constraint = np.isfinite(number).all(), "finite numbers"
            elif self.family in WHOLE_FAMILIES:
                allowed, constraint = (number > 0).all(), "positive numbers"
            else:
                constraint = FAMILIES[self.family].arg_constraints[name]
                if self.family == "Uniform":  # its limits depend on each other
                    constraint = f"low {self.parameters.get('low', 0.0)} < high"
                    allowed = np.isfinite(number).all() and self._ordered()
                else:
                    allowed = np.isfinite(number).all() and bool(np.all(constraint(number)))
            if not allowed:
                raise ValueError(
                    f"{self.family} needs {name} in {constraint}, got {value}. "
                    "Choose a value inside that support."
                )

    def _ordered(self) -> bool:
        low, high = self.parameters.get("low", 0.0), self.parameters.get("high", 1.0)
        if isinstance(low, str) or isinstance(high, str):
            return True
        return bool(np.all(np.asarray(low, float) < np.asarray(high, float)))

    @property
    def fixed(self) -> float | tuple[Any, ...] | None:
        """The value of a site that is known, else None."""
        value = self.parameters["value"] if self.family == FIXED else None
        if isinstance(value, str):
            raise ValueError(f"a fixed site needs numbers, got {value!r}.")
        return value

    @property
    def support(self) -> str:
        """``real``, ``positive``, ``unit`` or ``correlation``: where draws can lie."""
        if self.family == FIXED:
            return "fixed"
        if self.family == "LKJCholesky":
            return "correlation"
        if self.family == "LogisticDirichlet":
            return "real"
        if self.family == "Uniform":
            low, high = (self.parameters.get(k, d) for k, d in (("low", 0.0), ("high", 1.0)))
            if isinstance(low, str) or isinstance(high, str) or np.min(np.asarray(low)) < 0:
                return "interval"
            return "unit" if np.max(np.asarray(high)) <= 1 else "positive"
        support = FAMILIES[self.family].support
        if support in _REAL:
            return "real"
        return "unit" if support is constraints.unit_interval else "positive"

    def distribution(self, **sites: object) -> dist.Distribution:
        """The NumPyro distribution of one entry, with names looked up among ``sites``."""
        if self.family not in FAMILIES:
            raise ValueError(f"{self.family} has no distribution of one entry; use over(shape).")
        return FAMILIES[self.family](**self.arguments(**sites))

    def over(self, shape: tuple[int, ...], **sites: object) -> dist.Distribution:
        """The NumPyro distribution of a whole site of this shape.

        Raises:
          ValueError: a parameter's shape does not broadcast to ``shape``, or it names a site that
            the model does not offer.
        """
        if self.family == "LogisticDirichlet":
            whole = LogisticDirichlet(**self.arguments(**sites), num_coordinates=shape[-1])
            return whole.expand(shape[:-1]).to_event(len(shape) - 1)
        if self.family == "LKJCholesky":
            return dist.LKJCholesky(shape[-1], **self.arguments(**sites))
        entry = self.distribution(**sites)
        check_broadcast(self.family, entry.batch_shape, shape)
        return entry.expand(shape).to_event(len(shape))

    def arguments(self, **sites: object) -> dict[str, Any]:
        """Constructor arguments, names looked up among ``sites`` and tuples made arrays."""
        values: dict[str, Any] = {}
        for name, value in self.parameters.items():
            if isinstance(value, str):
                if value not in sites:
                    raise ValueError(
                        f"the prior refers to site {value!r}, which the model has not drawn "
                        f"before this site; it offers {sorted(sites)}."
                    )
                values[name] = sites[value]
            else:
                values[name] = np.asarray(value) if isinstance(value, tuple) else value
        return values


@dataclasses.dataclass(frozen=True, slots=True)
class Prior:
    """A named prior over all sites of a model. Swap one site with `replace`.

    To JAX a prior is a pytree whose leaves are the numbers, so that programs compiled for one
    prior serve every prior of the same families.
    """

    name: str
    sites: Mapping[str, SitePrior]

    def __getitem__(self, site: str) -> SitePrior:
        try:
            return self.sites[site]
        except KeyError:
            raise KeyError(
                f"prior {self.name!r} has no entry for site {site!r}; it has "
                f"{sorted(self.sites)}. Add one with prior.replace(name, {site}=SitePrior(...))."
            ) from None

    def __hash__(self) -> int:
        return hash(self.to_json())

    def replace(self, name: str, **sites: SitePrior) -> "Prior":
        """A copy under another name with some sites swapped."""
        return Prior(name, {**self.sites, **sites})

    def without(self, name: str, *sites: str) -> "Prior":
        """A copy under another name that lacks some sites."""
        return Prior(name, {k: v for k, v in self.sites.items() if k not in sites})

    def require(self, *sites: str) -> None:
        """Raise ValueError unless every one of ``sites`` has an entry, and no other has."""
        missing, extra = sorted(set(sites) - set(self.sites)), sorted(set(self.sites) - set(sites))
        if missing or extra:
            raise ValueError(
                f"prior {self.name!r} does not fit the model: missing sites {missing}, "
                f"unknown sites {extra}. The model has {sorted(sites)}. Use "
                "prior.replace(name, site=SitePrior(...)) or prior.without(name, site)."
            )

    def require_support(self, **wanted: str) -> None:
        """Raise ValueError unless each site's draws lie in ``real``, ``positive`` or ``unit``."""
        for site, support in wanted.items():
            offered = self.sites[site].support
            narrower = {"real": {"positive", "unit", "interval"}, "positive": {"unit"}}
            if offered not in ("fixed", support, *narrower.get(support, ())):
                raise ValueError(
                    f"site {site!r} must be {support}, but prior {self.name!r} gives it "
                    f"{self.sites[site].family}, whose support is {offered}. Choose a family "
                    f"with {support} support."
                )

    def to_json(self) -> str:
        """Canonical JSON, equal for equal priors."""
        sites = {
            name: {"family": s.family, "parameters": dict(s.parameters)}
            for name, s in self.sites.items()
        }
        return json.dumps({"name": self.name, "sites": sites}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Prior":
        """Inverse of `to_json`. Raises ValueError where the text is not such a prior."""
        try:
            content = json.loads(text)
            sites = {
                name: SitePrior(s["family"], s["parameters"])
                for name, s in content["sites"].items()
            }
            return cls(content["name"], sites)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"not a prior: {text[:80]!r} ({type(error).__name__}: {error}). "
                'Wanted {"name": ..., "sites": {site: {"family": ..., "parameters": {...}}}}.'
            ) from error


def check_broadcast(family: str, offered: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise ValueError unless parameters of shape ``offered`` serve a site of shape ``wanted``."""
    try:
        fits = np.broadcast_shapes(offered, wanted) == tuple(wanted)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"a {family} prior has parameters of shape {tuple(offered)}, but its site has shape "
            f"{tuple(wanted)}. Give numbers, or arrays that broadcast to that shape."
        )


def _frozen(value: Any) -> Any:
    """Lists and arrays as nested tuples, which are hashable and go into JSON."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"parameter {name} is {value!r}, which is neither a number, a rectangular array of "
            "numbers, nor the name of a site."
        ) from error


def _flatten(prior: Prior) -> tuple[list[Any], Any]:
    leaves: list[Any] = []
    structure = []
    for site, entry in sorted(prior.sites.items()):
        for parameter, value in sorted(entry.parameters.items()):
            # Names and known values shape the program; every other number only enters it.
            static = isinstance(value, str) or entry.family == FIXED
            structure.append((site, entry.family, parameter, value if static else None, static))
            if not static:
                leaves.append(np.asarray(value) if isinstance(value, tuple) else value)
    return leaves, tuple(structure)


def _unflatten(structure: Any, leaves: Any) -> Prior:
    remaining = iter(leaves)
    sites: dict[str, SitePrior] = {}
    parameters: dict[str, dict[str, Any]] = {}
    families = {}
    for site, family, parameter, value, static in structure:
        families[site] = family
        parameters.setdefault(site, {})[parameter] = value if static else next(remaining)
    for site, family in families.items():
        # Leaves may be tracers, which cannot be validated: they were when the prior was made.
        entry = object.__new__(SitePrior)
        object.__setattr__(entry, "family", family)
        object.__setattr__(entry, "parameters", parameters[site])
        sites[site] = entry
    return Prior("(compiled)", sites)


jax.tree_util.register_pytree_node(Prior, _flatten, _unflatten)
