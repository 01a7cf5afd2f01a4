"""Ablations over priors: what a cell holds, what a kill leaves, and what the table says."""

import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from simulate import planted_evidence
from typer.testing import CliRunner

from bayesmeta import ablation_plots
from bayesmeta.ablation import Settings, ablate
from bayesmeta.ablation_cell import run_cell
from bayesmeta.ablation_criticism import leave_one_out
from bayesmeta.ablation_report import figures, write_ablation
from bayesmeta.ablation_store import Cell, cell_key, load_cell, save_cell
from bayesmeta.ablation_table import COLUMNS, Name, divergence, paired_elpd, tidy
from bayesmeta.evidence_io import save
from bayesmeta.models.figure2 import HIERARCHICAL
from bayesmeta.models.graph import EVERY_ARROW, GRAPHS, LITERAL, WORKING
from bayesmeta.models.prior import SitePrior
from bayesmeta.programs import program_for

#: Few draws: enough to compare with, too few to be believed, which the cells have to say.
QUICK = Settings(num_chains=2, num_warmup=150, num_samples=100)
#: Of the same families as the default, so that what was compiled for that serves this.
NARROW = HIERARCHICAL.replace(
    "narrow",
    u=SitePrior("Normal", {"loc": 0.0, "scale": 0.05}),
    tau_E=SitePrior("HalfNormal", {"scale": 0.02}),
)


