"""Theta_E inside the language model: what a posterior over adapter weights gains, and forgets.

Run: python tests/benchmarks/adapter.py [--tasks 60] [--steps 60] [--out bench/adapter].
A low-rank adapter of every value and down projection of the embedded language model is fitted to
the reflect tasks of two families, by stochastic variational inference with the model in the loop.
On their held-out tasks the log score of the gold answer among its candidates is compared with the
model as it was, and with the same model calibrated by one power (beta), which costs nothing. Then
a spike and a slab for every module say which are worth updating: inclusion probabilities, and the
gain with the fifth of modules that is most, and least, probable. On families that the adapter never
saw, the same differences are what it forgot. The last line is one JSON object.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

TOUCHED = ("letter_counting", "leg_counting")


def mean_se(values: np.ndarray) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def shown(values: np.ndarray) -> str:
    return "{:+.3f} (SE {:.3f})".format(*mean_se(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=60, help="of each family")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("bench/adapter"))
    options = parser.parse_args()

    import bayesmeta
    from bayesmeta.adapter import Adapter, fit_adapter, heldout_gain
    from bayesmeta.adapter_modules import gains, select_modules
    from bayesmeta.families import default_families

    tasks = bayesmeta.make_tasks(TOUCHED, num_per_family=options.tasks, seed=5)
    reflect = [task for task in tasks if task.split == "reflect"]
    heldout = [task for task in tasks if task.split != "reflect"]
    others = [name for name in default_families() if name not in TOUCHED]
    untouched = bayesmeta.make_tasks(others, num_per_family=15, seed=9)
    llm = bayesmeta.LocalLLM()
    adapter = Adapter(llm)
    print(
        f"{llm.name}: {len(adapter.modules)} modules, {adapter.size} weights; {len(reflect)} tasks "
        f"to learn from, {len(heldout)} held out, {len(untouched)} of untouched families"
    )
    fit = fit_adapter(adapter, reflect, num_steps=options.steps)
    print(f"fitted in {fit.seconds:.0f} s: {fit.status}")
    sd = fit.jacobian.logit_sd(fit.scale.numpy())
    print(f"the prior moves the log odds of two answers by {sd:.2f} nats (sd)")

    table = heldout_gain(fit, heldout, num_draws=options.draws)
    before = table["before"].to_numpy()
    print(f"held-out log score before: {shown(before)} nats per task, n={len(heldout)}")
    result: dict[str, object] = {"fit_seconds": round(fit.seconds, 1), "status": str(fit.status)}
    for name in ("tempered", "mean", "posterior"):
        gain = table[name].to_numpy() - before
        print(f"  {name}: gains {shown(gain)}")
        result[name], result[f"{name}_se"] = mean_se(gain)
    over = table["posterior"].to_numpy() - table["tempered"].to_numpy()
    print(f"  posterior minus tempered: {shown(over)}")
    result["over_tempered"], result["over_tempered_se"] = mean_se(over)
    for family, rows in table.groupby("domain"):
        print(
            f"  {family}: posterior gains {shown((rows['posterior'] - rows['before']).to_numpy())}"
        )

    start = time.perf_counter()
    found = select_modules(fit)
    seconds = time.perf_counter() - start
    inclusion = found.table["inclusion"].to_numpy()
    attrs = found.tree.attrs
    print(f"modules: {seconds:.0f} s, {attrs['status']}: {attrs['status_detail']}")
    print(
        f"tau {found.tau:.2f}; inclusion {inclusion.min():.2f} to {inclusion.max():.2f}, "
        f"beforehand 0.20; {int(found.table['selected'].sum())} above one half"
    )
    print(found.table.sort_values("inclusion", ascending=False).head(12).round(3).to_string())
    top = found.most_probable(0.2)
    low = np.zeros_like(top)
    low[np.argsort(inclusion, kind="stable")[: top.sum()]] = True
    every = np.ones_like(top)
    weights = {
        "all modules": found.weights(every),
        "likeliest fifth": found.weights(top),
        "unlikeliest fifth": found.weights(low),
    }
    if found.share > 0:
        weights["selected"] = found.weights()
    weights["posterior mean"] = fit.mean()
    for where, some in (("held out", heldout), ("untouched families", untouched)):
        scores = gains(fit, weights, some)
        print(f"{where}, n={len(some)}, before {shown(scores['before'].to_numpy())}")
        for name in weights:
            change = (scores[name] - scores["before"]).to_numpy()
            print(f"  {name}: {shown(change)}")
            key = f"{'gain' if some is heldout else 'untouched'}_{name.replace(' ', '_')}"
            result[key], result[f"{key}_se"] = mean_se(change)
    options.out.mkdir(parents=True, exist_ok=True)
    found.table.to_csv(options.out / "modules.csv")
    table.to_csv(options.out / "heldout.csv")
    result |= {
        "inclusion_max": float(inclusion.max()),
        "num_selected": int(found.table["selected"].sum()),
        "select_seconds": round(seconds, 1),
    }
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
