"""Bradley-Terry with ties, judges and biases in Pyro: the twin of `models.bradley_terry`."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch

from bayesmeta.models.bradley_terry import BRADLEY_TERRY, NEVER
from bayesmeta.models.contrasts import contrast
from bayesmeta.models.prior import Prior
from bayesmeta.models.pyro_data import check_tensors
from bayesmeta.models.pyro_prior import draw


def bradley_terry(data: Any, prior: Prior = BRADLEY_TERRY) -> None:
    """The Pyro program, with the sites and the density of its twin.

    Args:
      data: `bayesmeta.models.bradley_terry.PreferenceData` of tensors, which
        `bayesmeta.models.pyro_data.to_torch` makes.
      prior: the same object as NumPyro's.
    """
    check_tensors(data)
    if data.num_items < 2:
        raise ValueError(f"{data.num_items} items cannot be compared: at least two are needed.")
    prior.require("u", "zeta", "g", "log_a", "log_nu")
    x, J, P = data.x, data.num_judges, data.x.shape[1]
    item_1, item_2, judge = data.item_1.long(), data.item_2.long(), data.judge.long()
    C = torch.from_numpy(contrast(data.num_items)).to(x)
    R = C @ draw("u", prior, (data.num_items - 1,), like=x)
    pyro.deterministic("R", R)
    gap = R[item_1] - R[item_2]
    if P:
        gap = gap + x @ draw("zeta", prior, (P,), like=x)
    if J > 1:
        raw = draw("log_a", prior, (J - 1,), like=x)
        a = torch.exp(torch.from_numpy(contrast(J)).to(x) @ raw)
        pyro.deterministic("a", a)
        gap = gap * a[judge]
    if data.has_order:
        gap = gap + draw("g", prior, (J,), like=x)[judge] * data.order
    if data.has_ties:
        tie = draw("log_nu", prior, (J,), like=x)[judge]
    else:
        tie = torch.full_like(gap, NEVER)
    with pyro.plate("comparison", data.winner.shape[0]):
        pyro.sample(
            "winner",
            dist.Categorical(logits=torch.stack([tie, gap / 2, -gap / 2], -1)),
            obs=data.winner,
        )
