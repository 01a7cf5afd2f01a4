"""The No-U-Turn sampler (Hoffman & Gelman 2014), through Pyro."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pyro.infer import MCMC, NUTS

from bayesmeta.inference.diagnose import diagnose_chains
from bayesmeta.inference.fit_result import FitResult
from bayesmeta.inference.pyro_structure import decentred, every_site, latent_sites
from bayesmeta.models.pyro_data import to_torch


def pyro_nuts(
    model: Callable[..., Any],
    *model_args: Any,
    rng_seed: int = 0,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 1000,
    target_accept: float = 0.9,
    dense_mass: bool = False,
    decenter: tuple[str, ...] = (),
    device: str | None = None,
    jit: bool = True,
    num_threads: int = 1,
    progress: bool = False,
) -> FitResult:
    """Draw from the posterior of ``model(*model_args)``.

    Draws target p(latent sites | observed sites) exactly, as the number of draws grows. Chains run
    one after another, in double precision. `bayesmeta.inference.nuts` draws from the same
    posterior many times faster: this engine is there to check it in another language, and to fit
    programs written in Pyro.

    Args:
      model: a Pyro program. Its discrete sites must be summed out by hand.
      model_args: dataclasses of arrays or tensors, which are moved to the device.
      rng_seed: seed of chains, initial points included. The global generator is left alone.
      num_chains: at least 2, or R-hat cannot be computed.
      num_warmup: adaptation steps per chain, not kept.
      num_samples: draws kept per chain.
      target_accept: mean acceptance probability that the step size is adapted to.
      dense_mass: adapt a full inverse mass matrix.
      decenter: location-scale sites to sample as loc + scale * raw.
      device: where torch computes; None for CUDA where there is any, else the CPU.
      jit: trace the density once with torch.jit, which is several times faster. Switch it off for
        programs whose course depends on the values drawn.
      num_threads: of torch. The operations are many and small: more threads than one only pay
        where tasks are tens of thousands, and cost much where other programs want the cores too.
      progress: show Pyro's bar.

    Returns:
      A `FitResult`; look at its ``status`` before its ``samples``. Its statistic ``energy`` is that
      with which the trajectory of the draw began.
    """
    if num_chains < 2:
        raise ValueError(f"num_chains must be at least 2, got {num_chains}: R-hat compares chains.")
    start = time.perf_counter()
    device = device or default_device()
    args = to_torch(model_args, device)
    program = decentred(model, decenter, *model_args)
    chains = []
    for seed in np.random.SeedSequence(rng_seed).generate_state(num_chains):
        kernel = RecordingNUTS(
            program,
            target_accept_prob=target_accept,
            full_mass=dense_mass,
            jit_compile=jit,
            ignore_jit_warnings=True,
        )
        mcmc = MCMC(
            kernel,
            num_samples=num_samples,
            warmup_steps=num_warmup,
            disable_progbar=not progress,
            hook_fn=lambda kernel, params, stage, i: kernel.end_iteration(stage),
        )
        with seeded(int(seed), device), threads(num_threads), without_jit_warning():
            mcmc.run(*args)
            sites = every_site(program, mcmc.get_samples(), *args)
        chains.append(({k: v.cpu().numpy() for k, v in sites.items()}, kernel.statistics()))
    samples, stats = (
        {name: np.stack([chain[part][name] for chain in chains]) for name in chains[0][part]}
        for part in (0, 1)
    )
    return FitResult(
        samples=samples,
        sample_stats=stats,
        status=diagnose_chains(samples, stats, latent_sites(model, *model_args)),
        seconds=time.perf_counter() - start,
        settings={
            "engine": "pyro_nuts",
            "rng_seed": rng_seed,
            "num_chains": num_chains,
            "num_warmup": num_warmup,
            "num_samples": num_samples,
            "target_accept": target_accept,
            "dense_mass": int(dense_mass),
            "decenter": ",".join(decenter),
            "device": device,
            "jit": int(jit),
            "num_threads": num_threads,
        },
    )


class RecordingNUTS(NUTS):
    """Pyro's kernel, which also records the statistics of every draw under ArviZ's names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leaves: list[tuple[float, bool]] = []
        self._energy = float("nan")
        self._records: list[dict[str, float]] = []

    def _build_basetree(self, z, r, z_grads, log_slice, direction, energy_current):
        leaf = super()._build_basetree(z, r, z_grads, log_slice, direction, energy_current)
        self._leaves.append((float(leaf.sum_accept_probs), bool(leaf.diverging)))
        self._energy = float(energy_current)
        return leaf

    def end_iteration(self, stage: str) -> None:
        """Turn what the trajectory left behind into one record, unless it was warm-up."""
        accepted, diverging = zip(*self._leaves, strict=True)
        self._leaves = []
        if stage.startswith("Sample"):
            _, potential_energy, _ = self._fetch_from_cache()
            self._records.append(
                {
                    "diverging": any(diverging),
                    "energy": self._energy,
                    "n_steps": len(accepted),
                    "acceptance_rate": sum(accepted) / len(accepted),
                    "lp": -float(potential_energy),  # pyright: ignore[reportArgumentType]
                }
            )

    def statistics(self) -> dict[str, np.ndarray]:
        """Name -> [draw]."""
        return {name: np.array([r[name] for r in self._records]) for name in self._records[0]}


def default_device() -> str:
    """CUDA where torch finds it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch's generators, and leave them afterwards as they were before."""
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use so many threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def without_jit_warning() -> Iterator[None]:
    """torch >= 2.10 calls torch.jit deprecated; Pyro 1.9 has nothing else to compile with."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        yield
