"""Bad input and bad luck at the command line: one clear message, an exit code, nothing lost."""

import errno
import json
import os
import sqlite3
import subprocess
import warnings

import cli_support
import diskcache
import h5py
import numpy as np
import pytest
from cli_support import PROGRAM, asked, run, serving, small_evidence, sums, write_lines

import bayesmeta
from bayesmeta import evidence as evidence_module

# Fixtures are found by name.
evidence_file, fitted, posterior_file = (
    cli_support.evidence_file,
    cli_support.fitted,
    cli_support.posterior_file,
)
server, two_skills = cli_support.server, cli_support.two_skills


def refused(*arguments, code=2, says=()):
    """Run a command that must fail; returns its one message."""
    result = run(*arguments, code=code)
    message = result.stderr
    assert message.startswith("bayesmeta: ") and "Traceback" not in message
    assert message.count("bayesmeta: ") == 1
    for words in says:
        assert words in message, message
    return message


@pytest.fixture
def line(tmp_path, two_skills):
    """An ``observe`` whose language model is not there."""

    def words(tasks, *more):
        out = ["--out", tmp_path / "e.nc", "--cache", tmp_path / "cache"]
        skills = [] if "--skills" in more else ["--skills", two_skills]
        return ["observe", tasks, "--llm", "http://127.0.0.1:9", *out, *skills, *more]

    return words


GOOD = {"question": "What is 2 + 2?", "answer": "4"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps(GOOD)[:-2], ["tasks.jsonl:1", "not a JSON object"]),
        (json.dumps(GOOD) + "\n[1]", ["tasks.jsonl:2", "JSON object"]),
        (json.dumps({**GOOD, "anser": 1}), ["tasks.jsonl:1", "did you mean", "'answer'"]),
        (json.dumps({"question": "x"}), ["tasks.jsonl:1", "answer must be"]),
        (json.dumps({**GOOD, "features": {"a": None}}), ["tasks.jsonl:1", "finite numbers"]),
        ('{"question": "q", "answer": "\\ud800"}', ["tasks.jsonl:1", "Unicode"]),
        ("", ["the file is empty"]),
        ("\n \n", ["the file is empty"]),
        (2 * (json.dumps({**GOOD, "id": "a"}) + "\n"), ["tasks.jsonl:2", "'a'", "line 1"]),
    ],
)
def test_task_lines(line, tmp_path, content, says):
    path = tmp_path / "tasks.jsonl"
    path.write_text(content)
    message = run(*line(path), code=2).stderr
    assert message.startswith("bayesmeta: ") and "Traceback" not in message
    for words in says:
        assert words.lower() in message.lower(), message


def test_tasks_that_are_not_there(line, tmp_path):
    refused(*line("nowhere.jsonl"), says=["nowhere.jsonl", "bayesmeta tasks families"])
    refused(*line("reasoning_gym:gdc"), says=["'gdc'", "Did you mean 'gcd'"])
    refused(*line("reasoning_gym:puzzle24:3"), says=["puzzle24", "wrong answers"])
    refused(*line("default:many"), says=["default:many", "default:N"])
    refused(*line("reasoning_gym"), says=["reasoning_gym:NAME"])
    refused("tasks", "make", "gcd", "--out", tmp_path / "no" / "t.jsonl", says=["no folder"])
    same = write_lines(tmp_path / "same.jsonl", [{**GOOD, "id": "a"}])
    refused("observe", same, *line(same)[1:], says=["'a' repeats"])


