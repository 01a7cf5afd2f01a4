"""The commands, in this process and as programs; what goes wrong is in test_cli_errors.py."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import cli_support
import numpy as np
import pandas as pd
import pytest
from cli_support import PROGRAM, SKILLS, asked, run, serving, sums, write_lines

import bayesmeta
from bayesmeta import evidence as evidence_module
from bayesmeta.tasks import HELD_OUT, REFLECT

DATA = pathlib.Path(__file__).parent / "data"
# Fixtures are found by name.
evidence_file, fitted, posterior_file = (
    cli_support.evidence_file,
    cli_support.fitted,
    cli_support.posterior_file,
)
server, two_skills = cli_support.server, cli_support.two_skills


def commands() -> list[list[str]]:
    one = ["observe", "fit", "predict", "report", "ablate", "prove", "demo", "record"]
    two = ["evidence import", "evidence check", "evidence show", "tasks make", "tasks families"]
    return [name.split() for name in (*one, *two, "skills list", "skills show")]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_help_explains_every_command_with_an_example(command):
    text = run(*command, "--help").stdout
    assert f"bayesmeta {' '.join(command)}" in text.split("Example", 1)[1]


def test_help_names_an_extra_whole():
    """Brackets are markup to the library that prints help, and would vanish."""
    text = run("ablate", "--help").stdout
    assert "bayesmeta[ray]" in re.sub(r"[\s│]+", "", text)


def test_help_is_quick_and_loads_nothing_heavy():
    before = os.times()
    done = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True)
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    assert done.returncode == 0 and "observe" in done.stdout
    assert used < 0.7  # processor time: the wall clock depends on who else is at work
    heavy = "numpy scipy pandas xarray jax numpyro torch transformers matplotlib httpx arviz"
    code = f"import sys, bayesmeta.cli; print(set({heavy.split()!r}) & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_version():
    assert re.fullmatch(r"bayesmeta \d+\.\d+\S*\n", run("--version").stdout)


def test_tasks_are_made_as_the_package_makes_them(tmp_path):
    out = tmp_path / "tasks.jsonl"
    run("tasks", "make", "gcd", "-n", 3, "--seed", 5, "--out", out)
    assert bayesmeta.read_tasks(out)[0] == bayesmeta.make_tasks(["gcd"], 3, seed=5)
    assert "gcd" in run("tasks", "families").stdout


def test_skills_shown_are_a_skill_file(tmp_path):
    path = tmp_path / "skills.json"
    path.write_text(run("skills", "show").stdout)
    from bayesmeta.skills import load_skills

    assert load_skills(path) == bayesmeta.default_skills()
    assert json.loads(run("skills", "show", "recall").stdout)["skills"][0]["recall"] == 3
    listed = run("skills", "list", "--skills", path).stdout.splitlines()
    assert len(listed) == 1 + len(bayesmeta.default_skills())


def test_evidence_is_checked_and_shown_as_data(evidence_file):
    loaded = bayesmeta.load_evidence(evidence_file)
    assert loaded.attrs["content_hash"] in run("evidence", "check", evidence_file).stdout
    assert "36 tasks x 3 skills" in run("evidence", "show", evidence_file).stdout
    text = run("evidence", "show", evidence_file, "--task", "task-4").stdout
    assert "What is [red]this[/red]?" in text and "[bold]loud[/bold], trace 1" in text
    assert "a [link=http://x]trace[/link] \\x1b]0;title\\x07" in text
    assert "\x1b" not in text and "\x07" not in text
    row = next(line for line in text.splitlines() if line.startswith("[bold]loud"))
    expected = np.exp(bayesmeta.predict.__globals__["skill_predictive"](loaded)[4, 1])
    assert row.split()[1:] == [f"{p:.3f}" for p in expected]


def test_on_a_terminal_names_are_no_markup(evidence_file):
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [*PROGRAM, "evidence", "show", str(evidence_file), "--task", "task-4"],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        chunks = []
        with contextlib.suppress(OSError):  # end of the terminal
            while chunk := os.read(ours, 2**16):
                chunks.append(chunk)
        os.close(ours)
    text = b"".join(chunks).decode()
    assert process.returncode == 0
    assert "[bold]loud[/bold]" in text and "━" in text.replace("─", "━")
    assert "\x1b]0;" not in text and "\x1b[31m" not in text and "\x07" not in text


def test_output_that_nobody_reads_to_the_end_is_no_error():
    with subprocess.Popen(
        [*PROGRAM, "skills", "show"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert "Traceback" not in errors


def test_import_of_verdicts_and_of_logs(tmp_path):
    table, out = tmp_path / "verdicts.csv", tmp_path / "evidence.nc"
    table.write_text("task,skill,correct,domain\na,x,1,d\na,y,0,d\nb,x,0,d\nb,y,1,d\n")
    assert "2 tasks x 2 skills" in run("evidence", "import", table, "--out", out).stdout
    np.testing.assert_array_equal(
        bayesmeta.load_evidence(out)["verdict"].values[:, :, 0], [[1, 0], [0, 1]]
    )
    log = DATA / "inspect_free_two_epochs.eval"
    run("evidence", "import", log, log, "--skill", "one", "--skill", "two", "--out", out)
    made = bayesmeta.load_evidence(out)
    assert made["skill"].values.tolist() == ["one", "two"]
    assert set(made["split"].values) == {REFLECT, HELD_OUT}
    bad = tmp_path / "bad.csv"
    bad.write_text("task,skill,correct\na,x,1\na,y,maybe\n")
    result = run("evidence", "import", bad, "--on-error", "skip", "--out", out)
    assert "skipped row 2" in result.stderr and "1 rows were skipped" in result.stderr


def test_observe_through_a_server_and_again_from_the_cache(server, tmp_path, two_skills):
    tasks = write_lines(tmp_path / "tasks.jsonl", [*sums(3), {"question": "no answer"}])
    out = tmp_path / "evidence.nc"
    line = ["observe", tasks, "--llm", server, "--model", "exact", "--skills", two_skills]
    line += ["--traces", 2, "--cache", tmp_path / "cache", "--on-error", "skip", "--out", out]
    result = run(*line)
    assert "3 tasks x 2 skills" in result.stdout and f"Written to {out}" in result.stdout
    assert f"skipped {tasks}:4" in result.stderr and "1 rows" in result.stderr
    assert "\x1b" not in result.output  # no bar where there is no terminal
    first, before = bayesmeta.load_evidence(out), len(asked(server))
    run(*line)
    assert len(asked(server)) == before
    assert bayesmeta.load_evidence(out).identical(first)


def test_ctrl_c_keeps_what_was_computed_and_the_same_command_resumes(tmp_path, two_skills):
    tasks = write_lines(tmp_path / "tasks.jsonl", sums(80))
    with serving("exact") as (address, server_id):

        def line(name):
            out, cache = tmp_path / f"{name}.nc", tmp_path / f"{name}-cache"
            words = ["observe", tasks, "--llm", address, "--skills", two_skills, "--traces", 1]
            words += ["--batch-size", 2, "--cache", cache, "--out", out]
            return out, [str(word) for word in words]

        out, words = line("interrupted")
        with subprocess.Popen(
            [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            deadline = time.monotonic() + 60
            while len(asked(address)) < 40:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(server_id, signal.SIGSTOP)  # from now on the server hangs
            time.sleep(0.2)
            stopped = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=40)
            os.kill(server_id, signal.SIGCONT)
        assert time.monotonic() - stopped < 20  # far less than the time limit of a request
        assert process.returncode == 130
        assert "run the same command to resume" in errors and "interrupted-cache" in errors
        assert "Traceback" not in errors and not out.exists()
        time.sleep(0.2)  # requests on their way are logged
        at_stop = set(asked(address))
        run(*words)
        everything = asked(address)
        # Only the batch that was in flight is asked for twice: 2 tasks, 2 skills, 2 candidates,
        # with a trace each, and what finds out about the server.
        assert len(everything) - len(set(everything)) <= 2 * 2 * 2 + 2 * 1 + 3
        assert len(set(everything)) > len(at_stop) + 20  # it was not nearly finished
        whole, again = line("whole")
        run(*again)
    assert bayesmeta.load_evidence(whole).identical(bayesmeta.load_evidence(out))


@pytest.mark.slow
def test_fit_by_nuts_says_that_it_did_not_converge(evidence_file, posterior_file, fitted):
    """A real fit that is far too short, in the place of one that converged."""
    before = posterior_file.read_bytes()
    short = ["--chains", 2, "--samples", 8, "--warmup", 8]
    result = run("fit", evidence_file, "--out", posterior_file, *short, code=3)
    assert "R-hat, worst" in result.stdout and "<= 1.01" in result.stdout
    assert "did not converge" in result.stderr and "--samples" in result.stderr
    assert posterior_file.read_bytes() == before
    kept = bayesmeta.load_posterior(posterior_file.with_name("posterior.not-converged.nc"))
    assert kept.attrs["status"] != "CONVERGED"
    assert kept.attrs["setting_num_warmup"] == 8
    assert kept["posterior"].sizes["draw"] == 8


def test_what_fit_does_with_its_results(evidence_file, posterior_file, fitted, monkeypatch):
    calls = []
    monkeypatch.setattr(bayesmeta, "fit", lambda *a, **k: calls.append((a, k)) or fitted[good])
    before, good = posterior_file.read_bytes(), False
    result = run("fit", evidence_file, "--out", posterior_file, code=3)
    assert "Double --samples" in result.stderr and "was kept" in result.stderr
    assert posterior_file.read_bytes() == before
    beside = posterior_file.with_name("posterior.not-converged.nc")
    assert bayesmeta.load_posterior(beside).attrs["status"] == "ESS"
    run("fit", evidence_file, "--out", posterior_file, "--force", code=3)
    assert bayesmeta.load_posterior(posterior_file).attrs["status"] == "ESS"
    good = True
    words = ["--engine", "svi", "--steps", 500, "--seed", 9, "--beta", "held_out"]
    result = run("fit", evidence_file, "--out", posterior_file, *words)
    assert "Converged" in result.stdout and "domain 2" in result.stdout
    assert bayesmeta.load_posterior(posterior_file).attrs["status"] == "CONVERGED"
    asked = {"engine": "svi", "graph": None, "beta": "held_out", "rng_seed": 9, "num_steps": 500}
    assert calls[2][1] == asked
    prior = posterior_file.with_name("prior.json")
    prior.write_text(bayesmeta.HIERARCHICAL.replace("mine").to_json())
    run("fit", evidence_file, "--out", posterior_file, "--prior", prior)
    run("fit", evidence_file, "--out", posterior_file, "--prior", "hierarchical_beta")
    assert [call[0][1].name for call in calls[3:]] == ["mine", "hierarchical_beta"]


def test_predictions_are_those_of_the_package(evidence_file, posterior_file, fitted, tmp_path):
    out = tmp_path / "predictions.csv"
    assert "Right:" in run("predict", posterior_file, evidence_file, "--out", out).stdout
    frame = pd.read_csv(out)
    expected = bayesmeta.predict(fitted[True], bayesmeta.load_evidence(evidence_file))
    np.testing.assert_allclose(frame["weight:direct"], expected["weight"][:, 0], rtol=1e-6)
    best = expected["log_p"].argmax("candidate").values
    assert frame["answer"].tolist() == [["yes", "no", "perhaps"][c] for c in best]
    np.testing.assert_allclose(
        frame["answer_probability"], np.exp(expected["log_p"].max("candidate")), rtol=1e-6
    )
    lower = expected["weight_lower"].values[np.arange(36), expected["weight"].values.argmax(1)]
    np.testing.assert_allclose(frame["skill_weight_lower"], lower, rtol=1e-6)


def test_tasks_without_evidence_get_a_strategy_only(posterior_file, fitted, tmp_path):
    from bayesmeta.prediction import strategy_draws

    tasks = write_lines(
        tmp_path / "tasks.jsonl", [{**row, "domain": "domain 1"} for row in sums(3)]
    )
    out = tmp_path / "predictions.csv"
    run("predict", posterior_file, tasks, "--out", out)
    frame = pd.read_csv(out)
    assert "answer" not in frame and frame["task"].tolist() == ["sum 0", "sum 1", "sum 2"]
    same = evidence_module.build(
        log_likelihood=np.full((3, 3, 2), -1.0),
        gold=[0, 0, 0],
        domain="domain 1",
        skill=SKILLS,
        features=[[float(n), 0.5] for n in range(3)],
        feature=["log_length", "digit_share"],
    )
    expected = strategy_draws(fitted[True], same).mean(0)
    np.testing.assert_allclose(frame["weight:direct"], expected[:, 0], rtol=1e-6)
    assert frame["skill"].tolist() == [SKILLS[k] for k in expected.argmax(1)]


def test_report_prints_the_table_and_writes_the_page(evidence_file, posterior_file, tmp_path):
    out = tmp_path / "report.html"
    result = run("report", posterior_file, evidence_file, "--out", out)
    assert "uniform mixture" in result.stdout and "Verdict:" in result.stdout
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "[bold]loud[/bold]" in page


def test_sources_of_tasks(monkeypatch):
    from bayesmeta import families
    from bayesmeta.cli_observe import Format, OnError, read_sources

    calls = []
    monkeypatch.setattr(families, "make_tasks", lambda *a, **k: calls.append((*a, k)) or [])
    sources = ["default", "default:7", "reasoning_gym:gcd", "reasoning_gym:gcd, products:3"]
    read_sources(sources, Format.AUTO, OnError.RAISE, 0.25, 4)
    share = {"held_out_fraction": 0.25}
    assert calls == [
        (None, 20, 4, share),
        (None, 7, 4, share),
        (["gcd"], 20, 4, share),
        (["gcd", "products"], 3, 4, share),
    ]
    log = str(DATA / "inspect_free_two_epochs.eval")
    tasks = read_sources([log], Format.AUTO, OnError.RAISE, 0.5, 4)
    assert {task.split for task in tasks} == {REFLECT, HELD_OUT}


def test_demo_and_record_are_given_what_they_need(monkeypatch, tmp_path):
    from bayesmeta import demo, record

    calls = []
    monkeypatch.setattr(demo, "run_demo", lambda *a, **k: calls.append((a, list(k))))
    monkeypatch.setattr(record, "record", lambda *a, **k: calls.append((a, k["cache"])))
    run("demo", "--out", tmp_path)
    run("record", tmp_path / "e.nc", "--cache", tmp_path)
    assert calls == [((tmp_path,), ["console"]), ((tmp_path / "e.nc",), tmp_path)]
