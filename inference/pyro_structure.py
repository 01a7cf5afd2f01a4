"""What can be learned of a Pyro program by running it once or once per draw.

The same functions as in `bayesmeta.inference.structure`, with the same results: arrays of NumPy.
Data may be given as JAX arrays; they are evaluated in double precision, on the CPU.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam

from bayesmeta.inference.structure import merge_chains
from bayesmeta.models.pyro_data import to_torch

#: Draws that one vectorised evaluation of the program handles: bounds memory.
_AT_ONCE = 256


def run(
    model: Callable[..., Any], model_args: tuple[Any, ...], sites: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Every site of one run of the program, by name, with these values in place of draws."""
    program = model if sites is None else poutine.condition(model, data=dict(sites))
    nodes: dict[str, Any] = dict(poutine.trace(program).get_trace(*model_args).nodes)
    return {k: site for k, site in nodes.items() if site["type"] == "sample" and not _plate(site)}


def is_deterministic(site: Mapping[str, Any]) -> bool:
    """A recorded value, which Pyro writes as an observation of a point mass."""
    fn = site["fn"]
    return isinstance(getattr(fn, "base_dist", fn), dist.Delta)


def latent_sites(model: Callable[..., Any], *model_args: Any) -> list[str]:
    """Names of the unobserved random sites, in the order in which they are drawn."""
    with torch.random.fork_rng(devices=[]):
        sites = run(model, to_torch(model_args))
    return [name for name, site in sites.items() if not site["is_observed"]]


def decentred(
    model: Callable[..., Any], decenter: tuple[str, ...], *model_args: Any
) -> Callable[..., Any]:
    """The same program, with some location-scale sites sampled as loc + scale * raw.

    See `bayesmeta.inference.reparametrise.reparametrise`. Names that the program does not draw,
    because its prior fixes them, are passed over.
    """
    drawn = set(decenter) & set(latent_sites(model, *model_args))
    return poutine.reparam(model, config={name: LocScaleReparam(0.0) for name in drawn})


def every_site(
    program: Callable[..., Any], draws: Mapping[str, torch.Tensor], *model_args: Any
) -> dict[str, torch.Tensor]:
    """Latent and deterministic sites at every draw, without the coordinates of decentred ones.

    Args:
      draws: latent site of the program -> [draw, *shape].
    """

    def values(draw):
        return {
            name: site["value"]
            for name, site in run(program, model_args, draw).items()
            if is_deterministic(site)
        }

    sites = {**draws, **_over_draws(values, dict(draws))}
    return {name: value for name, value in sites.items() if not name.endswith("_decentered")}


def site_log_probs(
    model: Callable[..., Any], samples: Mapping[str, np.ndarray], *model_args: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Evaluate the program at every draw.

    Args:
      samples: latent site -> [num_chains, num_samples, *shape].

    Returns:
      ``log_prior``: latent site -> [chain, draw], nats, summed over the site;
      ``log_likelihood``: observed site -> [chain, draw, *batch shape], nats;
      ``deterministic``: site -> [chain, draw, *shape].
    """
    model_args = to_torch(model_args)

    def evaluate(draw):
        prior, likelihood, deterministic = {}, {}, {}
        for name, site in run(model, model_args, draw).items():
            if is_deterministic(site):
                deterministic[name] = site["value"]
            elif site["is_observed"] and name not in draw:
                likelihood[name] = site["fn"].log_prob(site["value"])
            else:
                prior[name] = site["fn"].log_prob(site["value"]).sum()
        return prior, likelihood, deterministic

    prior, likelihood, deterministic = _over_draws(evaluate, _flat(samples))
    return _arrays(prior, samples), _arrays(likelihood, samples), _arrays(deterministic, samples)


def posterior_predictive(
    model: Callable[..., Any],
    samples: Mapping[str, np.ndarray],
    *model_args: Any,
    rng_seed: int = 0,
) -> dict[str, np.ndarray]:
    """Draw every observed site anew at every posterior draw.

    Returns:
      Observed site -> [num_chains, num_samples, *shape].
    """
    model_args = to_torch(model_args)

    def replicate(draw):
        return {
            name: site["fn"].sample()
            for name, site in run(model, model_args, draw).items()
            if site["is_observed"] and name not in draw and not is_deterministic(site)
        }

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng_seed)
        return _arrays(_over_draws(replicate, _flat(samples)), samples)


def _plate(site: Mapping[str, Any]) -> bool:
    """Whether this is a plate, which Pyro records as the sampling of its subset."""
    return type(site["fn"]).__name__ == "_Subsample"


def _over_draws(function: Callable[[Any], Any], draws: dict[str, torch.Tensor]) -> Any:
    """The function at every draw of draws [draw, *shape], vectorised."""
    # Validation looks at values, which a vectorised program does not have.
    with torch.no_grad(), pyro.validation_enabled(False):
        return torch.func.vmap(function, randomness="different", chunk_size=_AT_ONCE)(draws)


def _flat(samples: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: to_torch(merge_chains(np.asarray(value))) for name, value in samples.items()}


def _arrays(
    values: Mapping[str, torch.Tensor], samples: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    leading = next(iter(samples.values())).shape[:2]
    return {k: v.numpy().reshape(leading + tuple(v.shape[1:])) for k, v in values.items()}
