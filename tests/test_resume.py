"""A run that is killed again and again ends with everything, computed once."""

import json
import random
import subprocess
import sys
import time

from bayesmeta.cache import EvidenceCache

CELLS = 60
#: Computes what the cache lacks; logs each computation before it starts.
WORKER = f"""
import sys, time
from bayesmeta.cache import EvidenceCache
with EvidenceCache(sys.argv[1]) as cache, open(sys.argv[2], "a", buffering=1) as log:
    for n in range({CELLS}):
        key = cache.key(cell=n)
        if cache.get(key) is None:
            log.write(f"{{n}}\\n")
            time.sleep(0.01)
            cache.put(key, {{"log_likelihood": [-n / 3, -0.1 * n], "text": "step " * 5000}})
print("done")
"""


def start(folder, log):
    command = [sys.executable, "-W", "error", "-c", WORKER, str(folder), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def computed(log):
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def test_kill_and_resume_loses_and_repeats_nothing(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    chance, kills = random.Random(0), 0
    for goal in (5, 17, 30, 44):
        worker = start(folder, log)
        while len(computed(log)) < goal + kills and worker.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.03))  # so that the kill may fall into a write
        worker.kill()
        _, errors = worker.communicate()
        assert worker.returncode == -9, errors
        kills += 1
        with EvidenceCache(folder) as cache:
            # All but the cell in flight is there, and whole.
            assert len(cache) >= len(set(computed(log))) - 1
    worker = start(folder, log)
    out, errors = worker.communicate(timeout=60)
    assert (worker.returncode, out) == (0, "done\n"), errors
    counts = [computed(log).count(n) for n in range(CELLS)]
    assert min(counts) == 1 and sum(counts) - CELLS <= kills, json.dumps(counts)
    with EvidenceCache(folder) as cache:
        assert len(cache) == CELLS and cache.damaged == 0
        for n in range(CELLS):
            value = cache.get(cache.key(cell=n))
            assert value is not None
            assert value["log_likelihood"] == [-n / 3, -0.1 * n]


def test_two_processes_may_share_a_cache(tmp_path):
    workers = [start(tmp_path / "cache", tmp_path / f"log{n}") for n in range(2)]
    for worker in workers:
        out, errors = worker.communicate(timeout=60)
        assert (worker.returncode, out) == (0, "done\n"), errors
    with EvidenceCache(tmp_path / "cache") as cache:
        assert len(cache) == CELLS
