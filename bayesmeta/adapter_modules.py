"""Which modules of a language model an adapter should touch, and which it may leave alone.

The posterior of a spike and a slab for every module, from the Jacobian that `fit_adapter` took: no
call of the language model beyond it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from bayesmeta.adapter import AdapterFit, Answers, Jacobian
from bayesmeta.inference.linear_softmax import softmax_map
from bayesmeta.models.module_selection import SPIKE_AND_SLAB, ModuleData, module_selection
from bayesmeta.models.prior import Prior

if TYPE_CHECKING:
    import pandas as pd

    from bayesmeta.tasks import Task


@dataclasses.dataclass(frozen=True)
class ModuleSelection:
    """Which modules matter.

    Attributes:
      fit: the adapter that modules are parts of.
      table: one row per module, indexed by its name: ``inclusion`` P(s_m = 1 | answers), its Monte
        Carlo standard error ``inclusion_se``, and ``selected``, where that is above one half (the
        median probability model, Barbieri & Berger 2004).
      tau: posterior median.
      tree: the posterior, for ArviZ.
    """

    fit: AdapterFit
    table: "pd.DataFrame"
    tau: float
    tree: xr.DataTree

    @property
    def share(self) -> float:
        """Of modules that are selected: a result, not forced."""
        return float(self.table["selected"].to_numpy().mean())

    def most_probable(self, share: float) -> np.ndarray:
        """[module] whether a module is among this share of all, by inclusion probability."""
        order = np.argsort(-self.table["inclusion"].to_numpy(), kind="stable")
        chosen = np.zeros(len(order), bool)
        chosen[order[: max(1, round(share * len(order)))]] = True
        return chosen

    def weights(self, selected: Sequence[bool] | np.ndarray | None = None) -> torch.Tensor:
        """[weight] linearised posterior mode with these modules only; by default, the selected."""
        chosen = self.table["selected"] if selected is None else selected
        factor = torch.from_numpy(np.asarray(chosen, np.float32) * self.tau)
        scale = (self.fit.scale * self.fit.adapter.per_module(factor)).numpy()
        return linear_update(self.fit, scale)


def select_modules(
    fit: AdapterFit,
    prior: Prior = SPIKE_AND_SLAB,
    *,
    num_warmup: int = 200,
    num_samples: int = 1500,
    num_chains: int = 2,
    rng_seed: int = 0,
) -> ModuleSelection:
    """Inclusion probabilities by NumPyro's Gibbs sampling of indicators, and NUTS for the rest.

    Args:
      fit: from `bayesmeta.adapter.fit_adapter`.
      prior: of pi and tau, see `bayesmeta.models.module_selection`.
      num_warmup, num_samples, num_chains, rng_seed: of the sampler. Every draw visits every module.
    """
    import arviz as az
    import jax
    import pandas as pd

    from bayesmeta.inference.diagnose import MAX_RHAT, MIN_ESS
    from bayesmeta.inference.nuts_batch import nuts_batch

    names = [module.name for module in fit.adapter.modules]
    # A large tau leaves nothing of single precision, see `bayesmeta.models.module_selection`.
    with jax.enable_x64(True):
        (result,) = nuts_batch(
            functools.partial(module_selection, prior=prior),
            jax.tree.map(lambda leaf: leaf[None], module_data(fit)),
            rng_seed=rng_seed,
            num_chains=num_chains,
            num_warmup=num_warmup,
            num_samples=num_samples,
            indicators=True,
            max_rhat=MAX_RHAT,
            min_ess=MIN_ESS,
        )
    draws, status = result.samples, result.status
    drawn = {name: draws[name] for name in ("pi", "tau") if prior[name].fixed is None}
    size = draws["s"].sum(-1).astype(np.float32)
    posterior = {"s": draws["s"].astype(np.int8), **drawn, "num_included": size}
    tree = az.from_dict({"posterior": posterior}, coords={"module": names}, dims={"s": ["module"]})
    tree.attrs = {
        "model": "module_selection",
        "prior": prior.to_json(),
        "status": status.outcome.name,
        "status_detail": status.detail,
    }
    s = draws["s"].astype(np.float64)
    error: Any = az.mcse(tree, var_names=["s"])
    table = pd.DataFrame(
        {
            "inclusion": s.mean((0, 1)),
            "inclusion_se": np.nan_to_num(np.asarray(error["s"])),
        },
        index=pd.Index(names, name="module"),
    )
    table["selected"] = table["inclusion"] > 0.5
    tau = float(np.median(draws["tau"]))  # a constant where the prior fixes it
    return ModuleSelection(fit, table, tau, tree)


def module_data(fit: AdapterFit) -> ModuleData:
    """The answers' log-likelihood to second order around the linearised posterior mode."""
    import jax.numpy as jnp

    parts = [module.place for module in fit.adapter.modules]
    scale = fit.scale.numpy()
    update = linear_update(fit, scale).numpy()
    return quadratic(
        fit.jacobian, fit.answers.gold.cpu().numpy(), scale, update, parts, jnp.asarray
    )


