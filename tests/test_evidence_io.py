"""Evidence on disk: exact round trips, stable hashes, atomic writes, damaged files."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from bayesmeta import evidence as ev
from bayesmeta import evidence_io
from bayesmeta.atomic import atomic_write


def make(num_tasks=7, **changes):
    rng = np.random.default_rng(num_tasks)
    shape = (num_tasks, 2, 3, 4)
    observed = np.ones(shape, bool)
    observed[1, 1] = observed[0, :, 2] = observed[2, :, :, 3] = False
    settings = {
        "log_likelihood": -rng.exponential(size=shape),
        "observed": observed,
        "gold": rng.integers(3, size=num_tasks),
        "task": [f"aufgabe-\u00e4-{n}" for n in range(num_tasks)],
        "features": rng.normal(size=(num_tasks, 2)),
        "trace_text": np.full(shape[:3], "so \u2192 42\n" * 30, dtype=object),
        "question": ["", "?", *["long " * 50] * (num_tasks - 2)],
        "verdict": rng.integers(2, size=shape[:3]),
        "attrs": {"model": "m\u00f6del", "seed": 3, "packages": {"numpy": "2"}},
    }
    return ev.build(**{**settings, **changes})


@pytest.mark.parametrize("changes", [{}, {"features": None, "verdict": None}, {"texts": False}])
def test_round_trip_is_exact(tmp_path, changes):
    evidence = make(**changes)
    assert ev.save(evidence, tmp_path / "e.nc") == tmp_path / "e.nc"
    loaded = ev.load(tmp_path / "e.nc")
    digest = loaded.attrs.pop("content_hash")
    assert loaded.identical(evidence)
    for name in evidence.variables:
        assert loaded[name].dtype == evidence[name].dtype, name
    assert loaded.attrs == evidence.attrs
    assert digest == ev.content_hash(loaded) == ev.content_hash(evidence)
    assert "content_hash" not in evidence.attrs


def test_any_netcdf_reader_can_read_it(tmp_path):
    evidence = make()
    ev.save(evidence, tmp_path / "e.nc")
    with xr.open_dataset(tmp_path / "e.nc", engine="h5netcdf") as plain:
        xr.testing.assert_equal(plain.load(), evidence)
        assert plain["observed"].dtype == bool and plain["verdict"].dtype == np.int8


def test_hash_ignores_the_order_and_the_byte_order_of_variables():
    evidence = make()
    shuffled = evidence[list(evidence.data_vars)[::-1]]
    assert ev.content_hash(shuffled) == ev.content_hash(evidence)
    swapped = evidence.copy()
    for name in ("log_likelihood", "features", "gold"):
        kind = evidence[name].dtype.newbyteorder(">")
        swapped[name] = (evidence[name].dims, evidence[name].values.astype(kind))
    assert ev.content_hash(swapped) == ev.content_hash(evidence)
    fixed = evidence.assign(question=("task", evidence["question"].values.astype(str)))
    assert ev.content_hash(fixed) == ev.content_hash(evidence)


def test_hash_is_the_same_for_ever():
    evidence = ev.build(log_likelihood=[[[-1.0, -2.0]]], gold=[0], task=["\u00e4"])
    assert ev.content_hash(evidence) == (
        "8be9f81854ae0ef0590e4fe7cf9f11b15121e6ea86ddd2c23fd03dd391cefff1"
    )


def test_hash_sees_every_part():
    evidence = make()
    seen = {ev.content_hash(evidence)}
    for name in evidence.data_vars:
        changed = evidence.copy(deep=True)
        flat = changed[name].values.reshape(-1)
        flat[-1] = f"{flat[-1]}x" if flat.dtype == object else 1 - flat[-1].astype(float)
        seen.add(ev.content_hash(changed))
    seen.add(ev.content_hash(evidence.assign_attrs(seed=4)))
    seen.add(ev.content_hash(evidence.assign_coords(task=[f"x{n}" for n in range(7)])))
    assert len(seen) == len(evidence.data_vars) + 3


def test_hash_keeps_neighbouring_texts_apart():
    texts = [["ab", "c"], ["a", "bc"]]
    hashes = {ev.content_hash(make(3, question=[*t, ""])) for t in texts}
    assert len(hashes) == 2


def test_a_changed_number_is_found(tmp_path):
    import h5py

    ev.save(make(), tmp_path / "e.nc")
    with h5py.File(tmp_path / "e.nc", "r+") as file:
        dataset = file["log_likelihood"]
        assert isinstance(dataset, h5py.Dataset)
        dataset[3, 0, 0, 0] = -0.25
    with pytest.raises(ev.EvidenceError, match="e.nc: content_hash is .* but the content has"):
        ev.load(tmp_path / "e.nc")


def test_another_schema_version_is_named(tmp_path):
    import h5py

    ev.save(make(), tmp_path / "e.nc")
    with h5py.File(tmp_path / "e.nc", "r+") as file:
        file.attrs["schema_version"] = 2
    with pytest.raises(ev.EvidenceError, match="e.nc: schema_version is 2.*newer bayesmeta"):
        ev.load(tmp_path / "e.nc")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = ev.save(make(), tmp_path / "e.nc")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ev.EvidenceError, match="e.nc.*(truncated|content_hash)"):
        ev.load(path)


def test_a_flipped_byte_anywhere_is_refused_or_harmless(tmp_path):
    path = ev.save(make(), tmp_path / "e.nc")
    content, sound = path.read_bytes(), ev.load(path)
    refused = 0
    for at in np.random.default_rng(0).integers(len(content), size=60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        try:
            assert ev.load(path).identical(sound)  # the byte was padding
        except ev.EvidenceError:
            refused += 1
    assert refused >= 3


@pytest.mark.parametrize(
    "content", [b"", b"task,skill,correct\n", b"\x89HDF\r\n\x1a\n", b"CDF\x01"]
)
@pytest.mark.parametrize("read", [ev.load, ev.open_lazy])
def test_what_is_not_netcdf_is_refused(tmp_path, content, read):
    (tmp_path / "e.nc").write_bytes(content)
    with pytest.raises(ev.EvidenceError, match="e.nc.* netCDF-4.*observe again"):
        read(tmp_path / "e.nc")


@pytest.mark.parametrize("read", [ev.load, ev.open_lazy])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="there is no evidence file .*none.nc"):
        read(tmp_path / "none.nc")


def test_other_netcdf_is_not_evidence(tmp_path):
    xr.Dataset({"x": ("y", [1.0])}).to_netcdf(tmp_path / "e.nc", engine="h5netcdf")
    with pytest.raises(ev.EvidenceError, match="schema_version is missing"):
        ev.load(tmp_path / "e.nc")


def test_invalid_evidence_is_not_saved_and_the_old_file_stays(tmp_path):
    path = ev.save(make(), tmp_path / "e.nc")
    before, broken = path.read_bytes(), make()
    broken["log_likelihood"].values[0, 0, 0, 0] = np.nan
    with pytest.raises(ev.EvidenceError, match="is nan"):
        ev.save(broken, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["e.nc"]


def test_lazy_slices_equal_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_io, "_chunk_rows", lambda _: 64)
    evidence = make(500)
    path = ev.save(evidence, tmp_path / "e.nc")
    assert ev.load(path).drop_attrs().identical(evidence.drop_attrs())
    with ev.open_lazy(path) as lazy:
        assert "trace_text" not in lazy
        assert not lazy["log_likelihood"].variable._in_memory
        for name in ("log_likelihood", "observed", "gold", "features", "log_weight"):
            block = lazy[name].isel(task=slice(100, 333)).values
            np.testing.assert_array_equal(block, evidence[name].values[100:333])
            assert block.dtype == evidence[name].dtype
        assert not lazy["log_likelihood"].variable._in_memory


FULL = """
import resource, signal, sys
from bayesmeta import evidence as ev
evidence = ev.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    ev.save(evidence, sys.argv[1])
except OSError as error:
    print(error)