def quick(folder, priors=(HIERARCHICAL, NARROW), evidence=None, **more):
    evidence = planted_evidence(60, 3) if evidence is None else evidence
    return ablate(evidence, priors, folder=folder, beta=1.0, settings=QUICK, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture(scope="module")
def result(folder):
    return quick(folder)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    found = (folder / "cells").glob("*.npz")
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def simulated_cell(seed: int = 0, num_tasks: int = 40, status: str = "CONVERGED") -> Cell:
    rng = np.random.default_rng(seed)
    log_p = np.log(rng.dirichlet(np.ones(4), 12))
    sites = {"mu": 0.5, "F": 0.2}
    return Cell(
        elpd_loo=-rng.random(num_tasks),
        elpd_domain=-rng.random(num_tasks),
        domain=np.array([f"d{n % 4}" for n in range(num_tasks)]),
        heldout_log_p=log_p,
        heldout_gold=rng.integers(0, 4, 12),
        regret=rng.random(12),
        strategy=rng.dirichlet(np.ones(3), (50, 4)).astype(np.float32),
        facts={
            "status": status,
            "status_detail": "as simulated.",
            "diagnostics": {},
            "seconds": 1.0,
            "contraction": sites,
            "sensitivity": sites | {"mu": float("nan")},
            "psense": "✓",
            "bad_pareto_k": 0,
            "calibration_error": 0.2,
            "calibration_null": 0.15,
            "calibration_null_q95": 0.3,
            "domains": [f"d{d}" for d in range(4)],
            "skills": ["a", "b", "c"],
            "beta": 1.0,
        },
    )


def test_one_row_per_cell_and_the_base_differs_from_nothing(result):
    table = result.table
    assert list(table["prior"]) == ["hierarchical", "narrow"] and result.num_computed == 2
    assert set(COLUMNS) <= set(table)
    base = table.iloc[0]
    assert base[["elpd_diff", "elpd_diff_se", "elpd_domain_diff", "divergence"]].eq(0).all()
    # The planted skills differ by domain: a strategy held near uniform predicts worse.
    assert table["elpd_diff"][1] + 2 * table["elpd_diff_se"][1] < 0
    assert table["divergence"][1] > 0
    # A prior with a twentieth of a logit leaves hardly anything to learn about mu.
    assert table["contraction_mu"][1] < 0.5 < table["contraction_mu"][0]


def test_a_cell_that_did_not_converge_is_a_row_with_advice(result):
    # 200 draws cannot hold the effective 400 that a single fit has to show.
    assert set(result.table["status"]) <= {"ess", "rhat", "divergences"}
    assert result.table["advice"].str.len().gt(20).all()
    assert np.isfinite(result.table["elpd_loo"]).all()


def test_a_domain_left_out_is_predicted_without_its_answers():
    """Whatever its tasks answered, the refit without a domain is the same, so that probabilities
    of all answers that they could have given sum to one."""
    evidence = planted_evidence(60, 3)
    ours = evidence["domain"].values == "d1"
    left_out, left_one = 0.0, 0.0
    for candidate in range(4):
        answered = evidence["gold"].where(~ours, candidate).astype(evidence["gold"].dtype)
        cell = run_cell(evidence.assign(gold=answered), HIERARCHICAL, WORKING, 0, QUICK)
        rows = cell.domain == "d1"
        left_out = left_out + np.exp(cell.elpd_domain[rows])
        left_one = left_one + np.exp(cell.elpd_loo[rows])
    np.testing.assert_allclose(left_out, 1.0, rtol=1e-5)
    # Wrong on purpose: a fit that saw the other tasks of the domain leans to their answer.
    assert np.abs(left_one - 1.0).max() > 0.05


def test_what_was_computed_is_not_computed_again(folder, result):
    before = stamps(folder)
    seen: list[tuple[int, int]] = []
    again = quick(folder, progress=lambda done, total, _: seen.append((done, total)))
    assert again.num_computed == 0 and stamps(folder) == before and seen == [(2, 2)]
    pd.testing.assert_frame_equal(again.table, result.table)


def test_a_damaged_cell_counts_as_absent(folder, result, tmp_path):
    path = next((folder / "cells").glob("*.npz"))
    damaged = tmp_path / path.name
    damaged.write_bytes(path.read_bytes()[:-100])
    assert load_cell(damaged) is None and load_cell(path) is not None
    assert load_cell(tmp_path / "absent.npz") is None


def test_killed_half_way_it_goes_on_where_it_was(folder, result, tmp_path):
    """kill -9 with one of two cells done: that one is left as it is, the other is added."""
    first = next(iter(sorted(stamps(folder))))
    (tmp_path / "cells").mkdir()
    shutil.copy(folder / "cells" / first, tmp_path / "cells")
    before = stamps(tmp_path)
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "from test_ablation import quick\n"
        f"quick(Path({str(tmp_path)!r}), progress=lambda *a: print(*a[:2], flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().split() == ["1", "2"]
            time.sleep(0.5)  # it is at work on the second
        finally:
            process.kill()
    assert stamps(tmp_path) == before
    again = quick(tmp_path)
    after = stamps(tmp_path)
    assert again.num_computed == 1 and after.keys() == stamps(folder).keys()
    assert {name: after[name] for name in before} == before
    values = again.table.drop(columns="seconds"), result.table.drop(columns="seconds")
    pd.testing.assert_frame_equal(*values)


def test_the_key_changes_with_everything_a_cell_depends_on():
    key = cell_key("hash", HIERARCHICAL, WORKING, 0, QUICK)
    others = [
        cell_key("other", HIERARCHICAL, WORKING, 0, QUICK),
        cell_key("hash", NARROW, WORKING, 0, QUICK),
        cell_key("hash", HIERARCHICAL, LITERAL, 0, QUICK),
        cell_key("hash", HIERARCHICAL, WORKING, 1, QUICK),
        cell_key("hash", HIERARCHICAL, WORKING, 0, dataclasses.replace(QUICK, beta=2.0)),
    ]
    assert len({key, *others}) == 6
    assert key == cell_key("hash", HIERARCHICAL, WORKING, 0, QUICK)


def test_a_cell_survives_the_disk(tmp_path):
    cell = simulated_cell()
    save_cell(cell, tmp_path / "cell.npz")
    loaded = load_cell(tmp_path / "cell.npz")
    assert loaded is not None
    for field in dataclasses.fields(Cell):
        if field.name != "facts":
            np.testing.assert_array_equal(getattr(loaded, field.name), getattr(cell, field.name))
    assert loaded.facts.keys() == cell.facts.keys()


def test_paired_differences_are_those_of_az_compare():
    import arviz as az

    rng = np.random.default_rng(3)
    noise = rng.normal(size=(4, 250, 30))
    trees, level = {}, rng.normal(-1.5, 1.0, 30)
    for name, shift in (("base", 0.0), ("other", 0.4)):
        log_likelihood = level + shift * rng.random(30) + 0.2 * noise
        trees[name] = az.from_dict(
            {"posterior": {"a": noise[..., 0]}, "log_likelihood": {"O": log_likelihood}}
        )
    elpds = {name: az.loo(tree, pointwise=True) for name, tree in trees.items()}
    theirs = az.compare(elpds, reference="base", round_to="none").loc["other"]
    ours = paired_elpd(elpds["other"].elpd_i.values, elpds["base"].elpd_i.values)
    # ArviZ reports the better model first, so that its sign depends on the reference.
    assert abs(ours.mean) == pytest.approx(abs(theirs["elpd_diff"]), rel=1e-6)
    assert ours.standard_error == pytest.approx(theirs["dse"], rel=1e-6)
    unpaired = np.hypot(elpds["other"].se, elpds["base"].se)
    assert ours.standard_error != pytest.approx(unpaired, rel=0.05)


def test_leave_one_out_where_a_likelihood_hardly_varies():
    """ArviZ refuses a tail of equal values; such tasks need no smoothing."""
    import arviz as az

    draws = np.random.default_rng(4).normal(size=(4, 250, 3))
    usual = -1.0 + 0.1 * draws
    saturated = usual.copy()
    saturated[..., 1] = -0.3
    trees = [
        az.from_dict({"posterior": {"a": draws[..., 0]}, "log_likelihood": {"O": values}})
        for values in (usual, saturated)
    ]
    (smooth, _), (elpd, bad) = map(leave_one_out, trees)
    assert bad == 0 and elpd[1] == pytest.approx(-0.3)
    np.testing.assert_allclose(elpd[[0, 2]], smooth[[0, 2]], atol=1e-3)


def test_divergence_by_hand():
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.75, 0.0]])
    with np.errstate(divide="ignore"):
        found = divergence(np.log(p), np.log(q))
    assert found == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert np.isnan(divergence(np.zeros((0, 3)), np.zeros((0, 3))))


