"""One cell of an ablation: fit with every domain left out in turn, and judge."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from bayesmeta.ablation_criticism import leave_one_out, prior_sensitivity
from bayesmeta.ablation_store import Cell, Settings
from bayesmeta.evidence_join import split
from bayesmeta.metrics import calibration_error
from bayesmeta.outcomes import skill_mask
from bayesmeta.programs import Program, program_for
from bayesmeta.skill_scores import skill_scores

if TYPE_CHECKING:
    from bayesmeta.inference.fit_result import FitResult
    from bayesmeta.inference.nuts_batch import NutsBatch
    from bayesmeta.inference.status import Status
    from bayesmeta.models.graph import Graph
    from bayesmeta.models.prior import Prior

#: Chains of each refit; the fit to all tasks has a multiple of it.
CHAINS_PER_ROW = 2
#: Draws of the strategy that are kept for pictures.
KEPT_DRAWS = 400

_LOCATION_SCALE = ("Normal", "StudentT", "Laplace")
_INFINITE_VARIANCE = ("HalfCauchy",)


def run_cell(
    evidence: xr.Dataset, prior: "Prior", graph: "Graph", seed: int, settings: Settings
) -> Cell:
    """Fit the reflect tasks, refit without each domain, and judge on the held-out tasks.

    All fits are one vectorised run on each core: leaving a domain out means weight zero for its
    tasks, and its own effects are then drawn from the prior given what the other domains say.
    Features stay standardised over all reflect tasks, which reads no answer.

    A fit that did not converge is a cell like any other: its status says so.

    Raises:
      ValueError: prior, graph and evidence do not fit together.
    """
    start = time.perf_counter()
    reflect, heldout = split(evidence)
    program = program_for(
        reflect,
        prior,
        graph,
        beta=settings.beta,
        allow_unidentified=settings.allow_unidentified,
    )
    scale = _task_weights(program, settings)
    entry = program.prior.sites.get("v")
    sampler = _sampler(
        program.model,
        decenter=("v",) if entry is not None and entry.family in _LOCATION_SCALE else (),
        num_chains=CHAINS_PER_ROW,
        num_warmup=settings.num_warmup,
        num_samples=settings.num_samples,
        target_accept=settings.target_accept,
    )
    results = sampler(scale, program.data, program.prior, rng_seed=seed)
    # The fit to all tasks has more chains: several rows of the batch, put together again.
    num_rows = settings.num_chains // CHAINS_PER_ROW
    full, stats = (
        _joined([getattr(result, name) for result in results[:num_rows]])
        for name in ("samples", "sample_stats")
    )
    scale, refits = scale[num_rows:], results[num_rows:]
    status = _status(full, stats, refits, program)
    facts: dict[str, Any] = {
        "prior": prior.name,
        "graph": graph.name,
        "seed": seed,
        "status": status.outcome.name,
        "status_detail": status.detail,
        "diagnostics": status.diagnostics,
        "beta": settings.beta,
        "domains": list(program.encoding.domain),
        "skills": list(program.encoding.skill),
    }
    judged = _judge_reflect(program, full, settings, seed)
    held = _judge_heldout(program, full, heldout, graph, settings, seed)
    kept = np.linspace(0, full["F"].shape[0] * full["F"].shape[1] - 1, KEPT_DRAWS).astype(int)
    strategy = full["F"].reshape(-1, *full["F"].shape[2:])[np.unique(kept)]
    elpd_domain = _elpd_by_domain(program, refits, scale, seed)
    facts |= judged.pop("facts") | held.pop("facts")
    facts["seconds"] = time.perf_counter() - start
    return Cell(
        **judged,
        **held,
        elpd_domain=elpd_domain,
        domain=np.asarray(reflect["domain"].values, np.str_),
        strategy=strategy.astype(np.float32),
        facts=facts,
    )


@functools.cache
def weighted(model: Callable[[Any, Any], None]) -> Callable[[Any, Any, Any], None]:
    """The same program with its task weights [N] as the first argument."""

    def program(scale: Any, data: Any, prior: Any) -> None:
        model(dataclasses.replace(data, scale=scale), prior)

    return program


@functools.cache
def _sampler(model: Callable[[Any, Any], None], **settings: Any) -> "NutsBatch":
    """Kept, so that priors of the same families share what was compiled."""
    from bayesmeta.inference.nuts_batch import NutsBatch, free_cores

    return NutsBatch.of(weighted(model), threads=free_cores(), **settings)


def _task_weights(program: Program, settings: Settings) -> np.ndarray:
    """[rows + D, N]: all tasks, in several rows, then all but those of each domain if asked."""
    domain = np.asarray(program.data.domain)
    num_domains = program.data.num_domains
    rows = [np.ones(len(domain))] * (settings.num_chains // CHAINS_PER_ROW)
    if settings.by_domain and num_domains > 1:
        rows += [np.where(domain == d, 0.0, 1.0) for d in range(num_domains)]
    return np.stack(rows).astype(program.data.scale.dtype)


def _joined(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Chains of several runs as those of one."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _status(
    samples: Mapping[str, np.ndarray],
    stats: Mapping[str, np.ndarray],
    refits: "Sequence[FitResult]",
    program: Program,
) -> "Status":
    """Of the full fit by the strict standard; if that holds, of the first refit that failed."""
    from bayesmeta.inference.diagnose import diagnose_chains
    from bayesmeta.inference.structure import latent_sites

    sites = latent_sites(program.model, program.data, program.prior)
    status = diagnose_chains(samples, stats, sites)
    if not status.converged:
        return status
    for name, result in zip(program.encoding.domain, refits, strict=False):
        if not result.status.converged:
            detail = f"without domain {name!r}: {result.status.detail}"
            return dataclasses.replace(result.status, detail=detail)
    return status


def _judge_reflect(
    program: Program, samples: Mapping[str, np.ndarray], settings: Settings, seed: int
) -> dict[str, Any]:
    """Leave-one-out, contraction and sensitivity of the full fit."""
    import arviz as az

    from bayesmeta.ablation_evaluate import at_draws
    from bayesmeta.inference.structure import latent_sites

    latent = latent_sites(program.model, program.data, program.prior)
    draws = {name: samples[name] for name in latent}
    log_prior, log_likelihood, _, _ = at_draws(program.model, program.data, program.prior, draws)
    varying = {n: samples[n] for n in settings.sites if np.ptp(samples[n], axis=(0, 1)).any()}
    if not np.isfinite(log_likelihood).all():
        nothing = np.full(log_likelihood.shape[-1], np.nan)
        none: dict[str, float] = dict.fromkeys(settings.sites, float("nan"))
        facts = {"bad_pareto_k": -1, "contraction": none, "sensitivity": none, "psense": "n/a"}
        return {"elpd_loo": nothing, "facts": facts}
    tree = az.from_dict({"posterior": varying, "log_likelihood": {"O": log_likelihood}})
    top_level = {n: v for n, v in log_prior.items() if _is_top_level(program.prior, n)}
    tree["log_prior"] = az.from_dict({"log_prior": top_level})["log_prior"]
    elpd, bad_pareto_k = leave_one_out(tree)
    sensitivity, diagnosis = prior_sensitivity(tree, settings.sites)
    facts = {
        "bad_pareto_k": bad_pareto_k,
        "contraction": _contraction(program, samples, settings.sites, seed),
        "sensitivity": sensitivity,
        "psense": diagnosis,
    }
    return {"elpd_loo": elpd, "facts": facts}


def _is_top_level(prior: "Prior", site: str) -> bool:
    """Whether a site's prior is numbers only: group effects are part of the model, not a prior
    to be scaled."""
    entry = prior.sites.get(site)
    return entry is not None and not any(isinstance(v, str) for v in entry.parameters.values())


def _contraction(
    program: Program, samples: Mapping[str, np.ndarray], sites: tuple[str, ...], seed: int
) -> dict[str, float]:
    """1 - Var_post / Var_prior, the mean over the entries of each site that have both."""
    from bayesmeta.ablation_evaluate import prior_variance

    before = prior_variance(program.model, program.data, program.prior, sites, rng_seed=seed)
    contraction = {}
    for name in sites:
        after = np.var(np.asarray(samples[name], np.float64), axis=(0, 1))
        entry = program.prior.sites.get(name)
        finite = entry is None or entry.family not in _INFINITE_VARIANCE
        free = before[name] > 1e-12
        contraction[name] = (
            float(np.mean(1 - after[free] / before[name][free]))
            if finite and free.any()
            else float("nan")
        )
    return contraction


def _judge_heldout(
    program: Program,
    samples: Mapping[str, np.ndarray],
    heldout: xr.Dataset,
    graph: "Graph",
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Predictive, calibration and regret on the held-out tasks."""
    from bayesmeta.ablation_evaluate import at_draws
    from bayesmeta.inference.structure import latent_sites

    if heldout.sizes["task"] == 0:
        empty = np.zeros((0, heldout.sizes["candidate"]))
        nothing = dict.fromkeys(("calibration_error", "calibration_null"), float("nan"))
        return {
            "heldout_log_p": empty,
            "heldout_gold": np.zeros(0, np.int64),
            "regret": np.zeros(0),
            "facts": nothing | {"calibration_null_q95": float("nan")},
        }
    beta = float(samples["beta"].mean()) if "beta" in program.prior.sites else settings.beta
    # The program's own prior has all sites, so that it serves the held-out tasks as it is.
    other = program_for(
        heldout,
        program.prior,
        graph,
        beta=beta,
        encoding=program.encoding,
        allow_unidentified=True,
    )
    latent = latent_sites(program.model, program.data, program.prior)
    draws = {name: samples[name] for name in latent}
    _, _, log_p, weight = at_draws(
        other.model, other.data, other.prior, draws, local=program.local, rng_seed=seed
    )
    gold = heldout["gold"].values.astype(np.int64)
    calibration = calibration_error(log_p, gold, seed=seed)
    part = heldout.sel(skill=list(program.encoding.skill))
    by_skill = np.where(skill_mask(part), skill_scores(part, beta).log_likelihood, -np.inf)
    chosen = np.take_along_axis(by_skill, weight.argmax(1)[:, None], 1)[:, 0]
    return {
        "heldout_log_p": log_p,
        "heldout_gold": gold,
        "regret": by_skill.max(1) - chosen,
        "facts": {
            "calibration_error": calibration.error,
            "calibration_null": calibration.null_mean,
            "calibration_null_q95": calibration.null_q95,
        },
    }


def _elpd_by_domain(
    program: Program, refits: "Sequence[FitResult]", scale: np.ndarray, seed: int
) -> np.ndarray:
    """[N] log E[p(o_n)] in nats under the fit that did not see the domain of n."""
    from bayesmeta.ablation_evaluate import at_draws
    from bayesmeta.inference.structure import latent_sites

    elpd = np.full(scale.shape[1], np.nan)
    latent = latent_sites(program.model, program.data, program.prior)
    for weights, result in zip(scale, refits, strict=True):
        draws = {name: result.samples[name] for name in latent}
        _, log_likelihood, _, _ = at_draws(
            program.model, program.data, program.prior, draws, rng_seed=seed
        )
        values = log_likelihood.reshape(-1, log_likelihood.shape[-1]).astype(np.float64)
        left_out = weights == 0
        elpd[left_out] = logsumexp(values[:, left_out], axis=0) - np.log(len(values))
    return elpd