@pytest.mark.parametrize("command", ["evidence check", "evidence show", "fit"])
def test_evidence_files(command, evidence_file, tmp_path):
    path, good = tmp_path / "bad.nc", evidence_file.read_bytes()
    words = [*command.split(), path]
    refused(*words, says=["bad.nc"])
    for content in (b"", good[:100], good[: len(good) // 2], b"task,skill,correct\n"):
        path.write_bytes(content)
        refused(*words, says=["bad.nc", "cannot be read as netCDF-4"])
    spoilt = {
        "NaN": lambda file: file["log_likelihood"].__setitem__((3, 1, 0, 0), np.nan),
        "0.5": lambda file: file["log_likelihood"].__setitem__((3, 1, 0, 0), 0.5),
        "content_hash": lambda file: file["log_likelihood"].__setitem__((3, 1, 0, 0), -9.0),
        "schema_version is 7": lambda file: file.attrs.__setitem__("schema_version", 7),
        "'task-0'": lambda file: file["task"].__setitem__(1, "task-0"),
    }
    for says, spoil in spoilt.items():
        path.write_bytes(good)
        with h5py.File(path, "a") as file:
            spoil(file)
        message = refused(*words, says=["bad.nc"])
        assert says.lower() in message.lower()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("", "cannot be read as CSV"),
        ("task,skill\na,x\n", "['correct']"),
        ("task,skill,correct\n", "no usable row"),
        ("task,skill,correct\na,x,1\nb,x,7\n", "row 2: correct is '7'"),
    ],
)
def test_verdict_tables(tmp_path, rows, says):
    path = tmp_path / "verdicts.csv"
    path.write_text(rows)
    refused("evidence", "import", path, "--out", tmp_path / "e.nc", says=[says])
    assert not (tmp_path / "e.nc").exists()


def test_logs(line, tmp_path):
    log = tmp_path / "run.eval"
    log.write_bytes(b"PK not an archive")
    out = ["--out", tmp_path / "e.nc"]
    refused("evidence", "import", log, *out, says=["run.eval", "archive"])
    refused("evidence", "import", log, "--skill", "a", "--skill", "b", *out, says=["2 --skill"])
    refused("evidence", "import", tmp_path / "no.eval", *out, says=["no.eval"])
    refused(*line(log), says=["run.eval", "archive"])


@pytest.mark.parametrize(
    ("skill", "says"),
    [
        ({"name": "x", "instruction": "y", "template": "{instruction}"}, "['question']"),
        ({"name": "x"}, "['instruction']"),
        ({"name": "x", "instruction": "y", "tool": "shell"}, "'shell'"),
        ({"name": "x", "instruction": "y", "recall": -1}, "-1"),
    ],
)
def test_skill_files(line, tmp_path, skill, says):
    tasks = write_lines(tmp_path / "t.jsonl", sums(2))
    path = tmp_path / "skills.json"
    path.write_text(json.dumps([skill]))
    for words in (line(tasks, "--skills", path), ["skills", "list", "--skills", path]):
        refused(*words, says=["skills.json, entry 0", says])
    path.write_text("{")
    refused("skills", "show", "--skills", path, says=["skills.json", "JSON"])
    refused("skills", "show", "juggle", says=["'juggle'", "step_by_step"])


def test_models_that_are_none(tmp_path):
    tasks = write_lines(tmp_path / "t.jsonl", sums(2))
    words = ["observe", tasks, "--out", tmp_path / "e.nc", "--llm"]
    fake = tmp_path / "model.gguf"
    fake.write_bytes(b"<html>Not found</html>")
    refused(*words, fake, says=["not a GGUF file", "b'<htm'"])
    fake.write_bytes(b"GGUF\x03\0\0\0")
    refused(*words, fake, says=["model.gguf", "cut off"])
    refused(*words, tmp_path / "other.gguf", says=["other.gguf"])
    refused(*words, "./nowhere", says=["./nowhere"])