@pytest.mark.slow
def test_evidence_without_heldout_tasks_or_of_one_domain_has_gaps_and_no_error(tmp_path):
    evidence = planted_evidence(60, 3)
    one = evidence.isel(
        task=(evidence["domain"].values == "d0") & (evidence["split"].values == "reflect")
    )
    cell = run_cell(one, HIERARCHICAL, WORKING, 0, QUICK)
    assert np.isnan(cell.elpd_domain).all() and not len(cell.regret)
    row = tidy({Name("hierarchical", "working", 0, "x"): cell}, ("hierarchical", "working")).iloc[0]
    assert np.isnan(row["elpd_domain"]) and np.isnan(row["regret"]) and np.isfinite(row["elpd_loo"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"priors": [HIERARCHICAL.without("bare", "U")]}, r"missing sites \['U'\]"),
        ({"priors": [HIERARCHICAL, HIERARCHICAL]}, "'hierarchical' twice"),
        ({"priors": []}, "at least one"),
        ({"graphs": [LITERAL]}, "g_to_a=True"),
        ({"graphs": [WORKING.replace("bare", f_to_o=False)]}, "not scored that way"),
        ({"graphs": [EVERY_ARROW]}, "needs Attempts"),
        ({"parallel": "threads"}, "'ray' or None"),
    ],
    ids=["missing site", "twice", "none", "steps", "unscored graph", "unseen outcome", "parallel"],
)
def test_what_does_not_fit_is_refused_before_anything_is_fitted(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        quick(tmp_path / "new", **change)
    assert not (tmp_path / "new").exists()


def test_sites_that_do_not_exist_are_refused(tmp_path):
    settings = dataclasses.replace(QUICK, sites=("mu", "ability"))
    with pytest.raises(ValueError, match="no site 'ability'"):
        ablate(
            planted_evidence(60, 3), [HIERARCHICAL], folder=tmp_path, beta=1.0, settings=settings
        )


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="even and at least 2"):
        Settings(num_chains=1)
    with pytest.raises(ValueError, match="beta must be"):
        Settings(beta=0.0)


