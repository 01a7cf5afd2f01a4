"""Theta_E inside the language model: a distribution over the weights of a low-rank adapter.

    tau_m: how far module m may move        Theta_E = (B_1, ..., B_M)
    B_m ~ Normal(0, tau_m)                  W_m = W_m0 + (alpha / r) B_m A_m
    O_n | G_n, Theta_E ~ the adapted language model's answer, renormalised over the candidates

The last line runs the model itself, and gradients pass through it (Bayesian low-rank adapters:
Yang et al. 2024, arXiv 2308.13111; Wang et al. 2024, arXiv 2406.11675; math.md 5.4). There is no
NumPyro twin: the language model lives in torch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int

from bayesmeta.models.prior import Prior, SitePrior
from bayesmeta.models.pyro_prior import draw

#: Beforehand the log odds of two answers may move by a nat or two, on a model of 30 blocks; ask
#: `bayesmeta.adapter.Jacobian.logit_sd` what it comes to on another one.
ADAPTER = Prior(
    "adapter",
    {
        "tau": SitePrior("Fixed", {"value": 0.3}),
        "B": SitePrior("Normal", {"loc": 0.0, "scale": "tau"}),
    },
)
#: Every module learns from the data how far it moves.
LEARNED_SCALES = ADAPTER.replace(
    "learned_scales", tau=SitePrior("LogNormal", {"loc": -1.2, "scale": 0.5})
)
ADAPTER_PRIORS: dict[str, Prior] = {one.name: one for one in (ADAPTER, LEARNED_SCALES)}


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterData:
    """What the model conditions on: N tasks, M modules with P weights between them.

    Attributes:
      answer_logits: (weights [P], indices of tasks [n]) -> log-likelihood of each candidate
        answer [n, C] in nats, by the live model; -1e9 where a task has fewer candidates.
      gold: [N] the answer that was observed.
      module_sizes: [M] weights of each module; their sum is P.
      batch_size: tasks of which each run of the program sees a random part; None for all.
    """

    answer_logits: Callable[[torch.Tensor, torch.Tensor], Float[torch.Tensor, "task candidate"]]
    gold: Int[torch.Tensor, " task"]
    module_sizes: Int[torch.Tensor, " module"]
    batch_size: int | None = None


def adapted_llm(data: AdapterData, prior: Prior = ADAPTER) -> None:
    """The Pyro program. Sites: tau [M], B [P], and the observed answers ``O``."""
    prior.require("tau", "B")
    like = torch.zeros((), device=data.gold.device)
    tau = draw("tau", prior, (len(data.module_sizes),), like=like)
    scale = torch.repeat_interleave(tau, data.module_sizes)
    B = draw("B", prior, (int(data.module_sizes.sum()),), like=like, tau=scale)
    with pyro.plate("task", len(data.gold), subsample_size=data.batch_size) as tasks:
        index: Any = tasks
        logits = data.answer_logits(B, index)
        pyro.sample("O", dist.Categorical(logits=logits), obs=data.gold[index])