def quadratic(
    jacobian: Jacobian,
    gold: np.ndarray,
    scale: np.ndarray,
    update: np.ndarray,
    parts: Sequence[slice],
    as_array: Any = np.asarray,
    least: float = 0.02,
) -> ModuleData:
    """
    Args:
      jacobian: of the logits at the model as it is.
      gold: [task] answers observed.
      scale: [weight] prior standard deviations.
      update: [weight] the point to expand around.
      parts: of each module, within the vector of weights.
      as_array: what makes the arrays of the result.
      least: directions along which the data say less than this, as a multiple of what the prior
        does, are kept to first order only: they are many.
    """
    num_tasks, num_candidates = jacobian.logits.shape
    moved = (jacobian.slopes @ update).astype(np.float64)
    logits = jacobian.logits + moved
    p = np.exp(logits - np.logaddexp.reduce(logits, 1, keepdims=True))
    # H = R'R for rows R_c = sqrt(p_c) (e_c - p), one block a task.
    eye = np.eye(num_candidates)
    rows = np.sqrt(p)[:, :, None] * (eye - p[:, None, :])
    b = -p
    b[np.arange(num_tasks), gold] += 1.0
    b += np.einsum("nrc,nrd,nd->nc", rows, rows, moved)
    scaled = jacobian.slopes * scale
    seen = np.einsum("nrc,ncp->nrp", rows.astype(np.float32), scaled)
    seen = seen.reshape(-1, seen.shape[-1])[p.reshape(-1) > 0].astype(np.float64)
    pull = np.einsum("nc,ncp->p", b, scaled.astype(np.float64))
    G = np.stack([seen[:, part] @ seen[:, part].T for part in parts])
    v = np.stack([seen[:, part] @ pull[part] for part in parts])
    q = np.array([pull[part] @ pull[part] for part in parts])
    values, axes = np.linalg.eigh(G.sum(0))
    axes = axes[:, values > least]
    kept = axes.T @ G @ axes
    # log |1 + K| is the trace of K to first order: that of what is left out goes to b'K b.
    q -= np.trace(G, axis1=1, axis2=2) - np.trace(kept, axis1=1, axis2=2)
    G, v = kept, v @ axes
    return ModuleData(*(as_array(value) for value in (G, v, q)))


def linear_update(fit: AdapterFit, scale: np.ndarray) -> torch.Tensor:
    """[weight] posterior mode of the linearised model for weights ~ N(0, scale^2)."""
    from bayesmeta.inference.data_directions import DataDirections

    jacobian = fit.jacobian
    basis = DataDirections.of(jacobian.rows(scale)).basis.numpy()
    x = (jacobian.slopes * scale) @ basis.T
    c = softmax_map(jacobian.logits, x, fit.answers.gold.cpu().numpy(), np.ones(len(basis)))
    return torch.from_numpy((scale * (c @ basis)).astype(np.float32))


def gains(
    fit: AdapterFit, weights: Mapping[str, torch.Tensor], tasks: "Sequence[Task]"
) -> "pd.DataFrame":
    """Log score of each task's gold answer, nats, by the model as it was and with some weights.

    Returns:
      One row per task: ``domain``, ``before``, and a column for every entry of ``weights``.
    """
    import pandas as pd

    answers = Answers.of(fit.adapter, tasks)
    columns = {"before": answers.log_score(None)}
    columns |= {name: answers.log_score(one) for name, one in weights.items()}
    index = pd.Index([task.id for task in tasks], name="task")
    return pd.DataFrame({"domain": [task.domain for task in tasks], **columns}, index=index)
