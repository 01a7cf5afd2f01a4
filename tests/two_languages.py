"""One density written twice: how far a NumPyro and a Pyro program are apart, site by site."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import constrain_fn, potential_energy
from pyro.infer.mcmc.util import initialize_model
from simulate_full import simulate_full

from bayesmeta.inference.pyro_structure import is_deterministic, run
from bayesmeta.inference.structure import trace_sites
from bayesmeta.models.pyro_data import to_torch

#: Largest difference of a site's log-probabilities (nats) or values, and of gradients relative to
#: their size.
TOLERANCE = 1e-8

#: Each program runs three times: compiling it well would take longer.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def full_case(graph):
    """Data with task weights and outcomes of no meaning, as the arguments of the program."""
    rng = np.random.default_rng(0)

    def outcomes(key, data, prior, graph):
        return {"O": jnp.asarray(rng.integers(0, 3, data.num_tasks))}

    # A density may be compared anywhere, and drawing from the program takes JAX a while.
    with mock.patch("simulate_full.draw_everything", outcomes):
        data, prior, _ = simulate_full(graph, rng, num_evidence_features=1)
    data = dataclasses.replace(data, scale=jnp.asarray(rng.uniform(0.5, 2.0, data.num_tasks)))
    return data, prior, graph


def disagreements(in_numpyro, in_pyro, args, rng, num_points=3) -> dict[str, float]:
    """Where two programs differ at random points of unconstrained space; empty where nowhere.

    Keys are names of sites (log-probabilities of random sites, values of deterministic ones),
    ``order`` for the names of sites, and ``gradient of`` a site for the gradient of the joint
    density with respect to its unconstrained coordinates, change of variables included.
    """
    tensors = to_torch(args)
    _, potential, _, _ = initialize_model(in_pyro, tensors)
    shapes, kinds = _latent_shapes(in_numpyro, args)
    points = [
        {k: 0.7 * rng.normal(size=s.shape) for k, s in shapes.items()} for _ in range(num_points)
    ]
    evaluate = jax.jit(lambda z: _evaluate(in_numpyro, args, z)).lower(points[0])
    evaluate = evaluate.compile(compiler_options=_QUICKLY)
    found: dict[str, float] = {}

    def note(name, ours, theirs, relative=False):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        difference = float("inf")
        if ours.shape == theirs.shape:
            size = np.maximum(np.abs(ours), 1.0) if relative else 1.0
            difference = float((np.abs(ours - theirs) / size).max(initial=0.0))
        if not difference <= TOLERANCE:
            found[name] = max(found.get(name, 0.0), difference)

    for z in points:
        point, values, gradients = evaluate(z)
        sites = run(in_pyro, tensors, {k: to_torch(np.asarray(v)) for k, v in point.items()})
        if list(sites) != list(kinds):
            found["order"] = float("inf")
        for name in sites.keys() & kinds.keys():
            site = sites[name]
            if is_deterministic(site) != (kinds[name] == "deterministic"):
                found[name] = float("inf")
                continue
            fixed = is_deterministic(site)
            note(name, values[name], site["value"] if fixed else site["fn"].log_prob(site["value"]))
        raw = {k: torch.tensor(v, requires_grad=True) for k, v in z.items()}
        theirs = torch.autograd.grad(potential(raw), list(raw.values()), allow_unused=True)
        for name, gradient in zip(raw, theirs, strict=True):
            gradient = torch.zeros_like(raw[name]) if gradient is None else gradient
            note(f"gradient of {name}", gradients[name], gradient, relative=True)
    return found


def _latent_shapes(program, args):
    """Unconstrained shape of every latent site, and what kind of site each one is."""
    kinds = {}

    def unconstrained():
        sites = {k: s for k, s in trace_sites(program, *args).items() if s["type"] != "plate"}
        kinds.update({name: site["type"] for name, site in sites.items()})
        return {
            name: biject_to(site["fn"].support).inv(site["value"])
            for name, site in sites.items()
            if site["type"] == "sample" and not site["is_observed"]
        }

    return jax.eval_shape(unconstrained), kinds


def _evaluate(program, args, z):
    """The constrained point, every site's log-probabilities or value, and the gradient."""
    point = constrain_fn(program, args, {}, z)
    fixed = handlers.substitute(handlers.seed(program, jax.random.key(0)), data=point)
    values = {
        name: site["value"]
        if site["type"] == "deterministic"
        else site["fn"].log_prob(site["value"])
        for name, site in handlers.trace(fixed).get_trace(*args).items()
        if site["type"] != "plate"
    }
    return point, values, jax.grad(lambda z: potential_energy(program, args, {}, z))(z)