"""


def test_a_write_that_the_system_cuts_short_leaves_the_old_file(tmp_path):
    # A limit on the size of files makes real writes fail half-way, as a full disk does.
    path = ev.save(make(200), tmp_path / "e.nc")
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the disk or the quota is full. The file that was there is unchanged" in done.stdout
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["e.nc"]


def test_a_full_disk_is_said_so(tmp_path):
    def write(part: Path) -> None:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="disk or the quota is full. Nothing is left") as caught:
        atomic_write(tmp_path / "x.txt", write)
    assert caught.value.errno == errno.ENOSPC and not os.listdir(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    (tmp_path / "x.txt").write_text("old")

    def write(part: Path) -> None:
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "x.txt", write)
    assert (tmp_path / "x.txt").read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]


def test_atomic_write_keeps_ending_mode_and_link(tmp_path):
    target, link = tmp_path / "x.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    endings = []

    def write(part: Path) -> None:
        endings.append(part.suffix)
        part.write_text("new")

    atomic_write(link, write)
    assert target.read_text() == "new" and link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640 and endings == [".txt"]


def test_atomic_write_needs_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*Create it"):
        atomic_write(tmp_path / "no" / "x.txt", lambda part: None)
    with pytest.raises(IsADirectoryError, match="Name a file inside it"):
        atomic_write(tmp_path, lambda part: None)
