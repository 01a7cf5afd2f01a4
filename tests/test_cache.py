"""The cache of what was paid for: lossless, verified, never evicted, clear when it fails."""

import errno
import json
import math
import sqlite3
import subprocess
import sys

import pytest

from bayesmeta.cache import CacheError, CacheWarning, EvidenceCache


@pytest.fixture
def cache(tmp_path):
    with EvidenceCache(tmp_path / "cache") as cache:
        yield cache


def database(cache):
    return sqlite3.connect(cache.folder / "cache.db", isolation_level=None)


def alter(cache, statement, *values):
    connection = database(cache)
    connection.execute(statement, values)
    connection.close()


FLOATS = [0.1, -1 / 3, 1e-308, 5e-324, -1.7976931348623157e308, math.pi, -0.0, -math.inf]


def test_values_come_back_exactly(cache):
    value = {"log_likelihood": FLOATS, "text": "\u00e4\0\ud800\n", "none": None, "n": 2**60}
    cache.put("k", value)
    found = cache.get("k")
    assert found == value
    assert [x.hex() for x in found["log_likelihood"]] == [x.hex() for x in FLOATS]
    cache.put("nan", {"x": math.nan})
    assert math.isnan(cache.get("nan")["x"])


def test_large_entries_stay_in_the_database(cache):
    cache.put("k", {"text": "long " * 100_000})
    assert cache.get("k") == {"text": "long " * 100_000}
    assert {file.name.split("-")[0] for file in cache.folder.iterdir()} == {"cache.db"}


def test_an_absent_key_is_none(cache):
    assert cache.get("k") is None and "k" not in cache and len(cache) == 0


def test_entries_outlive_the_object_and_can_be_replaced(cache):
    cache.put("k", {"x": 1})
    cache.put("k", {"x": 2})
    cache.close()
    with EvidenceCache(cache.folder) as again:
        assert again.get("k") == {"x": 2} and "k" in again
        assert len(again) == 1 and list(again.keys()) == ["k"] and again.size() > 0
        assert again.clear() == 1 and len(again) == 0


def test_key_depends_on_content_only():
    one = EvidenceCache.key(task="a", skill={"name": "s", "version": "1"}, seed=0)
    two = EvidenceCache.key(seed=0, skill={"version": "1", "name": "s"}, task="a")
    assert one == two and len(one) == 64
    others = [
        EvidenceCache.key(task="a", skill={"name": "s", "version": "2"}, seed=0),
        EvidenceCache.key(task="a", skill={"name": "s", "version": "1"}, seed="0"),
        EvidenceCache.key(task="a", skill=["name", "s", "version", "1"], seed=0),
    ]
    assert len({one, *others}) == 4


def test_only_plain_content_is_taken(cache):
    with pytest.raises(TypeError, match=r"content\['x'\]\[1\] is a set, wanted plain JSON"):
        EvidenceCache.key(x=[1, {2}])
    with pytest.raises(TypeError, match=r"key 1, wanted text"):
        cache.put("k", {"x": {1: 2}})
    with pytest.raises(ValueError, match="JSON"):
        EvidenceCache.key(x=math.nan)
    assert len(cache) == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "blob", "number", "pickle", "other key", "file"])
def test_a_damaged_entry_is_reported_dropped_and_computed_again(cache, damage):
    cache.put("good", {"x": [1.5]})
    cache.put("k", {"x": [2.5]})
    change = {
        "flip": ("UPDATE Cache SET value = replace(value, '2.5', '3.5') WHERE key = 'k'",),
        "cut": ("UPDATE Cache SET value = substr(value, 1, 30) WHERE key = 'k'",),
        "blob": ("UPDATE Cache SET value = ? WHERE key = 'k'", b"\x00\xff"),
        "number": ("UPDATE Cache SET value = 7 WHERE key = 'k'",),
        # Protocol 0 for os.system('false'): must never be run.
        "pickle": (
            "UPDATE Cache SET mode = 4, value = ? WHERE key = 'k'",
            b"cos\nsystem\n(S'false'\ntR.",
        ),
        "other key": (
            "UPDATE Cache SET value = (SELECT value FROM Cache WHERE key='good') WHERE key='k'",
        ),
        "file": ("UPDATE Cache SET mode = 3, value = NULL, filename = 'x' WHERE key = 'k'",),
    }[damage]
    alter(cache, *change)
    with pytest.warns(CacheWarning, match="cache entry k .* damaged. It was dropped"):
        assert cache.get("k") is None
    assert cache.damaged == 1 and "k" not in cache
    cache.put("k", {"x": [2.5]})
    assert cache.get("k") == {"x": [2.5]} and cache.get("good") == {"x": [1.5]}


def test_nothing_is_ever_evicted(cache):
    connection = database(cache)
    settings = dict(connection.execute("SELECT key, value FROM Settings").fetchall())
    connection.close()
    assert settings["eviction_policy"] == "none" and settings["cull_limit"] == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(CacheError, match="cache folder .*file.* cannot be made.*another"):
            EvidenceCache(folder)


def test_a_damaged_database_is_named(tmp_path):
    (tmp_path / "cache.db").write_bytes(b"this is no database " * 1000)
    with pytest.raises(CacheError, match="could not be opened: .*delete the folder"):
        EvidenceCache(tmp_path)


FULL = """
import json, resource, signal, sys
from bayesmeta.cache import CacheError, EvidenceCache
with EvidenceCache(sys.argv[1]) as cache:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    cache.put("0", {"x": "y" * 1000})
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    for n in range(1, 1000):
        try:
            cache.put(str(n), {"x": "y" * 1000})
        except CacheError as error:
            print(json.dumps([n, str(error)]))
            break
"""


def test_a_write_that_the_system_refuses_loses_nothing_that_was_stored(tmp_path):
    # A limit on the size of files makes real writes fail, as a full disk does.
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stored, message = json.loads(done.stdout)
    assert "could not be written" in message
    with EvidenceCache(tmp_path) as cache:
        assert len(cache) == stored
        assert all(cache.get(str(n)) == {"x": "y" * 1000} for n in range(stored))


def test_a_full_database_says_full(cache):
    # SQLite's own limit gives the error that a full disk gives.
    cache.put("0", {"x": "y"})
    cache._store._sql("PRAGMA max_page_count = 20")
    with pytest.raises(CacheError, match="is full. Free some space.*kept") as caught:
        cache.put("1", {"x": "y" * 1_000_000})
    assert caught.value.errno == errno.ENOSPC
    assert cache.get("0") == {"x": "y"}