@pytest.mark.llm
def test_a_prompt_longer_than_the_context(tmp_path, two_skills):
    long = {**sums(1)[0], "id": "long", "question": "one two " * 9000}
    tasks = write_lines(tmp_path / "t.jsonl", [long, *sums(2)])
    skills = tmp_path / "direct.json"
    skills.write_text(json.dumps([{"name": "direct", "instruction": "Reply at once."}]))
    out = tmp_path / "e.nc"
    words = ["observe", tasks, "--skills", skills, "--out", out, "--cache", tmp_path / "cache"]
    refused(*words, says=["task 'long', skill 'direct'", "tokens"])
    assert not out.exists()
    result = run(*words, "--on-error", "skip")
    # A task that no skill could be tried on is left out of the evidence, and named.
    assert "long" in result.stderr + result.stdout
    assert "long" not in bayesmeta.load_evidence(out)["task"].values


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("hang", "no complete reply within 1 s"),
        ("drip", "no complete reply within 1 s"),
        ("500", "HTTP 500"),
        ("html", "HTML page"),
        ("half-json", "not JSON"),
        ("truncated", "no complete reply"),
        ("no-logprobs", "logprobs"),
        ("nan", "nan"),
        ("positive", "0.5"),
        ("die@6", "no complete reply"),
    ],
)
def test_servers(tmp_path, two_skills, mode, says):
    tasks = write_lines(tmp_path / "t.jsonl", sums(6))
    limit = 1 if mode in ("hang", "drip") else 60
    with serving(mode) as (address, _):
        words = ["observe", tasks, "--llm", address, "--skills", two_skills, "--traces", 1]
        words += ["--cache", tmp_path / "cache", "--out", tmp_path / "e.nc", "--batch-size", 1]
        message = refused(*words, "--timeout", limit, "--retries", 0, code=1)
    assert says.lower() in message.lower(), message
    assert "task 'sum " in message and "kept in the cache" in message
    assert not (tmp_path / "e.nc").exists()


def test_no_server_and_a_wrong_key(line, tmp_path):
    tasks = write_lines(tmp_path / "t.jsonl", sums(2))
    refused(*line(tasks, "--retries", 0), code=1, says=["127.0.0.1:9", "See whether the server"])
    refused(
        *line(tasks, "--api-key-env", "NO_SUCH_KEY"),
        says=["NO_SUCH_KEY is not set", "--api-key-env"],
    )
    refused(*line(tasks, "--timeout", -1), says=["timeout=-1"])


def test_a_full_disk_leaves_the_old_file(evidence_file, tmp_path, monkeypatch):
    table, out = tmp_path / "v.csv", tmp_path / "e.nc"
    table.write_text("task,skill,correct\na,x,1\n")
    out.write_bytes(evidence_file.read_bytes())

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = ["evidence", "import", table, "--out", out]
    refused(*words, code=1, says=["e.nc", "full", "unchanged"])
    tasks = tmp_path / "t.jsonl"
    refused(
        "tasks",
        "make",
        "gcd",
        "-n",
        2,
        "--out",
        tasks,
        code=1,
        says=["t.jsonl", "disk or the quota is full"],
    )
    assert out.read_bytes() == evidence_file.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.nc", "v.csv"]


def test_a_full_disk_while_observing_loses_nothing(tmp_path, two_skills, monkeypatch):
    tasks, out = write_lines(tmp_path / "t.jsonl", sums(6)), tmp_path / "e.nc"
    put, stored = diskcache.Cache.set, []

    def full(self, key, *others, **more):
        if len(stored) == 9:
            raise sqlite3.OperationalError("database or disk is full")
        stored.append(key)
        return put(self, key, *others, **more)

    with serving("exact") as (address, _):
        words = ["observe", tasks, "--llm", address, "--skills", two_skills, "--traces", 1]
        words += ["--cache", tmp_path / "cache", "--out", out, "--batch-size", 1]
        monkeypatch.setattr(diskcache.Cache, "set", full)
        refused(*words, code=1, says=["cache", "full", "what was stored is kept"])
        monkeypatch.undo()
        before = len(asked(address))
        run(*words)
        again = len(asked(address)) - before
    # 6 tasks need 6 traces and 6 x 2 x 2 scores; 9 entries, of 3 tasks, are not asked for again.
    assert again <= 30 - 3 * 5 + 3
    assert bayesmeta.load_evidence(out).sizes["task"] == 6


def test_outputs_named_by_mistake(evidence_file, posterior_file, tmp_path):
    tasks = write_lines(tmp_path / "t.jsonl", sums(2))
    before = tasks.read_bytes()
    words = ["observe", tasks, "--llm", "http://127.0.0.1:9", "--out"]
    refused(*words, tasks, says=["will not be replaced"])
    refused(*words, tmp_path, says=["it is a folder"])
    refused(*words, tmp_path / "no" / "e.nc", says=["there is no folder"])
    refused("fit", evidence_file, "--out", tasks, says=["will not be replaced"])
    assert tasks.read_bytes() == before