def test_every_named_graph_is_read_or_refused_in_words():
    evidence = planted_evidence(60, 3)
    reflect = evidence.isel(task=evidence["split"].values == "reflect")
    read = []
    for name, graph in GRAPHS.items():
        try:
            program_for(reflect, HIERARCHICAL, graph)
            read.append(name)
        except ValueError as error:
            assert graph.name in str(error)
    assert {"working", "no_question"} <= set(read) < set(GRAPHS)


def test_without_ray_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"bayesmeta\[ray\]"):
        quick(tmp_path, parallel="ray")


def test_with_ray_the_cells_are_the_same(tmp_path, result):
    pytest.importorskip("ray")
    parallel = quick(tmp_path, parallel="ray")
    columns = ["elpd_loo", "elpd_domain", "log_score", "regret"]
    np.testing.assert_allclose(parallel.table[columns], result.table[columns], rtol=1e-3)


def test_pictures_and_page(tmp_path):
    cells = {
        Name(prior, "working", 0, "x"): simulated_cell(seed, status=status)
        for seed, (prior, status) in enumerate(
            [("base", "CONVERGED"), ("wide$", "RHAT"), ("narrow", "CONVERGED")]
        )
    }
    from bayesmeta.ablation import Ablation

    base = ("base", "working")
    result = Ablation(tidy(cells, base), cells, base, 3)
    drawn = figures(result)
    assert set(drawn) == {"elpd_differences", "strategies", "certainty"}
    ticks = [t.get_text() for t in drawn["elpd_differences"].axes[0].get_yticklabels()]
    assert ticks == ["base", r"wide\$", "narrow"]
    files = write_ablation(tmp_path, result, reproduce=["bayesmeta ablate x.nc"])
    assert [f.name for f in files][0] == "table.csv" and files[-1].name == "ablation.html"
    assert list(pd.read_csv(files[0])["prior"]) == ["base", "wide$", "narrow"]
    page = files[-1].read_text()
    assert page.count("<img") == 3 and "Chains disagree" in page


def test_strategies_need_draws_of_the_right_shape():
    with pytest.raises(ValueError, match="must have shape"):
        ablation_plots.strategies({"a": np.ones((5, 2, 3))}, ["d"], ["s"])


@pytest.fixture
def command():
    from bayesmeta.cli_ablate import ablate as function
    from bayesmeta.cli_terminal import Commands

    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    app.command("ablate")(function)
    app.callback()(lambda: None)

    def run(*arguments: object, code: int = 0):
        done = CliRunner().invoke(app, ["ablate", *map(str, arguments)])
        assert done.exit_code == code, (done.output, done.exception)
        return done

    return run


def test_command_prints_the_table_and_writes_the_files(command, tmp_path, folder, result):
    path = save(planted_evidence(60, 3), tmp_path / "evidence.nc")
    (tmp_path / "narrow.json").write_text(NARROW.to_json())
    text = command(
        path,
        "--priors",
        f"hierarchical,{tmp_path / 'narrow.json'}",
        "--beta",
        1.0,
        *("--chains", 2, "--warmup", 150, "--samples", 100, "--out", folder),
    ).output
    assert "narrow" in text and "2 found on disk" in text and "±" in text
    for name in ("table.csv", "elpd_differences.svg", "certainty.svg", "ablation.html"):
        assert (folder / name).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--priors", "hierarchical,unknown"), "'unknown', which is neither one of"),
        (("--graphs", "unknown"), "working"),
        (("--seeds", "a"), "whole numbers"),
        (("--beta", "-1"), "a number > 0"),
        (("--priors", ","), "is empty"),
    ],
)
def test_command_refuses_in_one_sentence(command, tmp_path, arguments, message):
    path = save(planted_evidence(60, 3), tmp_path / "evidence.nc")
    done = command(path, "--out", tmp_path / "out", *arguments, code=2)
    assert message in done.output and "Traceback" not in done.output
