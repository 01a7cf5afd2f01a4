"""A run that is killed outright goes on where it stopped: nothing lost, nothing computed twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from reference import slow_observe

from bayesmeta.cache import EvidenceCache
from bayesmeta.evidence import load


def _start(folder: Path, log: Path, pause: float) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, slow_observe.__file__, str(folder), str(log), str(pause)]
    return subprocess.Popen(command)


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system with kill -9")
def test_kill_9_and_resume(tmp_path):
    undisturbed, whole = tmp_path / "undisturbed", tmp_path / "whole.log"
    undisturbed.mkdir()
    slow_observe.main(undisturbed, whole, 0.0)

    killed, before = tmp_path / "killed", tmp_path / "before.log"
    process = _start(killed, before, 0.1)
    deadline = time.monotonic() + 60
    # Wait until the second batch of five is in flight, then give it no chance to tidy up.
    while len(_lines(before)) < 24 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (killed / "evidence.nc").exists()
    with EvidenceCache(killed / "cache") as cache:
        kept = len(cache)
        entries = {key: cache.get(key) for key in cache.keys()}
    assert kept > 0

    after = tmp_path / "after.log"
    assert _start(killed, after, 0.0).wait(60) == 0
    asked, again = [json.loads(line) for line in _lines(before)], _lines(after)
    assert len(again) < len(_lines(whole))
    # A batch is 2 tasks: 4 traces of 2 stages and 6 scored contexts; only the one that was in
    # flight may be asked for again.
    repeated = set(_lines(before)) & set(again)
    assert len(asked) >= 24 and len(repeated) <= 4 * 2 + 6 * 2
    assert set(_lines(before)) | set(again) == set(_lines(whole))
    # Nothing that was kept was asked for or written again.
    with EvidenceCache(killed / "cache") as cache:
        assert {key: cache.get(key) for key in entries} == entries
    first, second = load(undisturbed / "evidence.nc"), load(killed / "evidence.nc")
    assert first.attrs["content_hash"] == second.attrs["content_hash"]
    for name in first.data_vars:
        np.testing.assert_array_equal(first[name].values, second[name].values)
