"""The table of proofs: its fast tier holds, its cells are kept, and a wrong density is caught."""

import dataclasses
import json

import jax
import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from bayesmeta import cli_prove, proof, proof_catalogue
from bayesmeta.cli_terminal import Commands
from bayesmeta.inference.calibration import Calibration
from bayesmeta.proof_cells import REPLICATIONS, cells

QUANTITIES = ("u[0]", "tau_E", "log_likelihood")
CELLS = {cell.name: cell for cell in cells()}


@pytest.fixture(scope="module", autouse=True)
def same_code():
    """Whoever edits the sources while tests run does not make cells stale."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "fingerprint", lambda module: "code")
        yield


@pytest.fixture(scope="module")
def fast(tmp_path_factory, same_code):
    folder = tmp_path_factory.mktemp("proof")
    return folder, proof.prove(folder, "fast", workers=2)


def test_the_fast_tier_holds_and_its_controls_fail(fast):
    folder, table = fast
    assert table.attrs["accepted"], table.to_string()
    rows = table.set_index("model")
    assert rows.loc["figure2", "status"] == "pass"
    assert rows.loc["figure2", "enumeration_error"] < 1e-8
    for beta in ("3", "0.3"):
        assert "ranks" in rows.loc[f"figure2 fitted at beta={beta}", "status"]
    assert (rows["replications"] == REPLICATIONS["fast"]).all()
    assert pd.read_csv(folder / "proof.csv")["model"].tolist() == table["model"].tolist()
    quantities = pd.read_csv(folder / "quantities.csv")
    assert len(quantities) == table["quantities"].sum()
    assert {"u[0]", "tau_E", "v[0,0]", "log_likelihood"} < set(quantities["quantity"])
    assert (folder / "figure2-nuts.png").stat().st_size > 10_000


def test_processes_side_by_side_begin_the_longest_cells_first(tmp_path, monkeypatch):
    begun = []

    def record(work, names, workers):
        begun.extend(names)
        raise InterruptedError

    monkeypatch.setattr(proof, "in_workers", record)
    with pytest.raises(InterruptedError):
        proof.prove(tmp_path, "full", workers=2)
    every = {cell.name: cell.minutes for cell in proof_catalogue.catalogue()}
    assert sorted(begun) == sorted(every)
    minutes = [every[name] for name in begun]
    assert minutes == sorted(minutes, reverse=True)
    assert minutes[0] > 2 * np.median(minutes)


def test_cells_that_are_there_are_not_computed_again(fast, monkeypatch):
    folder, table = fast

    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(proof, "prove_cell", refuse)
    again = proof.prove(folder, "fast")
    pd.testing.assert_frame_equal(again, table)
    with pytest.raises(AssertionError, match="computed again"):
        proof.prove(folder, "fast", rng_seed=1)


def made_up(cell, ranks_of=None, outcome="CONVERGED", size=200):
    """A calibrated result without any fit, or one with ranks of another law."""
    shape = (size, len(QUANTITIES))
    rng = np.random.default_rng(0)
    truth = rng.normal(size=shape)
    uniform = (np.arange(size) * 100 // size)[:, None] + np.zeros(shape, int)
    calibration = Calibration(
        quantities=QUANTITIES,
        truth=truth,
        ranks=uniform if ranks_of is None else ranks_of(rng, shape),
        mean=truth,
        sd=np.ones(shape) / 2,
        ess=np.full(shape, 500.0),
        outcomes=(outcome,) * size,
        num_draws=99,
        seconds=0.0,
        rng_seed=0,
    )
    return proof.Proven(cell, calibration, 0.0)


def test_a_run_that_was_killed_goes_on_where_it_stopped(tmp_path, monkeypatch):
    computed = []

    def compute(cell, num_replications, rng_seed):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(cell.name)
        return made_up(cell)

    monkeypatch.setattr(proof, "prove_cell", compute)
    monkeypatch.setattr(proof, "draw_ranks", lambda calibration, path: path.write_bytes(b""))
    with pytest.raises(KeyboardInterrupt):
        proof.prove(tmp_path, "full", only=["nuts"])
    assert not (tmp_path / "proof.csv").exists()
    first, computed[:] = list(computed), []
    broken = tmp_path / "cells" / f"{first[1]}-full.json"
    broken.write_text("{", encoding="utf-8")  # what no atomic write would leave
    with pytest.raises(KeyboardInterrupt):
        proof.prove(tmp_path, "full", only=["nuts"])
    assert computed[0] == first[1] and first[0] not in computed
    monkeypatch.setattr(proof, "fingerprint", lambda module: "other code")
    computed.clear()
    with pytest.raises(KeyboardInterrupt):
        proof.prove(tmp_path, "full", only=["nuts"])
    assert computed[0] == first[0]


def test_a_cell_depends_on_the_code_that_it_may_run_and_on_no_other(monkeypatch):
    found = proof_catalogue.imported_from_here("bayesmeta.proof_cells")
    late = "bayesmeta.inference.whitened_nuts"  # imported within a function
    assert {"bayesmeta.models.figure2", "bayesmeta.models.prior", late} < found
    assert not {"bayesmeta.cli", "bayesmeta.proof", "bayesmeta.llm.local"} & found
    compute, read = proof_catalogue.fingerprint.__wrapped__, proof_catalogue._source
    before = compute("bayesmeta.proof_cells")
    for changed, same in (("bayesmeta.cli", True), (late, False)):
        monkeypatch.setattr(
            proof_catalogue, "_source", lambda name, c=changed: read(name) + b"#" * (name == c)
        )
        assert (compute("bayesmeta.proof_cells") == before) == same


def test_every_cell_of_the_catalogue_has_a_name_of_its_own():
    names = [cell.name for cell in proof_catalogue.catalogue()]
    assert len(set(names)) == len(names) >= 15


class TestVerdicts:
    right = CELLS["figure2-nuts"]
    control = CELLS["figure2_fitted_at_beta=3-nuts"]
    approximate = CELLS["figure2-svi"]

    def test_a_calibrated_engine_passes(self):
        assert made_up(self.right).accepted

    def test_a_narrow_posterior_fails_by_ranks_and_intervals(self):
        def extreme(rng, shape):
            return rng.choice([0, 1, 50, 98, 99], size=shape)

        assert made_up(self.right, extreme).failures == ["ranks", "intervals"]
        assert made_up(self.control, extreme).accepted

    def test_a_control_that_is_not_noticed_fails_the_table(self):
        assert not made_up(self.control).accepted
        assert made_up(self.control).row()["status"].startswith("FAIL")

    def test_unconverged_fits_fail_a_cell_however_good_their_ranks(self):
        assert made_up(self.right, outcome="ESS").failures == ["convergence"]

    def test_an_approximation_may_withhold_its_answer_but_not_be_wrong(self):
        withheld = made_up(self.approximate, outcome="PARETO_K")
        assert withheld.accepted and withheld.row()["judged"] == 0
        assert withheld.row()["unconverged"] == "200 pareto_k"

        def low(rng, shape):
            return rng.integers(0, 60, shape)

        assert "ranks" in made_up(self.approximate, low).failures

    def test_enumeration_and_recovery_count(self):
        good = made_up(self.right)
        assert dataclasses.replace(good, enumeration_error=1e-6).failures == ["enumeration"]
        calibration = dataclasses.replace(good.calibration, mean=good.calibration.truth + 2)
        assert "recovery" in dataclasses.replace(good, calibration=calibration).failures


@pytest.mark.parametrize("name", ["step_composition-nuts"])
def test_programs_equal_enumeration(name):
    assert proof.enumeration_error(CELLS[name]) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if cell.engine == "nuts"])
def test_every_program_equals_enumeration(name):
    error = proof.enumeration_error(CELLS[name])
    assert np.isnan(error) or error < CELLS[name].tolerance


def test_another_density_is_noticed_by_enumeration():
    cell = CELLS["figure2-nuts"]

    def wrong(sizes):
        case = cell.case(sizes)
        enumerate_ = case.log_joint
        assert enumerate_ is not None

        def other_answers(sites, inputs):
            return enumerate_(sites, inputs.observed({"O": (inputs.data.gold + 1) % 3}))

        return dataclasses.replace(case, log_joint=other_answers)

    assert proof.enumeration_error(dataclasses.replace(cell, case=wrong)) > 1e-3


def test_compilations_are_shared_through_a_folder_and_settings_restored(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    with proof.compiled_once(tmp_path / "compiled"):
        jax.jit(lambda x: x * 3.25)(np.ones(7)).block_until_ready()
    assert jax.config.jax_compilation_cache_dir == before
    assert list((tmp_path / "compiled").iterdir())


class TestCommand:
    @pytest.fixture
    def app(self, monkeypatch):
        app = typer.Typer(cls=Commands, add_completion=False)
        app.command("prove")(cli_prove.prove)
        app.command("other")(lambda: None)

        def run(folder, tier, *, only, progress, workers):
            assert workers == 2
            good = [made_up(CELLS["figure2-nuts"])]
            bad = [made_up(CELLS["figure2_fitted_at_beta=3-nuts"])]
            rows = good if "nuts" in only else good + bad
            table = pd.DataFrame([proven.row() for proven in rows])
            table.attrs["accepted"] = all(proven.accepted for proven in rows)
            return table

        monkeypatch.setattr(proof, "prove", run)
        return app

    def test_exit_code_says_whether_everything_holds(self, app, tmp_path):
        args = ["prove", "--tier", "fast", "--workers", "2", "--out", str(tmp_path)]
        good = CliRunner().invoke(app, [*args, "--only", "nuts"])
        assert good.exit_code == 0 and "pass" in good.stdout, good.output
        bad = CliRunner().invoke(app, args)
        assert bad.exit_code == 1 and "FAIL: not noticed" in bad.stdout, bad.output

    def test_a_file_is_no_folder(self, app, tmp_path):
        file = tmp_path / "file"
        file.write_text(json.dumps({}), encoding="utf-8")
        result = CliRunner().invoke(app, ["prove", "--out", str(file)])
        assert result.exit_code == 2 and "Name a folder" in result.output


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no cell of tier 'fast' is named \['nonsense'\]"):
        proof.prove(tmp_path, "fast", only=["nonsense"])
