"""Priors as data: named, frozen, serialisable, one entry per site of a model."""

import dataclasses
import json
from collections.abc import Mapping

import numpyro.distributions as dist

#: Families a site may use, with the constructor's own parameter names.
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


@dataclasses.dataclass(frozen=True, slots=True)
class SitePrior:
    """The prior of one site: a family and its parameters.

    A parameter is a number, or the name of an earlier site: ``SitePrior("Normal", {"loc": 0,
    "scale": "tau_E"})`` shrinks towards zero by the amount that the site ``tau_E`` decides.
    """

    family: str
    parameters: Mapping[str, float | str]

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(
                f"unknown prior family {self.family!r}; known: {', '.join(sorted(FAMILIES))}."
            )
        known = set(FAMILIES[self.family].arg_constraints)
        if unknown := sorted(set(self.parameters) - known):
            raise ValueError(
                f"{self.family} has no parameter {unknown[0]!r}; it takes {sorted(known)}."
            )
        for name, value in self.parameters.items():
            constraint = FAMILIES[self.family].arg_constraints[name]
            if not isinstance(value, str) and not bool(constraint(value)):
                raise ValueError(
                    f"{self.family} needs {name} in {constraint}, got {value}. "
                    "Choose a value inside that support."
                )

    def distribution(self, **sites: object) -> dist.Distribution:
        """The NumPyro distribution, with named parameters looked up among ``sites``."""
        values = {}
        for name, value in self.parameters.items():
            if isinstance(value, str):
                if value not in sites:
                    raise ValueError(
                        f"the prior refers to site {value!r}, which the model has not drawn "
                        f"before this site; it offers {sorted(sites)}."
                    )
                value = sites[value]
            values[name] = value
        return FAMILIES[self.family](**values)


@dataclasses.dataclass(frozen=True, slots=True)
class Prior:
    """A named prior over all sites of a model. Swap one site with `replace`."""

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

    def replace(self, name: str, **sites: SitePrior) -> "Prior":
        """A copy under another name with some sites swapped."""
        return Prior(name, {**self.sites, **sites})

    def require(self, *sites: str) -> None:
        """Raise ValueError unless every one of ``sites`` has an entry, and no other has."""
        missing, extra = sorted(set(sites) - set(self.sites)), sorted(set(self.sites) - set(sites))
        if missing or extra:
            raise ValueError(
                f"prior {self.name!r} does not fit the model: missing sites {missing}, "
                f"unknown sites {extra}. The model has {sorted(sites)}."
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
