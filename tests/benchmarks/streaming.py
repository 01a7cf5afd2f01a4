"""What an update of a streamed belief costs, and what it is worth.

Run: python tests/benchmarks/streaming.py [--episodes 100] [--seeds 3].
Data are drawn from the Figure 2 model: 8 domains, 6 skills, 4 features, 40 tasks an episode, and
400 further tasks that are held out. A stream without forgetting takes in one episode after
another; after 20 of them the same posterior is computed from scratch on all 800 tasks, by NUTS (4
chains, 500 + 1,000 steps) and by SVI. The first update and both refits compile, as a user's do; an
update in the middle of a stream does not.

Prints the median seconds of updates 2 to 6 and of the five last ones; seconds of update 20 and of
refits; and the mean log score of held-out tasks, stream minus NUTS refit, with its standard error
paired by task. The last line is one JSON object: ``cost_ratio_100_2`` (last updates over first
ones), ``speedup_20`` (NUTS refit over update 20, mean over seeds) with ``speedup_20_svi``,
``log_score_diff`` and ``log_score_diff_se`` in nats per task, ``unconverged``, updates that were
not accepted, and ``num_seeds``.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TASKS, HELD_OUT, REFIT_AT = 40, 400, 20


def part(data: Any, tasks: slice) -> Any:
    """Some tasks of a data set."""
    return dataclasses.replace(
        data,
        log_p=data.log_p[:, :, tasks],
        log_likelihood=data.log_likelihood[:, tasks],
        gold=data.gold[tasks],
        domain=data.domain[tasks],
        x=data.x[tasks],
        scale=data.scale[tasks],
    )


def log_score(sites: dict[str, np.ndarray], heldout: Any) -> np.ndarray:
    """[task] log E[sum_k w_nk p(o_n | n, k)] in nats; sites [draw, *shape]."""
    from scipy.special import logsumexp, softmax

    keep = np.linspace(0, len(sites["mu"]) - 1, 1000).astype(int)
    mu, W, delta = (sites[name][keep].astype(np.float64) for name in ("mu", "W", "delta"))
    x, domain = np.asarray(heldout.x), np.asarray(heldout.domain)
    logits = mu[:, None] + np.einsum("np,skp->snk", x, W) + delta[:, domain]
    weight = softmax(logits, -1).mean(0)
    return np.asarray(logsumexp(np.log(weight) + np.asarray(heldout.log_likelihood).T, axis=1))


def run(seed: int, num_episodes: int) -> dict[str, Any]:
    from simulate import simulate_figure2

    from bayesmeta.inference.nuts import nuts
    from bayesmeta.inference.streaming import Stream
    from bayesmeta.inference.structure import merge_chains
    from bayesmeta.inference.svi import svi
    from bayesmeta.models.figure2 import HIERARCHICAL, figure2

    num_tasks = TASKS * num_episodes
    data, _ = simulate_figure2(
        np.random.default_rng([2026, seed]),
        num_tasks=num_tasks + HELD_OUT,
        num_skills=6,
        num_features=4,
    )
    heldout = part(data, slice(num_tasks, None))
    coordinates: dict[str, Any] = {"decenter": ("v",), "gaussianise": ("tau_E",)}
    seconds, unconverged, state = [], 0, None
    found: dict[str, Any] = {}
    stream = Stream.of(figure2, part(data, slice(0, TASKS)), HIERARCHICAL, **coordinates)
    for b in range(num_episodes):
        episode = part(data, slice(TASKS * b, TASKS * (b + 1)))
        start = time.perf_counter()
        state, fit = stream.update(state, episode, HIERARCHICAL, rng_seed=seed)
        seconds.append(time.perf_counter() - start)
        unconverged += not fit.status.converged
        if b + 1 == REFIT_AT:
            sites = stream.sites(state, episode, HIERARCHICAL, num_samples=2000)
            streamed = log_score({k: v[0] for k, v in sites.items()}, heldout)
            seen = part(data, slice(0, TASKS * REFIT_AT))
            start = time.perf_counter()
            refit = nuts(figure2, seen, HIERARCHICAL, rng_seed=seed, decenter=("v",))
            found["nuts"] = time.perf_counter() - start
            start = time.perf_counter()
            svi(figure2, seen, HIERARCHICAL, rng_seed=seed, **coordinates)
            found["svi"] = time.perf_counter() - start
            batch = log_score({k: merge_chains(v) for k, v in refit.samples.items()}, heldout)
            found["difference"], found["level"] = streamed - batch, batch.mean()
            found["update"] = float(np.median(seconds[REFIT_AT - 5 :]))
    return {**found, "seconds": np.array(seconds), "unconverged": unconverged}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.episodes < REFIT_AT + 5:
        parser.error(f"--episodes must be at least {REFIT_AT + 5}, got {options.episodes}")
    runs = []
    print("seed | updates 2-6 (s) | last 5 (s) | update 20 (s) | NUTS refit (s) | SVI refit (s)")
    for seed in range(options.seeds):
        # The first seed compiles for all; its first updates are not among those that are timed.
        found = run(seed, options.episodes)
        runs.append(found)
        early, late = np.median(found["seconds"][1:6]), np.median(found["seconds"][-5:])
        print(
            f"{seed:4} | {early:15.3f} | {late:10.3f} | {found['update']:13.3f} | "
            f"{found['nuts']:14.2f} | {found['svi']:13.2f}   log score {found['level']:.4f}, "
            f"stream - refit {found['difference'].mean():+.4f}",
            flush=True,
        )
    early = np.concatenate([found["seconds"][1:6] for found in runs])
    late = np.concatenate([found["seconds"][-5:] for found in runs])
    difference = np.concatenate([found["difference"] for found in runs])
    result = {
        "cost_ratio_100_2": round(float(np.median(late) / np.median(early)), 3),
        "speedup_20": round(float(np.mean([f["nuts"] / f["update"] for f in runs])), 2),
        "speedup_20_svi": round(float(np.mean([f["svi"] / f["update"] for f in runs])), 2),
        "log_score_diff": round(float(difference.mean()), 5),
        "log_score_diff_se": round(float(difference.std(ddof=1) / len(difference) ** 0.5), 5),
        "unconverged": int(sum(f["unconverged"] for f in runs)),
        "num_seeds": len(runs),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
