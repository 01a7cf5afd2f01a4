"""Episodes move the right part of memory by the right amount, and nothing false gets in."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from simulate import planted_evidence

import bayesmeta
from bayesmeta import reflection
from bayesmeta.belief import Belief, is_free
from bayesmeta.inference.status import Outcome, Status
from bayesmeta.memory import Memory
from bayesmeta.memory_store import MemoryConflictError
from bayesmeta.models.figure2 import HIERARCHICAL
from bayesmeta.models.prior import SitePrior
from bayesmeta.prediction import predict
from bayesmeta.reflection import NO_FORGETTING, Forgetting, reflect

NUM_EPISODES = 6


def renamed(evidence, suffix):
    """The same tasks under other names, as new evidence of the same kind would have."""
    return evidence.assign_coords(task=[f"{name}{suffix}" for name in evidence["task"].values])


@pytest.fixture(scope="module")
def evidence():
    return planted_evidence(96 * NUM_EPISODES, 4, 3)


@pytest.fixture(scope="module")
def episodes(evidence):
    return [evidence.isel(task=slice(96 * i, 96 * i + 96)) for i in range(NUM_EPISODES)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory, episodes):
    memory = Memory(tmp_path_factory.mktemp("memory"))
    found = [
        reflect(memory, e, forgetting=NO_FORGETTING, note=f"e{i}") for i, e in enumerate(episodes)
    ]
    return memory, found


def test_a_stream_predicts_as_well_as_its_batch(learned, evidence):
    memory, found = learned
    assert all(one.accepted for one in found), [one.status for one in found]
    assert memory.entry.episode == NUM_EPISODES
    heldout = evidence.isel(task=evidence["split"].values == "held_out")
    gold = heldout["gold"].values.astype(int)[:, None]
    streamed = memory.predict(heldout)["log_score"].values
    batch = predict(bayesmeta.fit(evidence), heldout)["log_p"].values
    difference = streamed - np.take_along_axis(batch, gold, 1)[:, 0]
    error = difference.std() / np.sqrt(len(difference))
    assert abs(difference.mean()) < 4 * error + 0.01
    even = -np.log(4.0)
    gain = streamed - even
    assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))


def test_memory_can_be_inspected(learned):
    memory, _ = learned
    external, internal = memory.external.table(), memory.internal.table()
    assert memory.external.domain == ("d0", "d1", "d2", "d3")
    best = external["weight"].unstack("skill").idxmax(axis=1)
    assert best.tolist() == ["a", "b", "c", "a"]
    assert (external["lower"] <= external["weight"]).all()
    np.testing.assert_allclose(external["weight"].groupby("domain").sum(), 1, atol=1e-6)
    np.testing.assert_allclose(internal["mu mean"].sum(), 0, atol=1e-5)
    assert {"length sd", "digits mean"} < set(internal.columns)
    assert memory.history()["note"].tolist() == [f"e{i}" for i in range(NUM_EPISODES)]
    unknown = memory.strategy("never met")
    assert max(unknown.values()) < 0.7 < memory.strategy("d2")["c"]


def test_memory_survives_a_restart_and_rolls_back(learned, tmp_path, episodes):
    import shutil

    memory, _ = learned
    shutil.copytree(memory.store.folder, tmp_path / "copy")
    again = Memory(tmp_path / "copy")
    np.testing.assert_array_equal(again.belief.loc, memory.belief.loc)
    again.rollback(2)
    np.testing.assert_array_equal(again.belief.loc, memory.at(2).loc)
    # What was rolled back may come again, and leads where it led before.
    found = reflect(again, episodes[2], forgetting=NO_FORGETTING)
    assert found.accepted
    np.testing.assert_allclose(again.belief.loc, memory.at(3).loc, atol=1e-6)


def test_evidence_counts_once(learned, episodes):
    memory, _ = learned
    before = memory.entry
    with pytest.raises(ValueError, match=r"taken in 72 of these 72 tasks already.*roll back"):
        reflect(memory, episodes[1])
    part = xr.concat(
        [episodes[0].isel(task=slice(5, 6)), renamed(episodes[0].isel(task=slice(6, 8)), "-new")],
        "task",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
    )
    with pytest.raises(ValueError, match="taken in 1 of these 3 tasks"):
        reflect(memory, part)
    assert memory.entry == before


def test_a_fit_that_did_not_converge_is_not_taken_in(tmp_path, episodes, monkeypatch):
    memory = Memory(tmp_path)
    reflect(memory, episodes[0])
    before = memory.entry
    from bayesmeta.inference import stream_fits

    def fails(*args, **kwargs):
        found = stream_fits.vcl(*args, **kwargs)
        return dataclasses.replace(found, status=Status(Outcome.NOT_SETTLED, "stopped.", {}))

    monkeypatch.setitem(stream_fits.FITS, "vcl", fails)
    found = reflect(memory, episodes[1])
    assert not found.accepted and found.status.outcome is Outcome.NOT_SETTLED
    assert memory.entry == before


def test_new_domains_take_slots_and_more_slots(tmp_path, episodes):
    memory = Memory(tmp_path)
    assert reflect(memory, episodes[0]).new_domains == ("d0", "d1", "d2", "d3")
    before = memory.belief
    other = renamed(episodes[1], "-x")
    other = other.assign(domain=("task", [f"e{i % 7}" for i in range(96)]))
    found = reflect(memory, other)
    assert found.accepted and len(found.new_domains) == 7
    after = memory.belief
    assert len(before.encoding.domain) == 8 and len(after.encoding.domain) == 16
    assert after.domains == (*before.domains, *[f"e{i}" for i in range(7)])
    # A slot that is still free has its prior: a standard normal, apart from all else.
    free = [i for i, slot in enumerate(after.encoding.domain) if is_free(slot)][-1]
    width = len(after.encoding.skill) - 1
    start = after.slices["v_decentered"].start + free * width
    own = slice(start, start + width)
    assert np.abs(after.loc[own]).max() < 0.2
    np.testing.assert_allclose(np.diag(after.covariance)[own], 1, atol=0.2)


def test_growing_changes_nothing_that_was_known(learned):
    belief = learned[0].belief
    grown = belief.with_domains([f"new{i}" for i in range(9)])
    size = belief.loc.size
    np.testing.assert_array_equal(grown.loc[:size], belief.loc)
    np.testing.assert_array_equal(grown.covariance[:size, :size], belief.covariance)
    assert (grown.covariance[:size, size:] == 0).all()
    one, two = (reflection.site_draws(b, 4000) for b in (belief, grown))
    F = [d["F"][:, 2].mean(0) for d in (one, two)]
    error = one["F"][:, 2].std(0) / np.sqrt(4000)
    assert (np.abs(F[0] - F[1]) < 4 * np.sqrt(2) * error + 1e-6).all()


def test_a_change_moves_the_external_view_at_once_and_the_internal_view_hardly(tmp_path):
    """From episode 5 on, d0 is solved by b instead of a."""
    memory = Memory(tmp_path)
    weights, mu = [], []
    for number in range(8):
        evidence = planted_evidence(240, 8, 100 + number)
        if number >= 4:
            evidence = with_skill(evidence, "d0", "b", seed=number)
        found = reflect(memory, renamed(evidence, f"-{number}"))
        assert found.accepted, found.status
        weights.append(memory.strategy("d0"))
        mu.append((memory.internal.mu.mean(0), memory.internal.mu.std(0)))
    assert all(w["a"] > w["b"] for w in weights[1:4])
    assert weights[5]["b"] > weights[5]["a"], weights
    shift = np.abs(mu[5][0] - mu[3][0]) / mu[3][1]
    assert shift.max() < 1.0
    # Without forgetting the external view is still in two minds by then.
    stubborn = Memory(tmp_path / "stubborn")
    for number in range(6):
        evidence = planted_evidence(240, 8, 100 + number)
        if number >= 4:
            evidence = with_skill(evidence, "d0", "b", seed=number)
        reflect(stubborn, renamed(evidence, f"-{number}"), forgetting=NO_FORGETTING)
    assert stubborn.strategy("d0")["b"] < weights[5]["b"]


def with_skill(evidence, domain, skill, seed):
    """Answers of one domain drawn from another skill's predictive."""
    from scipy.special import log_softmax

    rng = np.random.default_rng(seed)
    gold = evidence["gold"].values.copy()
    table = log_softmax(evidence["log_likelihood"].sel(skill=skill).values[:, 0], axis=-1)
    for n in np.flatnonzero(evidence["domain"].values == domain):
        gold[n] = rng.choice(table.shape[1], p=np.exp(table[n]) / np.exp(table[n]).sum())
    return evidence.assign(gold=("task", gold))


