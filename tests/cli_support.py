"""What the tests of the commands share: runs, small files, and a language model server."""

import contextlib
import json
import pathlib
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from typer.testing import CliRunner

import bayesmeta
from bayesmeta import evidence as evidence_module
from bayesmeta.cli import app
from bayesmeta.tasks import HELD_OUT, REFLECT

# Names and texts that would steer a terminal, or be read as markup or as a path.
SKILLS = ["direct", "[bold]loud[/bold]", "\x1b[31mred"]
TRACE = "a [link=http://x]trace[/link] \x1b]0;title\x07"
PROGRAM = [sys.executable, "-m", "bayesmeta.cli"]


def run(*arguments: object, code: int = 0):
    """Run a command in this process and check its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def small_evidence(num_tasks=36, num_features=2):
    """Each of three domains has one skill that knows the answer."""
    rng = np.random.default_rng(1)
    scores = np.log(rng.dirichlet(np.ones(3), size=(num_tasks, 3, 2)))
    gold, domain = rng.integers(0, 3, num_tasks), np.arange(num_tasks) % 3
    for n in range(num_tasks):
        scores[n, domain[n]] = -2.5
        scores[n, domain[n], :, gold[n]] = -0.2
    return evidence_module.build(
        log_likelihood=scores,
        gold=gold,
        domain=[f"domain {d}" for d in domain],
        skill=SKILLS,
        split=[HELD_OUT if n % 2 else REFLECT for n in range(num_tasks)],
        features=rng.normal(size=(num_tasks, num_features)),
        feature=["log_length", "digit_share"][:num_features],
        question=["What is [red]this[/red]?"] * num_tasks,
        candidate_text=[["yes", "no", "perhaps"]] * num_tasks,
        trace_text=[[[TRACE] * 2] * 3] * num_tasks,
        num_tokens=np.full((num_tasks, 3, 2), 7),
    )


def prior_draws(model, data, prior, *, rng_seed, **settings):
    """An engine that does not learn: exact draws from the prior, two chains of 50."""
    import jax
    from numpyro.infer import Predictive

    from bayesmeta.inference.fit_result import FitResult
    from bayesmeta.inference.status import Outcome, Status

    draws = Predictive(model, num_samples=100)(jax.random.key(rng_seed), data, prior)
    samples = {n: np.asarray(v) for n, v in draws.items() if n != "O"}
    return FitResult(
        samples={n: v.reshape(2, 50, *v.shape[1:]) for n, v in samples.items()},
        sample_stats={"diverging": np.zeros((2, 50), bool)},
        status=Status(Outcome.CONVERGED, "drawn from the prior.", {"ess_bulk": 100.0}),
        seconds=0.0,
        settings={"engine": "prior", "rng_seed": rng_seed},
    )


@pytest.fixture(scope="session")
def evidence_file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("cli") / "evidence.nc"
    return evidence_module.save(small_evidence(), path)


@pytest.fixture(scope="session")
def fitted(evidence_file):
    """A posterior that may be used, and the same marked as one that may not."""
    good = bayesmeta.fit(bayesmeta.load_evidence(evidence_file), engine=prior_draws)
    bad = good.copy()
    bad.attrs |= {"status": "ESS", "status_detail": "effective sample size 100 < 400."}
    return {True: good, False: bad}


@pytest.fixture
def posterior_file(fitted, tmp_path) -> pathlib.Path:
    bayesmeta.save_posterior(fitted[True], tmp_path / "posterior.nc")
    return tmp_path / "posterior.nc"


@contextlib.contextmanager
def serving(*models: str) -> Iterator[tuple[str, int]]:
    """Address and process of a language model server; a model's name says how it fails."""
    script = pathlib.Path(__file__).with_name("server_process.py")
    with subprocess.Popen(
        [sys.executable, str(script), "--models", *models], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.kill()


def asked(address: str) -> list[str]:
    """What the server was asked to compute so far, as text."""
    with urllib.request.urlopen(f"{address}/log") as reply:
        log = json.load(reply)
    return [json.dumps(entry, sort_keys=True) for entry in log if "tokenize" not in entry["path"]]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with serving("exact") as (address, _):
        yield address


def write_lines(path: pathlib.Path, rows) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int):
    return [
        {
            "id": f"sum {n}",
            "question": f"What is {n} + 2?",
            "answer": str(n + 2),
            "candidates": [str(n + 2), str(n + 3)],
            "features": {"log_length": float(n), "digit_share": 0.5},
        }
        for n in range(count)
    ]


@pytest.fixture
def two_skills(tmp_path) -> pathlib.Path:
    stage = {"opening": "So:", "max_new_tokens": 3}
    skills = [
        {"name": "direct", "instruction": "Reply at once."},
        {"name": "think", "instruction": "Think.", "stages": [stage]},
    ]
    path = tmp_path / "skills.json"
    path.write_text(json.dumps({"skills": skills}))
    return path
