"""Explaining traces and ranking items from the shell."""

import jax
import numpy as np
import pandas as pd
import pytest
from simulate_preferences import simulate_preferences
from simulate_traces import as_dataset, drawn, states
from typer.testing import CliRunner

import bayesmeta
from bayesmeta.cli import app
from bayesmeta.evidence_schema import EvidenceError
from bayesmeta.posterior import load_posterior
from bayesmeta.step_io import load_steps, save_steps


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def steps():
    data = states(np.random.default_rng(0), traces=40, ragged=False)
    return as_dataset(drawn(data, jax.random.key(0), [0.6, 0.3, 0.1]))


def test_traces_are_explained(steps, tmp_path):
    path = save_steps(steps, tmp_path / "steps.nc")
    out = run("explain", path, "--out", tmp_path / "told.csv", "--rows", 3)
    assert "rationality: " in out and "the first 3 of 40 traces" in out
    table = pd.read_csv(tmp_path / "told.csv", index_col="label")
    np.testing.assert_allclose(table[["a", "b", "c"]].sum(axis=1), 1, atol=1e-4)
    posterior = bayesmeta.load_posterior(tmp_path / "told.nc")
    assert posterior.attrs["model"] == "inverse_planning"
    assert "chance that a step switches" in run("explain", path, "--prior", "switching")


def test_steps_on_disk_are_what_was_saved(steps, tmp_path):
    loaded = load_steps(save_steps(steps, tmp_path / "steps.nc"))
    np.testing.assert_array_equal(loaded["log_pi"], steps["log_pi"])
    assert loaded["used"].dtype == bool and list(loaded["skill"].values) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.nc"], "no file of steps"),
        (["cut.nc"], "truncated, damaged or of another format"),
        (["steps.nc", "--prior", "nonsense"], "neither one of static, switching"),
        (["steps.nc", "--engine", "magic"], "wanted nuts or pyro_nuts"),
        (["other.nc"], "not a file of steps"),
    ],
)
def test_bad_input_is_one_clear_error(steps, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    path = save_steps(steps, tmp_path / "steps.nc")
    (tmp_path / "cut.nc").write_bytes(path.read_bytes()[:700])
    save_steps(steps.drop_vars("log_pi"), tmp_path / "other.nc")
    assert message in run("explain", *arguments, code=2)


def test_no_file_is_left_where_none_could_be_written(steps, tmp_path):
    with pytest.raises(FileNotFoundError, match="Create it"):
        save_steps(steps, tmp_path / "nowhere" / "steps.nc")
    (tmp_path / "empty.nc").write_bytes(b"")
    with pytest.raises(EvidenceError, match="0 bytes"):
        load_steps(tmp_path / "empty.nc")


def test_items_are_ranked(tmp_path):
    table, R = simulate_preferences(np.random.default_rng(1), num_items=4, num_pairs=300)
    table.to_csv(tmp_path / "pairs.csv", index=False)
    out = run("prefer", tmp_path / "pairs.csv", "--out", tmp_path / "rewards.csv")
    best = pd.read_csv(tmp_path / "rewards.csv").iloc[0]
    assert best["item"] == f"item{int(np.argmax(R))}" and best["item"] in out
    assert "bias by log_length" in out and "reliability" in out
    assert "lacks the columns" in run("prefer", _csv(tmp_path, table, "winner"), code=2)
    assert "no file" in run("prefer", tmp_path / "missing.csv", code=2)
    assert "--interval is 2" in run("prefer", tmp_path / "pairs.csv", "--interval", 2, code=2)


def test_skills_are_chosen(tmp_path):
    rng = np.random.default_rng(0)
    right = {("a", "short"): 0.9, ("a", "long"): 0.3, ("b", "short"): 0.2, ("b", "long"): 0.8}
    rows = [
        (f"{domain}{n}", domain, skill, int(rng.random() < p), {"short": 5, "long": 100}[skill])
        for (domain, skill), p in right.items()
        for n in range(60)
    ]
    table = pd.DataFrame(rows, columns=["task", "domain", "skill", "correct", "tokens"])
    table["split"] = np.where(table["task"].str.endswith("9"), "held_out", "reflect")
    table.to_csv(tmp_path / "verdicts.csv", index=False)
    out = run("choose", tmp_path / "verdicts.csv", "--out", tmp_path / "choices.csv")
    found = pd.read_csv(tmp_path / "choices.csv")
    chosen = found[found["chosen"]]
    assert dict(zip(chosen["domain"], chosen["skill"], strict=True)) == {"a": "short", "b": "long"}
    assert "12 held-out tasks" in out and "regret" in out
    assert load_posterior(tmp_path / "choices.nc").attrs["model"] == "solvability"
    # A token that costs a hundredth of a right answer prices the long skill out.
    dear = run("choose", tmp_path / "verdicts.csv", "--cost-per-token", 0.01)
    chosen = [row.split()[:2] for row in dear.splitlines() if row.endswith("chosen")]
    assert chosen == [["a", "short"], ["b", "short"]]
    assert "cost_per_token is -1" in run(
        "choose", tmp_path / "verdicts.csv", "--cost-per-token", -1, code=2
    )
    assert "not ['skill']" in run("choose", _csv(tmp_path, table, "skill"), code=2)
    assert "no file" in run("choose", tmp_path / "missing.csv", code=2)


def _csv(folder, table, without):
    path = folder / "bad.csv"
    table.drop(columns=[without]).to_csv(path, index=False)
    return path
