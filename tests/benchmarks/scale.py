"""Time and memory of minibatch variational inference, from a thousand tasks to a million.

    python tests/benchmarks/scale.py [--sizes 1000 10000 100000 1000000]

Evidence is simulated from the Figure 2 model, saved through `bayesmeta.evidence` as netCDF files
of some hundred thousand tasks each, and read back lazily, block by block. Every size is fitted in
a fresh process, so that one peak does not hide another.

Two things are reported of each fit. ``gain_left`` is what the optimiser left, in nats of the ELBO
given all tasks, unbiased and at fresh draws: under 0.1 it has settled. Pareto k-hat says how well
a Gaussian can cover the posterior, and hardly depends on the number of tasks: the eight domains'
scale keeps a heavy upper tail however many tasks each domain has.

The last line is one JSON object: the log-log slope of seconds per epoch, the peak memory above
import at the largest size in GB, and by size the seconds per epoch, the epochs taken, the nats
left to gain, Pareto k-hat, and the steps skipped.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (1_000, 10_000, 100_000, 1_000_000)
SKILLS, CANDIDATES, DOMAINS, FEATURES = 6, 4, 8, 4
#: Tasks to a minibatch and to a file, multiples of what one compressed chunk holds.
BLOCK, SHARD = 8_192, 131_072
#: Draws at which a fit is judged: with fewer, k-hat is mostly noise.
CHECKED = 400
TRUTH_SEED = 0


def truth():
    """mu [K], W [K, P] and delta [D, K]; the same for every size."""
    import numpy as np

    rng = np.random.default_rng(TRUTH_SEED)
    mu, W = rng.normal(0, 1.0, SKILLS), rng.normal(0, 0.5, (SKILLS, FEATURES))
    delta = rng.normal(0, 0.5, (DOMAINS, SKILLS))
    return mu - mu.mean(), W - W.mean(0), delta - delta.mean(1, keepdims=True)


def write(folder: Path, size: int) -> None:
    """Simulate and save evidence of ``size`` tasks, one shard at a time."""
    import numpy as np

    from bayesmeta import evidence

    mu, W, delta = truth()
    for start in range(0, size, SHARD):
        rng, count = np.random.default_rng([1, start]), min(SHARD, size - start)
        x = rng.normal(size=(count, FEATURES))
        domain = rng.integers(DOMAINS, size=count)
        scores = rng.normal(0, 2.0, (count, SKILLS, CANDIDATES)).astype(np.float32)
        # Adding Gumbel noise and taking the largest is a draw from the softmax.
        logits = mu + x @ W.T + delta[domain]
        skill = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        chosen = scores[np.arange(count), skill]
        gold = (chosen + rng.gumbel(size=chosen.shape)).argmax(1)
        part = evidence.build(
            log_likelihood=np.minimum(scores - 10.0, 0.0),
            gold=gold,
            task=[f"task-{n}" for n in range(start, start + count)],
            domain=[f"domain-{d}" for d in domain],
            features=x,
            texts=False,
        )
        evidence.save(part, folder / f"shard-{start // SHARD:03d}.nc")


class Stream:
    """Minibatches of equal shape from evidence files, in random order, read when asked for."""

    def __init__(self, folder: Path):
        import numpy as np

        from bayesmeta import evidence
        from bayesmeta.arrays import Encoding

        self.shards = [evidence.open_lazy(path) for path in sorted(folder.glob("*.nc"))]
        self.blocks = []
        for shard in self.shards:
            # Blocks of about one size: a short one would be a poor place to start from.
            rows = shard.sizes["task"]
            ends = np.linspace(0, rows, -(-rows // BLOCK) + 1).astype(int)
            self.blocks += [(shard, *pair) for pair in zip(ends[:-1], ends[1:], strict=True)]
        self.size = sum(shard.sizes["task"] for shard in self.shards)
        self.width = max(stop - start for _, start, stop in self.blocks)
        features = np.concatenate([shard["features"].values for shard in self.shards])
        self.encoding = Encoding(
            skill=tuple(map(str, self.shards[0]["skill"].values)),
            domain=tuple(f"domain-{d}" for d in range(DOMAINS)),
            feature=tuple(map(str, self.shards[0]["feature"].values)),
            feature_mean=features.mean(0),
            feature_scale=features.std(0),
        )
        self.seconds: list[float] = []

    def epoch(self, rng):
        """Every task once. Notes how long the pass took, what is done with batches included."""
        start = time.perf_counter()
        for index in rng.permutation(len(self.blocks)):
            yield self._batch(*self.blocks[index])
        self.seconds.append(time.perf_counter() - start)

    def _batch(self, shard, start, stop):
        import numpy as np

        from bayesmeta.arrays import figure2_data

        # A short block is filled up with its own tasks at weight zero.
        count = stop - start
        rows = slice(start, stop)
        part = shard.isel(task=rows).load()
        if count < self.width:
            part = part.isel(task=np.resize(np.arange(count), self.width))
        weight = np.where(np.arange(self.width) < count, float(len(self.blocks)), 0.0)
        return figure2_data(part, self.encoding, task_weight=weight.astype(np.float32))


def peak_bytes() -> int:
    """Most memory this process has held. Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fit(folder: Path) -> None:
    """Fit the evidence in a folder and print what it took as JSON."""
    import numpy as np

    import bayesmeta.evidence  # noqa: F401
    from bayesmeta.inference.minibatch_svi import minibatch_svi
    from bayesmeta.models.figure2 import HIERARCHICAL, figure2

    after_import = peak_bytes()
    start = time.perf_counter()
    stream = Stream(folder)
    result = minibatch_svi(
        figure2, stream.epoch, HIERARCHICAL, num_samples=500, num_checked=CHECKED
    )
    mu, W, delta = truth()
    # A constant moves freely between the mean of the domains' effects and mu.
    logits = (result.samples["mu"][:, :, None] + result.samples["delta"])[0]
    slopes = result.samples["W"][0] / stream.encoding.feature_scale
    shift = np.einsum("skp,p->sk", slopes, stream.encoding.feature_mean)
    logits = logits - shift[:, None]
    error = logits.mean(0) - (mu + delta)
    print(
        json.dumps(
            {
                # The last pass only checks, at many more draws.
                "seconds_per_epoch": float(np.median(stream.seconds[:-1])),
                "seconds": time.perf_counter() - start,
                "num_epochs": len(stream.seconds) - 1,
                "peak_gb": (peak_bytes() - after_import) / 1e9,
                "status": result.status.outcome.name,
                "diagnostics": result.status.diagnostics,
                "logit_rmse": float(np.sqrt(np.square(error).mean())),
                "slope_rmse": float(np.sqrt(np.square(slopes.mean(0) - W).mean())),
                "logit_z_rms": float(np.sqrt(np.square(error / logits.std(0)).mean())),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--fit", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        return write(options.folder, options.write)
    if options.fit:
        return fit(options.folder)

    found: dict[int, dict] = {}
    print("    tasks | s per epoch | epochs | total s | peak GB | MB on disk | nats left | status")
    for size in sorted(options.sizes):
        with tempfile.TemporaryDirectory() as folder:
            # The guide's matrices are small: threads of BLAS would only wait for each other.
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
            child = [sys.executable, __file__, "--folder", folder]
            subprocess.run([*child, "--write", str(size)], check=True)
            on_disk = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
            done = subprocess.run(
                [*child, "--fit"], check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
        row = found[size] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{size:9,d} | {row['seconds_per_epoch']:11.3f} | {row['num_epochs']:6d} | "
            f"{row['seconds']:7.1f} | {row['peak_gb']:7.2f} | {on_disk:10.1f} | "
            f"{row['diagnostics']['gain_left']:9.3f} | {row['status']} "
            f"(k-hat {row['diagnostics']['pareto_k']:.2f})",
            flush=True,
        )
    largest = found[max(found)]
    print(
        f"recovered at {max(found):,d} tasks, root mean squared error: strategy logits "
        f"{largest['logit_rmse']:.4f} ({largest['logit_z_rms']:.2f} posterior deviations), "
        f"feature slopes {largest['slope_rmse']:.4f}"
    )

    def by_size(name: str) -> dict[str, float]:
        return {str(size): row["diagnostics"][name] for size, row in found.items()}

    seconds = {size: row["seconds_per_epoch"] for size, row in found.items()}
    print(
        json.dumps(
            {
                "slope": slope(seconds),
                "peak_gb": largest["peak_gb"],
                "seconds_per_epoch": {str(size): value for size, value in seconds.items()},
                "epochs": {str(size): row["num_epochs"] for size, row in found.items()},
                "gain_left": by_size("gain_left"),
                "pareto_k": by_size("pareto_k"),
                "skipped_steps": by_size("skipped_steps"),
            }
        )
    )


def slope(seconds: dict[int, float]) -> float:
    """Least-squares slope of log seconds on log size; nan for one size."""
    from math import log

    if len(seconds) < 2:
        return float("nan")
    x, y = [log(size) for size in seconds], [log(value) for value in seconds.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


if __name__ == "__main__":
    main()