def test_posteriors(evidence_file, posterior_file, fitted, tmp_path):
    out = ["--out", tmp_path / "x.csv"]
    refused("predict", evidence_file, evidence_file, *out, says=["holds no posterior"])
    refused("predict", tmp_path / "no.nc", evidence_file, *out, says=["no posterior at"])
    refused("report", posterior_file, tmp_path / "no.nc", *out, says=["no evidence file"])
    bad = tmp_path / "bad.nc"
    bad.write_bytes(posterior_file.read_bytes()[:3000])
    refused("predict", bad, evidence_file, *out, says=["bad.nc", "not a readable posterior"])
    bayesmeta.save_posterior(fitted[False], bad)
    for command in ("predict", "report"):
        message = refused(command, bad, evidence_file, *out, code=3, says=["did not converge"])
        assert "Double --samples" in message
    other = evidence_module.save(small_evidence(num_features=0), tmp_path / "other.nc")
    refused("predict", posterior_file, other, *out, says=["lacks the features"])
    tasks = write_lines(tmp_path / "t.jsonl", [{**row, "features": {"a": 1}} for row in sums(2)])
    refused("predict", posterior_file, tasks, *out, says=["'sum 0'", "log_length"])
    refused("predict", posterior_file, "no.nc", *out, says=["no.nc"])
    assert not (tmp_path / "x.csv").exists()


def test_settings_of_a_fit(evidence_file, tmp_path):
    words = ["fit", evidence_file, "--out", tmp_path / "p.nc"]
    refused(*words, "--beta", "warm", says=["'warm'", "held_out"])
    refused(*words, "--beta", "-1", says=["'-1'"])
    refused(
        *words, "--beta", "infer", "--prior", "hierarchical", says=["hierarchical_beta".upper()]
    )
    refused(*words, "--prior", "flat", says=["'flat'", "hierarchical"])
    prior = tmp_path / "prior.json"
    prior.write_text('{"name": "x", "sites": {"u": {"family": "Flat", "parameters": {}}}}')
    refused(*words, "--prior", prior, says=["prior.json", "'Flat'"])
    refused(*words, "--engine", "svi", "--chains", 4, says=["--chains", "svi"])
    refused(*words, "--chains", 1, says=["--chains must be at least 2"])
    held_out = evidence_module.build(
        log_likelihood=np.full((2, 2, 2), -1.0), gold=[0, 1], split="held_out"
    )
    path = evidence_module.save(held_out, tmp_path / "held.nc")
    refused("fit", path, "--out", tmp_path / "p.nc", says=["nothing to fit"])
    assert not (tmp_path / "p.nc").exists()


def test_unknown_options_and_commands():
    assert run("observe", "--nonsense", code=2).exit_code == 2
    assert "frob" in run("frob", code=2).stderr


def test_tracebacks_are_for_those_who_ask(tmp_path):
    words = [*PROGRAM, "evidence", "check", str(tmp_path / "no.nc")]
    quiet = subprocess.run(words, capture_output=True, text=True)
    assert quiet.returncode == 2 and quiet.stdout == ""
    assert quiet.stderr.count("\n") == 1 and "no.nc" in quiet.stderr
    loud = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "BAYESMETA_DEBUG": "1"}
    )
    assert loud.returncode == 2 and "Traceback" in loud.stderr


def test_a_fault_of_our_own_is_not_called_bad_input(evidence_file, monkeypatch):
    def broken(*arguments):
        return np.zeros(2).reshape(3)  # raises inside another package

    monkeypatch.setattr(evidence_module, "summarise", broken)
    message = refused("evidence", "show", evidence_file, code=1)
    assert "should not happen" in message and "BAYESMETA_DEBUG" in message


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(evidence_file, monkeypatch):
    def warn(evidence):
        warnings.warn("take care \x1b[2J", UserWarning, stacklevel=2)
        return "done"

    monkeypatch.setattr(evidence_module, "summarise", warn)
    result = run("evidence", "show", evidence_file)
    assert result.stderr == "bayesmeta: warning: take care \\x1b[2J\n"
