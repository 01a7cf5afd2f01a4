"""Learning over episodes from the shell."""

import numpy as np
import pytest
from simulate import planted_evidence
from typer.testing import CliRunner

import bayesmeta
from bayesmeta.cli import app
from bayesmeta.inference import stream_fits
from bayesmeta.inference.status import Outcome, Status


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    evidence = planted_evidence(192, 4, 3)
    return [
        bayesmeta.save_evidence(evidence.isel(task=slice(96 * i, 96 * i + 96)), folder / f"{i}.nc")
        for i in range(2)
    ]


def test_a_memory_is_made_shown_rolled_back_and_checked(episodes, tmp_path):
    memory = tmp_path / "memory"
    out = run("reflect", episodes[0], "--memory", memory)
    assert "72 reflect tasks" in out and "episode 1" in out and "new domains: d0, d1" in out
    out = run("reflect", episodes[1], "--memory", memory, "--external", 0.9, "--note", "second")
    assert "episode 2" in out and "mean shift" in out
    out = run("memory", "show", memory)
    assert "2 episodes, 144 tasks, 4 domains" in out and "d3" in out
    out = run("memory", "history", memory)
    assert "second" in out and "0.nc" in out
    assert "taken in 72 of these 72" in run("reflect", episodes[1], "--memory", memory, code=2)
    run("memory", "rollback", memory, "--to", 1)
    assert "no episode 5" in run("memory", "rollback", memory, "--to", 5, code=2)
    assert "whole" in run("memory", "check", memory)
    assert bayesmeta.Memory(memory).belief.episode == 1
    (file,) = (memory / "episodes").glob("000001-*.nc")
    file.write_bytes(file.read_bytes()[:500])
    assert "was changed or cut off" in run("memory", "check", memory, code=1)
    (memory / "head.json").write_text("{")
    assert "memory recover" in run("memory", "show", memory, code=2)
    assert "episode 2" in run("memory", "recover", memory)
    assert np.isfinite(bayesmeta.Memory(memory).belief.loc).all()


def test_a_fit_that_does_not_converge_exits_with_3(episodes, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        found = vcl(*args, **kwargs)
        return type(found)(
            found.loc,
            found.covariance,
            found.draws,
            found.stats,
            Status(Outcome.NOT_SETTLED, "stopped.", {}),
        )

    vcl = stream_fits.FITS["vcl"]
    monkeypatch.setitem(stream_fits.FITS, "vcl", fails)
    out = run("reflect", episodes[0], "--memory", tmp_path / "m", code=3)
    assert "not settled" in out and "is as it was" in out
    assert not (tmp_path / "m").exists()


def test_bad_input(episodes, tmp_path):
    assert "number in (0, 1]" in run("reflect", episodes[0], "--internal", 1.5, code=2)
    assert "no episode yet" in run("memory", "show", tmp_path / "none", code=2)
    assert "no memory at" in run("memory", "check", tmp_path / "none", code=2)
    assert "no memory at" in run("memory", "recover", tmp_path / "none", code=2)
    out = run("reflect", episodes[0], "--memory", tmp_path / "m", "--prior", "magic", code=2)
    assert "magic" in out
