"""Writes episodes into a memory until it is stopped. Run by the tests in processes of its own.

    python memory_process.py FOLDER NAME COUNT

Prints the number of each episode once it is written.
"""

import sys

import numpy as np
import xarray as xr

from bayesmeta.memory_store import MemoryConflictError, MemoryStore


def belief(name: str, number: int) -> xr.Dataset:
    values = np.random.default_rng(number).normal(size=(60, 60))
    return xr.Dataset({"v": (("a", "b"), values)}, attrs={"writer": name, "number": number})


def main() -> None:
    store, name, count = MemoryStore(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    written = 0
    while written < count:
        after = store.head()
        number = 1 if after is None else after.episode + 1
        try:
            store.append(belief(name, number), after=after, note=name)
        except MemoryConflictError:
            continue
        written += 1
        print(number, flush=True)


if __name__ == "__main__":
    main()
