"""Inverse planning over latent skills in Pyro: the twin of `models.inverse_planning`."""

from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayesmeta.models.contrasts import contrast
from bayesmeta.models.inverse_planning import STATIC
from bayesmeta.models.prior import Prior
from bayesmeta.models.pyro_prior import draw


def inverse_planning(data: Any, prior: Prior = STATIC) -> None:
    """The Pyro program, with the sites and the density of its twin.

    Args:
      data: `bayesmeta.models.inverse_planning.TraceData` of tensors, which
        `bayesmeta.models.pyro_data.to_torch` makes.
      prior: the same object as NumPyro's.
    """
    log_q = data.log_q
    num_skills = log_q.shape[-1]
    switching = "switch" in prior.sites
    prior.require("u", "beta_a", *(("switch",) if switching else ()))
    C = torch.from_numpy(contrast(num_skills)).to(log_q)
    mu = C @ draw("u", prior, (num_skills - 1,), like=log_q)
    pyro.deterministic("mu", mu)
    pyro.deterministic("F", torch.softmax(mu, -1))
    beta_a = draw("beta_a", prior, like=log_q)
    switch = draw("switch", prior, like=log_q) if switching else None
    steps = PlannedSteps(torch.log_softmax(mu, -1), beta_a, data, switch)
    with pyro.plate("trace", data.chosen.shape[0]):
        pyro.sample("steps", steps, obs=data.chosen)


class PlannedSteps(TorchDistribution):
    """Candidates chosen along each trace, goals and skills summed out; see the twin."""

    arg_constraints: Any = {}
    support: Any = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, log_weight, beta_a, data: Any, switch=None, validate_args=None) -> None:
        self.log_weight, self.beta_a, self.data, self.switch = log_weight, beta_a, data, switch
        shape = data.seen.shape
        super().__init__(shape[:1], shape[1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PlannedSteps":
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(f"traces cannot be expanded from {self.batch_shape} to {batch_shape}.")
        return self

    def log_prob(self, value: Tensor) -> Tensor:
        data = self.data
        log_pi = torch.log_softmax(self.beta_a * data.log_q, -2)
        where = value.long()[:, None, :, None, None].expand(*log_pi.shape[:3], 1, log_pi.shape[-1])
        seen = data.seen.bool()
        steps = torch.where(seen[:, None, :, None], log_pi.gather(3, where)[..., 0, :], 0.0)
        for n, t in enumerate((seen * torch.arange(1, seen.shape[1] + 1)).argmax(1)):
            if seen[n, t]:
                steps[n, :, t] = steps[n, :, t] + data.log_outcome[n]
        if self.switch is None:
            by_goal = torch.logsumexp(self.log_weight + steps.sum(2), -1)
        else:
            same = torch.eye(len(self.log_weight)).to(steps)
            transition = (1 - self.switch) * same + self.switch * self.log_weight.exp()[None, :]
            forward = self.log_weight + steps[:, :, 0]
            for t in range(1, steps.shape[2]):
                moved = torch.logsumexp(forward[..., None] + transition.log(), -2)
                forward = moved + steps[:, :, t]
            by_goal = torch.logsumexp(forward, -1)
        return torch.logsumexp(data.log_goal + by_goal, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """What would be chosen in the states that were met."""
        data, shape = self.data, (*sample_shape, *self.data.seen.shape)
        strategy = torch.distributions.Categorical(logits=self.log_weight)
        skill = strategy.sample((*shape[:-1], 1)).expand(shape).clone()
        if self.switch is not None:
            for t in range(1, shape[-1]):
                again = torch.rand(shape[:-1]) < self.switch
                skill[..., t] = torch.where(again, strategy.sample(shape[:-1]), skill[..., t - 1])
        goal = torch.distributions.Categorical(logits=data.log_goal).sample(sample_shape)
        log_pi = torch.log_softmax(self.beta_a * data.log_q, -2)
        log_pi = log_pi.expand(*sample_shape, *log_pi.shape)
        where = goal[..., None, None, None, None]
        under_goal = log_pi.gather(-4, where.expand(*shape[:-1], 1, *log_pi.shape[-3:]))[
            ..., 0, :, :, :
        ]
        where = skill[..., None, None].expand(*under_goal.shape[:-1], 1)
        logits = under_goal.gather(-1, where)[..., 0]
        return torch.distributions.Categorical(logits=logits).sample()