class TestBadInput:
    def test_episodes_that_do_not_fit(self, learned, episodes):
        memory, _ = learned
        fresh = renamed(episodes[0], "-y")
        with pytest.raises(ValueError, match=r"skills \['z'\] that memory does not know.*\['a'\]"):
            reflect(memory, fresh.assign_coords(skill=["z", "b", "c"]))
        with pytest.raises(ValueError, match=r"lacks the features \['digits'\]"):
            reflect(memory, fresh.assign_coords(feature=["length", "other"]))
        with pytest.raises(ValueError, match="nothing to reflect on"):
            reflect(memory, fresh.assign(split=("task", ["held_out"] * 96)))
        with pytest.raises(ValueError, match="began with beta=1.0 and cannot go on with 0.5"):
            reflect(memory, fresh, beta=0.5)
        wide = HIERARCHICAL.replace("wide", tau_E=SitePrior("HalfNormal", {"scale": 2.0}))
        with pytest.raises(ValueError, match="began with prior 'hierarchical'"):
            reflect(memory, fresh, prior=wide)
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            reflect(memory, fresh, forgetting=Forgetting(external=0.0))

    def test_first_episodes_that_cannot_be(self, tmp_path, episodes):
        memory = Memory(tmp_path / "m")
        with pytest.raises(ValueError, match="no episode yet"):
            memory.belief  # noqa: B018
        fixed = HIERARCHICAL.replace("fixed", tau_E=SitePrior("Fixed", {"value": 1.0}))
        with pytest.raises(ValueError, match="fixes tau_E"):
            reflect(memory, episodes[0], prior=fixed)
        with pytest.raises(ValueError, match="positive finite number"):
            reflect(memory, episodes[0], beta=-1.0)
        assert not (tmp_path / "m").exists()

    def test_another_process_was_faster(self, tmp_path, episodes, monkeypatch):
        memory = Memory(tmp_path)
        reflect(memory, episodes[0])
        stale = memory.entry
        reflect(memory, episodes[1])
        monkeypatch.setattr(Memory, "entry", property(lambda self: stale))
        with pytest.raises(MemoryConflictError, match="moved on to episode 2"):
            reflect(memory, episodes[2])

    def test_what_is_no_belief(self):
        with pytest.raises(ValueError, match="no belief"):
            Belief.from_dataset(xr.Dataset())


def test_without_features(tmp_path, episodes):
    plain = episodes[0].isel(feature=slice(0, 0))
    memory = Memory(tmp_path)
    assert reflect(memory, plain).accepted
    assert memory.internal.W.shape[-1] == 0
    assert np.isfinite(memory.predict(renamed(plain, "-z"))["log_score"]).all()
