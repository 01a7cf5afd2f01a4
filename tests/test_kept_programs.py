"""Fits that share what is compiled: the same posteriors, and never another program's."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayesmeta.inference.array_args import ArrayArgs
from bayesmeta.inference.kept_programs import keeping_programs, kept
from bayesmeta.inference.whitened_hmc import whitened_hmc
from bayesmeta.inference.whitened_nuts import whitened_nuts

SETTINGS = {"num_chains": 2, "num_warmup": 50, "num_samples": 60, "group": "v", "scale": "tau"}
WIDTH = 1.0


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """Normal group means; counts how often it is run, that is traced."""

    runs: list[int] = dataclasses.field(default_factory=lambda: [0], compare=False)
    shift: float = 0.0

    def __call__(self, y, scale=1.0):
        self.runs[0] += 1
        tau = numpyro.sample("tau", dist.HalfNormal(WIDTH))
        v = numpyro.sample("v", dist.Normal(0.0, tau).expand([y.shape[0]]).to_event(1))
        noise = dist.Normal(v[:, None] + self.shift, scale).to_event(2)
        numpyro.sample("y", noise, obs=y)


def data(seed, groups=6):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(groups, 1)) + rng.normal(size=(groups, 5)), jnp.float32)


def same(one, other):
    return all(np.array_equal(one.samples[name], other.samples[name]) for name in one.samples)


@pytest.mark.parametrize("engine", [whitened_nuts, whitened_hmc])
def test_the_second_data_set_traces_nothing_but_its_sites(engine):
    apart = [engine(Hierarchy(), data(seed), rng_seed=seed, **SETTINGS) for seed in (1, 2)]
    counts = []
    with keeping_programs():
        shared = []
        for seed in (1, 2):
            model = Hierarchy()
            shared.append(engine(model, data(seed), rng_seed=seed, **SETTINGS))
            counts.append(model.runs[0])
    assert all(fit.settings["fallback"] == "" for fit in apart)
    assert all(same(a, b) for a, b in zip(apart, shared, strict=True))
    assert not same(*shared)
    # The sites' names and shapes are asked for each time; the density is what takes long.
    assert counts[1] == 1 < counts[0]


@pytest.mark.parametrize(
    ("other", "args", "settings"),
    [
        (Hierarchy(shift=1.0), (data(1),), {}),
        (Hierarchy(), (data(1, groups=5),), {}),
        (Hierarchy(), (data(1), 2.0), {}),
        (Hierarchy(), (data(1),), {"target_accept": 0.6}),
        (Hierarchy(), (data(1),), {"num_samples": 50}),
        (Hierarchy(), (data(1),), {"num_warmup": 80}),
        (Hierarchy(), (data(1),), {"num_chains": 3}),
    ],
    ids=["model", "shape", "static", "kernel", "draws", "warm-up", "chains"],
)
def test_what_differs_is_not_shared(other, args, settings):
    alone = whitened_nuts(other, *args, **{**SETTINGS, **settings})
    with keeping_programs():
        whitened_nuts(Hierarchy(), data(1), **SETTINGS)
        after = whitened_nuts(other, *args, **{**SETTINGS, **settings})
    assert same(alone, after)


def test_nothing_is_kept_outside(monkeypatch):
    with keeping_programs():
        first = whitened_nuts(Hierarchy(), data(1), **SETTINGS)
        within = whitened_nuts(Hierarchy(), data(1), **SETTINGS)
    monkeypatch.setattr(f"{__name__}.WIDTH", 0.01)
    outside = whitened_nuts(Hierarchy(), data(1), **SETTINGS)
    assert same(first, within)
    assert outside.samples["tau"].mean() < 0.1 < first.samples["tau"].mean()


class Unhashable(Hierarchy):
    __hash__ = None  # type: ignore[assignment]


def test_a_program_without_a_hash_is_compiled_each_time():
    with keeping_programs():
        one = whitened_nuts(Unhashable(), data(1), **SETTINGS)
        model = Unhashable(shift=1.0)
        other = whitened_nuts(model, data(1), **SETTINGS)
    assert not same(one, other)
    assert model.runs[0] > 1


def test_scopes_nest_and_end():
    made = iter(range(10))

    def make():
        return next(made)

    assert [kept("key", make), kept("key", make)] == [0, 1]
    with keeping_programs():
        assert [kept("key", make), kept("key", make)] == [2, 2]
        with keeping_programs():
            assert kept("key", make) == 2
        assert kept("key", make) == 2
        assert kept("another", make) == 3
    assert kept("key", make) == 4


def test_array_args_differ_in_form_only():
    args = ({"y": data(1)}, 3, None)
    form, arrays = ArrayArgs.of(args)
    again, others = ArrayArgs.of(({"y": data(2)}, 3, None))
    assert form == again
    assert hash(form) == hash(again)
    rebuilt = form.filled(others)
    assert rebuilt[0]["y"] is others[0] is not arrays[0]
    assert rebuilt[1:] == (3, None)
    for different in (
        ({"y": data(1, groups=5)}, 3, None),
        ({"y": data(1).astype(jnp.float16)}, 3, None),
        ({"y": data(1)}, 4, None),
        ({"z": data(1)}, 3, None),
    ):
        assert ArrayArgs.of(different)[0] != form
